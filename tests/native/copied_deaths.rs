//! Death and worse at every step of a migration in mode normal, on either side: never do two
//! processes run the guest, and the one that runs it has it whole.
//!
//! The steps are the actions of the two machines in `migration/src/precopy`. The two sides share no
//! memory that could say who has the guest, so that a death after COMMIT may lose it, and the source
//! says so; unlike in `deaths.rs` there are rows for that.

use anyhow::{Context, Result, ensure};
use baton_testkit::copied::{copy, parameters};
use baton_testkit::cut::Cut;
use baton_testkit::machine::Main;
use baton_testkit::transfer::{outcome, set_capability};
use baton_testkit::{Machine, needs_baton};
use nix::sys::signal::Signal;
use serde_json::json;
use std::time::Duration;

use crate::deaths::What;
use crate::{answers, is_whole, setup};
use Whose::{Given, Lost, Nobodys, Sources, Targets};

/// Who runs the guest afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    /// The source, which says that the migration has failed.
    Sources,
    /// The target, and the source knows.
    Targets,
    /// The target; the source says that it has to be looked at.
    Given,
    /// Neither; the source says that the target has to be looked at.
    Lost,
    /// The source was killed before it gave the guest away.
    Nobodys,
}

/// A step and whose the guest is after a kill, a stop, and an error or a panic before it.
type Row = (&'static str, [Whose; 3]);

/// The source's steps.
const SOURCE: [Row; 9] = [
    ("Offer", [Nobodys, Sources, Sources]),
    // A target waits without end for a guest that is copied to it.
    ("AwaitReady", [Nobodys, Targets, Sources]),
    ("Copy", [Nobodys, Targets, Sources]),
    ("Pause", [Nobodys, Targets, Sources]),
    ("StopAndSave", [Nobodys, Targets, Sources]),
    ("SendState", [Nobodys, Targets, Sources]),
    ("AwaitLoaded", [Nobodys, Sources, Sources]),
    ("Commit", [Nobodys, Sources, Sources]),
    ("AwaitStarted", [Targets, Targets, Given]),
];

/// The target's steps. HELLO has come before the first.
const TARGET: [Row; 8] = [
    ("Build", [Sources, Targets, Sources]),
    ("ReportReady", [Sources, Targets, Sources]),
    ("Receive", [Sources, Sources, Sources]),
    ("Load", [Sources, Sources, Sources]),
    ("ReportLoaded", [Sources, Sources, Sources]),
    // COMMIT is here or on its way.
    ("AwaitCommit", [Lost, Given, Sources]),
    ("Start", [Lost, Given, Sources]),
    ("ReportStarted", [Lost, Given, Given]),
];

fn expected(row: &Row, what: What) -> Whose {
    match what {
        What::Kill => row.1[0],
        What::Stop => row.1[1],
        What::Error | What::Panic => row.1[2],
    }
}

/// Less than the time-outs are, and more than a step takes on a busy machine.
const PATIENCE: Duration = Duration::from_millis(3000);

fn boot() -> Result<Machine> {
    let mut machine = setup()?.boot()?;
    machine.wait_progress()?;
    Ok(machine)
}

/// Everything the guest has, also what it wrote to its disk.
fn has_all(machine: &mut Machine) -> Result<()> {
    machine.wait_status("running")?;
    is_whole(machine)?;
    answers(machine)
}

/// Runs all steps of a side; a guest that is gone makes way for another.
fn at_every_step(side: &str, rows: &[Row], what: What) -> Result<()> {
    let mut guest = None;
    for row in rows {
        let mut source = guest.take().map_or_else(boot, Ok)?;
        if what == What::Stop {
            source.be_patient(Some(PATIENCE))?;
        }
        let mut target = source.apart(Main::Unix)?;
        let tried = try_row(side, &mut source, &mut target, row, what);
        let whose = tried.with_context(|| {
            let (ours, theirs) = (source.log(), target.log());
            format!("{what:?} at {side}-{}: {ours}\n--\n{theirs}", row.0)
        })?;
        guest = match whose {
            Sources => Some(source),
            Targets | Given => Some(target),
            Lost | Nobodys => None,
        };
    }
    if let Some(mut survivor) = guest {
        if what == What::Stop {
            survivor.be_patient(None)?;
        }
        let mut target = survivor.apart(Main::Unix)?;
        copy(&mut survivor, &mut target)?;
        has_all(&mut target)?;
    }
    Ok(())
}

fn try_row(
    side: &str,
    source: &mut Machine,
    target: &mut Machine,
    row: &Row,
    what: What,
) -> Result<Whose> {
    let place = format!("{side}-{}", row.0);
    let whose = expected(row, what);
    let pauses = row.0 == "Pause";
    set_capability(source, "pause-before-switchover", pauses)?;
    source.want_fault(&place, what.name())?;
    parameters(source, &json!({ "mode": "normal" }))?;
    source.qmp()?.forget_events();
    // Its answer may have to wait, or never come.
    let uri = json!({ "uri": target.main_uri() });
    source.qmp()?.send("migrate", &uri)?;
    if side == "target" || matches!(what, What::Error | What::Panic) {
        source.qmp()?.answer("migrate")?.ok();
    }
    match (what, side) {
        (What::Kill, "source") => drop(source.ended()?),
        (What::Kill, _) => drop(target.ended()?),
        (What::Stop, "source") => {
            source.wait_stopped(&place)?;
            match whose {
                Sources => drop(target.ended()?),
                Targets if row.0 == "AwaitStarted" => target.wait_status("running")?,
                // It waits for pages, or for what comes after them.
                _ => ensure!(target.status()? == "inmigrate"),
            }
            source.signal(Signal::SIGCONT)?;
            source.qmp()?.answer("migrate")?.ok();
            if pauses {
                let paused = |data: &serde_json::Value| data["status"] == "pre-switchover";
                source.qmp()?.wait_event_with("MIGRATION", paused)?;
                let state = json!({ "state": "pre-switchover" });
                source.execute("migrate-continue", &state)?;
            }
        }
        (What::Stop, _) => {
            target.wait_stopped(&place)?;
            if whose == Targets {
                source.wait_progress()?;
            } else {
                ends(source, whose)?;
            }
            target.signal(Signal::SIGCONT)?;
        }
        (What::Error | What::Panic, _) => {}
    }
    let told = what == What::Stop && side == "target" && whose != Targets;
    if source.alive().is_ok() && !told {
        ends(source, whose)?;
    }
    ensure!(source.faulted(&place), "It did not happen");
    settled(source, target, whose)?;
    Ok(whose)
}

/// The migration's end as the source tells it.
fn ends(source: &mut Machine, whose: Whose) -> Result<()> {
    let info = outcome(source)?;
    let reason = info["error-desc"].as_str().unwrap_or_default();
    match whose {
        Targets => ensure!(info["status"] == "completed", "{info}"),
        Given | Lost => ensure!(reason.contains("not resumed here"), "{info}"),
        Sources | Nobodys => {
            ensure!(info["status"] == "failed" && !reason.is_empty(), "{info}");
            ensure!(!reason.contains("not resumed here"), "{info}");
        }
    }
    Ok(())
}

/// Sees that the guest is where it is expected, whole, and nowhere else.
fn settled(source: &mut Machine, target: &mut Machine, whose: Whose) -> Result<()> {
    match whose {
        Sources => {
            ensure!(!target.ended()?.success(), "The target ends well");
            has_all(source)
        }
        Targets | Given => {
            if source.alive().is_ok() {
                has_let_go(source)?;
                source.quit()?;
            }
            has_all(target)
        }
        Lost => {
            ensure!(!target.ended()?.success(), "The target ends well");
            has_let_go(source)
        }
        Nobodys => {
            // It has not heard a word, or ends.
            if !target.listens("main")? {
                ensure!(!target.ended()?.success(), "The target ends well");
                ensure!(!target.log().trim().is_empty(), "It does not say why");
            }
            Ok(())
        }
    }
}

/// The source never runs the guest again.
fn has_let_go(source: &mut Machine) -> Result<()> {
    ensure!(source.status()? == "postmigrate");
    source.refusal("cont", &json!({}))?;
    source.refusal("system_reset", &json!({}))?;
    Ok(())
}

#[test]
fn a_source_killed_at_any_step() -> Result<()> {
    needs_baton!();
    at_every_step("source", &SOURCE, What::Kill)
}

#[test]
fn a_source_that_sleeps_at_any_step_and_wakes_up_late() -> Result<()> {
    needs_baton!();
    at_every_step("source", &SOURCE, What::Stop)
}

#[test]
fn a_source_that_fails_at_any_step() -> Result<()> {
    needs_baton!();
    at_every_step("source", &SOURCE, What::Error)
}

#[test]
fn a_source_that_panics_at_any_step() -> Result<()> {
    needs_baton!();
    at_every_step("source", &SOURCE, What::Panic)
}

#[test]
fn a_target_killed_at_any_step() -> Result<()> {
    needs_baton!();
    at_every_step("target", &TARGET, What::Kill)
}

#[test]
fn a_target_that_sleeps_at_any_step_and_wakes_up_late() -> Result<()> {
    needs_baton!();
    at_every_step("target", &TARGET, What::Stop)
}

#[test]
fn a_target_that_fails_at_any_step() -> Result<()> {
    needs_baton!();
    at_every_step("target", &TARGET, What::Error)
}

#[test]
fn a_target_that_panics_at_any_step() -> Result<()> {
    needs_baton!();
    at_every_step("target", &TARGET, What::Panic)
}

/// Messages of `migration/src/precopy/protocol.rs`, by their numbers on the wire, before which the
/// connection is cut while both sides live, and whose the guest is then.
const MESSAGES: [(u8, Whose); 7] = [
    (1, Sources),
    (2, Sources),
    (3, Sources),
    (4, Sources),
    (5, Sources),
    // COMMIT and STARTED.
    (6, Lost),
    (7, Given),
];

#[test]
fn a_connection_cut_before_any_message() -> Result<()> {
    needs_baton!();
    let mut guest = None;
    for (kind, whose) in MESSAGES {
        let mut source = guest.take().map_or_else(boot, Ok)?;
        let mut target = source.apart(Main::Unix)?;
        let listens = target.main_uri();
        let listens = listens.strip_prefix("unix:").context("It is no socket")?;
        let cut = Cut::before(kind, &source.file("cut"), listens.as_ref())?;
        parameters(&mut source, &json!({ "mode": "normal" }))?;
        source.qmp()?.forget_events();
        let uri = format!("unix:{}", source.file("cut").display());
        source.execute("migrate", &json!({ "uri": uri }))?;
        let tried = ends(&mut source, whose).and_then(|()| {
            cut.happened()?;
            if kind == 1 {
                // It has not heard a word, and waits for another.
                target.kill()?;
            }
            settled(&mut source, &mut target, whose)
        });
        tried.with_context(|| {
            let (ours, theirs) = (source.log(), target.log());
            format!("cut before message {kind}: {ours}\n--\n{theirs}")
        })?;
        guest = match whose {
            Sources => Some(source),
            _ => None,
        };
    }
    Ok(())
}
