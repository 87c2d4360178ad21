//! The job `modes`: one guest goes through every mode there is.

use super::super::{Vmm, inside};
use super::command_line::Guest;
use super::generation::Origin;
use super::life::{self, Life};
use super::migration::{self, RUNNING, Took};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::time::Instant;

/// The same program by another name, so that what a process runs can be told from what it ran.
const NEXT_VMM: &str = "/lab/vmm-next";
const RAM: &str = "/dev/shm/ram";
const STATE: &str = "/tmp/vm.state";
/// More than a state without RAM ever takes.
const STATE_WITHOUT_RAM: u64 = 4 << 20;

/// Boots a guest, takes it through the modes and lets it finish; gives the result line's numbers.
pub(crate) fn run(vmm: Vmm) -> Result<String> {
    let (mut life, boot) = Life::boot(Guest::new(vmm))?;
    let mut took = Vec::new();

    took.push((
        "transfer",
        migration::step(&mut life, "cpr-transfer", migration::transfer)?,
    ));
    fs::hard_link(inside::VMM, NEXT_VMM).with_context(|| format!("Cannot make {NEXT_VMM}"))?;
    took.push((
        "exec",
        migration::step(&mut life, "cpr-exec", |life| {
            migration::execute(life, NEXT_VMM)
        })?,
    ));
    // Nobody shares this RAM: the next process maps it from the state's file.
    took.push((
        "reboot_file",
        migration::step(&mut life, "cpr-reboot with RAM in the file", |life| {
            reboot(life, None, false)
        })?,
    ));
    // From there it is copied into shared RAM, which then stays where it is.
    took.push((
        "reboot_copy",
        migration::step(
            &mut life,
            "cpr-reboot from the file into shared RAM",
            |life| reboot(life, Some(RAM), false),
        )?,
    ));
    took.push((
        "reboot_shared",
        migration::step(&mut life, "cpr-reboot with RAM that stays", |life| {
            reboot(life, Some(RAM), true)
        })?,
    ));
    took.push((
        "transfer_shared",
        migration::step(
            &mut life,
            "cpr-transfer of what was loaded",
            migration::transfer,
        )?,
    ));

    let numbers = life.end()?;
    Ok(format!(
        "{} {} {numbers}",
        life::heading(vmm, boot),
        summary(&took)
    ))
}

/// Keeps the guest and loads it into a process whose RAM is `ram`.
fn reboot(life: &mut Life, ram: Option<&str>, ram_stays: bool) -> Result<Took> {
    let start = Instant::now();
    let kept = migration::keep(&mut life.now, STATE, ram_stays)?;
    let size = fs::metadata(STATE)
        .with_context(|| format!("Cannot look at {STATE}"))?
        .len();
    ensure!(
        ram_stays == (size < STATE_WITHOUT_RAM),
        "The state has {size} bytes, which is {} RAM",
        if ram_stays { "with" } else { "without" }
    );
    life.guest.ram = ram.map(str::to_owned);
    let loaded = if ram_stays {
        life.now = life.next(Origin::Incoming("defer"))?;
        migration::load(&mut life.now, Some(STATE), true, RUNNING)?
    } else {
        life.now = life.next(Origin::Incoming(&format!("file:{STATE}")))?;
        migration::load(&mut life.now, None, false, RUNNING)?
    };
    Ok(Took::since(start, kept + loaded))
}

fn summary(took: &[(&str, Took)]) -> String {
    let numbers: Vec<String> = took
        .iter()
        .map(|(name, took)| {
            format!(
                "{name}_downtime_ms={} {name}_total_ms={} {name}_gap_ms={}",
                took.downtime, took.total, took.gap
            )
        })
        .collect();
    numbers.join(" ")
}
