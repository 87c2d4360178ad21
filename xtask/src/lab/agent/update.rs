//! The job `update`: `baton update` under a guest that works, with builds that fail on purpose.

use super::super::{Vmm, inside};
use super::command_line::Guest;
use super::life::{self, Life};
use super::migration::{self, Took};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};
use std::time::Instant;

/// The same program by another name, so that what a process runs can be told from what it ran.
const NEXT_VMM: &str = "/lab/vmm-next";
/// One that says a version, and then takes no guest of this machine.
const BROKEN_VMM: &str = "/lab/vmm-broken";
const BROKEN: &str = "#!/bin/sh\nexec /lab/vmm \"$@\" -frobnicate\n";
const BROKEN_VERSION: &str = "[ \"$1\" = -version ] && exec /lab/vmm \"$1\"";
/// One without its plugins.
const LONELY_VMM: &str = "/tmp/vmm";
const NO_PLUGINS: &str = "/tmp/no-plugins";

/// Boots a guest, updates it in every way and lets it finish; gives the result line's numbers.
pub(crate) fn run() -> Result<String> {
    let (mut life, boot) = Life::boot(Guest::new(Vmm::Baton))?;
    make_programs()?;
    let mut took = Vec::new();

    let possible = update(&life, &["--dry-run", "--json"])?;
    ensure!(possible.status.success(), "A dry run says {possible:?}");
    for (number, program) in [NEXT_VMM, inside::VMM, NEXT_VMM].into_iter().enumerate() {
        let name = format!("update {}", number + 1);
        took.push(migration::step(&mut life, &name, |life| {
            succeed(life, program, "cpr-transfer")
        })?);
    }
    migration::step(&mut life, "a build that refuses an argument", |life| {
        fail(life, &["--binary", BROKEN_VMM], "-frobnicate")
    })?;
    migration::step(&mut life, "a build without plugins", |life| {
        let arguments = ["--binary", LONELY_VMM, "--plugin-dir", NO_PLUGINS];
        fail(life, &arguments, "is offered by no plugin")
    })?;
    took.push(migration::step(&mut life, "update after these", |life| {
        succeed(life, inside::VMM, "cpr-transfer")
    })?);
    let exec = migration::step(&mut life, "update by cpr-exec", |life| {
        succeed(life, NEXT_VMM, "cpr-exec")
    })?;

    let numbers = life.end()?;
    let most = took.iter().map(|took| took.downtime).max().unwrap_or(0);
    Ok(format!(
        "{} updates={} downtime_ms_max={most} exec_downtime_ms={} {numbers}",
        life::heading(Vmm::Baton, boot),
        took.len(),
        exec.downtime,
    ))
}

fn make_programs() -> Result<()> {
    let about = || "Cannot make the next programs";
    fs::hard_link(inside::VMM, NEXT_VMM).with_context(about)?;
    fs::copy(inside::VMM, LONELY_VMM).with_context(about)?;
    fs::create_dir(NO_PLUGINS).with_context(about)?;
    let broken = BROKEN.replace("\nexec", &format!("\n{BROKEN_VERSION}\nexec"));
    fs::write(BROKEN_VMM, broken)
        .and_then(|()| fs::set_permissions(BROKEN_VMM, Permissions::from_mode(0o755)))
        .with_context(about)
}

fn update(life: &Life, arguments: &[&str]) -> Result<Output> {
    Command::new(inside::VMM)
        .args(["update", "--qmp", &life.now.monitor()])
        .args(arguments)
        .output()
        .context("Cannot start baton update")
}

/// One that must succeed.
fn succeed(life: &mut Life, program: &str, mode: &str) -> Result<Took> {
    let start = Instant::now();
    let output = update(life, &["--binary", program, "--mode", mode, "--json"])?;
    let result: Value =
        serde_json::from_slice(&output.stdout).with_context(|| format!("It says {output:?}"))?;
    let pid = result["now"]["pid"].as_u64();
    let (true, Some(pid)) = (output.status.success(), pid) else {
        bail!("It failed: {result}");
    };
    life.now.go_on_as(pid as u32)?;
    let runs = life.now.program()?;
    ensure!(
        runs == std::path::Path::new(program),
        "It runs {}",
        runs.display()
    );
    let status = life.now.status()?;
    ensure!(status == "running", "The guest is {status}");
    let downtime = result["downtime"].as_u64().context("It took no time")?;
    Ok(Took::since(start, downtime))
}

/// One that must fail with that reason, and leave the guest where it is.
fn fail(life: &mut Life, arguments: &[&str], reason: &str) -> Result<Took> {
    let (start, before) = (Instant::now(), life.now.program()?);
    let output = update(life, arguments)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(1) && said.contains(reason),
        "It does not fail with '{reason}': {output:?}"
    );
    life.now.alive()?;
    ensure!(life.now.program()? == before && life.now.status()? == "running");
    Ok(Took::since(start, 0))
}
