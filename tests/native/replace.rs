//! A plugin that is replaced under the running guest.

use anyhow::{Context, Result, ensure};
use baton_testkit::check::examine;
use baton_testkit::fixtures::fixture;
use baton_testkit::native::expect_text;
use baton_testkit::transfer::transfer;
use baton_testkit::{Machine, Setup, needs_baton};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::{is_whole, setup};

/// What `query-plugins` says of the plugin of this name.
fn plugin(machine: &mut Machine, name: &str) -> Result<Value> {
    let plugins = machine.execute("query-plugins", &json!({}))?;
    let mut plugins = plugins.as_array().cloned().unwrap_or_default().into_iter();
    let found = plugins.find(|plugin| plugin["name"] == name);
    found.with_context(|| format!("There is no plugin '{name}'"))
}

pub(crate) fn replace(machine: &mut Machine, file: &Path) -> Result<()> {
    let arguments = json!({ "file": file.display().to_string() });
    machine.execute("plugin-replace", &arguments).map(drop)
}

fn refused(machine: &mut Machine, file: &Path) -> Result<String> {
    let arguments = json!({ "file": file.display().to_string() });
    machine.refusal("plugin-replace", &arguments)
}

/// A second build of a plugin of the machine's.
pub(crate) fn second(machine: &mut Machine, name: &str, copy: &str) -> Result<PathBuf> {
    let file = plugin(machine, name)?["file"].clone();
    let copy = machine.file(copy);
    fs::copy(file.as_str().unwrap_or_default(), &copy).context("Cannot copy a plugin")?;
    Ok(copy)
}

#[test]
fn every_plugin_is_replaced_again_and_again_under_a_guest_at_work() -> Result<()> {
    needs_baton!();
    let mut machine = setup()?.boot()?;
    let names = [
        "virtio-blk-pci",
        "virtio-rng-pci",
        "isa-serial",
        "mc146818rtc",
    ];
    for round in 0..2 {
        for name in names {
            let copy = second(&mut machine, name, &format!("{name}-{round}.so"))?;
            replace(&mut machine, &copy)?;
            ensure!(plugin(&mut machine, name)?["file"] == copy.display().to_string());
            machine.wait_progress()?;
        }
        // In both directions.
        machine.say("hello")?;
        machine.wait_line("echo: hello")?;
    }
    examine(&mut machine)?;
    machine.say("quiesce")?;
    let verdict = machine.wait_line("VERIFIED ")?;
    ensure!(verdict.ends_with("bad=0"), "{verdict}");
    machine.say("resume")?;
    let mut target = machine.successor()?;
    transfer(&mut machine, &mut target)?;
    is_whole(&mut target)
}

#[test]
fn a_file_that_was_replaced_in_its_place_is_loaded_and_not_the_one_before() -> Result<()> {
    needs_baton!();
    let mut machine = setup()?.boot()?;
    let copy = second(&mut machine, "virtio-rng-pci", "other.so")?;
    for _ in 0..3 {
        // A new file under the same name, as a package manager leaves it.
        let fresh = machine.file("fresh.so");
        fs::copy(&copy, &fresh)?;
        fs::rename(&fresh, &copy)?;
        replace(&mut machine, &copy)?;
        machine.wait_progress()?;
    }
    // Each is a library of its own, and the one that is there now is among them.
    let maps = fs::read_to_string(format!("/proc/{}/maps", machine.pid()))?;
    let inode = fs::metadata(&copy)?.ino().to_string();
    let mapped = |line: &str| line.split_whitespace().nth(4) == Some(&inode);
    ensure!(maps.lines().any(mapped), "{inode} is not in {maps}");
    machine.wait_progress()?;
    examine(&mut machine).map(drop)
}

#[test]
fn a_stopped_guest_goes_on_with_the_new_plugin() -> Result<()> {
    needs_baton!();
    let mut machine = setup()?.boot()?;
    machine.stop()?;
    let copy = second(&mut machine, "virtio-blk-pci", "other.so")?;
    replace(&mut machine, &copy)?;
    ensure!(machine.status()? == "paused");
    machine.cont()?;
    is_whole(&mut machine)
}

#[test]
fn what_cannot_take_over_is_refused_before_anything_is_touched() -> Result<()> {
    needs_baton!();
    let mut machine = setup()?.boot()?;
    let nothing = machine.file("nothing.so");
    expect_text(
        &refused(&mut machine, &nothing)?,
        &["nothing.so", "cannot be opened"],
    )?;
    fs::write(&nothing, "no plugin")?;
    expect_text(&refused(&mut machine, &nothing)?, &["nothing.so"])?;
    expect_text(
        &refused(&mut machine, &fixture("probe")?)?,
        &[
            "its name is 'baton-testkit', and no plugin of that name is loaded",
            "virtio-blk-pci",
        ],
    )?;
    is_whole(&mut machine)
}

#[test]
fn another_command_line_blocks_the_way_back_of_cpr_exec_and_the_same_place_does_not() -> Result<()>
{
    needs_baton!();
    let mut machine = setup()?.boot()?;
    let first = plugin(&mut machine, "virtio-rng-pci")?["file"].clone();
    let first = PathBuf::from(first.as_str().unwrap_or_default());
    let copy = second(&mut machine, "virtio-rng-pci", "other.so")?;
    let blocked = |machine: &mut Machine| -> Result<bool> {
        let mode = json!({ "mode": "cpr-exec" });
        let answer = machine.execute("query-migratable", &mode)?;
        Ok(answer[0]["migratable"] == false)
    };
    replace(&mut machine, &copy)?;
    ensure!(blocked(&mut machine)?);
    replace(&mut machine, &first)?;
    ensure!(!blocked(&mut machine)?);
    is_whole(&mut machine)
}

fn failing(place: &str) -> Result<(Machine, PathBuf)> {
    let plugin = fixture("entropy")?.display().to_string();
    let setup: Setup = setup()?
        .rngs(0)
        .environment("BATON_FIXTURE_FAILS", place)
        .extra(["-plugin", &plugin, "-device", "fixture-rng,id=e0"])
        .extra(["-device", "fixture-rng,id=e1"]);
    let machine = setup.boot()?;
    let scratch = machine.file("second.so");
    fs::copy(fixture("entropy")?, &scratch)?;
    Ok((machine, scratch))
}

#[test]
fn a_new_plugin_that_fails_or_panics_leaves_the_old_one_at_work() -> Result<()> {
    needs_baton!();
    for place in [
        "create",
        "realize",
        "load",
        "start",
        "panic-create",
        "panic-load",
        "panic-start",
    ] {
        let (mut machine, second) = failing(place)?;
        let before = plugin(&mut machine, "baton-testkit")?;
        let reason = refused(&mut machine, &second)?;
        expect_text(
            &reason,
            &["Device 'e0'", "told to", place.trim_start_matches("panic-")],
        )?;
        ensure!(plugin(&mut machine, "baton-testkit")? == before, "{place}");
        let devices = machine.execute("query-devices", &json!({}))?;
        let failed = devices
            .as_array()
            .is_some_and(|all| all.iter().any(|d| d["failed"] == true));
        ensure!(!failed, "{place}: {devices}");
        is_whole(&mut machine).with_context(|| place.to_owned())?;
    }
    Ok(())
}

#[test]
fn a_new_plugin_takes_over_several_devices_at_once() -> Result<()> {
    needs_baton!();
    let (mut machine, second) = failing("nowhere")?;
    replace(&mut machine, &second)?;
    is_whole(&mut machine)?;
    Ok(())
}
