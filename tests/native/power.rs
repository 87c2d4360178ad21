//! Reset and power-off, by the guest and by the operator.

use anyhow::{Result, ensure};
use baton_testkit::check::examine;
use baton_testkit::report::BOOTS;
use baton_testkit::{Machine, needs_kvm};
use serde_json::json;

use crate::setup;

/// The guest comes up once more and works.
fn comes_up_again(machine: &mut Machine, boots: u64) -> Result<()> {
    machine.wait_up()?;
    ensure!(
        machine.report().get(BOOTS) == boots,
        "Boot {}",
        machine.report().get(BOOTS)
    );
    machine.wait_progress()?;
    examine(machine).map(drop)
}

#[test]
fn a_guest_resets_itself() -> Result<()> {
    needs_kvm!();
    let mut machine = setup()?.boot()?;
    machine.wait_progress()?;
    machine.qmp()?;
    machine.say("reset")?;
    let data = machine.qmp()?.wait_event("RESET")?;
    ensure!(
        data["guest"] == true && data["reason"] == "guest-reset",
        "{data}"
    );
    comes_up_again(&mut machine, 2)
}

#[test]
fn an_operator_resets_the_guest_again_and_again() -> Result<()> {
    needs_kvm!();
    let mut machine = setup()?.boot()?;
    for boots in 2..5 {
        machine.wait_progress()?;
        machine.execute("system_reset", &json!({}))?;
        // QEMU's firmware resets once more, as a guest's own.
        let data = machine
            .qmp()?
            .wait_event_with("RESET", |data| data["guest"] == false)?;
        ensure!(data["reason"] == "host-qmp-system-reset", "{data}");
        comes_up_again(&mut machine, boots)?;
    }
    Ok(())
}

#[test]
fn a_reset_takes_all_cpus_along() -> Result<()> {
    needs_kvm!();
    let mut machine = setup()?.cpus(2).boot()?;
    machine.wait_progress()?;
    machine.execute("system_reset", &json!({}))?;
    comes_up_again(&mut machine, 2)
}

#[test]
fn a_triple_fault_resets() -> Result<()> {
    needs_kvm!();
    let mut machine = setup()?.boot()?;
    machine.qmp()?;
    machine.say("triple")?;
    let data = machine.qmp()?.wait_event("RESET")?;
    ensure!(data["guest"] == true, "{data}");
    comes_up_again(&mut machine, 2)
}

#[test]
fn a_reset_ends_the_process_when_it_shall() -> Result<()> {
    needs_kvm!();
    let mut machine = setup()?.extra(["-no-reboot"]).boot()?;
    machine.qmp()?;
    machine.say("reset")?;
    let data = machine.qmp()?.wait_event("SHUTDOWN")?;
    ensure!(
        data["guest"] == true && data["reason"] == "guest-reset",
        "{data}"
    );
    machine.ended_well()
}

#[test]
fn a_guest_powers_off() -> Result<()> {
    needs_kvm!();
    let mut machine = setup()?.boot()?;
    machine.qmp()?;
    machine.say("poweroff")?;
    let data = machine.qmp()?.wait_event("SHUTDOWN")?;
    ensure!(
        data["guest"] == true && data["reason"] == "guest-shutdown",
        "{data}"
    );
    machine.ended_well()
}

#[test]
fn an_operator_ends_the_process() -> Result<()> {
    needs_kvm!();
    let mut machine = setup()?.boot()?;
    machine.execute("quit", &json!({}))?;
    let data = machine.qmp()?.wait_event("SHUTDOWN")?;
    ensure!(
        data["guest"] == false && data["reason"] == "host-qmp-quit",
        "{data}"
    );
    machine.ended_well()
}

#[test]
fn a_signal_ends_a_target_that_still_waits_for_its_source() -> Result<()> {
    needs_kvm!();
    let mut source = setup()?.boot()?;
    let mut target = source.successor()?;
    target.wait_listening("cpr")?;
    target.signal(nix::sys::signal::Signal::SIGTERM)?;
    ensure!(!target.ended()?.success(), "It ended as if all were well");
    ensure!(
        target.log().contains("ended by SIGTERM"),
        "It says: {}",
        target.log()
    );
    source.wait_progress()
}

#[test]
fn a_signal_ends_the_process_well() -> Result<()> {
    needs_kvm!();
    let mut machine = setup()?.boot()?;
    machine.qmp()?;
    machine.signal(nix::sys::signal::Signal::SIGTERM)?;
    let data = machine.qmp()?.wait_event("SHUTDOWN")?;
    ensure!(
        data["guest"] == false && data["reason"] == "host-signal",
        "{data}"
    );
    machine.ended_well()
}
