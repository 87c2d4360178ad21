//! `cargo xtask bench start`: from a process's start to its guest's first instruction, and what the
//! process keeps in memory beside guest RAM.

use anyhow::{Context, Result, ensure};
use baton_testkit::report::ENTRY_TSC;
use baton_testkit::scratch::Scratch;
use baton_testkit::{Machine, Serial, Setup, Vmm, native, process};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::cargo::{self, Profile};
use crate::options::Arguments;
use crate::stats::Spread;
use baton_testkit::vmm::Programs;

const USAGE: &str = "cargo xtask bench start [--count N]";
/// The program and the plugins that the guest's devices are of. Whatever lies beside the program is loaded.
const NEEDED: [&str; 5] = [
    "baton",
    "libbaton_isa_serial.so",
    "libbaton_mc146818rtc.so",
    "libbaton_virtio_blk_pci.so",
    "libbaton_virtio_rng_pci.so",
];
/// Between two looks at the guest's RAM: rarely enough not to keep it from running where both share a CPU.
const PAUSE: Duration = Duration::from_micros(300);
const PATIENCE: Duration = Duration::from_secs(60);

/// One kind of machine, of which one process after the other is started.
struct Contestant {
    name: &'static str,
    /// It has made the files that all others use.
    first: Machine,
    starts: Vec<f64>,
    memory: Vec<Kib>,
}

/// What a process has in memory beside the guest's RAM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Kib {
    /// All of it. Pages of programs and libraries are there once for all processes.
    resident: u64,
    /// What is in no file, and so this process's alone.
    anonymous: u64,
}

pub(super) fn run(args: &[String]) -> Result<()> {
    let mut args = Arguments::new(args);
    let count = args.count("--count", 20)?;
    args.finish(USAGE)?;
    native::kvm_available()?;
    let folder = cargo::build(Profile::Release)?;
    process::outrank_others();
    let few = Scratch::for_programs()?;
    for name in NEEDED {
        fs::copy(folder.join(name), few.join(name))
            .with_context(|| format!("Cannot copy {name} from {}", folder.display()))?;
    }
    let baton = |folder: &Path| -> Result<Setup> {
        Ok(Setup::with(Vmm::Baton, Programs::in_folder(folder)?))
    };
    let mut all = vec![
        Contestant::new("Baton, the guest's four plugins", baton(few.path())?)?,
        Contestant::new("Baton, every plugin of this tree", baton(&folder)?)?,
    ];
    match Setup::new(Vmm::Qemu) {
        Ok(qemu) => {
            all.push(Contestant::new("QEMU q35", qemu.clone())?);
            let microvm = qemu.extra(["-machine", "microvm,pcie=on,pic=off,pit=off"]);
            all.push(Contestant::new("QEMU microvm", microvm)?);
        }
        Err(e) => eprintln!("Not compared: {e}"),
    }
    for number in 1..=count {
        eprint!("\rround {number} of {count} ");
        // In turn, so that all meet the same machine.
        for contestant in &mut all {
            contestant.round()?;
        }
    }
    eprintln!();
    println!(
        "{count} rounds; disk, entropy device, serial line and clock; 128 MiB of RAM; medians \
         [quartiles]\n"
    );
    println!(
        "| | start to the kernel's first instruction, ms | resident beside RAM, MiB | of that in no \
         file, MiB |"
    );
    println!("|---|---|---|---|");
    for contestant in &all {
        let mib = |what: fn(&Kib) -> u64| {
            let memory = contestant.memory.iter();
            shown(memory.map(|kib| what(kib) as f64 / 1024.0))
        };
        println!(
            "| {} | {} | {} | {} |",
            contestant.name,
            shown(contestant.starts.iter().copied())?,
            mib(|kib| kib.resident)?,
            mib(|kib| kib.anonymous)?
        );
    }
    Ok(())
}

fn shown(values: impl Iterator<Item = f64>) -> Result<String> {
    let spread = Spread::of(values).context("Nothing was measured")?;
    Ok(format!(
        "{:.1} [{:.1}-{:.1}]",
        spread.median, spread.lower_quartile, spread.upper_quartile
    ))
}

impl Contestant {
    fn new(name: &'static str, setup: Setup) -> Result<Self> {
        let mut first = setup.serial(Serial::File).start()?;
        wait_entered(&mut first, 0).with_context(|| format!("No guest boots on {name}"))?;
        first.quit()?;
        Ok(Self {
            name,
            first,
            starts: Vec::new(),
            memory: Vec::new(),
        })
    }

    fn round(&mut self) -> Result<()> {
        let before = self.first.report().get(ENTRY_TSC);
        let began = Instant::now();
        let mut machine = self.first.fresh()?;
        wait_entered(&mut machine, before)?;
        self.starts.push(began.elapsed().as_secs_f64() * 1000.0);
        machine.qmp()?;
        self.memory.push(beside_ram(machine.pid())?);
        machine.quit()
    }
}

/// Waits until the guest has noted another time of its entry than `before`, which is the first thing
/// it does.
fn wait_entered(machine: &mut Machine, before: u64) -> Result<()> {
    let began = Instant::now();
    while machine.report().get(ENTRY_TSC) == before {
        machine.alive()?;
        ensure!(began.elapsed() < PATIENCE, "The guest does not begin");
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// Of a process whose guest's RAM is a file of that name.
fn beside_ram(pid: u32) -> Result<Kib> {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps")).context("Cannot read smaps")?;
    summed(&maps)
}

fn summed(maps: &str) -> Result<Kib> {
    let (mut sum, mut counts) = (Kib::default(), true);
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let Some(word) = words.next() else {
            continue;
        };
        let into = match word {
            "Rss:" => &mut sum.resident,
            "Anonymous:" => &mut sum.anonymous,
            // The first line of a mapping: addresses, and the file at the end.
            _ if !word.ends_with(':') => {
                counts = !line.ends_with("/ram");
                continue;
            }
            _ => continue,
        };
        let kib = words.next().and_then(|kib| kib.parse::<u64>().ok());
        let kib = kib.with_context(|| format!("smaps has no number after {word}"))?;
        if counts {
            *into += kib;
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_ram_does_not_count() {
        let maps = "7f00-7f10 rw-s 00000000 00:1a 5 /dev/shm/x/ram\n\
                    Rss: 100 kB\nAnonymous: 0 kB\n\
                    7f20-7f30 r-xp 00000000 08:01 6 /usr/bin/baton\n\
                    Size: 64 kB\nRss: 20 kB\nAnonymous: 4 kB\n\
                    7f40-7f50 rw-p 00000000 00:00 0\nRss: 8 kB\nAnonymous: 8 kB\n";
        let expected = Kib {
            resident: 28,
            anonymous: 12,
        };
        assert_eq!(summed(maps).unwrap(), expected);
        assert!(summed("Rss: much").is_err());
    }
}
