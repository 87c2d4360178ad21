//! The rules that show only beside a running guest.

use anyhow::{Context, Result, ensure};
use baton_testkit::check::examine;
use baton_testkit::native::expect_text;
use baton_testkit::transfer::{begin, outcome, transfer};
use baton_testkit::wait::{PATIENCE, wait_for};
use baton_testkit::{Machine, Setup, Vmm, needs_kvm};
use serde_json::{Value, json};

use baton_testkit::fixtures::fixture;

/// A guest with one device more.
fn guest(plugin: &str, device: &str) -> Result<Setup> {
    let plugin = fixture(plugin)?.display().to_string();
    Ok(Setup::new(Vmm::Baton)?.extra(["-plugin", &plugin, "-device", device]))
}

/// What `query-devices` says of a device.
fn device(machine: &mut Machine, id: &str) -> Result<Value> {
    let devices = machine.execute("query-devices", &json!({}))?;
    let mut all = devices.as_array().into_iter().flatten();
    let found = all.find(|device| device["id"] == id);
    Ok(found
        .with_context(|| format!("No {id} in {devices}"))?
        .clone())
}

/// Waits until a device is shown as failed; gives the reason.
fn failure(machine: &mut Machine, id: &str) -> Result<String> {
    wait_for("the device to be shown as failed", PATIENCE, || {
        let device = device(machine, id)?;
        let failed = device["failed"] == json!(true);
        Ok(failed.then(|| device["reason"].as_str().unwrap_or_default().to_owned()))
    })
}

/// The guest runs, is whole, and cannot be handed over with a broken device.
fn goes_on(machine: &mut Machine, id: &str) -> Result<()> {
    machine.wait_status("running")?;
    machine.wait_progress()?;
    examine(machine)?;
    let info = machine.execute("query-migrate", &json!({}))?;
    expect_text(
        &info["blocked-reasons"].to_string(),
        &[id, "the device has failed"],
    )
}

#[test]
fn the_guest_goes_on_beside_a_device_that_panics() -> Result<()> {
    needs_kvm!();
    for (place, reason) in [
        ("start", "Panicked: told to panic in start"),
        ("thread", "Panicked in its thread"),
    ] {
        let mut machine = guest("panics", &format!("fixture-panics,id=p0,at={place}"))?.boot()?;
        ensure!(failure(&mut machine, "p0")? == reason, "{place}");
        goes_on(&mut machine, "p0")?;
    }
    Ok(())
}

#[test]
fn the_guest_goes_on_after_it_made_a_device_panic() -> Result<()> {
    needs_kvm!();
    // The guest takes the device for the register that powers it off.
    let device = "fixture-panics,id=p0,at=write,port=0x5e8";
    let mut machine = guest("panics", device)?.append("pm1a=0x5e8").boot()?;
    machine.say("poweroff")?;
    machine.wait_line("poweroff: still here")?;
    ensure!(failure(&mut machine, "p0")? == "Panicked: told to panic in write");
    goes_on(&mut machine, "p0")
}

#[test]
fn a_device_takes_its_descriptor_and_its_state_along() -> Result<()> {
    needs_kvm!();
    let mut source = guest("probe", "fixture-probe,id=p0")?.boot()?;
    for _ in 0..2 {
        let mut target = source.successor()?;
        transfer(&mut source, &mut target)?;
        target.wait_progress()?;
        ensure!(device(&mut target, "p0")?["failed"] == json!(false));
        source = target;
    }
    Ok(())
}

/// A handover that must fail; gives what it says of why.
fn failed_handover(source: &mut Machine) -> Result<String> {
    let target = source.successor()?;
    let text = match begin(source, &target) {
        Ok(()) => {
            let info = outcome(source)?;
            ensure!(info["status"] == "failed", "{info}");
            info.to_string()
        }
        Err(refusal) => format!("{refusal:#}"),
    };
    source.wait_status("running")?;
    source.wait_progress()?;
    Ok(text)
}

#[test]
fn a_descriptor_that_no_device_claims_fails_the_handover_by_its_name() -> Result<()> {
    needs_kvm!();
    let mut source = guest("probe", "fixture-probe,id=p0,claim=off")?.boot()?;
    let text = failed_handover(&mut source)?;
    expect_text(&text, &["Nobody took", "'token' 0 of 'p0'"])
}

#[test]
fn a_descriptor_that_the_plugin_does_not_declare_is_not_handed_over() -> Result<()> {
    needs_kvm!();
    let mut source = guest("probe", "fixture-probe,id=p0,hands-over=secret")?.boot()?;
    let text = failed_handover(&mut source)?;
    expect_text(
        &text,
        &["Device 'p0'", "'secret' that its plugin does not declare"],
    )
}

#[test]
fn a_section_that_is_too_large_fails_the_handover_by_its_device() -> Result<()> {
    needs_kvm!();
    let mut source = guest("probe", "fixture-probe,id=p0,saves=67108865")?.boot()?;
    let text = failed_handover(&mut source)?;
    expect_text(
        &text,
        &["Device 'p0'", "67108865 bytes, 67108864 are allowed"],
    )
}
