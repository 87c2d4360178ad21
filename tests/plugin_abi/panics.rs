//! A panic never crosses: it ends the device's part in the guest's life, and nothing else.

use anyhow::{Context, Result, ensure};
use baton_plugin_api::abi::PluginDevice;
use baton_plugin_api::protocol::Request;
use baton_plugin_api::testing::{TestHost, TestRam};
use baton_plugin_api::{Error, ErrorKind, MigrationEvent, Mode, Value};
use baton_testkit::guest::workspace;
use baton_testkit::native::expect_text;
use baton_testkit::scratch::Scratch;
use std::process::Command;
use std::sync::Arc;

use crate::device::{created, quiesce, realized, root, start, start_request};
use baton_testkit::fixtures::{copied, fixture};

fn panicking(at: &str, host: &Arc<TestHost>) -> Result<PluginDevice> {
    let said = [("at", Value::String(at.into()))];
    created(&root(&fixture("panics")?)?, "p0", &said, host)
}

/// A device that has panicked in a call takes no more calls, but can be quiesced and dropped.
fn has_failed(mut device: PluginDevice, host: &TestHost, reason: &str) -> Result<()> {
    ensure!(host.failures() == [reason], "{:?}", host.failures());
    for request in [
        Request::Reset,
        Request::Blockers {
            mode: Mode::CprExec,
        },
    ] {
        let error = device.call(&request).unwrap_err();
        ensure!(error.kind == ErrorKind::Failed, "{error}");
        expect_text(
            &error.to_string(),
            &["Device 'p0'", "It failed earlier", reason],
        )?;
    }
    let mut data = [0; 4];
    device.read(0, 0, &mut data);
    ensure!(data == [0xff; 4], "A failed device reads as {data:?}");
    device.write(0, 0, &data);
    match device.call(&Request::Quiesce) {
        Err(error) if error.kind == ErrorKind::Failed => Err(error.into()),
        _ => Ok(()),
    }
}

#[test]
fn a_panic_in_create_is_an_error_of_the_call() -> Result<()> {
    let host = TestHost::new();
    let error = panicking("create", &host).err().context("It was created")?;
    let error = error.downcast::<Error>()?;
    ensure!(error.kind == ErrorKind::Panicked, "{error}");
    ensure!(
        error.to_string() == "Device 'p0': Panicked: told to panic in create",
        "{error}"
    );
    Ok(())
}

#[test]
fn a_panic_in_any_call_makes_the_device_a_failed_one() -> Result<()> {
    let ram = TestRam::new(4096);
    for (place, request) in [
        ("realize", Request::Realize),
        ("start", start_request(&ram)),
        ("reset", Request::Reset),
        (
            "save",
            Request::Save {
                section: "panics".into(),
            },
        ),
        (
            "load",
            Request::Load {
                section: "panics".into(),
                version: 1,
                data: Vec::new(),
            },
        ),
        (
            "blockers",
            Request::Blockers {
                mode: Mode::CprExec,
            },
        ),
        (
            "fds",
            Request::Fds {
                mode: Mode::CprExec,
            },
        ),
        (
            "notify",
            Request::Notify {
                event: MigrationEvent::Setup,
            },
        ),
        ("quiesce", Request::Quiesce),
    ] {
        let host = TestHost::new();
        let mut device = panicking(place, &host)?;
        let error = device.call(&request).unwrap_err();
        ensure!(error.kind == ErrorKind::Panicked, "{place}: {error}");
        let reason = format!("Panicked: told to panic in {place}");
        ensure!(
            error.to_string() == format!("Device 'p0': {reason}"),
            "{error}"
        );
        has_failed(device, &host, &reason).context(place)?;
    }
    Ok(())
}

#[test]
fn a_panic_in_a_register_access_makes_the_device_a_failed_one() -> Result<()> {
    for place in ["read", "write"] {
        let host = TestHost::new();
        let mut device = panicking(place, &host)?;
        device.call(&Request::Realize)?;
        let mut data = [0; 2];
        match place {
            "read" => device.read(0, 0, &mut data),
            _ => device.write(0, 0, &data),
        }
        ensure!(
            place == "write" || data == [0xff; 2],
            "What it wrote before is seen: {data:?}"
        );
        has_failed(
            device,
            &host,
            &format!("Panicked: told to panic in {place}"),
        )?;
    }
    Ok(())
}

#[test]
fn a_panic_in_a_devices_own_thread_is_told_to_the_host() -> Result<()> {
    let (host, ram) = (TestHost::new(), TestRam::new(4096));
    let mut device = panicking("thread", &host)?;
    device.call(&Request::Realize)?;
    start(&mut device, &ram)?;
    ensure!(host.wait_for_failure() == ["Panicked in its thread"]);
    let error = quiesce(&mut device).unwrap_err();
    ensure!(error.kind == ErrorKind::Panicked, "{error}");
    Ok(())
}

#[test]
fn a_panic_while_a_device_is_dropped_is_logged() -> Result<()> {
    let scratch = Scratch::for_programs()?;
    let host = TestHost::new();
    let said = [("at", Value::String("drop".into()))];
    drop(realized(
        &root(&copied("panics", &scratch)?)?,
        "p0",
        &said,
        &host,
    )?);
    let last = host.logged().pop().context("Nothing is logged")?;
    let text = "While a device ended: Panicked: told to panic in drop";
    ensure!(last == (1, text.to_owned()), "{last:?}");
    Ok(())
}

#[test]
fn a_panic_of_one_device_leaves_the_others_of_its_plugin_alone() -> Result<()> {
    let (host, other) = (TestHost::new(), TestHost::new());
    let mut good = panicking("nowhere", &other)?;
    let mut bad = panicking("realize", &host)?;
    bad.call(&Request::Realize).unwrap_err();
    good.call(&Request::Realize)?;
    start(&mut good, &TestRam::new(4096))?;
    quiesce(&mut good)?;
    ensure!(other.failures().is_empty(), "{:?}", other.failures());
    Ok(())
}

#[test]
fn a_plugin_built_to_abort_on_panic_does_not_build() -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args([
            "rustc",
            "--quiet",
            "--package",
            "baton-testkit",
            "--example",
            "fixture_twin",
        ])
        .args(["--", "-C", "panic=abort"])
        .current_dir(workspace())
        .output()
        .context("Cannot start cargo")?;
    ensure!(!output.status.success(), "It builds");
    let errors = String::from_utf8_lossy(&output.stderr);
    expect_text(
        &errors,
        &["a Baton plugin is built with panic = \"unwind\""],
    )
}
