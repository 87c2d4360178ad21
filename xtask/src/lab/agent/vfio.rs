//! The job `vfio`: a guest has a disk of L1's by VFIO. Its agent suspends it, it is migrated in its sleep,
//! as QEMU's document on CPR says, and the disk works again when it is woken.

use super::super::Vmm;
use super::command_line::Guest;
use super::generation::Origin;
use super::guest_agent;
use super::life::{self, Life};
use super::migration::{self, RUNNING, SUSPENDED, Took};
use super::passthrough;
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::time::Instant;

const RAM: &str = "/dev/shm/ram";
const STATE: &str = "/tmp/vm.state";
const AGENT: &str = "/tmp/qga.sock";
const CYCLES: u32 = 2;

/// Boots a guest, migrates it asleep and awake, and lets it finish; gives the result line's numbers.
pub(crate) fn run(vmm: Vmm) -> Result<String> {
    let address = passthrough::bind()?;
    let mut guest = Guest::new(vmm)
        .device(&format!("vfio-pci,host={address}"))
        .guest_agent(AGENT);
    guest.ram = Some(RAM.to_owned());
    let (mut life, boot) = Life::boot(guest)?;
    passed_disk_works(&mut life)?;
    guest_agent::lives(AGENT)?;

    let mut took = Vec::new();
    for cycle in 1..=CYCLES {
        let name = format!("cpr-reboot asleep, {cycle} of {CYCLES}");
        took.push(migration::step(&mut life, &name, reboot)?);
        passed_disk_works(&mut life).with_context(|| format!("After {name}"))?;
        guest_agent::lives(AGENT).with_context(|| format!("After {name}"))?;
    }
    let transfer = match vmm {
        Vmm::Baton => at_work(&mut life)?,
        Vmm::Qemu => awake(&mut life).context("cpr-transfer awake")?,
    };
    passed_disk_works(&mut life)?;

    let numbers = life.end()?;
    blocks(&numbers)?;
    passthrough::no_faults()?;
    let most = took.iter().map(|took| took.downtime).max().unwrap_or(0);
    Ok(format!(
        "{} sleeps={CYCLES} reboot_downtime_ms_max={most} transfer_downtime_ms={transfer} {numbers}",
        life::heading(vmm, boot),
    ))
}

/// The guest's agent suspends it, and it is woken in another process.
fn reboot(life: &mut Life) -> Result<Took> {
    guest_agent::tell(AGENT, guest_agent::SUSPEND)?;
    migration::has_guest(&mut life.now, SUSPENDED)?;
    let start = Instant::now();
    let kept = migration::keep(&mut life.now, STATE, true)?;
    life.now = life.next(Origin::Incoming("defer"))?;
    let loaded = migration::load(&mut life.now, Some(STATE), true, SUSPENDED)?;
    life.now.command("system_wakeup", &json!({}))?;
    migration::has_guest(&mut life.now, RUNNING)?;
    Ok(Took::since(start, kept + loaded))
}

/// The guest is handed over while the disk is at work, and not kept. Gives the longest downtime.
fn at_work(life: &mut Life) -> Result<String> {
    let mode = json!({ "mode": "cpr-reboot" });
    life.now.command("migrate-set-parameters", &mode)?;
    let uri = json!({ "uri": format!("file:{STATE}") });
    let refused = life.now.command("migrate", &uri);
    let reason = refused
        .err()
        .map(|error| format!("{error:#}"))
        .unwrap_or_default();
    let expected = "VFIO device only supports cpr-reboot for runstate suspended";
    ensure!(reason.contains(expected), "cpr-reboot awake: '{reason}'");
    let mut took = Vec::new();
    for round in 1..=CYCLES {
        let name = format!("cpr-transfer awake, {round} of {CYCLES}");
        took.push(migration::step(life, &name, migration::transfer)?);
        passed_disk_works(life).with_context(|| format!("After {name}"))?;
        let name = format!("cpr-exec awake, {round} of {CYCLES}");
        let program = life.now.program()?;
        let program = program.to_str().context("Its path is no text")?.to_owned();
        let execute = |life: &mut Life| migration::execute(life, &program);
        took.push(migration::step(life, &name, execute)?);
        passed_disk_works(life).with_context(|| format!("After {name}"))?;
        guest_agent::lives(AGENT).with_context(|| format!("After {name}"))?;
    }
    let most = took.iter().map(|took| took.downtime).max().unwrap_or(0);
    Ok(most.to_string())
}

/// Without sleep: done, or refused because of the device, and then the guest stays where it is. Gives the
/// downtime.
fn awake(life: &mut Life) -> Result<String> {
    match migration::transfer(life) {
        Ok(took) => {
            life.goes_on()?;
            println!("LAB cpr-transfer awake: downtime {} ms", took.downtime);
            Ok(took.downtime.to_string())
        }
        Err(error) => {
            let reason = format!("{error:#}");
            ensure!(reason.to_lowercase().contains("vfio"), "{reason}");
            let status = life.now.status()?;
            ensure!(
                status == RUNNING,
                "The guest is `{status}` after the refusal"
            );
            life.goes_on().context("After the refusal")?;
            println!("LAB cpr-transfer awake: {reason}");
            Ok("refused".to_owned())
        }
    }
}

/// What a guest's numbers say of the disk.
pub(crate) fn blocks(numbers: &str) -> Result<String> {
    let words = numbers.split_whitespace();
    let found: Vec<&str> = words.filter(|word| word.starts_with("nvme")).collect();
    ensure!(
        !found.is_empty(),
        "The guest has never used the disk that was passed through"
    );
    Ok(found.join(" "))
}

/// The guest goes on to write, read and be interrupted.
pub(crate) fn passed_disk_works(life: &mut Life) -> Result<()> {
    let line = "passed disk holds";
    let before = life.said(line)?;
    // The first may be about blocks that were written before.
    life.wait_said(line, before + 2)
}
