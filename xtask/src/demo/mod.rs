//! `cargo xtask demo`: a guest with four plugins, live-updated ten times under load, with every page
//! and block checked after each.

mod lab;
mod native;
mod picture;
mod table;

use anyhow::{Result, bail};
use baton_testkit::Vmm;
use std::process::ExitCode;

use crate::cargo::{self, Profile};
use crate::options::Arguments;

const USAGE: &str = "cargo xtask demo [--lab] [--count N] [--release] [--vmm qemu]";

/// What a demonstration came to.
struct Outcome {
    updates: u32,
    median_ms: f64,
}

/// Runs the demonstration; the verdict is the last line.
pub(crate) fn main(args: &[String]) -> Result<ExitCode> {
    match run(args) {
        Ok(outcome) => {
            println!(
                "demo: passed: {} live updates, median blackout {:.2} ms, lost 0",
                outcome.updates, outcome.median_ms
            );
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            println!("demo: failed: {}", format!("{error:#}").replace('\n', " "));
            Ok(ExitCode::FAILURE)
        }
    }
}

fn run(args: &[String]) -> Result<Outcome> {
    let mut args = Arguments::new(args);
    let in_lab = args.flag("--lab");
    let count = args.count("--count", 10)?;
    let profile = if args.flag("--release") {
        Profile::Release
    } else {
        Profile::Dev
    };
    let vmm: Vmm = args
        .value("--vmm")?
        .map_or(Ok(Vmm::Baton), |name| name.parse())?;
    args.finish(USAGE)?;

    let no_kvm = baton_testkit::native::kvm_available().err();
    if let Some(error) = &no_kvm {
        println!("{error:#}: the demonstration runs in the lab");
    }
    if vmm == Vmm::Baton {
        println!("Building Baton and its plugins");
        cargo::build(profile)?;
    }
    let folder = profile.folder();
    match in_lab || no_kvm.is_some() {
        true => lab::run(vmm, &folder, count),
        false => native::run(vmm, &folder, count),
    }
}

/// An error unless the number is one.
fn median(values: &[f64]) -> Result<f64> {
    match crate::stats::Spread::of(values.iter().copied()) {
        Some(spread) => Ok(spread.median),
        None => bail!("No update has told how long it took"),
    }
}
