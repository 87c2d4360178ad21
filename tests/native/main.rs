//! The VMM with a guest on /dev/kvm, handed over and killed in every way there is a name for.
//!
//! `BATON_TEST_VMM=qemu` runs the same tests on QEMU: what fails there as well is the test's fault.

mod background;
mod blockers;
mod boot;
mod chardevs;
mod clients;
mod copied_deaths;
mod deaths;
mod demand;
mod document;
mod exec;
mod exec_deaths;
mod failure;
mod fds;
mod hmp;
mod hotplug;
mod hotplug_handover;
mod kept;
mod kills;
mod leaks;
mod monitors;
mod nodes;
mod normal;
mod objects;
mod pause;
mod ports;
mod power;
mod replace;
mod runstate;
mod settings;
mod store;
mod suspend;
mod systemd;
mod texts;
mod transfer;
mod update;

use anyhow::{Result, ensure};
use baton_testkit::check::examine;
use baton_testkit::{Machine, Setup, Vmm};

/// The usual guest on the VMM under test.
fn setup() -> Result<Setup> {
    Setup::new(Vmm::under_test()?)
}

/// Everything that a guest must still do and have, whatever was done with it.
fn is_whole(machine: &mut Machine) -> Result<()> {
    machine.wait_progress()?;
    examine(machine)?;
    machine.wait_progress()
}

/// What a guest whose RAM nobody else sees can tell of itself: it talks, and its disk has what it
/// wrote.
fn answers(machine: &mut Machine) -> Result<()> {
    machine.say("hello")?;
    machine.wait_line("echo: hello")?;
    machine.say("quiesce")?;
    let verdict = machine.wait_line("VERIFIED ")?;
    ensure!(verdict.ends_with("bad=0"), "{verdict}");
    machine.say("resume")?;
    machine.wait_line("echo: resume").map(drop)
}
