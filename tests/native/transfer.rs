//! Live updates by cpr-transfer: the guest goes on in the next process as if nothing had been.

use anyhow::{Result, ensure};
use baton_testkit::check::examine;
use baton_testkit::machine::Main;
use baton_testkit::progress::Progress;
use baton_testkit::report::{Control, ENTRY_TSC, TICKS};
use baton_testkit::transfer::{begin, outcome, succeed};
use baton_testkit::{Serial, Vmm, needs_baton, needs_kvm, transfer};
use serde_json::json;

use crate::{is_whole, setup};

#[test]
fn a_guest_goes_on_in_the_next_process() -> Result<()> {
    needs_kvm!();
    let mut source = setup()?.boot()?;
    source.wait_progress()?;
    let mut target = source.successor()?;
    transfer(&mut source, &mut target)?;
    is_whole(&mut target)?;

    // The source is of no more use, and its end does not matter to the guest.
    source.quit()?;
    target.say("quiesce")?;
    let verdict = target.wait_line("VERIFIED ")?;
    ensure!(verdict.ends_with("bad=0"), "{verdict}");
    target.say("poweroff")?;
    target.ended_well()
}

#[test]
fn ten_in_a_row_lose_nothing() -> Result<()> {
    needs_kvm!();
    let mut machine = setup()?.append("pace=0").boot()?;
    let entered = machine.report().get(ENTRY_TSC);
    for _ in 0..10 {
        machine.wait_progress()?;
        let before = Progress::now(machine.report());
        let (target, _) = succeed(machine)?;
        machine = target;
        is_whole(&mut machine)?;
        let stuck = Progress::now(machine.report()).stuck_since(&before);
        ensure!(stuck.is_empty(), "{stuck:?}");
    }
    ensure!(
        machine.report().get(ENTRY_TSC) == entered,
        "The guest has booted again"
    );
    Ok(())
}

#[test]
fn two_cpus_go_on_in_the_next_process() -> Result<()> {
    needs_kvm!();
    let mut machine = setup()?.cpus(2).boot()?;
    for _ in 0..3 {
        machine.wait_progress()?;
        machine = succeed(machine)?.0;
        is_whole(&mut machine)?;
    }
    Ok(())
}

#[test]
fn several_devices_of_a_kind_go_on() -> Result<()> {
    needs_kvm!();
    let mut machine = setup()?.rngs(4).boot()?;
    for _ in 0..2 {
        machine.wait_progress()?;
        machine = succeed(machine)?.0;
        is_whole(&mut machine)?;
    }
    Ok(())
}

#[test]
fn the_serial_line_goes_on_in_both_directions() -> Result<()> {
    needs_kvm!();
    let mut machine = setup()?.boot()?;
    for round in 0..3 {
        machine.say(&format!("before {round}"))?;
        machine.wait_line(&format!("echo: before {round}"))?;
        machine = succeed(machine)?.0;
        machine.say(&format!("after {round}"))?;
        machine.wait_line(&format!("echo: after {round}"))?;
    }
    Ok(())
}

#[test]
fn output_to_a_file_goes_on_in_that_file() -> Result<()> {
    needs_kvm!();
    let mut machine = setup()?.serial(Serial::File).boot()?;
    for _ in 0..3 {
        machine.wait_progress()?;
        machine.tell(Control::Quiesce)?;
        machine.wait_line("VERIFIED ")?;
        machine.tell(Control::ResumeDisk)?;
        machine = succeed(machine)?.0;
    }
    let said = machine.serial()?;
    ensure!(said.matches("BATON-GUEST-UP").count() == 1, "{said}");
    ensure!(said.matches("bad=0").count() == 3, "{said}");
    Ok(())
}

#[test]
fn a_handover_in_the_middle_of_a_disk_check_loses_no_request() -> Result<()> {
    needs_kvm!();
    let mut machine = setup()?.append("pace=0").boot()?;
    machine.wait_progress()?;
    machine.say("quiesce")?;
    machine = succeed(machine)?.0;
    let verdict = machine.wait_line("VERIFIED ")?;
    ensure!(verdict.ends_with("bad=0"), "{verdict}");
    examine(&mut machine).map(drop)
}

#[test]
fn a_paused_guest_stays_paused_and_goes_on_when_told() -> Result<()> {
    needs_kvm!();
    let mut source = setup()?.boot()?;
    source.wait_progress()?;
    source.stop()?;
    let ticks = source.report().get(TICKS);
    let mut target = source.successor()?;
    transfer(&mut source, &mut target)?;
    ensure!(target.status()? == "paused");
    ensure!(target.report().get(TICKS) == ticks, "The guest has run");
    examine(&mut target)?;
    target.cont()?;
    is_whole(&mut target)
}

#[test]
fn a_target_started_with_s_does_not_run_the_guest() -> Result<()> {
    needs_kvm!();
    let mut source = setup()?.paused().start()?;
    source.cont()?;
    source.wait_up()?;
    source.wait_progress()?;
    // Generations have the same command line, so this one says -S as well.
    let mut target = source.successor()?;
    begin(&mut source, &target)?;
    let info = outcome(&mut source)?;
    ensure!(info["status"] == "completed", "{info}");
    target.wait_status("paused")?;
    target.cont()?;
    is_whole(&mut target)
}

#[test]
fn the_source_never_runs_the_guest_again() -> Result<()> {
    needs_baton!();
    let mut source = setup()?.boot()?;
    source.wait_progress()?;
    let mut target = source.successor()?;
    transfer(&mut source, &mut target)?;
    source.refusal("cont", &json!({}))?;
    ensure!(source.status()? == "postmigrate");
    let third = target.successor()?;
    source.refusal("migrate", &json!({ "channels": third.channels() }))?;
    source.refusal("system_reset", &json!({}))?;
    ensure!(source.status()? == "postmigrate");
    is_whole(&mut target)
}

#[test]
fn a_deferred_target_takes_the_guest_when_told() -> Result<()> {
    needs_kvm!();
    let mut source = setup()?.boot()?;
    source.wait_progress()?;
    let mut target = source.successor_on(Main::Deferred)?;
    begin(&mut source, &target)?;
    // The target has no monitor before the source has reached it.
    target.wait_status("inmigrate")?;
    if target.vmm() == Vmm::Baton {
        // It is built on the memory of a guest that runs.
        for command in ["system_reset", "system_powerdown"] {
            let said = target.refusal(command, &json!({}))?;
            ensure!(
                said == "Guest is waiting for an incoming migration",
                "{said}"
            );
        }
    }
    is_whole(&mut source)?;
    let uri = target.main_uri();
    target.execute("migrate-incoming", &json!({ "uri": uri }))?;
    let info = outcome(&mut source)?;
    ensure!(info["status"] == "completed", "{info}");
    target.wait_status("running")?;
    is_whole(&mut target)
}

#[test]
fn a_reset_after_a_handover_boots_the_guest_again() -> Result<()> {
    needs_kvm!();
    let mut machine = succeed(setup()?.boot()?)?.0;
    machine.wait_progress()?;
    machine.execute("system_reset", &json!({}))?;
    machine.wait_up()?;
    is_whole(&mut machine)?;
    machine = succeed(machine)?.0;
    is_whole(&mut machine)
}
