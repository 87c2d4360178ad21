//! Objects that come to a process and go again, and the devices that name them.

use anyhow::{Context, Result, ensure};
use baton_testkit::native::expect_text;
use baton_testkit::report::RNG_DEVICES;
use baton_testkit::transfer::{begin_exec_at, outcome};
use baton_testkit::wait::{PATIENCE, wait_for};
use baton_testkit::{Machine, needs_baton};
use serde_json::{Value, json};
use std::os::unix::fs::MetadataExt;

use crate::hotplug::{add, device, hotplug_setup};
use crate::is_whole;

fn boot() -> Result<Machine> {
    hotplug_setup()?.rngs(0).boot()
}

/// An object that stands for a file which can be told from every other source of entropy.
fn object() -> Value {
    json!({ "qom-type": "rng-random", "id": "rng1", "filename": "/dev/random" })
}

fn entropy() -> Value {
    json!({ "driver": "virtio-rng-pci", "id": "r1", "rng": "rng1", "addr": "9" })
}

fn names(machine: &mut Machine) -> Result<Vec<Value>> {
    let objects = machine.execute("qom-list", &json!({ "path": "/objects" }))?;
    let objects = objects.as_array().cloned().unwrap_or_default();
    let names = objects.iter().map(|object| object["name"].clone());
    Ok(names.filter(|name| *name == "rng1").collect())
}

/// The guest uses the device, and the process has the object's file open.
fn is_used(machine: &mut Machine) -> Result<()> {
    wait_for("the guest to use it", PATIENCE, || {
        Ok((machine.report().get(RNG_DEVICES) == 1).then_some(()))
    })?;
    machine.wait_progress()?;
    let source = std::fs::metadata("/dev/random")?.rdev();
    let open = std::fs::read_dir(format!("/proc/{}/fd", machine.pid()))?;
    let is_source = |fd: std::fs::DirEntry| std::fs::metadata(fd.path()).map(|f| f.rdev());
    ensure!(
        open.flatten()
            .any(|fd| is_source(fd).is_ok_and(|found| found == source)),
        "The object's file is not open"
    );
    Ok(())
}

/// The device goes first, then the object.
fn goes(machine: &mut Machine) -> Result<()> {
    let reason = machine.refusal("object-del", &json!({ "id": "rng1" }))?;
    expect_text(&reason, &["object 'rng1' is in use, can not be deleted"])?;
    machine.execute("device_del", &json!({ "id": "r1" }))?;
    machine.qmp()?.wait_event("DEVICE_DELETED")?;
    machine.execute("object-del", &json!({ "id": "rng1" }))?;
    ensure!(names(machine)?.is_empty());
    let reason = machine.refusal("device_add", &entropy())?;
    expect_text(&reason, &["can't find value 'rng1'"])
}

#[test]
fn an_object_comes_is_named_and_goes() -> Result<()> {
    needs_baton!();
    let mut machine = boot()?;
    machine.qmp()?;
    for _ in 0..2 {
        machine.execute("object-add", &object())?;
        ensure!(names(&mut machine)? == ["rng1"]);
        let path = json!({ "path": "/objects/rng1", "property": "filename" });
        ensure!(machine.execute("qom-get", &path)? == "/dev/random");
        add(&mut machine, &entropy())?;
        machine.wait_line("arrived: slot 9")?;
        is_used(&mut machine)?;
        goes(&mut machine)?;
    }
    is_whole(&mut machine)
}

#[test]
fn an_object_that_is_not_right_is_refused_and_changes_nothing() -> Result<()> {
    needs_baton!();
    let setup = hotplug_setup()?.extra(["-object", "rng-builtin,id=said"]);
    let mut machine = setup.boot()?;
    for (arguments, text) in [
        (
            json!({ "qom-type": "rng-random" }),
            "Parameter 'id' is missing",
        ),
        (json!({ "id": "n" }), "Parameter 'qom-type' is missing"),
        (
            json!({ "qom-type": "rng-egd", "id": "n" }),
            "Object type 'rng-egd' is not supported",
        ),
        (
            json!({ "qom-type": "rng-builtin", "id": "said" }),
            "attempt to add duplicate property 'said' to object (type 'container')",
        ),
        (
            json!({ "qom-type": "memory-backend-ram", "id": "m", "size": 4096 }),
            "Memory backend 'm' would be of no use",
        ),
        (
            json!({ "qom-type": "rng-builtin", "id": "n", "filename": "/dev/null" }),
            "Property 'rng-builtin.filename' not found",
        ),
    ] {
        let reason = machine.refusal("object-add", &arguments)?;
        expect_text(&reason, &[text])?;
    }
    let ram = machine.execute("query-memdev", &json!({}))?[0]["id"].clone();
    let ram = ram.as_str().context("RAM has no id")?;
    for (id, text) in [
        ("n", "object 'n' not found"),
        ("said", "object 'said' is of the command line"),
        (ram, "is in use, can not be deleted"),
    ] {
        let reason = machine.refusal("object-del", &json!({ "id": id }))?;
        expect_text(&reason, &[text])?;
    }
    let both = json!({ "driver": "virtio-rng-pci", "rng": "said", "filename": "/dev/null" });
    let reason = machine.refusal("device_add", &both)?;
    expect_text(&reason, &["both say where the entropy comes from"])?;
    is_whole(&mut machine)
}

#[test]
fn an_object_goes_along_with_an_update() -> Result<()> {
    needs_baton!();
    let mut machine = boot()?;
    machine.execute("object-add", &object())?;
    add(&mut machine, &entropy())?;
    machine.wait_line("arrived: slot 9")?;
    for mode in ["cpr-exec", "cpr-transfer"] {
        machine.update(&["--mode", mode])?;
        is_used(&mut machine)?;
        ensure!(device(&mut machine, "r1")?.is_some());
        ensure!(names(&mut machine)? == ["rng1"]);
    }
    Ok(())
}

#[test]
fn the_way_back_from_a_program_that_fails_has_the_object_again() -> Result<()> {
    needs_baton!();
    let mut machine = boot()?;
    machine.execute("object-add", &object())?;
    add(&mut machine, &entropy())?;
    machine.wait_line("arrived: slot 9")?;
    is_used(&mut machine)?;
    let described = device(&mut machine, "r1")?.unwrap_or_default();
    let mut command = machine.command();
    command.extend(["-object".to_owned(), object().to_string()]);
    command.extend(["-device".to_owned(), described["arguments"].to_string()]);
    machine.want_fault("successor-load", "error")?;
    begin_exec_at(&mut machine, &command, None)?;
    let info = outcome(&mut machine)?;
    ensure!(info["status"] == "failed", "{info}");
    machine.wait_status("running")?;
    is_used(&mut machine)?;
    ensure!(names(&mut machine)? == ["rng1"]);
    goes(&mut machine)
}
