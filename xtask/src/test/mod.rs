//! `cargo xtask test`: every test there is, here and in the lab, and what was left out and why.

mod output;

use anyhow::{Context, Result};
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;

use crate::cargo::{self, Profile};
use crate::lab::{self, Job, Options};
use crate::options::Arguments;
use output::Tally;

const USAGE: &str = "cargo xtask test [FILTER] [--no-lab]";

/// Runs the tests; the numbers are the last line.
pub(crate) fn main(args: &[String]) -> Result<ExitCode> {
    let mut args = Arguments::new(args);
    let without_lab = args.flag("--no-lab");
    let filter = args.word();
    args.finish(USAGE)?;

    // Without them some tests are skipped, which the summary tells.
    if let Err(error) = lab::install_clients() {
        eprintln!("without some clients: {error:#}");
    }
    // The tests start the VMM and load plugins, which testing alone does not build.
    cargo::build(Profile::Dev)?;
    let mut tally = Tally::default();
    run_cargo_tests(filter.as_deref(), &mut tally)?;
    run_lab(filter.as_deref(), without_lab, &mut tally);

    println!("{}", tally.summary());
    Ok(if tally.failed() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn run_cargo_tests(filter: Option<&str>, tally: &mut Tally) -> Result<()> {
    let mut command = cargo::cargo();
    command.args(["test", "--workspace", "--no-fail-fast"]);
    command.args(filter);
    let success = follow(&mut command, tally)?;
    tally.ended("cargo test", success);
    Ok(())
}

/// Runs a command, shows what it says and counts it; gives whether it ended well.
fn follow(command: &mut Command, tally: &mut Tally) -> Result<bool> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("Cannot start cargo")?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let tally = Mutex::new(tally);
    std::thread::scope(|scope| {
        scope.spawn(|| stdout.map(|stream| count(stream, &tally)));
        scope.spawn(|| stderr.map(|stream| count(stream, &tally)));
    });
    let status = child.wait().context("Cannot wait for cargo")?;
    Ok(status.success())
}

fn count(stream: impl Read, tally: &Mutex<&mut Tally>) {
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    // A stream that breaks is one that ended.
    while reader
        .read_until(b'\n', &mut line)
        .is_ok_and(|bytes| bytes > 0)
    {
        let text = String::from_utf8_lossy(&line);
        print!("{text}");
        if let Ok(mut tally) = tally.lock() {
            tally.line(text.trim_end());
        }
        line.clear();
    }
}

/// The lab's jobs, which stand for the tests that need a Linux guest.
fn run_lab(filter: Option<&str>, without: bool, tally: &mut Tally) {
    let jobs = [
        ("lab: transfer", Job::Transfer { count: 10 }),
        ("lab: modes", Job::Modes),
        ("lab: hotplug", Job::Hotplug),
        ("lab: kexec", Job::Kexec),
        ("lab: suspend", Job::Suspend),
        ("lab: document", Job::Document),
        ("lab: vfio", Job::Vfio),
        ("lab: native", Job::Native),
        ("lab: update", Job::Update),
    ];
    for (name, job) in jobs {
        if filter.is_none_or(|filter| name.contains(filter)) {
            run_job(name, &job, without, tally);
        }
    }
}

fn run_job(name: &str, job: &Job, without: bool, tally: &mut Tally) {
    if without {
        tally.skip(name, "--no-lab");
        return;
    }
    // Root can be helped; everybody else is told what to install.
    if let Err(error) = lab::install_missing() {
        tally.skip(name, &format!("{error:#}"));
        return;
    }
    match lab::lacks(job) {
        Ok(None) => {}
        Ok(Some(lack)) => return tally.skip(name, &lack),
        Err(error) => return tally.fail(name, &format!("{error:#}")),
    }
    println!("\nRunning {name} (a minute or two; `cargo xtask lab run` shows more)");
    match lab::run(job, &Options::default()) {
        Ok(report) if report.passed => {
            println!("test {name} ... ok: {}", report.summary);
            tally.pass();
        }
        Ok(report) => {
            let logs = report
                .logs
                .map(|logs| logs.display().to_string())
                .unwrap_or_default();
            tally.fail(name, &format!("{} (logs: {logs})", report.summary));
        }
        Err(error) => tally.fail(name, &format!("{error:#}")),
    }
}
