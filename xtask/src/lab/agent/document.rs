//! The job `document`: the examples of QEMU's document on CheckPoint and Restart, as printed there, on one
//! guest that lives through all of them. What differs: paths, and that a second monitor of each process
//! says what has happened and, where the document has QMP, is typed to.

use super::super::{Vmm, inside};
use super::command_line::Guest;
use super::generation::{Generation, Origin};
use super::life::{self, Life};
use super::migration::{self, RUNNING};
use anyhow::{Context, Result, ensure};
use baton_testkit::terminal::Tty;
use serde_json::json;

const RAM: &str = "/dev/shm/ram0";
const PORT: &str = "44444";

/// Boots a guest, replays the examples on it, and lets it finish; gives the result line's numbers.
pub(crate) fn run(vmm: Vmm) -> Result<String> {
    let mut guest = Guest::new(vmm);
    guest.ram = Some(RAM.to_owned());
    let (mut life, boot, tty) = Life::boot_at_terminal(guest)?;
    let tty = reboot(&mut life, tty).context("cpr-reboot, example 1")?;
    life.goes_on()?;
    suspended(&mut life, tty).context("cpr-reboot, example 2")?;
    life.goes_on()?;
    transfer(&mut life).context("cpr-transfer, example 1")?;
    life.goes_on()?;
    deferred(&mut life).context("cpr-transfer, example 2")?;
    life.goes_on()?;
    let numbers = life.end()?;
    Ok(format!("{} examples=4 {numbers}", life::heading(vmm, boot)))
}

/// Types what is printed; lines that begin with `#` say which runstate is waited for.
fn replay(vmm: &mut Generation, tty: &mut Tty, printed: &str) -> Result<()> {
    tty.replay(printed, |runstate| migration::has_guest(vmm, runstate))
}

fn reboot(life: &mut Life, mut tty: Tty) -> Result<Tty> {
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
    replay(&mut life.now, &mut tty, printed)?;
    Ok(tty)
}

/// Without the device of that example. The guest is told by its mailbox what the document tells an agent.
fn suspended(life: &mut Life, mut tty: Tty) -> Result<()> {
    // The terminal has shown the first example before.
    let before = tty.shown();
    ensure!(before.ends_with("(qemu)"), "{before}");
    life::tell_guest(&life.guest.disk, &format!("{}1", inside::SUSPEND))?;
    migration::has_guest(&mut life.now, migration::SUSPENDED)?;
    for line in [
        "info status",
        "migrate_set_parameter mode cpr-reboot",
        "migrate_set_capability x-ignore-shared on",
        "migrate -d file:vm.state",
    ] {
        tty.line(line)?;
    }
    migration::has_guest(&mut life.now, "postmigrate")?;
    tty.line("info status")?;
    tty.types("quit\r")?;
    tty.wait_shown("(qemu) quit")?;
    let shown = tty.shown();
    let shown = shown.strip_prefix(&before).unwrap_or(&shown).trim();
    let printed = "info status
VM status: paused (suspended)
(qemu) migrate_set_parameter mode cpr-reboot
(qemu) migrate_set_capability x-ignore-shared on
(qemu) migrate -d file:vm.state
(qemu) info status
VM status: paused (postmigrate)
(qemu) quit";
    ensure!(shown == printed, "{shown}\nis not\n{printed}");
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
