//! A guest may be handed over for years: no generation may have more than one long before.

use anyhow::{Context, Result, ensure};
use baton_testkit::check::examine;
use baton_testkit::process::{Footprint, descriptors, footprint};
use baton_testkit::report::ENTRY_TSC;
use baton_testkit::transfer::{execute_successor, succeed};
use baton_testkit::wait::{PATIENCE, wait_for};
use baton_testkit::{Machine, needs_baton, needs_kvm};

use crate::setup;

/// How many generations a guest lives through; fewer do where time is short.
const GENERATIONS: &str = "BATON_TEST_GENERATIONS";
/// When everything that is kept for the next time has been kept.
const SETTLED: usize = 20;
/// What memory may differ by for no reason, in KiB: less than a page for each generation.
const NOISE_KIB: u64 = 512;

fn generations() -> usize {
    let set = std::env::var(GENERATIONS).ok();
    set.and_then(|number| number.parse().ok())
        .unwrap_or(200)
        .max(SETTLED + 1)
}

/// Takes a guest through all of them, and compares the last with the twentieth.
fn live_on(next: fn(Machine) -> Result<Machine>) -> Result<()> {
    // Else the C library makes a heap more, which is a mapping, when threads happen to meet in the first.
    let setup = setup()?.environment("MALLOC_ARENA_MAX", "1");
    let mut machine = setup.boot()?;
    machine.wait_progress()?;
    let entered = machine.report().get(ENTRY_TSC);
    let mut early = None;
    for generation in 1..=generations() {
        machine = next(machine).with_context(|| format!("generation {generation}"))?;
        if generation == SETTLED {
            machine.wait_progress()?;
            machine.wait_alone()?;
            early = Some((footprint(machine.pid())?, descriptors(machine.pid())?));
        }
        if generation % 50 == 0 {
            examine(&mut machine)?;
        }
    }
    machine.wait_progress()?;
    machine.wait_alone()?;
    let (early, open) = early.context("Nothing was measured")?;
    let late = settles(&machine, early).with_context(|| {
        let now = descriptors(machine.pid()).unwrap_or_default();
        format!("Descriptors before: {open:?}; now: {now:?}")
    })?;
    println!(
        "generation {SETTLED}: {early:?}; generation {}: {late:?}",
        generations()
    );
    examine(&mut machine)?;
    ensure!(
        machine.report().get(ENTRY_TSC) == entered,
        "The guest has booted again"
    );
    Ok(())
}

/// Waits until the process has no more than `early`: threads come and go.
fn settles(machine: &Machine, early: Footprint) -> Result<Footprint> {
    let mut late = early;
    let settled = wait_for("the process to have no more", PATIENCE, || {
        late = footprint(machine.pid())?;
        let more = late.descriptors > early.descriptors
            || late.mappings > early.mappings
            || late.threads > early.threads
            || late.anonymous_kib > early.anonymous_kib + NOISE_KIB;
        Ok((!more).then_some(()))
    });
    settled.with_context(|| format!("{early:?} has become {late:?}"))?;
    Ok(late)
}

#[test]
fn hundreds_of_processes_have_no_more_than_a_few() -> Result<()> {
    needs_kvm!();
    live_on(|machine| Ok(succeed(machine)?.0))
}

#[test]
fn hundreds_of_programs_in_one_process_have_no_more_than_a_few() -> Result<()> {
    needs_baton!();
    live_on(|mut machine| {
        execute_successor(&mut machine)?;
        Ok(machine)
    })
}
