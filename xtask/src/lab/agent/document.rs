//! The job `document`: the examples of QEMU's document on CheckPoint and Restart, as printed there. One
//! guest lives through three of them; that of the second has a device by VFIO, which is handed over only
//! asleep. What differs: paths, and that a second monitor of each process says what has happened and,
//! where the document has QMP, is typed to.

use super::super::{Vmm, inside};
use super::command_line::Guest;
use super::generation::{Generation, Origin};
use super::life::{self, Life};
use super::migration::{self, RUNNING};
use super::{guest_agent, passthrough, vfio};
use anyhow::{Context, Result, ensure};
use baton_testkit::terminal::Tty;
use serde_json::json;
use std::fs;

const RAM: &str = "/dev/shm/ram0";
const PORT: &str = "44444";
const AGENT: &str = "qga.sock";
/// Of the second guest, to tell its logs from those of the first.
const SECOND: u32 = 11;
const SECOND_SERIAL: &str = "/out/guest-2.log";
const SECOND_DISK: &str = "/lab/guest-2.img";

/// Boots two guests, replays the examples on them, and lets them finish; gives the result line's numbers.
pub(crate) fn run(vmm: Vmm) -> Result<String> {
    let second = sleeper(vmm)?;
    let mut guest = Guest::new(vmm);
    guest.ram = Some(RAM.to_owned());
    let (mut life, boot, tty) = Life::boot_at_terminal(guest)?;
    reboot(&mut life, tty).context("cpr-reboot, example 1")?;
    life.goes_on()?;
    transfer(&mut life).context("cpr-transfer, example 1")?;
    life.goes_on()?;
    deferred(&mut life).context("cpr-transfer, example 2")?;
    life.goes_on()?;
    let numbers = life.end()?;
    println!("LAB three examples are done");

    // L1 has memory for one at a time.
    fs::remove_file(RAM).with_context(|| format!("Cannot remove {RAM}"))?;
    let (mut life, _, tty) = Life::boot_at_terminal(second)?;
    suspended(&mut life, tty).context("cpr-reboot, example 2")?;
    vfio::passed_disk_works(&mut life).context("After cpr-reboot, example 2")?;
    let blocks = vfio::blocks(&life.end()?)?;
    passthrough::no_faults()?;
    Ok(format!(
        "{} examples=4 {numbers} {blocks}",
        life::heading(vmm, boot)
    ))
}

/// The guest of the second example, with a disk like the first guest's.
fn sleeper(vmm: Vmm) -> Result<Guest> {
    let mut guest = Guest::new(vmm)
        .device(&format!("vfio-pci,host={}", passthrough::bind()?))
        .guest_agent(AGENT);
    guest.first = SECOND;
    guest.serial = SECOND_SERIAL.to_owned();
    guest.disk = SECOND_DISK.to_owned();
    guest.ram = Some(RAM.to_owned());
    fs::copy(inside::DISK, &guest.disk).with_context(|| format!("Cannot make {}", guest.disk))?;
    Ok(guest)
}

/// Types what is printed; lines that begin with `#` say which runstate is waited for.
fn replay(vmm: &mut Generation, tty: &mut Tty, printed: &str) -> Result<()> {
    tty.replay(printed, |runstate| migration::has_guest(vmm, runstate))
}

fn reboot(life: &mut Life, mut tty: Tty) -> Result<()> {
    let printed = "
        (qemu) info status
        VM status: running
        (qemu) migrate_set_parameter mode cpr-reboot
        (qemu) migrate_set_capability x-ignore-shared on
        (qemu) migrate -d file:vm.state
        # postmigrate
        (qemu) info status
        VM status: paused (postmigrate)
        (qemu) quit";
    replay(&mut life.now, &mut tty, printed)?;
    migration::ended_well(&mut life.now)?;

    let mut tty;
    (life.now, tty) = life.next_at_terminal(Origin::Incoming("defer"))?;
    let printed = "
        (qemu) info status
        VM status: paused (inmigrate)
        (qemu) migrate_set_parameter mode cpr-reboot
        (qemu) migrate_set_capability x-ignore-shared on
        (qemu) migrate_incoming file:vm.state
        # running
        (qemu) info status
        VM status: running";
    replay(&mut life.now, &mut tty, printed)
}

fn suspended(life: &mut Life, mut tty: Tty) -> Result<()> {
    vfio::passed_disk_works(life)?;
    guest_agent::lives(AGENT)?;
    // echo '{"execute":"guest-suspend-ram"}' | ncat --send-only -U qga.sock
    guest_agent::tell(AGENT, guest_agent::SUSPEND)?;
    let printed = "
        # suspended
        (qemu) info status
        VM status: paused (suspended)
        (qemu) migrate_set_parameter mode cpr-reboot
        (qemu) migrate_set_capability x-ignore-shared on
        (qemu) migrate -d file:vm.state
        # postmigrate
        (qemu) info status
        VM status: paused (postmigrate)
        (qemu) quit";
    replay(&mut life.now, &mut tty, printed)?;
    migration::ended_well(&mut life.now)?;

    let mut tty;
    (life.now, tty) = life.next_at_terminal(Origin::Incoming("defer"))?;
    let printed = "
        (qemu) info status
        VM status: paused (inmigrate)
        (qemu) migrate_set_parameter mode cpr-reboot
        (qemu) migrate_set_capability x-ignore-shared on
        (qemu) migrate_incoming file:vm.state
        # suspended
        (qemu) info status
        VM status: paused (suspended)
        (qemu) system_wakeup
        # running
        (qemu) info status
        VM status: running";
    replay(&mut life.now, &mut tty, printed)
}

fn transfer(life: &mut Life) -> Result<()> {
    let (target, mut tty) = life.next_at_terminal(Origin::Document(&format!("tcp:0:{PORT}")))?;
    let mut source = std::mem::replace(&mut life.now, target);
    let status = source.command("query-status", &json!({}))?;
    ensure!(
        status["status"] == RUNNING && status["running"] == true,
        "{status}"
    );
    migrate(&mut source, &life.now)?;
    let printed = "
        # running
        (qemu) info status
        VM status: running";
    replay(&mut life.now, &mut tty, printed)?;
    done(&mut source)
}

fn deferred(life: &mut Life) -> Result<()> {
    let (target, mut tty) = life.next_at_terminal(Origin::Document("defer"))?;
    let mut source = std::mem::replace(&mut life.now, target);
    source.command("device_add", &json!({ "driver": "pcie-root-port" }))?;
    migrate(&mut source, &life.now)?;
    let printed = format!(
        "
        (qemu) info status
        VM status: paused (inmigrate)
        (qemu) device_add pcie-root-port
        (qemu) migrate_incoming tcp:0:{PORT}
        # running
        (qemu) info status
        VM status: running"
    );
    replay(&mut life.now, &mut tty, &printed)?;
    done(&mut source)
}

fn migrate(source: &mut Generation, target: &Generation) -> Result<()> {
    source.command("migrate-set-parameters", &json!({ "mode": "cpr-transfer" }))?;
    let channels = target.document_channels(PORT);
    source
        .command("migrate", &json!({ "channels": channels }))
        .map(drop)
}

fn done(source: &mut Generation) -> Result<()> {
    migration::has_guest(source, "postmigrate")?;
    let status = source.command("query-status", &json!({}))?;
    ensure!(status["running"] == false, "{status}");
    migration::quit(source)
}
