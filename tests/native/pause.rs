//! A pause before the guest is stopped, which the operator ends.

use anyhow::{Result, ensure};
use baton_testkit::check::examine;
use baton_testkit::transfer::{begin, outcome, set_capability};
use baton_testkit::wait::{PATIENCE, wait_for};
use baton_testkit::{Machine, needs_baton};
use serde_json::json;

use crate::setup;

/// A guest and its successor, which are ready and wait.
fn paused() -> Result<(Machine, Machine)> {
    let mut source = setup()?.boot()?;
    set_capability(&mut source, "pause-before-switchover", true)?;
    let target = source.successor()?;
    begin(&mut source, &target)?;
    wait_for("the pause", PATIENCE, || {
        let info = source.execute("query-migrate", &json!({}))?;
        Ok((info["status"] == "pre-switchover").then_some(()))
    })?;
    // The guest runs meanwhile.
    ensure!(source.status()? == "running");
    source.wait_progress()?;
    Ok((source, target))
}

#[test]
fn the_guest_runs_on_until_the_operator_says_go_on() -> Result<()> {
    needs_baton!();
    let (mut source, mut target) = paused()?;
    for (state, text) in [
        ("device", "Migration not in expected state: pre-switchover"),
        ("bogus", "Parameter 'state' does not accept value 'bogus'"),
    ] {
        let reason = source.refusal("migrate-continue", &json!({ "state": state }))?;
        ensure!(reason == text, "{reason}");
    }
    let go_on = json!({ "state": "pre-switchover" });
    source.execute("migrate-continue", &go_on)?;
    let info = outcome(&mut source)?;
    ensure!(info["status"] == "completed", "{info}");
    target.wait_status("running")?;
    target.wait_progress()?;
    examine(&mut target)?;
    let reason = source.refusal("migrate-continue", &go_on)?;
    ensure!(
        reason == "Migration not in expected state: completed",
        "{reason}"
    );
    Ok(())
}

#[test]
fn a_pause_can_be_cancelled_and_the_guest_handed_over_later() -> Result<()> {
    needs_baton!();
    let (mut source, mut target) = paused()?;
    source.execute("migrate_cancel", &json!({}))?;
    let info = outcome(&mut source)?;
    ensure!(info["status"] == "cancelled", "{info}");
    target.ended()?;
    source.wait_progress()?;
    set_capability(&mut source, "pause-before-switchover", false)?;
    let (mut target, _) = baton_testkit::transfer::succeed(source)?;
    target.wait_progress()?;
    examine(&mut target)?;
    Ok(())
}
