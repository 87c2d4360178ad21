//! One VMM in a comparison: a guest that lives through all rounds.

use anyhow::{Context, Result, ensure};
use baton_testkit::check::examine;
use baton_testkit::progress::{Progress, wait_progress};
use baton_testkit::report::Control;
use baton_testkit::transfer::{Handover, execute_successor};
use baton_testkit::vmm::Programs;
use baton_testkit::wait::PATIENCE;
use baton_testkit::watch::{Watched, Watcher};
use baton_testkit::{Machine, Serial, Setup, Vmm, kept, transfer};
use serde_json::json;
use std::time::Duration;

use super::outcome::{Round, Side};

/// How the guest gets to the next program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Transfer,
    Exec,
    /// With RAM left in its shared file.
    Reboot,
}

impl Way {
    pub(super) const ALL: [Way; 3] = [Way::Transfer, Way::Exec, Way::Reboot];

    pub(super) fn name(self) -> &'static str {
        match self {
            Way::Transfer => "cpr-transfer",
            Way::Exec => "cpr-exec",
            Way::Reboot => "cpr-reboot",
        }
    }
}

/// The guest to compare with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub way: Way,
    pub memory_mib: u64,
    /// Whether all of it is there from the beginning.
    pub touched: bool,
    pub cpus: u32,
    pub rngs: u32,
}

/// Between rounds the guest is stopped, so that only one VMM works at a time.
pub(super) struct Contestant {
    vmm: Vmm,
    way: Way,
    /// Away only while a round replaces it.
    machine: Option<Machine>,
    rounds: Vec<Round>,
}

impl Contestant {
    pub(super) fn start(vmm: Vmm, programs: Programs, shape: Shape) -> Result<Self> {
        let mut setup = Setup::with(vmm, programs)
            .serial(Serial::File)
            .memory_mib(shape.memory_mib)
            .cpus(shape.cpus)
            .rngs(shape.rngs);
        if shape.rngs > 1 {
            // The guest asks all of them in turn, and has one slow CPU to do so.
            setup = setup.append(&format!("pace={}", 4 * shape.rngs));
        }
        if shape.touched {
            setup = setup.touched();
        }
        let mut machine = setup
            .boot()
            .with_context(|| format!("No guest boots on {vmm}"))?;
        machine.wait_progress()?;
        machine.stop()?;
        Ok(Self {
            vmm,
            way: shape.way,
            machine: Some(machine),
            rounds: Vec::new(),
        })
    }

    pub(super) fn vmm(&self) -> Vmm {
        self.vmm
    }

    /// A handover, and the same time without one for what this machine does to any guest.
    pub(super) fn round(&mut self) -> Result<()> {
        let mut source = self.machine.take().context("An earlier round has failed")?;
        source.cont()?;
        source.wait_progress()?;
        // What can be started beforehand is.
        let waiting = match self.way {
            Way::Transfer => Some(source.successor()?),
            Way::Exec | Way::Reboot => None,
        };
        source.tell(Control::ResetGap)?;
        let before = Progress::now(source.report());
        let watcher = Watcher::start(source.ram())?;
        let (mut target, handover) = self.hand_over(source, waiting)?;
        wait_progress(target.report(), &before, PATIENCE)?;
        std::thread::sleep(AFTER);
        let watched = watcher.finish()?;
        let guest_ms = target.guest_gap_ms();

        let (idle, idle_guest_ms) = idle(&mut target, watched.length_ns)?;
        examine(&mut target)?;
        target.stop()?;
        self.machine = Some(target);
        self.rounds.push(Round {
            outside_ms: watched.longest.ms(),
            doubt_ms: watched.longest.doubt_ms(),
            guest_ms,
            vmm_ms: handover.blackout_ms(),
            phases: handover.phases(),
            idle_outside_ms: idle.longest.ms(),
            idle_guest_ms,
            after_percent: after_percent(&watched, &idle),
        });
        Ok(())
    }

    fn hand_over(
        &self,
        mut source: Machine,
        waiting: Option<Machine>,
    ) -> Result<(Machine, Handover)> {
        match (self.way, waiting) {
            (Way::Transfer, Some(mut target)) => {
                let handover = transfer(&mut source, &mut target)?;
                source.quit()?;
                Ok((target, handover))
            }
            (Way::Transfer, None) => anyhow::bail!("There is no process to transfer to"),
            (Way::Exec, _) => {
                let handover = execute_successor(&mut source)?;
                Ok((source, handover))
            }
            (Way::Reboot, _) => {
                let uri = format!("file:{}", source.file("state").display());
                leave_ram(&mut source)?;
                let info = kept::keep(&mut source, &uri)?;
                source.quit()?;
                let mut target = source.loading("defer")?;
                leave_ram(&mut target)?;
                target.execute("migrate-incoming", &json!({ "uri": uri }))?;
                target.wait_status("running")?;
                // What it says is its own part, and not comparable.
                ensure!(info["status"] == "completed", "{info}");
                let info = serde_json::Value::Null;
                Ok((target, Handover { info }))
            }
        }
    }

    pub(super) fn finish(self) -> Result<Side> {
        let mut machine = self.machine.context("The last round has failed")?;
        machine.quit()?;
        Ok(Side {
            vmm: self.vmm,
            rounds: self.rounds,
        })
    }
}

/// RAM stays in its shared file, which both processes must be told.
fn leave_ram(machine: &mut Machine) -> Result<()> {
    kept::set_mode(machine)?;
    let list = json!([{ "capability": "x-ignore-shared", "state": true }]);
    machine.execute("migrate-set-capabilities", &json!({ "capabilities": list }))?;
    Ok(())
}

/// How long the guest is watched for what it does right after.
const AFTER: Duration = Duration::from_millis(150);
/// Of that, what counts.
const COUNTED: u64 = 100_000_000;

fn after_percent(watched: &Watched, idle: &Watched) -> Option<f64> {
    let after = watched.rate(watched.after_longest_ns(), COUNTED)?;
    let usual = idle.rate(idle.began_ns(), COUNTED)?;
    Some(100.0 * after / usual).filter(|percent| percent.is_finite())
}

/// Watches a guest with which nothing is done.
fn idle(machine: &mut Machine, length_ns: u64) -> Result<(Watched, f64)> {
    machine.wait_progress()?;
    machine.tell(Control::ResetGap)?;
    let watcher = Watcher::start(machine.ram())?;
    // The length of the handover's watch is what is waited for.
    std::thread::sleep(Duration::from_nanos(length_ns));
    let watched = watcher.finish()?;
    Ok((watched, machine.guest_gap_ms()))
}
