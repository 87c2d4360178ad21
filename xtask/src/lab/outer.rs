//! Booting L1 for a job and listening to it.

use super::packages::{self, Packages};
use super::report::Console;
use super::{Job, LabReport, Options, Vmm, images, native, needs, passthrough, paths};
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// L1's memory beyond what its files take.
const L1_MEMORY: u64 = 1 << 30;
/// Emulated SVM resets L1 once in many boots, or lets it halt for good: its CPU sleeps and no timer wakes
/// it. A job that failed is not tried again, only one that could not end.
const ATTEMPTS: u32 = 3;
/// panic=-1 with QEMU's -no-reboot: an L1 that panics ends at once.
const L1_APPEND: &str = "console=ttyS0 quiet mitigations=off net.ifnames=0 panic=-1";
/// What makes half a GiB of L1's memory persistent: it begins where every L1 has memory, and ends
/// below the initramfs, which QEMU puts at the end. With HPET as L1's clock KVM keeps no real time for
/// a guest's, so that going on from one kernel to the next is the VMM's own sum.
const KEXEC_APPEND: &str = "memmap=512M!1G clocksource=hpet";
const PERSISTENT_MEMORY: u64 = 512 << 20;

/// Runs a job to its end.
///
/// # Errors
/// When it cannot be started; a job that ran and failed is a report with `passed` false.
pub(crate) fn run(job: &Job, options: &Options) -> Result<LabReport> {
    if job.only_baton() && options.vmm != Vmm::Baton {
        bail!(
            "This job is for Baton alone: {} has not all of its modes",
            options.vmm
        );
    }
    needs::require()?;
    if let Some(lack) = lacks(job)? {
        bail!("{lack}");
    }
    if *job == Job::Native {
        let (job, options) = native::script(options)?;
        return run(&job, &options);
    }
    let packages = packages::get(false)?;
    let mut attempts = 0;
    loop {
        attempts += 1;
        let folder = run_folder()?;
        match attempt(&packages, job, options, &folder, attempts) {
            Ok(Some(report)) => return Ok(report),
            Ok(None) => eprintln!(
                "lab: L1 ended without a result, trying again (logs: {})",
                folder.display()
            ),
            Err(error) => {
                // It did not come to a run, so there is nothing in it to look at.
                fs::remove_dir_all(&folder).ok();
                return Err(error);
            }
        }
    }
}

/// Why a job cannot be done with the packages there are, if it cannot.
///
/// # Errors
/// When they cannot be fetched.
pub(crate) fn lacks(job: &Job) -> Result<Option<String>> {
    if *job != Job::Kexec {
        return Ok(None);
    }
    let packages = packages::get(false)?;
    let kernel = &packages.kernel.release;
    let one = *kernel == packages.older.release;
    Ok(one.then(|| {
        format!(
            "There is only one kernel, {kernel}: name a mirror with bookworm-backports in \
             BATON_LAB_MIRROR and run `cargo xtask lab images --refresh`"
        )
    }))
}

/// One boot of L1. None when it gave no result and may be tried again.
fn attempt(
    packages: &Packages,
    job: &Job,
    options: &Options,
    folder: &Path,
    number: u32,
) -> Result<Option<LabReport>> {
    let initramfs = folder.join("l1.cpio");
    let bytes = images::l1(packages, job, options, folder)?;
    let mut memory = L1_MEMORY + bytes.len() as u64 * 5 / 2;
    let (kernel, append) = if *job == Job::Kexec {
        memory += PERSISTENT_MEMORY;
        (&packages.older, format!("{L1_APPEND} {KEXEC_APPEND}"))
    } else {
        (&packages.kernel, L1_APPEND.to_owned())
    };
    fs::write(&initramfs, bytes)
        .with_context(|| format!("Cannot write {}", initramfs.display()))?;

    // Zero is no limit at all: a person at a shell takes the time it takes.
    let limit = if *job == Job::Shell {
        0
    } else {
        options.timeout.as_secs()
    };
    let mut qemu = command(folder, limit)?;
    qemu.arg("-kernel").arg(&kernel.image);
    qemu.arg("-initrd").arg(&initramfs);
    qemu.args(["-append", &append]);
    qemu.args(words(&format!(
        "-smp {} -m {}M",
        options.cpus,
        memory >> 20
    )));
    let passed_through = folder.join("nvme.img");
    if job.passes_through() {
        passthrough::make(&passed_through)?;
        qemu.args(passthrough::arguments(&passed_through));
    }
    let start = Instant::now();
    if *job == Job::Shell {
        qemu.args(["-serial", "mon:stdio"]);
        let status = qemu
            .status()
            .context("Cannot start the outer machine's QEMU")?;
        fs::remove_dir_all(folder)
            .with_context(|| format!("Cannot remove {}", folder.display()))?;
        return Ok(Some(LabReport {
            passed: status.success(),
            summary: "the shell ended".to_owned(),
            values: Default::default(),
            wall: start.elapsed(),
            attempts: number,
            logs: None,
        }));
    }
    qemu.args(["-serial", "stdio", "-monitor", "none"]);
    let console = listen(qemu, options, folder, &initramfs)?;
    let wall = start.elapsed();
    if !console.finished() && number < ATTEMPTS {
        return Ok(None);
    }
    unpack_results(folder);
    let mut passed = console.passed();
    let mut summary = console.summary();
    if !console.finished() {
        summary += &why_no_result(folder, wall, options.timeout);
    }
    if let (true, Some(blocks)) = (passed, console.values().get("nvme"))
        && let Err(error) = passthrough::check(&passed_through, blocks)
    {
        passed = false;
        summary = format!("{error:#}");
    }
    let logs = if passed && !options.keep {
        fs::remove_dir_all(folder)
            .with_context(|| format!("Cannot remove {}", folder.display()))?;
        None
    } else {
        Some(folder.to_path_buf())
    };
    Ok(Some(LabReport {
        passed,
        summary,
        values: console.values(),
        wall,
        attempts: number,
        logs,
    }))
}

fn why_no_result(folder: &Path, wall: Duration, limit: Duration) -> String {
    if wall >= limit {
        let limit = limit.as_secs();
        return format!(" within {limit} s: see console.log, or give it longer with --timeout");
    }
    let log = fs::read_to_string(folder.join("qemu.log")).unwrap_or_default();
    let error = log.lines().rev().find(|line| !line.contains("warning:"));
    format!(
        ": {}",
        error.unwrap_or("see console.log for its last words")
    )
}

/// The outer machine but for its kernel and size.
fn command(folder: &Path, limit: u64) -> Result<Command> {
    let results = format!(
        "file,id=results,path={}",
        folder.join("results.tar").display()
    );
    // `timeout` also ends L1 when this process is killed.
    let mut qemu = Command::new("timeout");
    qemu.args(["--foreground", "-k", "5", &limit.to_string()])
        .arg("qemu-system-x86_64")
        .args(words("-machine q35 -accel tcg,thread=multi -cpu EPYC-v4"))
        .args(words(
            "-nodefaults -no-user-config -display none -no-reboot",
        ))
        .args(["-device", "virtio-serial-pci", "-chardev", &results])
        .args(words(
            "-device virtserialport,chardev=results,name=lab.results",
        ));
    let log = folder.join("qemu.log");
    let log = File::create(&log).with_context(|| format!("Cannot create {}", log.display()))?;
    qemu.stderr(log);
    Ok(qemu)
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split_whitespace()
}

/// Follows L1's console to its end.
fn listen(
    mut qemu: Command,
    options: &Options,
    folder: &Path,
    initramfs: &Path,
) -> Result<Console> {
    let path = folder.join("console.log");
    let mut log =
        File::create(&path).with_context(|| format!("Cannot create {}", path.display()))?;
    let mut child = qemu
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("Cannot start `timeout qemu-system-x86_64`")?;
    let mut console = Console::default();
    let stdout = child
        .stdout
        .take()
        .context("The outer machine's console is not connected")?;
    let mut reader = BufReader::new(stdout);
    let mut line = Vec::new();
    while reader
        .read_until(b'\n', &mut line)
        .context("Cannot read L1's console")?
        > 0
    {
        // QEMU has read it by now, and nobody needs a hundred megabytes to stay.
        fs::remove_file(initramfs).ok();
        log.write_all(&line)
            .with_context(|| format!("Cannot write {}", path.display()))?;
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        if options.echo && !text.is_empty() {
            eprintln!("L1| {text}");
        }
        console.line(text);
        line.clear();
    }
    child.wait().context("Cannot wait for the outer machine")?;
    fs::remove_file(initramfs).ok();
    Ok(console)
}

/// Unpacks what L1 sent back. An L1 that died sent nothing, or half of it: that is no error here.
fn unpack_results(folder: &Path) {
    let tar = folder.join("results.tar");
    let done = Command::new("tar")
        .arg("-xf")
        .arg(&tar)
        .arg("-C")
        .arg(folder)
        .stderr(Stdio::null())
        .status();
    if done.is_ok_and(|status| status.success()) {
        fs::remove_file(tar).ok();
    }
}

/// A folder of this run's own; several may run at once.
fn run_folder() -> Result<PathBuf> {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let folder = paths::lab_dir()?.join(format!("runs/{}-{number}", std::process::id()));
    if folder.exists() {
        // A process of an earlier day had the same number.
        fs::remove_dir_all(&folder)
            .with_context(|| format!("Cannot empty {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("Cannot create {}", folder.display()))?;
    Ok(folder)
}
