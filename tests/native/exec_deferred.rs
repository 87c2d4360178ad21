//! cpr-exec with `-incoming defer`: the guest stands still until `migrate-incoming`, and goes back
//! to the old program if that does not come.

use anyhow::{Context, Result, ensure};
use baton_testkit::report::TICKS;
use baton_testkit::transfer::{begin_exec, begin_exec_at, execute_successor, outcome};
use baton_testkit::wait::{PATIENCE, wait_for};
use baton_testkit::{Machine, needs_baton};
use nix::sys::signal::Signal;
use serde_json::json;
use std::time::Duration;

use crate::{is_whole, setup};

/// Lets the process become a program that waits, having kept the guest at `uri` as well.
fn wait_for_incoming(machine: &mut Machine, uri: Option<&str>) -> Result<()> {
    let mut command = machine.command();
    command.extend(["-incoming", "defer"].map(str::to_owned));
    begin_exec_at(machine, &command, uri)?;
    let info = outcome(machine)?;
    ensure!(info["status"] == "completed", "{info}; {}", machine.log());
    ensure!(machine.status()? == "inmigrate");
    Ok(())
}

/// The guest is in the old program again, which says why.
fn is_back(machine: &mut Machine, why: &str) -> Result<()> {
    wait_for("the old program to be back", PATIENCE, || {
        let info = machine.execute("query-migrate", &json!({}))?;
        Ok((info["status"] == "failed").then_some(()))
    })
    .with_context(|| machine.log())?;
    let info = machine.execute("query-migrate", &json!({}))?;
    let reason = info["error-desc"].as_str().unwrap_or_default();
    ensure!(reason.contains(why), "{info}");
    machine.wait_status("running")?;
    is_whole(machine)?;
    machine.wait_alone()
}

#[test]
fn the_guest_comes_with_migrate_incoming() -> Result<()> {
    needs_baton!();
    let mut machine = setup()?.boot()?;
    machine.wait_progress()?;
    let pid = machine.pid();
    let uri = format!("file:{}", machine.file("state").display());
    wait_for_incoming(&mut machine, Some(&uri))?;
    let ticks = machine.report().get(TICKS);
    // On the connection that was there all the time.
    machine.execute("query-devices", &json!({}))?;
    for command in ["system_reset", "system_powerdown", "migrate"] {
        let said = machine.refusal(command, &json!({}))?;
        ensure!(
            said == "Guest is waiting for an incoming migration",
            "{said}"
        );
    }
    let said = machine.refusal("migrate-incoming", &json!({ "uri": "file:elsewhere" }))?;
    ensure!(said.contains("has kept the guest in 'file:/"), "{said}");
    ensure!(machine.report().get(TICKS) == ticks, "It has run");

    machine.qmp()?.forget_events();
    machine.execute("migrate-incoming", &json!({ "uri": uri }))?;
    machine.qmp()?.wait_event("RESUME")?;
    let info = outcome(&mut machine)?;
    ensure!(
        info["status"] == "completed" && info["downtime"].is_u64(),
        "{info}"
    );
    is_whole(&mut machine)?;
    ensure!(machine.pid() == pid);
    let said = machine.refusal("migrate-incoming", &json!({ "uri": uri }))?;
    ensure!(
        said == "The incoming migration has already been started",
        "{said}"
    );

    // Its arguments say defer; as the old program of the next it does not wait.
    machine.want_fault("successor-load", "error")?;
    let command = machine.command();
    begin_exec(&mut machine, &command)?;
    is_back(&mut machine, "successor-load")?;
    execute_successor(&mut machine)?;
    is_whole(&mut machine)
}

#[test]
fn a_guest_that_is_kept_in_memory_comes_without_an_address() -> Result<()> {
    needs_baton!();
    let mut machine = setup()?.boot()?;
    machine.wait_progress()?;
    wait_for_incoming(&mut machine, None)?;
    let said = machine.refusal("migrate-incoming", &json!({ "uri": "file:state" }))?;
    ensure!(said.contains("say migrate-incoming without one"), "{said}");
    machine.stop()?;
    machine.execute("migrate-incoming", &json!({}))?;
    machine.wait_status("paused")?;
    machine.cont()?;
    is_whole(&mut machine)
}

#[test]
fn a_guest_whose_operator_changes_his_mind_goes_back() -> Result<()> {
    needs_baton!();
    let mut machine = setup()?.boot()?;
    machine.wait_progress()?;
    let pid = machine.pid();
    wait_for_incoming(&mut machine, None)?;
    machine.execute("quit", &json!({}))?;
    is_back(&mut machine, "told to quit before migrate-incoming")?;
    wait_for_incoming(&mut machine, None)?;
    machine.execute("migrate_cancel", &json!({}))?;
    is_back(&mut machine, "cancelled before migrate-incoming")?;
    machine.be_patient(Some(Duration::from_secs(1)))?;
    wait_for_incoming(&mut machine, None)?;
    is_back(&mut machine, "not told migrate-incoming within 1 s")?;
    machine.be_patient(None)?;
    for place in ["successor-load", "successor-start"] {
        wait_for_incoming(&mut machine, None)?;
        machine.want_fault(place, "error")?;
        machine.execute("migrate-incoming", &json!({}))?;
        is_back(&mut machine, place)?;
    }
    ensure!(machine.pid() == pid);
    machine.say("hello")?;
    machine.wait_line("echo: hello").map(drop)
}

#[test]
fn a_guest_whose_new_program_dies_while_it_waits_goes_back() -> Result<()> {
    needs_baton!();
    let mut machine = setup()?.boot()?;
    machine.wait_progress()?;
    for (signal, rescued) in [(Signal::SIGSEGV, false), (Signal::SIGKILL, true)] {
        wait_for_incoming(&mut machine, None)?;
        machine.signal(signal)?;
        if rescued {
            machine.rescued()?;
        }
        // In the middle of what it was spoken to nobody knows, so that it has to connect again.
        let gone = machine.qmp()?.wait_event("nothing");
        ensure!(
            format!("{gone:?}").contains("closed its monitor"),
            "{gone:?}"
        );
        machine.disconnect();
        is_back(&mut machine, "the new program")?;
    }
    // At every step from its first word to its clients on.
    for place in ["successor-wait", "successor-load", "successor-claim"] {
        if place == "successor-wait" {
            machine.want_fault(place, "kill")?;
            let mut command = machine.command();
            command.extend(["-incoming", "defer"].map(str::to_owned));
            begin_exec(&mut machine, &command)?;
        } else {
            wait_for_incoming(&mut machine, None)?;
            machine.want_fault(place, "kill")?;
            machine.execute("migrate-incoming", &json!({}))?;
        }
        machine.rescued()?;
        machine.disconnect();
        is_back(&mut machine, "the new program ended")?;
    }
    Ok(())
}

#[test]
fn a_signal_ends_a_guest_that_waits() -> Result<()> {
    needs_baton!();
    let mut machine = setup()?.boot()?;
    machine.wait_progress()?;
    wait_for_incoming(&mut machine, None)?;
    machine.signal(Signal::SIGTERM)?;
    machine.ended_well()?;
    wait_for("everybody to end", PATIENCE, || {
        Ok(machine.others().is_empty().then_some(()))
    })
}
