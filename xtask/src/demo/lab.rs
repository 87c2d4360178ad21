//! The demonstration in the lab, where the guest is a stock Linux.

use anyhow::{Context, Result, ensure};
use baton_testkit::Vmm;
use std::path::Path;

use super::Outcome;
use crate::lab::{self, Job, Options};

pub(super) fn run(vmm: Vmm, folder: &Path, count: u32) -> Result<Outcome> {
    let binary = (vmm == Vmm::Baton).then(|| folder.join("baton"));
    let options = Options {
        vmm,
        binary,
        echo: true,
        ..Options::default()
    };
    println!("A stock Linux guest in the lab, handed over {count} times: this takes minutes");
    let report = lab::run(&Job::Transfer { count }, &options)?;
    for (name, value) in &report.values {
        println!("  {name:<20} {value}");
    }
    let logs = report
        .logs
        .map(|logs| format!(" (logs: {})", logs.display()))
        .unwrap_or_default();
    ensure!(report.passed, "{}{logs}", report.summary);
    let median = report
        .values
        .get("downtime_ms_median")
        .and_then(|text| text.parse().ok());
    Ok(Outcome {
        updates: count,
        median_ms: median.context("The lab has told no median of the blackouts")?,
    })
}
