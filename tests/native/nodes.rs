//! Block nodes that come to a process and go again, and the disks that are made of them.

use anyhow::{Result, ensure};
use baton_testkit::check::examine;
use baton_testkit::native::expect_text;
use baton_testkit::transfer::{begin_exec_at, outcome};
use baton_testkit::{Machine, needs_baton};
use serde_json::{Value, json};
use std::fs::File;

use crate::hotplug::{add, device, hotplug_setup};
use crate::is_whole;

fn boot() -> Result<Machine> {
    let machine = hotplug_setup()?.disk_mib(None).boot()?;
    File::create(machine.file("late.img"))?.set_len(4 << 20)?;
    Ok(machine)
}

fn node(machine: &Machine) -> Value {
    let image = machine.file("late.img").display().to_string();
    json!({ "driver": "raw", "node-name": "late",
            "file": { "driver": "file", "filename": image } })
}

fn disk() -> Value {
    json!({ "driver": "virtio-blk-pci", "id": "disk1", "drive": "late", "addr": "9" })
}

fn names(machine: &mut Machine) -> Result<Vec<Value>> {
    let nodes = machine.execute("query-named-block-nodes", &json!({}))?;
    let nodes = nodes.as_array().cloned().unwrap_or_default();
    Ok(nodes.iter().map(|node| node["node-name"].clone()).collect())
}

/// The guest has written to its disk, and finds there what it wrote.
fn goes_with_all_right(machine: &mut Machine) -> Result<()> {
    machine.execute("device_del", &json!({ "id": "disk1" }))?;
    let verdict = machine.wait_line("VERIFIED")?;
    ensure!(
        verdict.contains("bad=0") && !verdict.contains(" 0 blocks"),
        "{verdict}"
    );
    machine.qmp()?.wait_event("DEVICE_DELETED").map(drop)
}

#[test]
fn a_node_comes_is_a_disk_and_goes() -> Result<()> {
    needs_baton!();
    let mut machine = boot()?;
    let node = node(&machine);
    for _ in 0..2 {
        machine.execute("blockdev-add", &node)?;
        ensure!(names(&mut machine)? == ["late"]);
        add(&mut machine, &disk())?;
        machine.wait_line("arrived: slot 9")?;
        machine.wait_progress()?;
        let reason = machine.refusal("blockdev-del", &json!({ "node-name": "late" }))?;
        expect_text(&reason, &["Node 'late' is in use"])?;
        goes_with_all_right(&mut machine)?;
        machine.execute("blockdev-del", &json!({ "node-name": "late" }))?;
        ensure!(names(&mut machine)?.is_empty());
        let reason = machine.refusal("device_add", &disk())?;
        expect_text(&reason, &["can't find value 'late'"])?;
    }
    examine(&mut machine).map(drop)
}

#[test]
fn a_node_that_is_not_right_is_refused_and_changes_nothing() -> Result<()> {
    needs_baton!();
    let mut machine = hotplug_setup()?.boot()?;
    let before = names(&mut machine)?;
    for (arguments, text) in [
        (
            json!({ "driver": "file" }),
            "Parameter 'node-name' is missing",
        ),
        (
            json!({ "driver": "file", "node-name": "n", "filename": "/nowhere/at/all" }),
            "Could not open '/nowhere/at/all': No such file or directory",
        ),
        (
            json!({ "driver": "qcow2", "node-name": "n", "file": "x" }),
            "Unknown driver 'qcow2'",
        ),
        (
            json!({ "driver": "raw", "node-name": "n", "file": "below" }),
            "Cannot find device='' nor node-name='below'",
        ),
        (
            json!({ "driver": "file", "node-name": "d0", "filename": "/dev/null" }),
            "Duplicate nodes with node-name='d0'",
        ),
        (
            json!({ "driver": "file", "node-name": "n", "filename": "/dev/null", "speed": 1 }),
            "speed",
        ),
    ] {
        let reason = machine.refusal("blockdev-add", &arguments)?;
        expect_text(&reason, &[text])?;
    }
    for (name, text) in [
        ("n", "Failed to find node with node-name='n'"),
        ("d0", "Node 'd0' is of the command line"),
    ] {
        let reason = machine.refusal("blockdev-del", &json!({ "node-name": name }))?;
        expect_text(&reason, &[text])?;
    }
    ensure!(names(&mut machine)? == before);
    is_whole(&mut machine)
}

#[test]
fn a_disk_of_a_node_that_came_goes_along_with_an_update() -> Result<()> {
    needs_baton!();
    let mut machine = boot()?;
    let node = node(&machine);
    machine.execute("blockdev-add", &node)?;
    add(&mut machine, &disk())?;
    machine.wait_line("arrived: slot 9")?;
    machine.wait_progress()?;
    for mode in ["cpr-exec", "cpr-exec"] {
        machine.update(&["--mode", mode])?;
        machine.wait_progress()?;
        ensure!(device(&mut machine, "disk1")?.is_some());
        ensure!(names(&mut machine)? == ["late"]);
    }
    goes_with_all_right(&mut machine)
}

#[test]
fn the_way_back_from_a_program_that_fails_has_the_node_again() -> Result<()> {
    needs_baton!();
    let mut machine = boot()?;
    let node = node(&machine);
    machine.execute("blockdev-add", &node)?;
    add(&mut machine, &disk())?;
    machine.wait_line("arrived: slot 9")?;
    machine.wait_progress()?;
    // A new program that has the same machine, and cannot load the state.
    let described = device(&mut machine, "disk1")?.unwrap_or_default();
    let mut command = machine.command();
    command.extend(["-blockdev".to_owned(), node.to_string()]);
    command.extend(["-device".to_owned(), described["arguments"].to_string()]);
    machine.want_fault("successor-load", "error")?;
    begin_exec_at(&mut machine, &command, None)?;
    let info = outcome(&mut machine)?;
    ensure!(info["status"] == "failed", "{info}");
    machine.wait_status("running")?;
    machine.wait_progress()?;
    ensure!(names(&mut machine)? == ["late"]);
    goes_with_all_right(&mut machine)
}
