//! `-dump-vmstate`, `state show` and `state check`.

use anyhow::{Context, Result, ensure};
use baton_testkit::Vmm;
use baton_testkit::fixtures::{baton, printed};
use baton_testkit::scratch::Scratch;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

/// What a machine with these options, or the build, saves and loads.
pub(crate) fn description(scratch: &Scratch, options: &[&str]) -> Result<(PathBuf, Value)> {
    let file = scratch.join("description.json");
    let mut command = baton()?;
    if let Some(plugins) = Vmm::Baton.programs()?.plugins {
        command.arg("-plugin").arg(plugins);
    }
    command.arg("-dump-vmstate").arg(&file).args(options);
    let said = printed(&mut command)?;
    ensure!(said.is_empty(), "It printed '{said}'");
    let text = fs::read_to_string(&file).context("No description was written")?;
    Ok((file, serde_json::from_str(&text)?))
}

/// The end of `baton state check OLD NEW`.
pub(crate) fn check(old: &Path, new: &Path, more: &[&str]) -> Result<Output> {
    let mut command = baton()?;
    command
        .args(["state", "check"])
        .arg(old)
        .arg(new)
        .args(more);
    command.output().context("Cannot start Baton")
}

#[test]
fn a_machine_is_described_with_the_ids_its_devices_will_have() -> Result<()> {
    let scratch = Scratch::new()?;
    let options = "-device virtio-rng-pci -device virtio-rng-pci,id=second -serial null";
    let options: Vec<_> = options.split(' ').collect();
    let (_, machine) = description(&scratch, &options)?;
    ensure!(machine["machine"]["type"] == "baton-1.0", "{machine}");
    let devices = machine["devices"].as_array().context("No devices")?;
    let ids: Vec<_> = devices.iter().filter_map(|d| d["id"].as_str()).collect();
    let expected = ["mc146818rtc.0", "isa-serial.0", "0000:00:01.0", "second"];
    ensure!(ids == expected, "{ids:?}");
    ensure!(
        devices[2]["sections"][0]["name"] == "virtio-pci",
        "{machine}"
    );
    Ok(())
}

#[test]
fn a_description_that_cannot_be_made_is_one_line() -> Result<()> {
    let scratch = Scratch::new()?;
    let file = scratch.join("none/description.json");
    for (options, reason) in [
        (&["-serial", "null"][..], "cannot be written"),
        (
            &["-device", "nothing"],
            "Device 'nothing' is offered by no plugin",
        ),
    ] {
        let mut command = baton()?;
        command.arg("-dump-vmstate").arg(&file).args(options);
        let line = baton_testkit::refusal::refusal(&mut command)?.line()?;
        ensure!(line.contains(reason), "{line}");
    }
    Ok(())
}

#[test]
fn the_exit_status_of_a_check_counts_what_does_not_fit() -> Result<()> {
    let scratch = Scratch::new()?;
    let (old, mut description) = description(&scratch, &[])?;
    let same = check(&old, &old, &[])?;
    ensure!(same.status.code() == Some(0), "{same:?}");

    description["machine"]["sections"][0]["version"] = 0.into();
    description["machine"]["sections"][1]["minimum-version"] = 9.into();
    let new = scratch.join("new.json");
    fs::write(&new, description.to_string())?;
    let differs = check(&old, &new, &["--json"])?;
    ensure!(differs.status.code() == Some(2), "{differs:?}");
    let report: Value = serde_json::from_slice(&differs.stdout)?;
    ensure!(report["findings"] == 2, "{report}");
    let lines = report["lines"].as_array().context("No lines")?;
    for (name, verdict) in [
        ("machine/globalstate", "too-new"),
        ("machine/cpu", "too-old"),
        ("machine/irqchip", "ok"),
    ] {
        let line = lines.iter().find(|line| line["name"] == name);
        ensure!(
            line.is_some_and(|line| line["verdict"] == verdict),
            "{report}"
        );
    }

    fs::write(&new, "BATON")?;
    for (old, new) in [(&old, &new), (&old, &scratch.join("none"))] {
        let failed = check(old, new, &[])?;
        let said = String::from_utf8_lossy(&failed.stderr).into_owned();
        ensure!(failed.status.code() == Some(255), "{failed:?}");
        ensure!(
            said.starts_with(&format!("baton: {}: ", new.display())),
            "{said}"
        );
        ensure!(
            said.lines().count() == 1 && failed.stdout.is_empty(),
            "{said}"
        );
    }
    Ok(())
}
