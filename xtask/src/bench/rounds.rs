//! One VMM in a comparison: a guest that lives through all rounds.

use anyhow::{Context, Result};
use baton_testkit::check::examine;
use baton_testkit::progress::{Progress, wait_progress};
use baton_testkit::report::Control;
use baton_testkit::vmm::Programs;
use baton_testkit::wait::PATIENCE;
use baton_testkit::watch::{Watched, Watcher};
use baton_testkit::{Machine, Serial, Setup, Vmm, transfer};
use std::time::Duration;

use super::outcome::{Round, Side};

/// Between rounds the guest is stopped, so that only one VMM works at a time.
pub(super) struct Contestant {
    vmm: Vmm,
    /// Away only while a round replaces it.
    machine: Option<Machine>,
    rounds: Vec<Round>,
}

impl Contestant {
    pub(super) fn start(vmm: Vmm, programs: Programs, cpus: u32, devices: u32) -> Result<Self> {
        let setup = Setup::with(vmm, programs)
            .serial(Serial::File)
            .cpus(cpus)
            .rngs(devices);
        let mut machine = setup
            .boot()
            .with_context(|| format!("No guest boots on {vmm}"))?;
        machine.wait_progress()?;
        machine.stop()?;
        Ok(Self {
            vmm,
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
        let mut target = source.successor()?;

        source.tell(Control::ResetGap)?;
        let before = Progress::now(source.report());
        let watcher = Watcher::start(source.ram())?;
        let handover = transfer(&mut source, &mut target)?;
        wait_progress(target.report(), &before, PATIENCE)?;
        let watched = watcher.finish()?;
        let guest_ms = target.guest_gap_ms();

        source.quit()?;
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
        });
        Ok(())
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
