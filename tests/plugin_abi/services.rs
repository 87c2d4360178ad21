//! What the host does for a device.

use anyhow::{Context, Result, ensure};
use baton_plugin_api::testing::{TestHost, TestRam};
use baton_plugin_api::{Chardev, Value};
use baton_testkit::process::descriptors;
use baton_testkit::scratch::Scratch;
use std::fs;
use std::io::pipe;
use std::os::fd::AsRawFd;

use crate::device::{created, quiesce, realized, root, start};
use baton_testkit::fixtures::{copied, fixture};

#[test]
fn a_devices_own_thread_may_ask_the_host() -> Result<()> {
    let (host, ram) = (TestHost::new(), TestRam::new(4096));
    let mut device = realized(&root(&fixture("probe")?)?, "asks", &[], &host)?;
    start(&mut device, &ram)?;
    // Its thread, and nobody else, sets a line and raises an edge by an eventfd it asks for.
    quiesce(&mut device)?;
    ensure!(host.wait_for_interrupt(0) == 1);
    ensure!(host.level(0), "The line is not set");
    Ok(())
}

#[test]
fn tracing_and_panics_of_a_plugin_go_to_the_hosts_log() -> Result<()> {
    // A plugin's log goes to the services of its first device, so this needs libraries of its own.
    let scratch = Scratch::for_programs()?;
    let host = TestHost::new();
    created(&root(&copied("probe", &scratch)?)?, "p0", &[], &host)?;
    let said = (3, "a probe is made answer=42".to_owned());
    ensure!(host.logged().contains(&said), "{:?}", host.logged());

    let host = TestHost::new();
    let at = [("at", Value::String("create".into()))];
    created(&root(&copied("panics", &scratch)?)?, "p0", &at, &host)
        .err()
        .context("No panic")?;
    let panics: Vec<_> = host
        .logged()
        .into_iter()
        .filter(|(level, _)| *level == 1)
        .collect();
    ensure!(panics.len() == 1, "{panics:?}");
    let text = &panics[0].1;
    ensure!(
        text.contains("panics.rs") && text.contains("told to panic in create"),
        "{text}"
    );
    ensure!(text.lines().count() == 1, "{text}");
    Ok(())
}

#[test]
fn a_descriptor_in_a_reply_is_the_devices_own() -> Result<()> {
    let (_reader, writer) = pipe()?;
    let link = fs::read_link(format!("/proc/self/fd/{}", writer.as_raw_fd()))?;
    let open = || -> Result<usize> {
        let all = descriptors(std::process::id())?;
        Ok(all
            .iter()
            .filter(|fd| **fd == link.display().to_string())
            .count())
    };
    let host = TestHost::new();
    host.add_chardev(
        "con",
        Chardev {
            output: Some(writer.into()),
            input: None,
        },
    );
    // The reading end, and the host's.
    ensure!(open()? == 2);
    let said = [("chardev", Value::String("con".into()))];
    let device = realized(&root(&fixture("probe")?)?, "p0", &said, &host)?;
    ensure!(open()? == 3, "The device has no descriptor of its own");
    drop(device);
    ensure!(
        open()? == 2,
        "The device has not closed its own, or has closed the host's"
    );
    Ok(())
}

#[test]
fn what_was_handed_over_is_given_once_and_only_to_a_device_that_is_restored() -> Result<()> {
    let host = TestHost::new();
    host.preserve("token", 0, fs::File::open("/dev/null")?.into());
    let root = root(&fixture("probe")?)?;
    // Not restoring: it does not ask.
    realized(&root, "p0", &[], &host)?;
    ensure!(host.unclaimed() == [("token".to_owned(), 0)]);
    // Restoring: it asks twice, and would say so if it were given it twice.
    let (name, mut config) = crate::device::config(&root, "p0", &[])?;
    config.restoring = Some(baton_plugin_api::Mode::CprExec);
    let mut device = root.create(&name, &config, host.clone())?;
    device.call(&baton_plugin_api::protocol::Request::Realize)?;
    ensure!(host.unclaimed().is_empty());
    Ok(())
}
