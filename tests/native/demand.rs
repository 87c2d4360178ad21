//! A device that moves only while the guest is suspended.

use anyhow::{Result, ensure};
use baton_testkit::fixtures::{fixture, info, printed};
use baton_testkit::kept::{keep, set_mode, try_to_keep};
use baton_testkit::transfer::{self, outcome, set_capability, succeed};
use baton_testkit::wait::{PATIENCE, wait_for};
use baton_testkit::{Machine, needs_baton};
use serde_json::{Value, json};

use crate::suspend::{fall_asleep, wake};
use crate::{is_whole, setup};

/// QEMU's text, with what Baton adds.
const REASON: &str = "device 'f0': VFIO device only supports cpr-reboot for runstate suspended \
                      (Suspend the guest first)";

fn with_device(properties: &str, more: &[&str]) -> Result<Machine> {
    let plugin = fixture("sleeps")?.display().to_string();
    let device = format!("fixture-sleeps,id=f0{properties}");
    let arguments = ["-plugin", &plugin, "-device", &device];
    setup()?.extra([&arguments[..], more].concat()).boot()
}

fn migratable(machine: &mut Machine, mode: &str) -> Result<Value> {
    let rows = machine.execute("query-migratable", &json!({ "mode": mode }))?;
    Ok(rows[0]["migratable"].clone())
}

#[test]
fn a_device_moves_only_while_the_guest_is_suspended() -> Result<()> {
    needs_baton!();
    let mut machine = with_device("", &[])?;
    set_mode(&mut machine)?;
    set_capability(&mut machine, "x-ignore-shared", true)?;
    let file = json!({ "uri": "file:vm.state" });
    let reason = machine.refusal("migrate", &file)?;
    ensure!(reason == REASON, "{reason}");
    let info = machine.execute("query-migrate", &json!({}))?;
    ensure!(info == json!({ "blocked-reasons": [REASON] }), "{info}");
    let rows = machine.execute("query-migratable", &json!({ "mode": "cpr-reboot" }))?;
    let blocker = &rows[0]["blockers"][0];
    ensure!(
        blocker["unless-suspended"] == true && blocker["id"] == "static",
        "{rows}"
    );
    ensure!(migratable(&mut machine, "cpr-transfer")? == true);

    // The second example of QEMU's document; stopped or not, it sleeps.
    for stopped in [false, true] {
        fall_asleep(&mut machine, "sleep")?;
        let info = machine.execute("query-migrate", &json!({}))?;
        ensure!(info.get("blocked-reasons").is_none(), "{info}");
        ensure!(migratable(&mut machine, "cpr-reboot")? == true);
        if stopped {
            machine.stop()?;
        }
        set_capability(&mut machine, "x-ignore-shared", true)?;
        keep(&mut machine, "file:vm.state")?;
        machine.quit()?;
        let mut next = machine.loading("defer")?;
        ensure!(next.status()? == "inmigrate");
        set_mode(&mut next)?;
        set_capability(&mut next, "x-ignore-shared", true)?;
        next.execute("migrate-incoming", &file)?;
        next.wait_status(if stopped { "paused" } else { "suspended" })?;
        next.cont()?;
        wake(&mut next, "system_wakeup")?;
        ensure!(migratable(&mut next, "cpr-reboot")? == false);
        machine = next;
    }
    Ok(())
}

#[test]
fn a_device_may_say_so_of_any_mode_as_it_is() -> Result<()> {
    needs_baton!();
    let mut machine = with_device(",demands=on", &[])?;
    transfer::set_mode(&mut machine)?;
    let target = machine.successor()?;
    let channels = json!({ "channels": target.channels() });
    let reason = machine.refusal("migrate", &channels)?;
    ensure!(reason.contains("It does not sleep"), "{reason}");
    drop(target);
    for mode in ["normal", "cpr-reboot", "cpr-transfer", "cpr-exec"] {
        ensure!(migratable(&mut machine, mode)? == false, "{mode}");
    }
    fall_asleep(&mut machine, "sleep")?;
    for mode in ["normal", "cpr-reboot", "cpr-transfer", "cpr-exec"] {
        ensure!(migratable(&mut machine, mode)? == true, "{mode}");
    }
    machine = succeed(machine)?.0;
    wake(&mut machine, "system_wakeup")
}

#[test]
fn a_guest_that_is_woken_before_it_is_stopped_is_not_moved() -> Result<()> {
    needs_baton!();
    let mut machine = with_device(",demands=on", &[])?;
    set_capability(&mut machine, "pause-before-switchover", true)?;
    fall_asleep(&mut machine, "sleep")?;
    let mut target = machine.successor()?;
    transfer::begin(&mut machine, &target)?;
    wait_for("the pause", PATIENCE, || {
        let info = machine.execute("query-migrate", &json!({}))?;
        Ok((info["status"] == "pre-switchover").then_some(()))
    })?;
    wake(&mut machine, "system_wakeup")?;
    machine.qmp()?.forget_events();
    machine.execute("migrate-continue", &json!({ "state": "pre-switchover" }))?;
    let info = outcome(&mut machine)?;
    let reason = "device 'f0': It does not sleep (Suspend the guest first)";
    ensure!(
        info["status"] == "failed" && info["error-desc"] == reason,
        "{info}"
    );
    target.ended()?;
    ensure!(machine.qmp()?.events("STOP") == 0, "It was stopped");
    ensure!(machine.status()? == "running");
    is_whole(&mut machine)?;

    // Asleep again, it is moved; and what fails later leaves it as it is.
    set_capability(&mut machine, "pause-before-switchover", false)?;
    fall_asleep(&mut machine, "sleep")?;
    let info = try_to_keep(&mut machine, "exec:exit 7")?;
    ensure!(info["status"] == "failed", "{info}");
    ensure!(machine.status()? == "suspended");
    keep(&mut machine, "file:vm.state").map(drop)
}

#[test]
fn what_suspending_the_guest_lifts_is_not_refused_at_start() -> Result<()> {
    needs_baton!();
    let mut machine = with_device(",demands=on", &["-only-migratable", "cpr-reboot,normal"])?;
    ensure!(migratable(&mut machine, "cpr-reboot")? == false);
    let text = printed(&mut info(&fixture("sleeps")?)?)?;
    ensure!(
        text.contains("blocks cpr-reboot unless the guest is suspended: VFIO device"),
        "{text}"
    );
    Ok(())
}
