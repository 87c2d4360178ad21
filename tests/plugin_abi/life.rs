//! The life of a device: realized, loaded, started, quiesced, saved.

use anyhow::{Result, ensure};
use baton_plugin_api::protocol::Request;
use baton_plugin_api::testing::{TestHost, TestRam};
use baton_plugin_api::{ErrorKind, Mode, Value};
use baton_testkit::wait::{PATIENCE, wait_for};
use std::fs;
use std::sync::Arc;

use crate::device::{config, created, load, quiesce, realized, root, save, start, start_request};
use baton_testkit::fixtures::fixture;

/// Where the probe's thread counts.
const COUNTER: u64 = 0x100;

fn count(ram: &TestRam) -> u64 {
    let bytes = ram.read(COUNTER, 8);
    bytes
        .iter()
        .rev()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// How many threads of this process have a name.
fn threads(name: &str) -> Result<usize> {
    let mut found = 0;
    for task in fs::read_dir("/proc/self/task")? {
        // A thread that has just ended has no name any more.
        let comm = fs::read_to_string(task?.path().join("comm")).unwrap_or_default();
        found += usize::from(comm.trim() == name);
    }
    Ok(found)
}

#[test]
fn a_device_starts_again_after_every_quiesce() -> Result<()> {
    let (host, ram) = (TestHost::new(), TestRam::new(4096));
    let mut device = realized(&root(&fixture("probe")?)?, "again", &[], &host)?;
    for round in 1..=50 {
        start(&mut device, &ram)?;
        quiesce(&mut device)?;
        // The first its thread does, before it looks whether it is to end.
        ensure!(host.interrupts(0) == 1, "round {round}");
    }
    ensure!(host.failures().is_empty(), "{:?}", host.failures());
    Ok(())
}

#[test]
fn a_quiesced_device_has_no_thread_and_touches_no_guest_memory() -> Result<()> {
    let (host, ram) = (TestHost::new(), TestRam::new(4096));
    let mut device = realized(&root(&fixture("probe")?)?, "quiet-probe", &[], &host)?;
    ensure!(
        threads("quiet-probe")? == 0,
        "It has a thread before it is started"
    );
    for _ in 0..20 {
        let before = count(&ram);
        start(&mut device, &ram)?;
        wait_for("the device to write", PATIENCE, || {
            Ok((count(&ram) > before).then_some(()))
        })?;
        ensure!(
            threads("quiet-probe")? == 1,
            "It has no thread while it runs"
        );
        quiesce(&mut device)?;
        ensure!(
            threads("quiet-probe")? == 0,
            "It has a thread while it is quiesced"
        );
        ram.take_dirty();
        ram.write(COUNTER, &[0; 8]);
        save(&mut device, "probe")?;
        ensure!(
            ram.take_dirty().is_empty() && count(&ram) == 0,
            "It writes while quiesced"
        );
    }
    // The table of the last start is no longer valid, and nobody minds.
    ensure!(Arc::strong_count(&ram) == 1);
    drop(ram);
    start(&mut device, &TestRam::new(4096))
        .map_err(Into::into)
        .and_then(|()| Ok(quiesce(&mut device)?))
}

#[test]
fn writes_to_guest_memory_are_in_the_dirty_bitmap() -> Result<()> {
    let (host, ram) = (TestHost::new(), TestRam::new(4096));
    let mut device = realized(&root(&fixture("probe")?)?, "dirty", &[], &host)?;
    start(&mut device, &ram)?;
    wait_for("the device to write", PATIENCE, || {
        Ok((count(&ram) > 0).then_some(()))
    })?;
    quiesce(&mut device)?;
    ensure!(
        ram.take_dirty() == [0],
        "The page the device has written is not marked"
    );
    Ok(())
}

#[test]
fn a_device_is_called_by_one_thread_at_a_time_whichever_it_is() -> Result<()> {
    let (host, ram) = (TestHost::new(), TestRam::new(4096));
    let mut device = realized(&root(&fixture("probe")?)?, "moves", &[], &host)?;
    for value in 1..=20 {
        // By value: while another thread has it, nobody else can call it.
        let (back, seen) = std::thread::spawn(move || {
            let mut byte = [0];
            device.write(0, 0, &[value]);
            device.read(0, 0, &mut byte);
            (device, byte[0])
        })
        .join()
        .map_err(|_| anyhow::anyhow!("A thread has panicked"))?;
        device = back;
        ensure!(seen == value);
        start(&mut device, &ram)?;
        quiesce(&mut device)?;
    }
    Ok(())
}

#[test]
fn a_device_is_realized_and_loaded_while_the_same_device_runs_elsewhere() -> Result<()> {
    let (here, there) = (TestHost::new(), TestHost::new());
    let ram = TestRam::new(4096);
    let root = root(&fixture("probe")?)?;
    let mut source = realized(&root, "p0", &[], &here)?;
    start(&mut source, &ram)?;
    source.write(0, 0, &[77]);

    there.preserve("token", 0, fs::File::open("/dev/null")?.into());
    let (name, mut config) = config(&root, "p0", &[])?;
    config.restoring = Some(Mode::CprTransfer);
    let mut target = root.create(&name, &config, Arc::clone(&there))?;
    target.call(&Request::Realize)?;
    ensure!(there.unclaimed().is_empty(), "{:?}", there.unclaimed());
    ensure!(here.failures().is_empty(), "{:?}", here.failures());

    quiesce(&mut source)?;
    load(&mut target, "probe", 3, &save(&mut source, "probe")?)?;
    start(&mut target, &ram)?;
    let mut byte = [0];
    target.read(0, 0, &mut byte);
    ensure!(byte == [77]);
    Ok(quiesce(&mut target)?)
}

#[test]
fn a_plugin_is_told_of_versions_and_turns_that_do_not_fit() -> Result<()> {
    let (host, ram) = (TestHost::new(), TestRam::new(4096));
    let mut device = realized(&root(&fixture("probe")?)?, "p0", &[], &host)?;
    for (section, version) in [("probe", 1), ("probe", 4), ("other", 3)] {
        let error = load(&mut device, section, version, &[1]).unwrap_err();
        ensure!(error.kind == ErrorKind::State, "{error}");
        ensure!(
            error.to_string().starts_with("Device 'p0': Section '"),
            "{error}"
        );
    }
    load(&mut device, "probe", 2, &[1])?;
    start(&mut device, &ram)?;
    let error = device.call(&start_request(&ram)).unwrap_err();
    ensure!(error.message.contains("quiesce it first"), "{error}");
    let error = save(&mut device, "probe").unwrap_err();
    ensure!(error.to_string().contains("quiesce it first"), "{error}");
    Ok(quiesce(&mut device)?)
}

#[test]
fn every_error_names_its_device() -> Result<()> {
    let host = TestHost::new();
    let root = root(&fixture("probe")?)?;
    let unfit = [("fit", Value::Bool(false))];
    let mut device = created(&root, "p7", &unfit, &host)?;
    let mut errors = vec![device.call(&Request::Realize).unwrap_err()];
    errors.push(load(&mut device, "probe", 3, &[]).unwrap_err());
    let mistyped = [("fit", Value::Uint(1))];
    let mut device = created(&root, "p7", &mistyped, &host)?;
    errors.push(device.call(&Request::Realize).unwrap_err());
    let (_, config) = config(&root, "p7", &[])?;
    errors.extend(
        root.create("no-such-type", &config, Arc::clone(&host))
            .err(),
    );
    ensure!(errors.len() == 4);
    for error in errors {
        ensure!(error.device == "p7", "{error:?}");
        ensure!(error.to_string().lines().count() == 1, "{error}");
    }
    Ok(())
}
