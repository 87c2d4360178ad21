//! Devices that come to and leave a guest that runs, is stopped, or was never started.

use anyhow::{Context, Result, ensure};
use baton_testkit::check::examine;
use baton_testkit::native::expect_text;
use baton_testkit::report::RNG_DEVICES;
use baton_testkit::transfer::{begin, outcome, set_capability};
use baton_testkit::wait::{PATIENCE, wait_for};
use baton_testkit::{Machine, Setup, needs_baton};
use serde_json::{Value, json};
use std::fs::{self, File};

use crate::setup;

/// The guest's word for where the registers are.
pub(crate) const REGISTERS: &str = "hotplug=0xae00";
/// An image in the guest's folder that no device has at first.
const SPARE: &str = "if=none,id=spare,file=spare.img,format=raw";

pub(crate) fn hotplug_setup() -> Result<Setup> {
    Ok(setup()?.append(REGISTERS))
}

/// With a second image, which nothing is connected to.
pub(crate) fn with_spare(setup: Setup) -> Result<Machine> {
    let machine = setup.extra(["-drive", SPARE]).boot()?;
    File::create(machine.file("spare.img"))?.set_len(4 << 20)?;
    Ok(machine)
}

pub(crate) fn add(machine: &mut Machine, arguments: &Value) -> Result<()> {
    machine.execute("device_add", arguments).map(drop)
}

fn remove(machine: &mut Machine, id: &str) -> Result<()> {
    machine
        .execute("device_del", &json!({ "id": id }))
        .map(drop)
}

/// What `query-devices` says of a device.
pub(crate) fn device(machine: &mut Machine, id: &str) -> Result<Option<Value>> {
    let devices = machine.execute("query-devices", &json!({}))?;
    let mut devices = devices.as_array().cloned().unwrap_or_default().into_iter();
    Ok(devices.find(|device| device["id"] == id))
}

fn deleted(machine: &mut Machine, id: &str) -> Result<()> {
    let data = machine.qmp()?.wait_event("DEVICE_DELETED")?;
    let expected = json!({ "device": id, "path": format!("/machine/peripheral/{id}") });
    ensure!(data == expected, "{data}");
    ensure!(device(machine, id)?.is_none(), "It is still there");
    Ok(())
}

fn descriptors(machine: &Machine) -> Result<usize> {
    let folder = format!("/proc/{}/fd", machine.pid());
    Ok(fs::read_dir(folder)?.count())
}

#[test]
fn an_entropy_device_comes_and_goes_again_and_again_and_leaves_nothing_behind() -> Result<()> {
    needs_baton!();
    let mut machine = hotplug_setup()?.rngs(0).boot()?;
    machine.qmp()?;
    let mut before = 0;
    for round in 0..6 {
        add(
            &mut machine,
            &json!({ "driver": "virtio-rng-pci", "id": "r1" }),
        )?;
        machine.wait_line("arrived: slot")?;
        wait_for("the guest to use it", PATIENCE, || {
            Ok((machine.report().get(RNG_DEVICES) == 1).then_some(()))
        })?;
        machine.wait_progress()?;
        let found = device(&mut machine, "r1")?.context("It is not listed")?;
        ensure!(
            found["hotplugged"] == true && found["failed"] == false,
            "{found}"
        );
        remove(&mut machine, "r1")?;
        let line = machine.wait_line("left: slot")?;
        ensure!(line.contains("gone"), "{line}");
        deleted(&mut machine, "r1")?;
        if round == 0 {
            before = descriptors(&machine)?;
        }
    }
    ensure!(descriptors(&machine)? == before, "Descriptors are left");
    machine.wait_progress()?;
    examine(&mut machine).map(drop)
}

#[test]
fn a_disk_comes_is_written_and_can_be_taken_again_after_it_went() -> Result<()> {
    needs_baton!();
    let mut machine = with_spare(hotplug_setup()?.disk_mib(None))?;
    machine.qmp()?;
    let disk = json!({ "driver": "virtio-blk-pci", "id": "disk1", "drive": "spare", "addr": "9" });
    for _ in 0..2 {
        add(&mut machine, &disk)?;
        machine.wait_line("arrived: slot 9")?;
        machine.wait_progress()?;
        let reason = machine.refusal(
            "device_add",
            &json!({ "driver": "virtio-blk-pci", "id": "disk2", "drive": "spare" }),
        )?;
        expect_text(&reason, &["can't take value 'spare', it's in use"])?;
        remove(&mut machine, "disk1")?;
        let verdict = machine.wait_line("VERIFIED")?;
        ensure!(
            verdict.contains("bad=0") && !verdict.contains(" 0 blocks"),
            "{verdict}"
        );
        deleted(&mut machine, "disk1")?;
    }
    Ok(())
}

#[test]
fn what_cannot_come_or_go_is_refused_in_qemus_words() -> Result<()> {
    needs_baton!();
    let mut machine = hotplug_setup()?
        .extra(["-device", "virtio-rng-pci,id=r0,addr=8"])
        .boot()?;
    for (arguments, text) in [
        (json!({}), "Parameter 'driver' is missing"),
        (
            json!({ "driver": "virtio-rgn-pci" }),
            "'virtio-rgn-pci' is not a valid device model name; did you mean 'virtio-rng-pci'?",
        ),
        (
            json!({ "driver": "virtio-rng-pci", "id": "r0" }),
            "Duplicate device ID 'r0'",
        ),
        (
            json!({ "driver": "virtio-rng-pci", "bus": "rp7" }),
            "Bus 'rp7' not found; there is only pcie.0",
        ),
        (
            json!({ "driver": "isa-serial", "chardev": "c0" }),
            "Bus 'platform' does not support hotplugging",
        ),
        (
            json!({ "driver": "virtio-rng-pci", "addr": "8" }),
            "PCI: slot 8 function 0 not available for virtio-rng-pci, in use by \
             virtio-rng-pci,id=r0",
        ),
        (
            json!({ "driver": "virtio-rng-pci", "addr": "8.1" }),
            "PCI: slot 8 function 0 already occupied by virtio-rng-pci,id=r0, new func \
             virtio-rng-pci cannot be exposed to guest.",
        ),
        (
            json!({ "driver": "virtio-rng-pci", "nosuch": 1 }),
            "Property 'virtio-rng-pci.nosuch' not found",
        ),
        (
            json!({ "driver": "virtio-blk-pci", "drive": "d7" }),
            "Property 'virtio-blk-pci.drive' can't find value 'd7'; did you mean 'd0'?",
        ),
    ] {
        let reason = machine.refusal("device_add", &arguments)?;
        expect_text(&reason, &[text])?;
    }
    for (id, text) in [
        ("nosuch", "Device 'nosuch' not found"),
        (
            "mc146818rtc.0",
            "Bus 'platform' does not support hotplugging",
        ),
    ] {
        let reason = machine.refusal("device_del", &json!({ "id": id }))?;
        expect_text(&reason, &[text])?;
    }
    machine.wait_progress()?;
    examine(&mut machine).map(drop)
}

#[test]
fn a_guest_that_cannot_let_go_is_told_of_and_keeps_its_device() -> Result<()> {
    needs_baton!();
    let mut machine = hotplug_setup()?
        .extra(["-device", "virtio-rng-pci,id=r0"])
        .boot()?;
    machine.say("refuse")?;
    machine.wait_line("echo: refuse")?;
    machine.qmp()?;
    remove(&mut machine, "r0")?;
    let data = machine.qmp()?.wait_event("DEVICE_UNPLUG_GUEST_ERROR")?;
    ensure!(data["device"] == "r0", "{data}");
    ensure!(device(&mut machine, "r0")?.is_some(), "It is gone");
    machine.wait_progress()
}

#[test]
fn a_reset_ejects_what_was_asked_for_and_boots_with_what_has_come() -> Result<()> {
    needs_baton!();
    // A guest that knows nothing of hot-plug.
    let mut machine = setup()?.rngs(0).boot()?;
    machine.qmp()?;
    for id in ["r1", "r2"] {
        add(
            &mut machine,
            &json!({ "driver": "virtio-rng-pci", "id": id }),
        )?;
    }
    remove(&mut machine, "r1")?;
    machine.wait_progress()?;
    ensure!(
        device(&mut machine, "r1")?.is_some(),
        "The guest was not asked"
    );
    machine.execute("system_reset", &json!({}))?;
    deleted(&mut machine, "r1")?;
    machine.wait_up()?;
    ensure!(machine.report().get(RNG_DEVICES) == 1);
    machine.wait_progress()?;
    examine(&mut machine).map(drop)
}

#[test]
fn a_guest_that_was_not_started_boots_with_the_devices_it_has_then() -> Result<()> {
    needs_baton!();
    let mut machine = setup()?
        .rngs(0)
        .extra(["-device", "virtio-rng-pci,id=r0,addr=1e"])
        .paused()
        .start()?;
    for id in ["r1", "r2", "r3"] {
        add(
            &mut machine,
            &json!({ "driver": "virtio-rng-pci", "id": id }),
        )?;
    }
    for id in ["r0", "r2"] {
        remove(&mut machine, id)?;
        deleted(&mut machine, id)?;
    }
    machine.cont()?;
    machine.wait_up()?;
    ensure!(machine.report().get(RNG_DEVICES) == 2);
    machine.wait_progress()
}

#[test]
fn what_happens_to_a_stopped_guest_it_sees_when_it_goes_on() -> Result<()> {
    needs_baton!();
    let mut machine = hotplug_setup()?.rngs(0).boot()?;
    machine.qmp()?;
    machine.stop()?;
    add(
        &mut machine,
        &json!({ "driver": "virtio-rng-pci", "id": "r1" }),
    )?;
    machine.cont()?;
    machine.wait_line("arrived: slot")?;
    machine.wait_progress()?;
    machine.stop()?;
    remove(&mut machine, "r1")?;
    ensure!(
        device(&mut machine, "r1")?.is_some(),
        "It went without the guest"
    );
    machine.cont()?;
    deleted(&mut machine, "r1")?;
    machine.wait_progress()
}

#[test]
fn a_guest_that_hammers_the_registers_hurts_nobody_but_itself() -> Result<()> {
    needs_baton!();
    let mut machine = hotplug_setup()?
        .extra(["-device", "virtio-rng-pci,id=r0"])
        .boot()?;
    machine.say("hammer")?;
    machine.wait_line("hammered")?;
    ensure!(machine.status()? == "running");
    // Whatever it has thrown out, what is there now is whole, and more can come.
    add(
        &mut machine,
        &json!({ "driver": "virtio-rng-pci", "id": "r1" }),
    )?;
    let found = device(&mut machine, "r1")?.context("It is not listed")?;
    ensure!(found["failed"] == false, "{found}");
    machine.execute("system_reset", &json!({}))?;
    machine.wait_up()?;
    machine.wait_progress()
}

#[test]
fn devices_stay_as_they_are_while_the_guest_is_handed_over() -> Result<()> {
    needs_baton!();
    let mut source = hotplug_setup()?
        .extra(["-device", "virtio-rng-pci,id=r0"])
        .boot()?;
    set_capability(&mut source, "pause-before-switchover", true)?;
    let target = source.successor()?;
    begin(&mut source, &target)?;
    wait_for("the pause", PATIENCE, || {
        let info = source.execute("query-migrate", &json!({}))?;
        Ok((info["status"] == "pre-switchover").then_some(()))
    })?;
    let device = json!({ "driver": "virtio-rng-pci" });
    let reason = source.refusal("device_add", &device)?;
    expect_text(&reason, &["device_add not allowed while migrating"])?;
    let reason = source.refusal("device_del", &json!({ "id": "r0" }))?;
    expect_text(&reason, &["device_del not allowed while migrating"])?;
    source.execute("migrate_cancel", &json!({}))?;
    outcome(&mut source)?;
    add(&mut source, &device)?;
    source.wait_line("arrived: slot")?;
    source.wait_progress()
}

#[test]
fn what_is_asked_of_the_guest_when_it_is_handed_over_it_does_in_the_new_process() -> Result<()> {
    needs_baton!();
    let mut source = hotplug_setup()?
        .extra(["-device", "virtio-rng-pci,id=r0"])
        .boot()?;
    source.stop()?;
    remove(&mut source, "r0")?;
    let mut target = source.successor()?;
    begin(&mut source, &target)?;
    let info = outcome(&mut source)?;
    ensure!(info["status"] == "completed", "{info}");
    target.wait_status("paused")?;
    target.cont()?;
    deleted(&mut target, "r0")?;
    target.wait_progress()?;
    examine(&mut target).map(drop)
}
