//! `cargo xtask bench checkpoint`: a guest with private RAM kept in a file by cpr-reboot and loaded
//! again, beside `dd` writing as much to the same file system.

use anyhow::{Context, Result, ensure};
use baton_testkit::vmm::Programs;
use baton_testkit::{Machine, Setup, Vmm, kept, native, process};
use serde_json::json;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::cargo::{self, Profile};
use crate::options::Arguments;
use crate::stats::Spread;

const USAGE: &str = "cargo xtask bench checkpoint [--memory MIB] [--count N]";

/// One guest kept and loaded, and as much written by `dd`, in milliseconds.
struct Round {
    dd: f64,
    kept: Kept,
}

struct Kept {
    save: f64,
    /// From `migrate-incoming` to the guest's run.
    restore: f64,
    /// From the process's start to there.
    start: f64,
}

type Measure = (&'static str, fn(&Round) -> f64);

const MEASURES: [Measure; 5] = [
    ("dd bs=1M conv=fsync", |round| round.dd),
    ("save, from migrate to completed", |round| round.kept.save),
    ("speed of save, % of dd's", |round| {
        100.0 * round.dd / round.kept.save
    }),
    ("restore, from migrate-incoming to running", |round| {
        round.kept.restore
    }),
    ("restore, from the process's start", |round| {
        round.kept.start
    }),
];

pub(super) fn run(args: &[String]) -> Result<()> {
    let mut args = Arguments::new(args);
    let mib = args.count("--memory", 1024)?.into();
    let count = args.count("--count", 5)?;
    args.finish(USAGE)?;
    native::kvm_available()?;
    let folder = cargo::build(Profile::Release)?;
    let programs = Programs::in_folder(&folder)?;
    let place = baton_testkit::guest::target_dir().join("bench");
    fs::create_dir_all(&place).with_context(|| format!("Cannot make {}", place.display()))?;
    let random = place.join("random");
    fill(&random, mib << 20)?;
    process::outrank_others();
    let mut rounds = Vec::new();
    for number in 1..=count {
        eprint!("\rround {number} of {count} ");
        let guest = Guest {
            programs: &programs,
            mib,
            random: &random,
            place: &place,
        };
        // Disks that take much quickly take more of it slowly: neither is always the first.
        let (dd, kept) = match number % 2 {
            1 => {
                let dd = guest.dd()?;
                (dd, guest.keep_and_load()?)
            }
            _ => {
                let kept = guest.keep_and_load()?;
                (guest.dd()?, kept)
            }
        };
        rounds.push(Round { dd, kept });
    }
    eprintln!();
    println!("{count} rounds, {mib} MiB of private RAM, all random; medians [quartiles] in ms\n");
    println!("| what | |\n|---|---|");
    for (what, measure) in MEASURES {
        if let Some(spread) = Spread::of(rounds.iter().map(measure)) {
            println!(
                "| {what} | {:.0} [{:.0}-{:.0}] |",
                spread.median, spread.lower_quartile, spread.upper_quartile
            );
        }
    }
    fs::remove_file(&random).with_context(|| format!("Cannot remove {}", random.display()))
}

/// What is kept, and where.
struct Guest<'a> {
    programs: &'a Programs,
    mib: u64,
    random: &'a Path,
    place: &'a Path,
}

impl Guest<'_> {
    /// How long `dd` takes to write as much.
    fn dd(&self) -> Result<f64> {
        let copy = self.place.join("dd");
        let (input, output) = (
            format!("if={}", self.random.display()),
            format!("of={}", copy.display()),
        );
        let began = Instant::now();
        let status = Command::new("dd")
            .args([&input, &output, "bs=1M", "conv=fsync", "status=none"])
            .status()
            .context("Cannot start dd")?;
        ensure!(status.success(), "dd failed");
        let dd = ms(began);
        fs::remove_file(&copy).context("Cannot remove what dd has written")?;
        Ok(dd)
    }

    /// Keeps the guest, and loads it.
    fn keep_and_load(&self) -> Result<Kept> {
        let state = self.place.join("state");
        let uri = format!("file:{}", state.display());
        let setup = Setup::with(Vmm::Baton, self.programs.clone());
        let mut source = setup
            .memory_mib(self.mib)
            .private_memory()
            .filled_from(self.random)
            .boot()?;
        kept::set_mode(&mut source)?;
        let began = Instant::now();
        kept::keep(&mut source, &uri)?;
        let save = ms(began);
        source.quit()?;

        let began = Instant::now();
        let mut target = source.loading("defer")?;
        target.qmp()?;
        let restore = load(&mut target, &uri)?;
        let start = ms(began);
        target.quit()?;
        fs::remove_file(&state).context("Cannot remove the state")?;
        Ok(Kept {
            save,
            restore,
            start,
        })
    }
}

fn load(target: &mut Machine, uri: &str) -> Result<f64> {
    let began = Instant::now();
    target.execute("migrate-incoming", &json!({ "uri": uri }))?;
    target.qmp()?.wait_event("RESUME")?;
    Ok(ms(began))
}

fn ms(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1000.0
}

/// A file of random bytes, which no file system makes smaller.
fn fill(path: &Path, length: u64) -> Result<()> {
    let copied = || -> std::io::Result<u64> {
        let mut random = File::open("/dev/urandom")?.take(length);
        let mut file = File::create(path)?;
        let copied = std::io::copy(&mut random, &mut file)?;
        file.flush()?;
        Ok(copied)
    };
    copied()
        .map(drop)
        .with_context(|| format!("Cannot fill {}", path.display()))
}
