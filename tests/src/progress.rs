//! Whether the guest gets on with all it does, and what went wrong with it.

use anyhow::Result;
use std::time::Duration;

use crate::report::{self, Field, Report};
use crate::wait::wait_for;

/// How far the guest has come in each thing it does; what it does not do stays out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress(Vec<(String, u64)>);

/// Everything the guest counts that must never happen.
const FAULTS: [Field; 10] = [
    report::RAM_ERRORS,
    report::TSC_BACKWARDS,
    report::IRQ_OTHER,
    report::SERIAL_OVERRUNS,
    report::BLK_ERRORS,
    report::BLK_MISMATCHES,
    report::BLK_STALLS,
    report::RNG_ERRORS,
    report::RNG_STALLS,
    report::WAKE_ERRORS,
];

impl Progress {
    /// As it is now.
    pub fn now(report: &Report) -> Self {
        let mut counts = vec![
            ("pages".to_owned(), report.get(report::LOOPS)),
            ("ticks".to_owned(), report.get(report::TICKS)),
        ];
        if report.get(report::BLK_STATE) == report::BLK_RUNNING {
            counts.push(("disk writes".to_owned(), report.get(report::BLK_WRITES)));
        }
        for device in 0..report.get(report::RNG_DEVICES) as usize {
            let done = report.entry(report::RNG_DONE, device);
            counts.push((format!("requests of entropy device {device}"), done));
        }
        for cpu in 1..report.get(report::CPUS) as usize {
            for (what, array) in [("loops", report::CPU_LOOPS), ("ticks", report::CPU_TICKS)] {
                counts.push((format!("{what} of CPU {cpu}"), report.entry(array, cpu)));
            }
        }
        Self(counts)
    }

    /// What has not gone on since `earlier`.
    pub fn stuck_since(&self, earlier: &Self) -> Vec<String> {
        let before = |name: &str| {
            earlier
                .0
                .iter()
                .find(|(other, _)| other == name)
                .map_or(0, |(_, count)| *count)
        };
        let stuck = self.0.iter().filter(|(name, count)| *count <= before(name));
        stuck.map(|(name, _)| name.clone()).collect()
    }
}

/// Waits until the guest has gone on with everything since `earlier`.
///
/// # Errors
/// When it has not within the limit: names what stands still.
pub fn wait_progress(report: &Report, earlier: &Progress, limit: Duration) -> Result<()> {
    let mut stuck = Vec::new();
    wait_for("the guest to go on", limit, || {
        stuck = Progress::now(report).stuck_since(earlier);
        Ok(stuck.is_empty().then_some(()))
    })
    .map_err(|error| error.context(format!("These stand still: {}", stuck.join(", "))))
}

/// What went wrong in the guest, as `name=count`.
pub fn faults(report: &Report) -> Vec<String> {
    let mut faults: Vec<String> = FAULTS
        .iter()
        .map(|field| (field.name, report.get(*field)))
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| format!("{name}={count}"))
        .collect();
    if report.get(report::STATE) == report::STATE_FAULT {
        faults.push("an exception stopped it".to_owned());
    }
    faults
}
