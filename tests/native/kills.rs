//! Killing either process at every moment that can be told from outside.
//!
//! Whatever happens, the guest is in one process at most, and before the target has run it, it is
//! in the source.

use anyhow::{Context, Result, bail, ensure};
use baton_testkit::check::examine;
use baton_testkit::machine::Main;
use baton_testkit::progress::{Progress, wait_progress};
use baton_testkit::transfer::{begin, outcome, set_mode};
use baton_testkit::wait::{PATIENCE, wait_for};
use baton_testkit::{Machine, needs_baton, needs_kvm, transfer};
use nix::sys::signal::Signal;
use serde_json::json;
use std::time::Duration;

use crate::failure::goes_on_and_can_be_retried;
use crate::setup;

#[test]
fn a_target_killed_before_it_listens_costs_nothing() -> Result<()> {
    needs_kvm!();
    let mut source = setup()?.boot()?;
    let mut target = source.successor_unready(Main::Unix)?;
    target.kill()?;
    set_mode(&mut source)?;
    source.refusal("migrate", &json!({ "channels": target.channels() }))?;
    goes_on_and_can_be_retried(source)
}

#[test]
fn a_target_that_hangs_and_is_killed_before_it_answers_costs_nothing() -> Result<()> {
    needs_baton!();
    let mut source = setup()?.boot()?;
    let mut target = source.successor()?;
    target.signal(Signal::SIGSTOP)?;
    set_mode(&mut source)?;
    source.qmp()?.forget_events();
    // Its socket takes the connection all the same; only the answer does not come.
    source
        .qmp()?
        .send("migrate", &json!({ "channels": target.channels() }))?;
    let before = Progress::now(source.report());
    wait_progress(source.report(), &before, PATIENCE)?;
    target.kill()?;
    if source.qmp()?.answer("migrate")?.is_ok() {
        let info = outcome(&mut source)?;
        ensure!(info["status"] == "failed", "{info}");
    }
    goes_on_and_can_be_retried(source)
}

#[test]
fn a_target_killed_when_it_is_ready_costs_nothing() -> Result<()> {
    needs_baton!();
    let mut source = setup()?.boot()?;
    let mut target = source.successor_on(Main::Deferred)?;
    begin(&mut source, &target)?;
    target.wait_status("inmigrate")?;
    source.wait_progress()?;
    target.kill()?;
    let info = outcome(&mut source)?;
    ensure!(
        info["status"] == "failed" && info["error-desc"].is_string(),
        "{info}"
    );
    goes_on_and_can_be_retried(source)
}

#[test]
fn a_target_whose_source_is_killed_before_the_handover_ends_with_an_error() -> Result<()> {
    needs_baton!();
    let mut source = setup()?.boot()?;
    let mut target = source.successor_on(Main::Deferred)?;
    begin(&mut source, &target)?;
    target.wait_status("inmigrate")?;
    source.kill()?;
    let uri = target.main_uri();
    // It may have noticed already.
    target
        .execute("migrate-incoming", &json!({ "uri": uri }))
        .ok();
    ensure!(
        !target.ended()?.success(),
        "The target says that all is well"
    );
    ensure!(
        target.log().lines().count() >= 1,
        "The target does not say why it ended"
    );
    Ok(())
}

#[test]
fn a_source_killed_after_the_handover_is_not_missed() -> Result<()> {
    needs_kvm!();
    let mut source = setup()?.boot()?;
    source.wait_progress()?;
    let mut target = source.successor()?;
    transfer(&mut source, &mut target)?;
    source.kill()?;
    goes_on_and_can_be_retried(target)
}

/// How a handover stood when the target had been killed at no particular moment.
enum Fate {
    /// The source has the guest.
    Source,
    /// The target had it, and it died with it.
    Target,
}

#[test]
fn a_target_killed_at_any_moment_never_leaves_two_guests_or_none() -> Result<()> {
    needs_baton!();
    let mut fates = [0, 0];
    for step in 0..12 {
        let mut source = setup()?.boot()?;
        source.wait_progress()?;
        let mut target = source.successor()?;
        begin(&mut source, &target)?;
        // Not a wait for anything: it only spreads the moments of death over a handover's length.
        std::thread::sleep(Duration::from_millis(step * step / 2));
        target.kill()?;
        match fate(&mut source)? {
            Fate::Source => {
                fates[0] += 1;
                goes_on_and_can_be_retried(source)?;
            }
            Fate::Target => {
                fates[1] += 1;
                source.refusal("cont", &json!({}))?;
            }
        }
    }
    println!(
        "the source kept the guest {} times, the target had it {} times",
        fates[0], fates[1]
    );
    Ok(())
}

/// Where the guest was when its target died; an error when it is lost though nobody ever ran it.
fn fate(source: &mut Machine) -> Result<Fate> {
    let info = outcome(source)?;
    let status = source.status()?;
    match (info["status"].as_str().unwrap_or_default(), status.as_str()) {
        ("failed", "running") => Ok(Fate::Source),
        ("completed" | "failed", "postmigrate") => Ok(Fate::Target),
        (migration, status) => bail!("The migration is '{migration}', the source '{status}'"),
    }
}

#[test]
fn a_source_killed_at_any_moment_leaves_a_guest_that_runs_or_a_target_that_says_why() -> Result<()>
{
    needs_baton!();
    for step in 0..12 {
        let mut source = setup()?.boot()?;
        source.wait_progress()?;
        let mut target = source.successor()?;
        begin(&mut source, &target)?;
        // As above.
        std::thread::sleep(Duration::from_millis(step * step / 2));
        source.kill()?;
        match decision(&mut target)? {
            Decision::Runs => {
                target.wait_progress()?;
                examine(&mut target)?;
            }
            Decision::Ended => ensure!(
                !target.log().trim().is_empty(),
                "The target ended without a word"
            ),
            // The source died before its first word: for the target somebody only knocked.
            Decision::Waits => {}
        }
    }
    Ok(())
}

/// What a target makes of the death of its source.
enum Decision {
    Runs,
    Ended,
    Waits,
}

/// What the target does, once that is decided.
fn decision(target: &mut Machine) -> Result<Decision> {
    let mut status = String::new();
    let decided = wait_for("the target to decide", PATIENCE, || {
        if target.alive().is_err() {
            return Ok(Some(Decision::Ended));
        }
        if target.listens("cpr")? {
            return Ok(Some(Decision::Waits));
        }
        // It may end while it is asked.
        status = target.status().unwrap_or_else(|error| format!("{error:#}"));
        Ok((status == "running").then_some(Decision::Runs))
    });
    decided.with_context(|| format!("{} is '{status}'", target.name()))
}
