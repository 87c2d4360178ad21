//! Each mode's way to take a guest from one program to the next.

use super::generation::{Generation, Origin};
use super::life::Life;
use anyhow::{Context, Result, bail, ensure};
use baton_testkit::wait::wait_for;
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

/// The runstate of a guest that is at work.
pub(crate) const RUNNING: &str = "running";
/// That of one that sleeps.
pub(crate) const SUSPENDED: &str = "suspended";

const HANDOVER: Duration = Duration::from_secs(60);

/// What one migration took, in milliseconds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Took {
    /// As the VMM reports it; of cpr-reboot, whose ends measure by themselves, both together.
    pub downtime: u64,
    /// From the command `migrate` to a running guest in the next program.
    pub total: u64,
    /// The longest pause that the guest noticed between two of its ticks.
    pub gap: u64,
}

impl Took {
    /// A migration that is over now, but for what the guest has noticed.
    pub(crate) fn since(start: Instant, downtime: u64) -> Self {
        Self {
            downtime,
            total: start.elapsed().as_millis() as u64,
            gap: 0,
        }
    }
}

/// Does a migration and sees the guest go on.
pub(crate) fn step(
    life: &mut Life,
    name: &str,
    migrate: impl FnOnce(&mut Life) -> Result<Took>,
) -> Result<Took> {
    let ticks = life.serial()?.ticks();
    let mut took = migrate(life).with_context(|| name.to_owned())?;
    life.goes_on().with_context(|| format!("After {name}"))?;
    took.gap = life.serial()?.longest_gap_after(ticks);
    println!(
        "LAB {name}: downtime {} ms, {} ms in all, {} ms between two ticks",
        took.downtime, took.total, took.gap
    );
    Ok(took)
}

/// cpr-transfer into a new process, in which the guest runs, or sleeps, as it did.
pub(crate) fn transfer(life: &mut Life) -> Result<Took> {
    let mut target = life.next(Origin::Transfer)?;
    let source = &mut life.now;
    let stays = source.status()?;
    set_mode(source, "cpr-transfer")?;
    let start = Instant::now();
    source.command("migrate", &json!({ "channels": target.channels() }))?;
    // When the target gives up, only it knows why.
    let downtime = completed(source).with_context(|| target.name())?;
    has_guest(&mut target, &stays)?;
    let took = Took::since(start, downtime);
    let mut source = std::mem::replace(&mut life.now, target);
    let left = source.status()?;
    ensure!(
        left == "postmigrate",
        "The source is `{left}` after the handover, not `postmigrate`"
    );
    quit(&mut source)?;
    Ok(took)
}

/// cpr-exec: the process becomes `program`, and the monitor's connection stays.
pub(crate) fn execute(life: &mut Life, program: &str) -> Result<Took> {
    let command = life.now.successor(program, &life.guest.line());
    let now = &mut life.now;
    let parameters = json!({ "mode": "cpr-exec", "cpr-exec-command": command });
    now.command("migrate-set-parameters", &parameters)?;
    let start = Instant::now();
    now.command("migrate", &json!({}))?;
    let downtime = completed(now)?;
    has_guest(now, RUNNING)?;
    let took = Took::since(start, downtime);
    let runs = now.program()?;
    ensure!(
        runs == Path::new(program),
        "The process runs {} and not {program}",
        runs.display()
    );
    Ok(took)
}

/// The first half of cpr-reboot: the guest is kept in `file` and its process has ended. RAM stays
/// in its own shared file, or goes into `file`, too. Gives the downtime that the process reports.
pub(crate) fn keep(source: &mut Generation, file: &str, ram_stays: bool) -> Result<u64> {
    set_mode(source, "cpr-reboot")?;
    ignore_shared(source, ram_stays)?;
    source.command("migrate", &json!({ "uri": format!("file:{file}") }))?;
    let downtime = completed(source)?;
    let left = source.status()?;
    ensure!(
        left == "postmigrate",
        "The source is `{left}` when the guest is kept, not `postmigrate`"
    );
    quit(source)?;
    Ok(downtime)
}

/// The second half, in a process started with `-incoming`, in which the guest is in runstate `stays` then.
/// One that waits is told where the guest is.
pub(crate) fn load(
    target: &mut Generation,
    deferred: Option<&str>,
    ram_stays: bool,
    stays: &str,
) -> Result<u64> {
    if let Some(file) = deferred {
        set_mode(target, "cpr-reboot")?;
        ignore_shared(target, ram_stays)?;
        target.command(
            "migrate-incoming",
            &json!({ "uri": format!("file:{file}") }),
        )?;
    }
    has_guest(target, stays)?;
    let info = target.command("query-migrate", &json!({}))?;
    Ok(info["downtime"].as_u64().unwrap_or(0))
}

fn set_mode(vmm: &mut Generation, mode: &str) -> Result<()> {
    let parameters = json!({ "mode": mode });
    vmm.command("migrate-set-parameters", &parameters).map(drop)
}

fn ignore_shared(vmm: &mut Generation, on: bool) -> Result<()> {
    let list = json!([{ "capability": "x-ignore-shared", "state": on }]);
    let arguments = json!({ "capabilities": list });
    vmm.command("migrate-set-capabilities", &arguments)
        .map(drop)
}

/// Waits for the migration's good end and gives the downtime it reports, in milliseconds.
fn completed(source: &mut Generation) -> Result<u64> {
    let outcome: Value = wait_for("the source to finish", HANDOVER, || {
        let answer = source.command("query-migrate", &json!({}))?;
        match answer["status"].as_str().unwrap_or_default() {
            "completed" => Ok(Some(answer)),
            "failed" | "cancelled" => bail!("The source reports: {answer}"),
            _ => Ok(None),
        }
    })?;
    outcome["downtime"]
        .as_u64()
        .with_context(|| format!("There is no downtime in {outcome}"))
}

/// Waits until the guest is there.
pub(crate) fn has_guest(target: &mut Generation, runstate: &str) -> Result<()> {
    wait_for(&format!("the runstate `{runstate}`"), HANDOVER, || {
        Ok((target.status()? == runstate).then_some(()))
    })
}

/// Ends a process that has no guest any more.
pub(crate) fn quit(source: &mut Generation) -> Result<()> {
    source.command("quit", &json!({}))?;
    ended_well(source)
}

/// Waits for the end of a process that was told to.
pub(crate) fn ended_well(source: &mut Generation) -> Result<()> {
    let status = source.ended(HANDOVER)?;
    ensure!(status.success(), "The source ended with {status}");
    Ok(())
}
