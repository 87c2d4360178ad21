//! Death and worse at every step of a cpr-exec: afterwards exactly one process runs the guest, it
//! is whole, and clients of the monitor learn what has happened on the connections they had.

use anyhow::{Context, Result, ensure};
use baton_testkit::process::stopped;
use baton_testkit::scratch::Scratch;
use baton_testkit::transfer::{begin_exec, execute_successor, outcome, succeed};
use baton_testkit::wait::{PATIENCE, wait_for};
use baton_testkit::{Machine, Vmm, needs_baton};
use nix::sys::signal::Signal;
use serde_json::json;
use std::time::Duration;

use crate::hotplug::hotplug_setup;
use crate::{is_whole, setup};
use After::{Rescued, Stays};

/// Where the guest is afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    /// In the old program, in the same process.
    Stays,
    /// In the old program, in another process: the one that was to run it is dead.
    Rescued,
}

/// Where there is a way back within the process, and where there is none.
const WITHIN: [After; 4] = [Rescued, Stays, Stays, Stays];
const BESIDE: [After; 4] = [Rescued; 4];

/// What happens; the tables below have its outcome in this order.
const WHAT: [&str; 4] = ["kill", "abort", "panic", "error"];

/// The new program's steps up to its claim of the guest.
const SUCCESSOR: [(&str, [After; 4]); 5] = [
    // The way back is not prepared yet.
    ("begin", BESIDE),
    ("build", WITHIN),
    ("load", WITHIN),
    ("start", WITHIN),
    // Nor is there one any more: the guest is about to run.
    ("claim", BESIDE),
];

fn boot() -> Result<Machine> {
    let mut machine = setup()?.boot()?;
    machine.wait_progress()?;
    Ok(machine)
}

/// The command of a program that takes the guest, if nothing happens to it.
fn begin(machine: &mut Machine) -> Result<()> {
    let command = machine.command();
    begin_exec(machine, &command)
}

/// Tries a cpr-exec with a fault, which `reason` tells of, and sees that the guest goes on.
fn fails(machine: &mut Machine, place: &str, what: &str, after: After) -> Result<String> {
    let about = format!("{what} at {place}");
    try_to_fail(machine, place, what, after).with_context(|| format!("{about}; {}", machine.log()))
}

fn try_to_fail(machine: &mut Machine, place: &str, what: &str, after: After) -> Result<String> {
    let pid = machine.pid();
    machine.want_fault(place, what)?;
    begin(machine)?;
    if after == Rescued {
        machine.rescued()?;
    }
    ensure!(
        (machine.pid() == pid) == (after == Stays),
        "Another process"
    );
    let reason = ends_as_failed(machine)?;
    ensure!(machine.faulted(place), "It did not happen");
    Ok(reason)
}

/// The client that was there is told that the migration has failed; the guest goes on; a new client
/// finds the monitor where it was. Gives the reason.
fn ends_as_failed(machine: &mut Machine) -> Result<String> {
    let info = outcome(machine)?;
    ensure!(info["status"] == "failed", "{info}");
    let reason = info["error-desc"].as_str().unwrap_or_default().to_owned();
    ensure!(!reason.is_empty(), "It does not say why: {info}");
    machine.wait_status("running")?;
    is_whole(machine)?;
    machine.disconnect();
    ensure!(machine.status()? == "running");
    machine.wait_alone()?;
    Ok(reason)
}

/// The survivor of many failures talks to its guest, and is replaced when nothing happens.
fn can_still_be_replaced(machine: &mut Machine) -> Result<()> {
    machine.say("hello")?;
    machine.wait_line("echo: hello")?;
    let pid = machine.pid();
    execute_successor(machine)?;
    ensure!(machine.pid() == pid);
    is_whole(machine)?;
    machine.wait_alone()?;
    machine.say("poweroff")?;
    machine.ended_well()
}

#[test]
fn the_old_program_fails_at_any_step() -> Result<()> {
    needs_baton!();
    let mut machine = boot()?;
    for place in [
        "checkpoint-prepare",
        "exec-write",
        "exec-finish",
        "exec-execve",
    ] {
        for what in ["error", "panic"] {
            let reason = fails(&mut machine, place, what, Stays)?;
            let told = [place, "a mistake in Baton"];
            ensure!(told.iter().any(|text| reason.contains(text)), "{reason}");
        }
    }
    can_still_be_replaced(&mut machine)
}

#[test]
fn the_old_program_dies_when_it_has_let_go_of_the_guest() -> Result<()> {
    needs_baton!();
    let mut machine = boot()?;
    for what in ["kill", "abort"] {
        fails(&mut machine, "exec-execve", what, Rescued)?;
    }
    can_still_be_replaced(&mut machine)
}

#[test]
fn the_trial_of_the_new_program_fails_or_dies() -> Result<()> {
    needs_baton!();
    let mut machine = boot()?;
    for what in WHAT {
        let reason = fails(&mut machine, "rehearsal-build", what, Stays)?;
        ensure!(reason.contains("was tried"), "{reason}");
    }
    // One that hangs is given up when the operator says so.
    machine.want_fault("rehearsal-build", "stop")?;
    begin(&mut machine)?;
    wait_for("the trial to hang", PATIENCE, || {
        let others = machine.others();
        let hang = others.iter().any(|pid| stopped(*pid));
        Ok(hang.then_some(()))
    })?;
    machine.wait_progress()?;
    machine.execute("migrate_cancel", &json!({}))?;
    let info = outcome(&mut machine)?;
    ensure!(info["status"] == "cancelled", "{info}");
    is_whole(&mut machine)?;
    machine.wait_alone()?;
    can_still_be_replaced(&mut machine)
}

#[test]
fn the_new_program_fails_or_dies_at_any_step() -> Result<()> {
    needs_baton!();
    let mut machine = boot()?;
    for (step, outcomes) in SUCCESSOR {
        for (what, after) in WHAT.into_iter().zip(outcomes) {
            fails(&mut machine, &format!("successor-{step}"), what, after)?;
        }
    }
    can_still_be_replaced(&mut machine)
}

#[test]
fn the_way_back_fails_or_dies_at_any_step() -> Result<()> {
    needs_baton!();
    let mut machine = boot()?;
    for (step, _) in SUCCESSOR {
        for what in WHAT {
            machine.want_fault("successor-load", "error")?;
            fails(&mut machine, &format!("rollback-{step}"), what, Rescued)?;
            ensure!(machine.faulted("successor-load"));
        }
    }
    can_still_be_replaced(&mut machine)
}

#[test]
fn the_way_back_leads_to_a_program_that_was_started_otherwise() -> Result<()> {
    needs_baton!();
    // One that a guest has come to, and one whose guest was let run by hand.
    let came = succeed(boot()?)?.0;
    let mut by_hand = setup()?.paused().start()?;
    by_hand.cont()?;
    by_hand.wait_up()?;
    for mut machine in [came, by_hand] {
        fails(&mut machine, "successor-load", "error", Stays)?;
        fails(&mut machine, "successor-load", "kill", Rescued)?;
    }
    Ok(())
}

#[test]
fn the_way_back_leads_to_the_devices_that_have_come() -> Result<()> {
    needs_baton!();
    let mut machine = hotplug_setup()?.boot()?;
    machine.wait_progress()?;
    let device = json!({ "driver": "virtio-rng-pci", "id": "rng9", "addr": "0x9" });
    machine.execute("device_add", &device)?;
    let mut command = machine.command();
    command.extend(["-device", "virtio-rng-pci,id=rng9,addr=0x9"].map(str::to_owned));
    for what in ["error", "kill"] {
        machine.want_fault("successor-load", what)?;
        begin_exec(&mut machine, &command)?;
        if what == "kill" {
            machine.rescued()?;
        }
        ends_as_failed(&mut machine)?;
        let devices = machine.execute("query-devices", &json!({}))?;
        ensure!(devices.to_string().contains("rng9"), "{devices}");
    }
    Ok(())
}

#[test]
fn the_way_back_leads_to_the_plugins_that_were_there() -> Result<()> {
    needs_baton!();
    let plugins = Vmm::Baton.programs()?.plugins.context("No plugins")?;
    let scratch = Scratch::new()?;
    let mut copies = Vec::new();
    for entry in std::fs::read_dir(plugins)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "so") {
            let copy = scratch.join(&path.file_name().context("No name")?.to_string_lossy());
            std::fs::copy(&path, &copy)?;
            copies.push(copy);
        }
    }
    let mut machine = setup()?.plugins(scratch.path()).boot()?;
    machine.wait_progress()?;
    // An update has replaced them, and fails when the old ones are gone.
    machine.want_fault("successor-load", "stop")?;
    begin(&mut machine)?;
    machine.wait_stopped("successor-load")?;
    for copy in &copies {
        std::fs::remove_file(copy)?;
        std::fs::write(copy, "no plugin")?;
    }
    machine.want_fault("successor-start", "error")?;
    machine.signal(Signal::SIGCONT)?;
    let reason = ends_as_failed(&mut machine)?;
    ensure!(reason.contains("successor-start"), "{reason}");
    Ok(())
}

#[test]
fn a_new_program_that_hangs_gives_the_guest_back() -> Result<()> {
    needs_baton!();
    let mut machine = boot()?;
    machine.be_patient(Some(Duration::from_secs(1)))?;
    for step in ["build", "load", "start"] {
        let reason = fails(&mut machine, &format!("successor-{step}"), "hang", Stays)?;
        ensure!(reason.contains("did not start the guest"), "{reason}");
    }
    machine.be_patient(None)?;
    can_still_be_replaced(&mut machine)
}

#[test]
fn a_process_that_sleeps_at_any_step_goes_on_when_it_wakes_up() -> Result<()> {
    needs_baton!();
    let mut machine = boot()?;
    let places = ["exec-write", "exec-finish", "exec-execve"].map(str::to_owned);
    let steps = SUCCESSOR.map(|(step, _)| format!("successor-{step}"));
    for place in places.iter().chain(&steps) {
        machine.want_fault(place, "stop")?;
        begin(&mut machine)?;
        machine.wait_stopped(place)?;
        machine.signal(Signal::SIGCONT)?;
        let info = outcome(&mut machine)?;
        ensure!(info["status"] == "completed", "{place}: {info}");
        is_whole(&mut machine)?;
        machine.wait_alone()?;
    }
    can_still_be_replaced(&mut machine)
}

#[test]
fn who_dies_with_the_guest_is_not_replaced_by_an_older_one() -> Result<()> {
    needs_baton!();
    // Before the guest was let go of, and after it was claimed.
    for place in ["exec-finish", "successor-release"] {
        let mut machine = boot()?;
        machine.want_fault(place, "kill")?;
        begin(&mut machine)?;
        machine.ended()?;
        ensure!(machine.faulted(place), "It did not happen");
        wait_for("everybody to end", PATIENCE, || {
            Ok(machine.others().is_empty().then_some(()))
        })?;
        ensure!(
            !machine.log().contains("the new program ended"),
            "{}",
            machine.log()
        );
    }
    Ok(())
}
