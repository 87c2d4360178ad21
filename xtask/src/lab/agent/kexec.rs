//! The job `kexec`: a guest goes on when the host's kernel has been replaced by another.
//!
//! Its RAM, its disk and its state are in files on persistent memory, which a DAX file system maps
//! straight into Baton and which no kernel clears. All else that L1 has is in its initramfs, so it is
//! packed into the one that the next kernel starts with, and the job begins again there.

use super::super::{Vmm, inside};
use super::command_line::Guest;
use super::generation::Origin;
use super::life::{self, Life};
use super::migration::{self, RUNNING, Took};
use super::next_kernel;
use crate::lab::process;
use anyhow::{Context, Result, ensure};
use baton_testkit::wait::wait_for;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const DEVICE: &str = "/dev/pmem0";
const FOLDER: &str = "/pmem";
const RAM: &str = "/pmem/ram";
const DISK: &str = "/pmem/guest.img";
const STATE: &str = "/pmem/vm.state";
/// What the first kernel's half of the job leaves for the second's.
const NOTES: &str = "/out/kexec.json";
const MODULES: Duration = Duration::from_secs(30);

/// Runs the half of the job that is due under this kernel; gives the result line's numbers.
pub(crate) fn run(vmm: Vmm) -> Result<String> {
    mount_modules()?;
    let guest = Guest {
        vmm,
        disk: DISK.to_owned(),
        ram: Some(RAM.to_owned()),
        ..Guest::new(vmm)
    };
    match fs::read_to_string(NOTES) {
        Ok(notes) => {
            let notes = serde_json::from_str(&notes).context("The first half's notes")?;
            go_on(guest, &notes)
        }
        Err(_) => keep(guest),
    }
}

/// Before the new kernel. Only an error comes back from here.
fn keep(guest: Guest) -> Result<String> {
    let options = ["-q", "-F", "-t", "ext4", "-b", "4096", "-O", "^has_journal"];
    let mke2fs = format!("{}/mke2fs", inside::SYSTEM);
    process::output(Command::new(mke2fs).args(options).args(["-m", "0", DEVICE]))?;
    mount()?;
    fs::copy(inside::DISK, DISK).with_context(|| format!("Cannot make {DISK}"))?;
    // The next kernel's initramfs need not have it.
    fs::remove_file(inside::DISK).with_context(|| format!("Cannot remove {}", inside::DISK))?;

    let (mut life, boot) = Life::boot(guest)?;
    let (began, start) = (now()?, Instant::now());
    let downtime = migration::keep(&mut life.now, STATE, true)?;
    let notes = json!({
        "boot": boot,
        "ahead": life.ahead(),
        "began": began,
        "downtime": downtime,
        "ticks": life.serial()?.ticks(),
        "kernel": kernel()?,
    });
    println!(
        "LAB guest kept under kernel {} after {} ms",
        kernel()?,
        start.elapsed().as_millis()
    );
    fs::write(NOTES, notes.to_string()).with_context(|| format!("Cannot write {NOTES}"))?;
    process::output(Command::new("umount").arg(FOLDER))?;
    next_kernel::start(Path::new(inside::KERNEL)).map(|never| match never {})
}

/// After it.
fn go_on(guest: Guest, notes: &Value) -> Result<String> {
    let (before, after) = (notes["kernel"].as_str().unwrap_or_default(), kernel()?);
    ensure!(before != after, "L1 still runs kernel {after}");
    mount()?;
    let ahead = notes["ahead"].as_f64().context("No `ahead` in the notes")?;
    let number = |name: &str| {
        notes[name]
            .as_u64()
            .with_context(|| format!("No `{name}` in the notes"))
    };

    let start = Instant::now();
    let mut life = Life::resume(guest, 1, ahead, Origin::Incoming("defer"))?;
    let loaded = migration::load(&mut life.now, Some(STATE), true, RUNNING)?;
    let load = start.elapsed().as_millis();
    let total = now()?.saturating_sub(number("began")?);
    life.goes_on().context("Under the new kernel")?;
    let serial = life.serial()?;
    let took = Took {
        downtime: number("downtime")? + loaded,
        total,
        gap: serial.longest_gap_after(number("ticks")? as usize),
    };
    println!(
        "LAB guest goes on under kernel {after}: kept and loaded in {} ms, {total} ms with the new kernel's start",
        took.downtime
    );

    // The CPU that the guest was told of is not what this kernel would tell: that goes on, too.
    let transfer = migration::step(&mut life, "cpr-transfer after it", migration::transfer)?;
    let numbers = life.end()?;
    Ok(format!(
        "{} from={before} to={after} kexec_downtime_ms={} kexec_load_ms={load} kexec_total_ms={} kexec_gap_ms={} transfer_downtime_ms={} {numbers}",
        life::heading(Vmm::Baton, u128::from(number("boot")?)),
        took.downtime,
        took.total,
        took.gap,
        transfer.downtime
    ))
}

/// Loads what turns the memory that `memmap=` set apart into a block device.
fn mount_modules() -> Result<()> {
    process::output(Command::new("modprobe").args(["-a", "nd_e820", "nd_pmem"]))?;
    wait_for(DEVICE, MODULES, || {
        Ok(Path::new(DEVICE).exists().then_some(()))
    })
}

fn mount() -> Result<()> {
    fs::create_dir_all(FOLDER).with_context(|| format!("Cannot create {FOLDER}"))?;
    let options = ["-t", "ext4", "-o", "dax=always"];
    process::output(Command::new("mount").args(options).args([DEVICE, FOLDER])).map(drop)
}

/// The release of the kernel that runs.
fn kernel() -> Result<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease");
    Ok(release
        .context("Cannot ask for the kernel's release")?
        .trim()
        .to_owned())
}

/// The time of day in milliseconds, which goes on from kernel to kernel, if only by whole seconds.
fn now() -> Result<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    Ok(now.context("L1's clock is wrong")?.as_millis() as u64)
}
