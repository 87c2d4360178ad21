//! The job: one guest, handed from process to process while it works.

use super::super::{Vmm, inside};
use super::command_line::{self, SERIAL};
use super::generation::Generation;
use super::serial::Serial;
use anyhow::{Context, Result, bail};
use baton_testkit::wait::wait_for;
use serde_json::json;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::{Duration, Instant};

const BOOT: Duration = Duration::from_secs(180);
const HANDOVER: Duration = Duration::from_secs(60);
const END: Duration = Duration::from_secs(180);
/// Ticks the guest must make before the first handover and after each: proof that it lives.
const TICKS_BETWEEN: usize = 10;

/// What one handover took, in milliseconds.
struct Handover {
    /// As the source reports it.
    downtime: u64,
    /// From the `migrate` command to a running guest in the target.
    total: u64,
}

/// Boots a guest, hands it over `count` times and lets it finish; gives the result line's numbers.
pub(crate) fn run(vmm: Vmm, count: u32) -> Result<String> {
    let line = command_line::guest(vmm);
    let start = Instant::now();
    let mut now = Generation::start(0, &line, false)?;
    wait_for_ticks(&mut now, 1, BOOT)?;
    let boot = start.elapsed();
    println!("LAB guest works after {} ms", boot.as_millis());
    wait_for_ticks(&mut now, TICKS_BETWEEN, BOOT)?;

    let mut handovers = Vec::new();
    for number in 1..=count {
        let (next, took) = hand_over(now, number, &line)
            .with_context(|| format!("Handover {number} of {count}"))?;
        now = next;
        let ticks = Serial::read(SERIAL)?.ticks();
        wait_for_ticks(&mut now, ticks + TICKS_BETWEEN, HANDOVER)
            .with_context(|| format!("After handover {number} of {count}"))?;
        println!(
            "LAB handover {number}: downtime {} ms, {} ms in all",
            took.downtime, took.total
        );
        handovers.push(took);
    }

    tell_guest_to_stop()?;
    let said = wait_for("the guest's own verdict", END, || {
        Ok(Serial::read(SERIAL)?.result().map(str::to_owned))
    })?;
    let Some(numbers) = said.strip_prefix("ok ") else {
        bail!("The guest found: {said}")
    };
    let status = now.ended(END).context("The guest powered off")?;
    if !status.success() {
        bail!("The guest powered off, but the VMM ended with {status}");
    }
    check_disk()?;
    let serial = Serial::read(SERIAL)?;
    let mut result = format!("vmm={vmm} handovers={count} boot_ms={}", boot.as_millis());
    if !handovers.is_empty() {
        result += &format!(" {}", summary(&handovers));
    }
    Ok(format!(
        "{result} gap_ms={} ticks={} {numbers}",
        serial.longest_gap(),
        serial.ticks()
    ))
}

/// One cpr-transfer; gives the process that has the guest now.
fn hand_over(
    mut source: Generation,
    number: u32,
    line: &[String],
) -> Result<(Generation, Handover)> {
    let mut target = Generation::start(number, line, true)?;
    source.command("migrate-set-parameters", &json!({ "mode": "cpr-transfer" }))?;
    let start = Instant::now();
    source.command("migrate", &json!({ "channels": target.channels() }))?;
    let outcome = wait_for("the source to finish", HANDOVER, || {
        let answer = source.command("query-migrate", &json!({}))?;
        match answer["status"].as_str().unwrap_or_default() {
            "completed" => Ok(Some(answer)),
            "failed" | "cancelled" => bail!("The source reports: {answer}"),
            _ => Ok(None),
        }
    })?;
    wait_for("the target to run the guest", HANDOVER, || {
        Ok((target.status()? == "running").then_some(()))
    })?;
    let total = start.elapsed().as_millis() as u64;
    let left = source.status()?;
    if left != "postmigrate" {
        bail!("The source is `{left}` after the handover, not `postmigrate`");
    }
    source.command("quit", &json!({}))?;
    source.ended(HANDOVER)?;
    Ok((
        target,
        Handover {
            downtime: outcome["downtime"].as_u64().unwrap_or(0),
            total,
        },
    ))
}

fn wait_for_ticks(vmm: &mut Generation, ticks: usize, limit: Duration) -> Result<()> {
    wait_for(&format!("the guest's tick {ticks}"), limit, || {
        vmm.alive()?;
        let serial = Serial::read(SERIAL)?;
        if let Some(result) = serial.result() {
            bail!("The guest ended before it was told to: {result}");
        }
        Ok((serial.ticks() >= ticks).then_some(()))
    })
}

fn tell_guest_to_stop() -> Result<()> {
    OpenOptions::new()
        .write(true)
        .open(inside::DISK)
        .and_then(|disk| disk.write_all_at(inside::STOP, inside::FILE_SYSTEM))
        .with_context(|| format!("Cannot write the guest's mailbox in {}", inside::DISK))
}

/// The guest's file system, looked at from outside once the guest is gone.
fn check_disk() -> Result<()> {
    let out = Command::new("e2fsck")
        .args(["-fn", inside::DISK])
        .output()
        .context("Cannot start e2fsck")?;
    if !out.status.success() {
        let text = String::from_utf8_lossy(&out.stdout).replace('\n', "; ");
        bail!("The guest's file system is damaged: {text}");
    }
    Ok(())
}

fn summary(handovers: &[Handover]) -> String {
    let spread = |name: &str, mut values: Vec<u64>| {
        values.sort_unstable();
        let (Some(least), Some(most)) = (values.first(), values.last()) else {
            return String::new();
        };
        format!(
            "{name}_min={least} {name}_median={} {name}_max={most}",
            values[values.len() / 2]
        )
    };
    let downtime = spread(
        "downtime_ms",
        handovers.iter().map(|h| h.downtime).collect(),
    );
    let total = spread("total_ms", handovers.iter().map(|h| h.total).collect());
    format!("{downtime} {total}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_gives_least_median_and_most() {
        let handovers = [9, 1, 5].map(|ms| Handover {
            downtime: ms,
            total: ms * 10,
        });
        assert_eq!(
            summary(&handovers),
            "downtime_ms_min=1 downtime_ms_median=5 downtime_ms_max=9 total_ms_min=10 total_ms_median=50 total_ms_max=90"
        );
    }
}
