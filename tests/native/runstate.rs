//! Stopping and letting go on.

use anyhow::{Result, ensure};
use baton_testkit::check::examine;
use baton_testkit::progress::Progress;
use baton_testkit::report::ENTRY_TSC;
use baton_testkit::{Machine, needs_kvm};

use crate::setup;

/// Asks the monitor some questions, each of which takes long enough for a guest that runs to show.
fn stands_still(machine: &mut Machine) -> Result<()> {
    let before = Progress::now(machine.report());
    for _ in 0..50 {
        machine.status()?;
    }
    let after = Progress::now(machine.report());
    ensure!(
        before == after,
        "The guest went on from {before:?} to {after:?}"
    );
    Ok(())
}

#[test]
fn a_stopped_guest_stands_still_and_goes_on() -> Result<()> {
    needs_kvm!();
    let mut machine = setup()?.boot()?;
    for _ in 0..3 {
        machine.wait_progress()?;
        machine.qmp()?.forget_events();
        machine.stop()?;
        machine.qmp()?.wait_event("STOP")?;
        ensure!(machine.status()? == "paused");
        stands_still(&mut machine)?;
        machine.stop()?;
        machine.cont()?;
        machine.qmp()?.wait_event("RESUME")?;
        ensure!(machine.status()? == "running");
    }
    machine.wait_progress()?;
    examine(&mut machine).map(drop)
}

#[test]
fn a_guest_started_paused_waits_for_cont() -> Result<()> {
    needs_kvm!();
    let mut machine = setup()?.paused().start()?;
    ensure!(machine.status()? == "prelaunch");
    stands_still(&mut machine)?;
    ensure!(machine.report().get(ENTRY_TSC) == 0, "The guest has run");
    machine.cont()?;
    machine.wait_up()?;
    machine.wait_progress()
}

#[test]
fn two_cpus_stop_together() -> Result<()> {
    needs_kvm!();
    let mut machine = setup()?.cpus(2).boot()?;
    machine.wait_progress()?;
    machine.stop()?;
    stands_still(&mut machine)?;
    machine.cont()?;
    machine.wait_progress()
}
