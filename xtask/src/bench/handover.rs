//! `cargo xtask bench handover`: how long a guest stands still while it is handed over, beside QEMU
//! with the same guest and the same watcher in the same run.

use anyhow::{Context, Result, ensure};
use baton_testkit::vmm::Programs;
use baton_testkit::{Vmm, native, process};
use std::fs;

use super::matrix;
use super::outcome::{Outcome, Side};
use super::rounds::{Contestant, Shape, Way};
use crate::cargo::{self, Profile};
use crate::options::Arguments;

const USAGE: &str = "cargo xtask bench handover [--count N] [--cpus N] [--devices N] [--mode MODE] \
     [--memory MIB] [--only baton|qemu], or with --matrix: [--count N] [--largest MIB] [--devices N]";
/// Fewer would not make quartiles.
const FEWEST: u32 = 20;
/// Of each guest in the matrix, which has many.
const FEW: u32 = 5;

pub(super) fn run(args: &[String]) -> Result<()> {
    let mut args = Arguments::new(args);
    let matrix = args.flag("--matrix");
    let count = args.count("--count", if matrix { FEW } else { FEWEST })?;
    let largest = args.count("--largest", 16 << 10)?;
    let memory = args.count("--memory", 128)?;
    let mode = args.value("--mode")?;
    let way = match mode.as_deref() {
        None => Way::Transfer,
        Some(name) => Way::ALL
            .into_iter()
            .find(|way| way.name() == name)
            .with_context(|| format!("--mode: there is no '{name}' to measure"))?,
    };
    let cpus = args.count("--cpus", 1)?;
    let devices = args.count("--devices", if matrix { 16 } else { 1 })?;
    let only: Option<Vmm> = args.value("--only")?.map(|name| name.parse()).transpose()?;
    args.finish(USAGE)?;
    native::kvm_available()?;

    let mut contestants = Vec::new();
    if only != Some(Vmm::Qemu) {
        let folder = cargo::build(Profile::Release)?;
        contestants.push((Vmm::Baton, Programs::in_folder(&folder)?));
    }
    match Vmm::Qemu.programs() {
        Ok(programs) if only != Some(Vmm::Baton) => contestants.push((Vmm::Qemu, programs)),
        Ok(_) => {}
        Err(error) => println!("Without QEMU to compare with: {error:#}"),
    }
    ensure!(!contestants.is_empty(), "There is nothing to measure");

    if !process::outrank_others() {
        println!("Not root, so whatever else runs here counts as well");
    }
    if matrix {
        return matrix::run(&contestants, count, largest.into(), devices);
    }
    let shape = Shape {
        way,
        memory_mib: memory.into(),
        touched: memory > 128,
        cpus,
        rngs: devices,
    };
    let mut contestants: Vec<Contestant> = contestants
        .into_iter()
        .map(|(vmm, programs)| Contestant::start(vmm, programs, shape))
        .collect::<Result<_>>()?;
    for round in 1..=count {
        eprint!("\rround {round} of {count} ");
        for contestant in &mut contestants {
            let vmm = contestant.vmm();
            contestant
                .round()
                .with_context(|| format!("Round {round} of {vmm}"))?;
        }
    }
    eprintln!();
    let sides = contestants
        .into_iter()
        .map(Contestant::finish)
        .collect::<Result<Vec<Side>>>()?;
    report(&Outcome {
        count,
        cpus,
        devices,
        sides,
    })
}

fn report(outcome: &Outcome) -> Result<()> {
    let folder = baton_testkit::guest::target_dir().join("bench");
    let file = folder.join("handover.json");
    fs::create_dir_all(&folder)
        .and_then(|()| fs::write(&file, format!("{:#}\n", outcome.json())))
        .with_context(|| format!("Cannot write {}", file.display()))?;
    println!("{}", outcome.table());
    println!("All measurements: {}", file.display());
    Ok(())
}
