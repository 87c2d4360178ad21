//! A guest with devices that have come or gone since it was started is handed over: the successor must
//! have the devices that there are.

use anyhow::{Context, Result, ensure};
use baton_testkit::check::examine;
use baton_testkit::kept::keep;
use baton_testkit::machine::Main;
use baton_testkit::native::expect_text;
use baton_testkit::report::RNG_DEVICES;
use baton_testkit::transfer::{begin, begin_exec, execute_at, outcome};
use baton_testkit::{Machine, needs_baton};
use serde_json::{Value, json};

use crate::hotplug::{add, device, hotplug_setup, with_spare};

/// A guest with an entropy device and a disk that have come.
fn grown() -> Result<Machine> {
    let mut machine = with_spare(hotplug_setup()?.disk_mib(None).rngs(1))?;
    machine.qmp()?;
    add(
        &mut machine,
        &json!({ "driver": "virtio-rng-pci", "id": "r1" }),
    )?;
    machine.wait_line("arrived: slot")?;
    let disk = json!({ "driver": "virtio-blk-pci", "id": "disk1", "drive": "spare" });
    add(&mut machine, &disk)?;
    machine.wait_line("arrived: slot")?;
    machine.wait_progress()?;
    Ok(machine)
}

/// How `query-devices` says a device is to be made.
fn arguments(machine: &mut Machine, id: &str) -> Result<Value> {
    let found = device(machine, id)?.with_context(|| format!("'{id}' is not listed"))?;
    Ok(found["arguments"].clone())
}

fn works(machine: &mut Machine) -> Result<()> {
    machine.wait_status("running")?;
    ensure!(machine.report().get(RNG_DEVICES) == 2);
    machine.wait_progress()?;
    machine.say("quiesce")?;
    let verdict = machine.wait_line("VERIFIED ")?;
    ensure!(
        verdict.ends_with("bad=0") && !verdict.contains(" 0 blocks"),
        "{verdict}"
    );
    machine.say("resume")?;
    machine.wait_progress()
}

#[test]
fn a_target_without_the_devices_is_refused_by_their_names_and_one_that_adds_them_goes_on()
-> Result<()> {
    needs_baton!();
    let mut source = grown()?;
    let (rng, disk) = (
        arguments(&mut source, "r1")?,
        arguments(&mut source, "disk1")?,
    );

    let target = source.successor()?;
    begin(&mut source, &target)?;
    let info = outcome(&mut source)?;
    ensure!(info["status"] == "failed", "{info}");
    let text = ["Device 'disk1' (virtio-blk-pci at 0000:00:0", "device_add"];
    expect_text(&info.to_string(), &text)?;
    works(&mut source)?;

    let mut target = source.successor_on(Main::Deferred)?;
    begin(&mut source, &target)?;
    target.wait_status("inmigrate")?;
    add(&mut target, &disk)?;
    let uri = json!({ "uri": target.main_uri() });
    target.execute("migrate-incoming", &uri)?;
    let info = outcome(&mut source)?;
    ensure!(info["status"] == "failed", "{info}");
    expect_text(
        &info.to_string(),
        &["Device 'r1' (virtio-rng-pci at 0000:00:0"],
    )?;
    works(&mut source)?;

    let mut target = source.successor_on(Main::Deferred)?;
    begin(&mut source, &target)?;
    target.wait_status("inmigrate")?;
    add(&mut target, &disk)?;
    add(&mut target, &rng)?;
    let uri = json!({ "uri": target.main_uri() });
    target.execute("migrate-incoming", &uri)?;
    let info = outcome(&mut source)?;
    ensure!(info["status"] == "completed", "{info}");
    works(&mut target)?;
    // What came there is known there, too, and can go.
    target.execute("device_del", &json!({ "id": "r1" }))?;
    let data = target.qmp()?.wait_event("DEVICE_DELETED")?;
    ensure!(data["device"] == "r1", "{data}");
    target.wait_progress()
}

#[test]
fn a_device_in_another_place_is_refused_before_the_guest_is_stopped() -> Result<()> {
    needs_baton!();
    let mut source = hotplug_setup()?.boot()?;
    add(
        &mut source,
        &json!({ "driver": "virtio-rng-pci", "id": "r1", "addr": "10" }),
    )?;
    source.wait_line("arrived: slot")?;
    let mut target = source.successor_on(Main::Deferred)?;
    begin(&mut source, &target)?;
    target.wait_status("inmigrate")?;
    add(
        &mut target,
        &json!({ "driver": "virtio-rng-pci", "id": "r1", "addr": "11" }),
    )?;
    let uri = json!({ "uri": target.main_uri() });
    target.execute("migrate-incoming", &uri)?;
    let info = outcome(&mut source)?;
    expect_text(
        &info.to_string(),
        &["Device 'r1' is at 0000:00:10.0 for the guest and at 0000:00:11.0 here"],
    )?;
    source.wait_progress()?;
    examine(&mut source).map(drop)
}

#[test]
fn a_kept_guest_is_loaded_where_its_devices_were_added_first() -> Result<()> {
    needs_baton!();
    let mut source = grown()?;
    let (rng, disk) = (
        arguments(&mut source, "r1")?,
        arguments(&mut source, "disk1")?,
    );
    keep(&mut source, "file:state")?;
    source.quit()?;

    let mut target = source.loading("defer")?;
    let load = json!({ "uri": "file:state", "exit-on-error": false });
    target.execute("migrate-incoming", &load)?;
    let info = outcome(&mut target)?;
    ensure!(info["status"] == "failed", "{info}");
    expect_text(
        &info.to_string(),
        &["Device 'disk1' (virtio-blk-pci at", "device_add"],
    )?;
    for arguments in [&rng, &disk] {
        add(&mut target, arguments)?;
    }
    target.execute("migrate-incoming", &load)?;
    works(&mut target)
}

#[test]
fn a_program_that_is_executed_has_the_devices_on_its_command_line() -> Result<()> {
    needs_baton!();
    let mut machine = grown()?;
    let (rng, disk) = (
        arguments(&mut machine, "r1")?,
        arguments(&mut machine, "disk1")?,
    );
    let mut command = machine.command();
    begin_exec(&mut machine, &command)?;
    let info = outcome(&mut machine)?;
    ensure!(info["status"] == "failed", "{info}");
    expect_text(&info.to_string(), &["Device 'r1'"])?;
    for arguments in [rng, disk] {
        command.extend(["-device".to_owned(), arguments.to_string()]);
    }
    execute_at(&mut machine, &command, None)?;
    works(&mut machine)?;
    Ok(())
}
