//! Suspend to RAM: a guest that sleeps stands still, is woken, and goes on; whatever happened to it
//! meanwhile.

use anyhow::{Context, Result, ensure};
use baton_testkit::check::examine;
use baton_testkit::copied::copy;
use baton_testkit::kept::{keep, set_mode, try_to_keep};
use baton_testkit::machine::Main;
use baton_testkit::progress::Progress;
use baton_testkit::report::{BOOTS, SLEEPS, WAKE_ERRORS, WAKE_STATUS, WAKES};
use baton_testkit::transfer::{begin, execute_successor, outcome, set_capability, succeed};
use baton_testkit::wait::{PATIENCE, wait_for};
use baton_testkit::{Machine, needs_baton};
use serde_json::json;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::hotplug::hotplug_setup;
use crate::{is_whole, setup};

const NOT_SUSPENDED: &str = "Unable to wake up: guest is not in suspended state";
/// WAK_STS and PWRBTN_STS.
const BY_POWER_BUTTON: u64 = 0x8100;
/// WAK_STS and RTC_STS.
const BY_ALARM: u64 = 0x8400;

/// The guest suspends itself, by `command`.
pub(crate) fn fall_asleep(machine: &mut Machine, command: &str) -> Result<()> {
    let sleeps = machine.report().get(SLEEPS);
    machine.qmp()?.forget_events();
    machine.say(command)?;
    machine.qmp()?.wait_event("SUSPEND")?;
    let answer = machine.execute("query-status", &json!({}))?;
    ensure!(
        answer == json!({ "status": "suspended", "running": false }),
        "{answer}"
    );
    ensure!(machine.report().get(SLEEPS) == sleeps + 1);
    stands_still(machine)
}

/// Asks the monitor some questions, each of which takes long enough for a guest that runs to show.
fn stands_still(machine: &mut Machine) -> Result<()> {
    let before = Progress::now(machine.report());
    for _ in 0..50 {
        machine.status()?;
    }
    let after = Progress::now(machine.report());
    ensure!(before == after, "From {before:?} to {after:?}");
    Ok(())
}

/// The guest is woken by `command`, and works.
pub(crate) fn wake(machine: &mut Machine, command: &str) -> Result<()> {
    let wakes = machine.report().get(WAKES);
    machine.qmp()?.forget_events();
    machine.execute(command, &json!({}))?;
    machine.qmp()?.wait_event("WAKEUP")?;
    ensure!(machine.status()? == "running");
    goes_on(machine, wakes)
}

/// The guest finds its own way after it was woken.
fn goes_on(machine: &mut Machine, wakes: u64) -> Result<()> {
    machine.wait_line("WOKEN ")?;
    let report = machine.report();
    ensure!(report.get(WAKES) == wakes + 1 && report.get(BOOTS) == 1);
    ensure!(report.get(WAKE_ERRORS) == 0, "{}", machine.serial()?);
    let status = report.get(WAKE_STATUS);
    ensure!(status == BY_POWER_BUTTON, "PM1's status was {status:#x}");
    is_whole(machine)
}

#[test]
fn a_guest_sleeps_and_is_woken_again_and_again() -> Result<()> {
    needs_baton!();
    let mut machine = setup()?.boot()?;
    for _ in 0..3 {
        machine.wait_progress()?;
        let reason = machine.refusal("system_wakeup", &json!({}))?;
        ensure!(reason == NOT_SUSPENDED, "{reason}");
        fall_asleep(&mut machine, "sleep")?;
        examine(&mut machine)?;
        wake(&mut machine, "system_wakeup")?;
    }
    machine.say("quiesce")?;
    let verdict = machine.wait_line("VERIFIED ")?;
    ensure!(verdict.ends_with("bad=0"), "{verdict}");
    machine.say("poweroff")?;
    machine.ended_well()
}

#[test]
fn two_cpus_sleep_together_and_the_second_waits_to_be_started() -> Result<()> {
    needs_baton!();
    let mut machine = setup()?.cpus(2).boot()?;
    for _ in 0..2 {
        machine.wait_progress()?;
        fall_asleep(&mut machine, "sleep")?;
        wake(&mut machine, "system_wakeup")?;
    }
    Ok(())
}

#[test]
fn the_x_waking_vector_is_entered_in_32_bit_mode() -> Result<()> {
    needs_baton!();
    let mut machine = setup()?.cpus(2).boot()?;
    fall_asleep(&mut machine, "sleep-x")?;
    wake(&mut machine, "system_wakeup")?;
    fall_asleep(&mut machine, "sleep")?;
    wake(&mut machine, "system_wakeup")
}

#[test]
fn the_power_button_wakes() -> Result<()> {
    needs_baton!();
    let mut machine = setup()?.boot()?;
    fall_asleep(&mut machine, "sleep")?;
    wake(&mut machine, "system_powerdown")?;
    ensure!(machine.qmp()?.events("POWERDOWN") == 1);
    Ok(())
}

#[test]
fn the_clocks_alarm_wakes_also_in_another_process() -> Result<()> {
    needs_baton!();
    let mut machine = setup()?.boot()?;
    let woken = |machine: &mut Machine| {
        machine.wait_line("WOKEN ")?;
        let status = machine.report().get(WAKE_STATUS);
        ensure!(status == BY_ALARM, "PM1's status was {status:#x}");
        is_whole(machine)
    };
    machine.qmp()?;
    machine.say("sleep-alarm")?;
    machine.qmp()?.wait_event("SUSPEND")?;
    machine.qmp()?.wait_event("WAKEUP")?;
    woken(&mut machine)?;

    // It goes off while the guest is kept, or stopped: it is woken as soon as somebody is there.
    machine.say("sleep-alarm")?;
    machine.qmp()?.wait_event("SUSPEND")?;
    machine.stop()?;
    machine = machine.through("file:vm.state", "file:vm.state")?;
    ensure!(machine.status()? == "paused");
    machine.cont()?;
    machine.qmp()?.wait_event("WAKEUP")?;
    woken(&mut machine)
}

#[test]
fn a_guest_that_sets_its_clock_is_heard_of_once_a_second() -> Result<()> {
    needs_baton!();
    let mut machine = setup()?.boot()?;
    machine.qmp()?;
    // It does so two hundred times, and has the year 2011 every other time.
    machine.say("clock")?;
    let year = 31_556_952.0;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
    let mut events = 0;
    loop {
        let data = machine.qmp()?.wait_event("RTC_CHANGE")?;
        let at = data["qom-path"].as_str().unwrap_or_default();
        ensure!(at.starts_with("/machine/peripheral"), "{data}");
        let ahead = data["offset"].as_f64().context("It has no offset")?;
        events += 1;
        ensure!(events < 40, "{events} events, the last is {data}");
        // Whatever day it is in that year; every other time it was 2011.
        if ((now + ahead) / year - 50.5).abs() < 1.0 {
            break;
        }
    }
    is_whole(&mut machine)
}

#[test]
fn a_guest_without_a_waking_vector_sleeps_until_it_is_reset() -> Result<()> {
    needs_baton!();
    let mut machine = setup()?.boot()?;
    fall_asleep(&mut machine, "sleep-nowhere")?;
    for command in ["system_wakeup", "system_powerdown"] {
        let reason = machine.refusal(command, &json!({}))?;
        ensure!(
            reason.contains("its waking vector is 0") && reason.contains("system_reset"),
            "{reason}"
        );
        ensure!(machine.status()? == "suspended");
    }
    machine.execute("system_reset", &json!({}))?;
    // As in QEMU.
    ensure!(machine.status()? == "prelaunch");
    machine.cont()?;
    machine.wait_up()?;
    ensure!(machine.report().get(BOOTS) == 2);
    is_whole(&mut machine)
}

#[test]
fn a_guest_is_told_when_it_wakes_of_what_came_and_shall_go_meanwhile() -> Result<()> {
    needs_baton!();
    let mut machine = hotplug_setup()?.boot()?;
    fall_asleep(&mut machine, "sleep")?;
    let device = json!({ "driver": "virtio-rng-pci", "id": "r1" });
    machine.execute("device_add", &device)?;
    stands_still(&mut machine)?;
    wake(&mut machine, "system_wakeup")?;
    machine.wait_line("arrived: slot")?;
    is_whole(&mut machine)?;
    fall_asleep(&mut machine, "sleep")?;
    machine.execute("device_del", &json!({ "id": "r1" }))?;
    stands_still(&mut machine)?;
    wake(&mut machine, "system_wakeup")?;
    let line = machine.wait_line("left: slot")?;
    ensure!(line.contains("gone"), "{line}");
    is_whole(&mut machine)
}

#[test]
fn stop_and_cont_leave_it_asleep() -> Result<()> {
    needs_baton!();
    let mut machine = setup()?.boot()?;
    fall_asleep(&mut machine, "sleep")?;
    // There is nothing to go on with.
    machine.cont()?;
    ensure!(machine.status()? == "suspended");
    machine.qmp()?.forget_events();
    machine.stop()?;
    machine.qmp()?.wait_event("STOP")?;
    ensure!(machine.status()? == "paused");
    let reason = machine.refusal("system_wakeup", &json!({}))?;
    ensure!(reason == NOT_SUSPENDED, "{reason}");
    machine.cont()?;
    machine.qmp()?.wait_event("RESUME")?;
    ensure!(machine.status()? == "suspended");
    stands_still(&mut machine)?;
    wake(&mut machine, "system_wakeup")
}

#[test]
fn a_guest_that_is_stopped_as_it_falls_asleep_sleeps_when_it_goes_on() -> Result<()> {
    needs_baton!();
    let mut machine = setup()?.boot()?;
    for _ in 0..5 {
        machine.wait_progress()?;
        let sleeps = machine.report().get(SLEEPS);
        machine.say("sleep")?;
        let ram = std::sync::Arc::clone(machine.ram());
        // By a few of its instructions, it has not yet.
        wait_for("the guest to be about to sleep", PATIENCE, || {
            Ok((ram.report().get(SLEEPS) > sleeps).then_some(()))
        })?;
        machine.stop()?;
        machine.cont()?;
        machine.wait_status("suspended")?;
        wake(&mut machine, "system_wakeup")?;
    }
    Ok(())
}

/// A way from one process to the next.
type Way = fn(Machine) -> Result<Machine>;

const WAYS: [(&str, Way); 5] = [
    ("cpr-transfer", |machine| Ok(succeed(machine)?.0)),
    ("cpr-exec", |mut machine| {
        let before = machine.status_elsewhere()?;
        execute_successor(&mut machine)?;
        machine.wait_status(&before)?;
        Ok(machine)
    }),
    ("cpr-reboot", |machine| {
        machine.through("file:vm.state", "file:vm.state")
    }),
    ("cpr-reboot with RAM that stays", |mut machine| {
        set_capability(&mut machine, "x-ignore-shared", true)?;
        machine.through("file:vm.state", "file:vm.state")
    }),
    ("normal", |mut machine| {
        let mut target = machine.apart(Main::Unix)?;
        copy(&mut machine, &mut target)?;
        machine.quit()?;
        Ok(target)
    }),
];

#[test]
fn a_guest_sleeps_on_in_the_process_it_was_migrated_to() -> Result<()> {
    needs_baton!();
    let mut machine = setup()?.cpus(2).boot()?;
    for (name, way) in WAYS {
        machine.wait_progress()?;
        fall_asleep(&mut machine, "sleep")?;
        machine = way(machine).context(name)?;
        ensure!(machine.status()? == "suspended", "{name}");
        stands_still(&mut machine).context(name)?;
        wake(&mut machine, "system_wakeup").context(name)?;
    }
    Ok(())
}

#[test]
fn a_guest_that_was_stopped_in_its_sleep_is_paused_elsewhere_and_remembers() -> Result<()> {
    needs_baton!();
    let mut machine = setup()?.boot()?;
    for (name, way) in WAYS {
        machine.wait_progress()?;
        fall_asleep(&mut machine, "sleep")?;
        machine.stop()?;
        machine = way(machine).context(name)?;
        ensure!(machine.status()? == "paused", "{name}");
        machine.cont()?;
        ensure!(machine.status()? == "suspended", "{name}");
        wake(&mut machine, "system_wakeup").context(name)?;
    }
    Ok(())
}

#[test]
fn a_process_started_with_s_keeps_a_guest_that_sleeps_paused() -> Result<()> {
    needs_baton!();
    let mut source = setup()?.paused().start()?;
    source.cont()?;
    source.wait_up()?;
    for name in ["cpr-transfer", "cpr-reboot"] {
        source.wait_progress()?;
        fall_asleep(&mut source, "sleep")?;
        let mut target = match name {
            "cpr-transfer" => {
                let target = source.successor()?;
                begin(&mut source, &target)?;
                let info = outcome(&mut source)?;
                ensure!(info["status"] == "completed", "{info}");
                target
            }
            _ => {
                keep(&mut source, "file:vm.state")?;
                source.loading("file:vm.state")?
            }
        };
        target.wait_status("paused")?;
        target.cont()?;
        ensure!(target.status()? == "suspended", "{name}");
        wake(&mut target, "system_wakeup").context(name)?;
        source.quit()?;
        source = target;
    }
    Ok(())
}

#[test]
fn a_migration_that_meets_a_guest_falling_asleep_takes_it_along() -> Result<()> {
    needs_baton!();
    let mut machine = setup()?.boot()?;
    for round in 0..6 {
        machine.wait_progress()?;
        let mut target = machine.successor()?;
        machine.say("sleep")?;
        begin(&mut machine, &target)?;
        let info = outcome(&mut machine)?;
        ensure!(info["status"] == "completed", "{info}");
        // At the latest it falls asleep there.
        target.wait_status("suspended").context(round)?;
        wake(&mut target, "system_wakeup").context(round)?;
        machine.quit()?;
        machine = target;
    }
    Ok(())
}

#[test]
fn a_save_that_fails_leaves_it_asleep_and_wakeable() -> Result<()> {
    needs_baton!();
    let mut machine = setup()?.boot()?;
    for uri in ["exec:exit 7", "exec:cat > /dev/full"] {
        fall_asleep(&mut machine, "sleep")?;
        let info = try_to_keep(&mut machine, uri)?;
        ensure!(info["status"] == "failed", "{info}");
        ensure!(machine.status()? == "suspended");
        stands_still(&mut machine)?;
        wake(&mut machine, "system_wakeup")?;
    }
    for place in ["prepare", "stop", "save", "write", "finish"] {
        for what in ["error", "panic"] {
            fall_asleep(&mut machine, "sleep")?;
            machine.want_fault(&format!("checkpoint-{place}"), what)?;
            let info = try_to_keep(&mut machine, "file:vm.state")?;
            ensure!(info["status"] == "failed", "{place} {what}: {info}");
            ensure!(machine.status()? == "suspended", "{place} {what}");
            wake(&mut machine, "system_wakeup").with_context(|| format!("{place} {what}"))?;
        }
    }
    // What was kept before is loaded, though its process was killed.
    fall_asleep(&mut machine, "sleep")?;
    machine.want_fault("checkpoint-kept", "kill")?;
    set_mode(&mut machine)?;
    machine
        .execute("migrate", &json!({ "uri": "file:vm.state" }))
        .ok();
    machine.ended()?;
    let mut next = machine.loading("file:vm.state")?;
    next.wait_status("suspended")?;
    wake(&mut next, "system_wakeup")
}
