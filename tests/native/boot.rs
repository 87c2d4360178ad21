//! A guest comes up and everything in its machine works.

use anyhow::{Result, ensure};
use baton_testkit::check::examine;
use baton_testkit::report::{self, Control};
use baton_testkit::{Serial, needs_kvm};

use crate::{is_whole, setup};

#[test]
fn a_guest_with_little_memory_uses_what_there_is() -> Result<()> {
    needs_kvm!();
    let mut machine = setup()?.memory_mib(32).boot()?;
    is_whole(&mut machine)
}

#[test]
fn a_guest_boots_and_works() -> Result<()> {
    needs_kvm!();
    let mut machine = setup()?.boot()?;
    machine.wait_progress()?;

    let report = machine.report();
    ensure!(report.is_there(), "The guest's RAM holds no report");
    ensure!(report.get(report::STATE) == report::STATE_RUNNING);
    ensure!(report.get(report::BOOTS) == 1);
    ensure!(report.get(report::RNG_DEVICES) == 1);
    ensure!(report.get(report::BLK_BLOCKS) == 1024);
    machine.quit()
}

#[test]
fn the_serial_line_goes_both_ways() -> Result<()> {
    needs_kvm!();
    let mut machine = setup()?.boot()?;
    for line in ["hello", "a longer line of forty-five characters in all"] {
        machine.say(line)?;
        let answer = machine.wait_line("echo: ")?;
        ensure!(
            answer == format!("echo: {line}"),
            "The guest understood '{answer}'"
        );
    }
    machine.say("report")?;
    let printed = machine.wait_line("report version=")?;
    ensure!(printed.contains(" serial_overruns=0 "), "{printed}");
    ensure!(printed.contains(" serial_lines=3 "), "{printed}");
    Ok(())
}

#[test]
fn what_the_guest_writes_is_on_the_disk() -> Result<()> {
    needs_kvm!();
    let mut machine = setup()?.boot()?;
    machine.wait_progress()?;
    machine.say("quiesce")?;
    let verdict = machine.wait_line("VERIFIED ")?;
    ensure!(verdict.ends_with("bad=0"), "{verdict}");

    let examined = examine(&mut machine)?;
    let written = machine.report().get(report::BLK_VERIFIED);
    ensure!(
        written > 0 && examined.disk.blocks == written,
        "{examined:?}, not {written}"
    );
    ensure!(
        examined.disk.in_flight == 0,
        "{examined:?} of a disk at rest"
    );
    Ok(())
}

#[test]
fn ram_and_disk_are_right_in_the_middle_of_work() -> Result<()> {
    needs_kvm!();
    let mut machine = setup()?.append("pace=0").boot()?;
    for _ in 0..5 {
        machine.wait_progress()?;
        examine(&mut machine)?;
    }
    Ok(())
}

#[test]
fn two_cpus_run() -> Result<()> {
    needs_kvm!();
    let mut machine = setup()?.cpus(2).boot()?;
    ensure!(machine.report().get(report::CPUS) == 2);
    machine.wait_progress()?;
    examine(&mut machine).map(drop)
}

#[test]
fn a_machine_without_devices_boots() -> Result<()> {
    needs_kvm!();
    let mut machine = setup()?
        .disk_mib(None)
        .rngs(0)
        .serial(Serial::File)
        .boot()?;
    machine.wait_progress()?;
    machine.tell(Control::ResetGap)?;
    ensure!(machine.serial()?.contains("blk: no disk in use"));
    Ok(())
}
