//! The demonstration on this machine's own KVM, with the bare-metal test guest.

use anyhow::{Context, Result};
use baton_testkit::check::{Examined, examine};
use baton_testkit::progress::{Progress, wait_progress};
use baton_testkit::report::{self, Control};
use baton_testkit::vmm::Programs;
use baton_testkit::wait::{PATIENCE, wait_for};
use baton_testkit::watch::Watcher;
use baton_testkit::{Machine, Serial, Setup, Vmm, transfer};
use std::path::Path;

use super::picture::{Gap, Ticks, picture};
use super::table::{Row, table};
use super::{Outcome, median};

/// 64 of the guest's 128 MiB are walked: 16384 pages.
const LOAD: &str = "ram=2000000:4000000";

/// One update, measured from three sides.
struct Update {
    row: Row,
    ticks: Ticks,
    examined: Examined,
}

pub(super) fn run(vmm: Vmm, folder: &Path, count: u32) -> Result<Outcome> {
    let programs = match vmm {
        Vmm::Baton => Programs::in_folder(folder)?,
        Vmm::Qemu => vmm.programs()?,
    };
    let setup = Setup::with(vmm, programs)
        .append(LOAD)
        .disk_mib(Some(16))
        .serial(Serial::File);
    let mut machine = setup.boot().context("The guest does not boot")?;
    machine.wait_progress()?;
    println!(
        "A guest is up on {vmm}: it walks {} MiB of RAM, writes and checks a disk of {} MiB, draws \
         entropy and ticks {} times a second",
        machine.report().get(report::RAM_LEN) >> 20,
        (machine.report().get(report::BLK_BLOCKS) * 4096) >> 20,
        machine.report().get(report::TIMER_HZ)
    );

    let mut updates = Vec::new();
    for number in 1..=count {
        let context = || format!("Update {number} of {count}");
        let (next, update) = live_update(machine, number).with_context(context)?;
        machine = next;
        updates.push(update);
    }
    machine.tell(Control::Quiesce)?;
    let verdict = machine.wait_line("VERIFIED ")?;
    machine.quit()?;

    let rows: Vec<Row> = updates.iter().map(|update| update.row.clone()).collect();
    println!("{}", table(&rows));
    if let Some(typical) = nearest_to_median(&updates)? {
        println!("{}", picture(&typical.ticks, typical.row.number));
    }
    if let Some(last) = updates.last() {
        println!(
            "Checked after each update: {} pages, {} blocks. The guest's own check at the end: {}",
            last.examined.pages,
            last.examined.disk.blocks,
            verdict.to_lowercase()
        );
    }
    let blackouts: Vec<f64> = rows.iter().map(|row| row.outside_ms).collect();
    Ok(Outcome {
        updates: count,
        median_ms: median(&blackouts)?,
    })
}

/// Hands the guest over to a new process and measures that; then checks all the guest has.
fn live_update(mut source: Machine, number: u32) -> Result<(Machine, Update)> {
    source.wait_progress()?;
    let mut target = source.successor()?;
    source.tell(Control::ResetGap)?;
    let before = Progress::now(source.report());

    let watcher = Watcher::start(source.ram())?;
    let handover = transfer(&mut source, &mut target)?;
    wait_progress(target.report(), &before, PATIENCE)?;
    let watched = watcher.finish()?;

    let row = Row {
        number,
        process: target.pid(),
        vmm_ms: handover.blackout_ms(),
        outside_ms: watched.longest.ms(),
        outside_doubt_ms: watched.longest.doubt_ms(),
        guest_ms: target.guest_gap_ms(),
        pages: target.report().get(report::LOOPS),
        writes: target.report().get(report::BLK_WRITES),
        entropy: target.report().get(report::RNG_REQUESTS),
    };
    let gap = Gap::longest(target.report());
    source.quit()?;
    walk_all(&mut target)?;
    let ticks = Ticks::around(target.report(), gap);
    let examined = examine(&mut target)?;
    Ok((
        target,
        Update {
            row,
            ticks,
            examined,
        },
    ))
}

/// Waits until the guest has been over all of its RAM once more.
fn walk_all(machine: &mut Machine) -> Result<()> {
    let passes = machine.report().get(report::PASSES);
    wait_for("the guest to walk all of its RAM", PATIENCE, || {
        machine.alive()?;
        Ok((machine.report().get(report::PASSES) > passes + 1).then_some(()))
    })
}

fn nearest_to_median(updates: &[Update]) -> Result<Option<&Update>> {
    let blackouts: Vec<f64> = updates.iter().map(|update| update.row.outside_ms).collect();
    let middle = median(&blackouts)?;
    let distance = |update: &Update| (update.row.outside_ms - middle).abs();
    Ok(updates
        .iter()
        .min_by(|a, b| distance(a).total_cmp(&distance(b))))
}
