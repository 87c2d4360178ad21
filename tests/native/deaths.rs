//! Death and worse at every step of a cpr-transfer, on either side: afterwards exactly one process
//! runs the guest, and it is whole.
//!
//! The steps are the actions of the two machines in `migration/src/handover`. A guest that lives
//! goes on to the next step in whichever process has it, so that every row is also a retry.

use anyhow::{Context, Result, ensure};
use baton_testkit::transfer::{outcome, set_capability, set_mode, succeed};
use baton_testkit::wait::{self, wait_for};
use baton_testkit::{Machine, needs_baton};
use nix::sys::signal::Signal;
use serde_json::json;
use std::time::Duration;

use crate::{is_whole, setup};
use Whose::{Either, Nobodys, Sources, Targets};

/// Who runs the guest afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    Sources,
    Targets,
    /// Whoever was faster.
    Either,
    /// The process that had it was killed.
    Nobodys,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Kill,
    /// SIGSTOP, and SIGCONT when the other side has given up or gone on.
    Stop,
    Error,
    Panic,
}

impl What {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Stop => "stop",
            Self::Error => "error",
            Self::Panic => "panic",
        }
    }
}

/// A step and whose the guest is after a kill, a stop, and an error or a panic before it.
type Row = (&'static str, [Whose; 3]);

/// The source's steps. Once the target has the state, it needs nobody.
const SOURCE: [Row; 12] = [
    ("Offer", [Nobodys, Sources, Sources]),
    ("AwaitReady", [Nobodys, Sources, Sources]),
    // It waits for its operator, so that the target waits with it.
    ("Pause", [Nobodys, Targets, Sources]),
    ("Attach", [Nobodys, Sources, Sources]),
    ("AwaitAttached", [Nobodys, Sources, Sources]),
    ("StopAndSave", [Nobodys, Sources, Sources]),
    ("SendState", [Nobodys, Sources, Sources]),
    ("AwaitLoaded", [Targets, Targets, Sources]),
    ("Commit", [Targets, Targets, Sources]),
    ("AwaitStarted", [Targets, Targets, Either]),
    ("Reclaim", [Targets, Targets, Targets]),
    ("Finish", [Targets, Targets, Targets]),
];

/// The target's steps. `AwaitHello` is over before it has a machine.
const TARGET: [Row; 13] = [
    // The source waits for a target to be ready for as long as it takes.
    ("AwaitFds", [Sources, Targets, Sources]),
    ("AwaitPreview", [Sources, Targets, Sources]),
    ("Prepare", [Sources, Targets, Sources]),
    ("OpenMain", [Sources, Targets, Sources]),
    ("AwaitAttach", [Sources, Sources, Sources]),
    ("WelcomeSource", [Sources, Sources, Sources]),
    ("AwaitState", [Sources, Sources, Sources]),
    ("Load", [Sources, Sources, Sources]),
    ("ReportLoaded", [Sources, Sources, Sources]),
    ("AwaitCommit", [Sources, Sources, Sources]),
    ("Start", [Sources, Sources, Sources]),
    // It runs here, and dies here.
    ("ReportStarted", [Nobodys, Targets, Targets]),
    ("Finish", [Nobodys, Targets, Targets]),
];

fn expected(row: &Row, what: What) -> Whose {
    match what {
        What::Kill => row.1[0],
        What::Stop => row.1[1],
        What::Error | What::Panic => row.1[2],
    }
}

/// Less than the time-outs are, and more than a step takes on a busy machine.
const PATIENCE: Duration = Duration::from_millis(1500);

/// A guest that does everything it does.
fn boot() -> Result<Machine> {
    let mut machine = setup()?.boot()?;
    machine.wait_progress()?;
    Ok(machine)
}

/// Runs all steps of a side; a guest that died makes way for another.
fn at_every_step(
    rows: &[Row],
    what: What,
    try_row: fn(&mut Machine, &mut Machine, &Row, What) -> Result<()>,
) -> Result<()> {
    let mut guest = None;
    for row in rows {
        let mut source = guest.take().map_or_else(boot, Ok)?;
        if what == What::Stop {
            source.be_patient(Some(PATIENCE))?;
        }
        let mut target = source.successor()?;
        let whose = try_row(&mut source, &mut target, row, what)
            .and_then(|()| settle(&mut source, &mut target, expected(row, what)));
        let whose = whose.with_context(|| {
            let (ours, theirs) = (source.log(), target.log());
            format!("{what:?} at {}: {ours}\n--\n{theirs}", row.0)
        })?;
        guest = match whose {
            Sources => Some(source),
            Targets => Some(target),
            _ => None,
        };
    }
    if let Some(survivor) = guest {
        if what == What::Stop {
            survivor.be_patient(None)?;
        }
        is_whole(&mut succeed(survivor)?.0)?;
    }
    Ok(())
}

/// Sees that the guest is where it is expected, whole, and nowhere else; gives where it is.
fn settle(source: &mut Machine, target: &mut Machine, expected: Whose) -> Result<Whose> {
    let whose = match expected {
        Either if source.status()? == "running" => Sources,
        Either => Targets,
        other => other,
    };
    match whose {
        Sources => {
            ensure!(
                !target.ended()?.success(),
                "The target says that all is well"
            );
            ensure!(
                !target.log().trim().is_empty(),
                "The target does not say why"
            );
            source.wait_status("running")?;
            is_whole(source)?;
        }
        Targets => {
            target.wait_status("running")?;
            // What died in it after the guest's start may still be telling of itself.
            wait_for(
                "the target's account of the migration",
                wait::PATIENCE,
                || {
                    let info = target.execute("query-migrate", &json!({}))?;
                    let ended =
                        ["completed", "failed"].contains(&info["status"].as_str().unwrap_or(""));
                    Ok(ended.then_some(()))
                },
            )?;
            if source.alive().is_ok() {
                ensure!(source.status()? == "postmigrate");
                source.refusal("cont", &json!({}))?;
                is_whole(target)?;
                source.quit()?;
            }
            is_whole(target)?;
        }
        Either | Nobodys => {}
    }
    Ok(whose)
}

/// Has `migrate` sent; its answer may have to wait.
fn send_migrate(source: &mut Machine, target: &Machine) -> Result<()> {
    set_mode(source)?;
    source.qmp()?.forget_events();
    let channels = json!({ "channels": target.channels() });
    source.qmp()?.send("migrate", &channels)
}

/// The migration's end as the source tells it, and what it should be.
fn ends(source: &mut Machine, statuses: &[&str]) -> Result<()> {
    let info = outcome(source)?;
    let status = info["status"].as_str().unwrap_or_default();
    ensure!(statuses.contains(&status), "{info}");
    if status == "failed" {
        let reason = info["error-desc"].as_str().unwrap_or_default();
        ensure!(!reason.is_empty(), "It does not say why: {info}");
    }
    Ok(())
}

fn try_source(source: &mut Machine, target: &mut Machine, row: &Row, what: What) -> Result<()> {
    let place = format!("source-{}", row.0);
    let whose = expected(row, what);
    let pauses = row.0 == "Pause";
    set_capability(source, "pause-before-switchover", pauses)?;
    source.want_fault(&place, what.name())?;
    send_migrate(source, target)?;
    match what {
        What::Kill => {
            source.ended()?;
            ensure!(source.faulted(&place), "It was not killed there");
            return match whose {
                Nobodys => nobody_runs(target),
                _ => Ok(()),
            };
        }
        What::Stop => {
            source.wait_stopped(&place)?;
            match whose {
                Sources => drop(target.ended()?),
                _ if pauses => {}
                _ => {
                    target.wait_status("running")?;
                    target.wait_progress()?;
                }
            }
            source.signal(Signal::SIGCONT)?;
        }
        What::Error | What::Panic => {}
    }
    source.qmp()?.answer("migrate")?.ok();
    if pauses && what == What::Stop {
        let paused = |data: &serde_json::Value| data["status"] == "pre-switchover";
        source.qmp()?.wait_event_with("MIGRATION", paused)?;
        source.execute("migrate-continue", &json!({ "state": "pre-switchover" }))?;
    }
    match whose {
        Sources => ends(source, &["failed"])?,
        Either => ends(source, &["failed", "completed"])?,
        _ => ends(source, &["completed"])?,
    }
    ensure!(source.faulted(&place), "It did not happen");
    Ok(())
}

/// A target whose source died before it had the state: it ends with an error, or goes on waiting if
/// it has not heard a word.
fn nobody_runs(target: &mut Machine) -> Result<()> {
    let waits = target.listens("cpr")?;
    if !waits {
        ensure!(!target.ended()?.success(), "It says that all is well");
        ensure!(!target.log().trim().is_empty(), "It does not say why");
    }
    Ok(())
}

fn try_target(source: &mut Machine, target: &mut Machine, row: &Row, what: What) -> Result<()> {
    let place = format!("target-{}", row.0);
    let whose = expected(row, what);
    source.want_fault(&place, what.name())?;
    send_migrate(source, target)?;
    source.qmp()?.answer("migrate")?.ok();
    if what == What::Stop {
        target.wait_stopped(&place)?;
        let waits = ["AwaitFds", "AwaitPreview", "Prepare", "OpenMain"].contains(&row.0);
        if waits {
            source.wait_progress()?;
            target.signal(Signal::SIGCONT)?;
        }
        let end = if whose == Targets {
            "completed"
        } else {
            "failed"
        };
        ends(source, &[end])?;
        if whose == Sources {
            is_whole(source)?;
        }
        return target.signal(Signal::SIGCONT);
    }
    match (whose, row.0) {
        (Sources, _) => ends(source, &["failed"])?,
        // It learns that the guest was started from the claim alone, and not whether it runs.
        (_, "ReportStarted") => ends(source, &["failed"])?,
        _ => ends(source, &["completed"])?,
    }
    ensure!(source.faulted(&place), "It did not happen");
    if whose == Nobodys {
        target.ended()?;
        ensure!(source.status()? == "postmigrate");
        source.refusal("cont", &json!({}))?;
    }
    Ok(())
}

#[test]
fn a_source_killed_at_any_step() -> Result<()> {
    needs_baton!();
    at_every_step(&SOURCE, What::Kill, try_source)
}

#[test]
fn a_source_that_sleeps_at_any_step_and_wakes_up_late() -> Result<()> {
    needs_baton!();
    at_every_step(&SOURCE, What::Stop, try_source)
}

#[test]
fn a_source_that_fails_at_any_step() -> Result<()> {
    needs_baton!();
    at_every_step(&SOURCE, What::Error, try_source)
}

#[test]
fn a_source_that_panics_at_any_step() -> Result<()> {
    needs_baton!();
    at_every_step(&SOURCE, What::Panic, try_source)
}

#[test]
fn a_target_killed_at_any_step() -> Result<()> {
    needs_baton!();
    at_every_step(&TARGET, What::Kill, try_target)
}

#[test]
fn a_target_that_sleeps_at_any_step_and_wakes_up_late() -> Result<()> {
    needs_baton!();
    at_every_step(&TARGET, What::Stop, try_target)
}

#[test]
fn a_target_that_fails_at_any_step() -> Result<()> {
    needs_baton!();
    at_every_step(&TARGET, What::Error, try_target)
}

#[test]
fn a_target_that_panics_at_any_step() -> Result<()> {
    needs_baton!();
    at_every_step(&TARGET, What::Panic, try_target)
}
