//! Plugins built with each released minor version, which every later host must load: see
//! `tests/abi/README.md`.

use anyhow::{Context, Result, ensure};
use baton_plugin_api::magic::{ABI_MAJOR, ABI_MINOR};
use baton_plugin_api::protocol::{Reply, Request};
use baton_plugin_api::testing::{TestHost, TestRam};
use baton_plugin_api::{Chardev, MigrationEvent, Mode, Value};
use baton_testkit::guest::workspace;
use baton_testkit::native::expect_text;
use std::fs;
use std::io::{Read, pipe};
use std::path::{Path, PathBuf};

use crate::device::{quiesce, realized, root, start};
use baton_testkit::fixtures::{info, printed};

/// The minor versions there is something of, and their folders.
pub(crate) fn minors() -> Result<Vec<(u16, PathBuf)>> {
    let folder = workspace().join("tests/abi");
    let mut minors = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("No {}", folder.display()))? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if let Some((major, minor)) = name.split_once('.')
            && major == ABI_MAJOR.to_string()
            && let Ok(minor) = minor.parse()
        {
            minors.push((minor, path));
        }
    }
    minors.sort();
    Ok(minors)
}

fn console(folder: &Path) -> PathBuf {
    folder.join("platform-debugcon.so")
}

#[test]
fn every_released_minor_is_kept() -> Result<()> {
    let kept: Vec<_> = minors()?.into_iter().map(|(minor, _)| minor).collect();
    ensure!(
        kept == (0..=ABI_MINOR).collect::<Vec<_>>(),
        "There are {kept:?}"
    );
    Ok(())
}

#[test]
fn a_plugin_of_every_released_minor_loads_and_works() -> Result<()> {
    for (minor, folder) in minors()? {
        let plugin = console(&folder);
        let text = printed(&mut info(&plugin)?)?;
        expect_text(
            &text,
            &[
                &format!("\nabi: {ABI_MAJOR}.{minor}\n"),
                "\ndevice: isa-debugcon ",
            ],
        )?;
        drive(&plugin).with_context(|| plugin.display().to_string())?;
    }
    Ok(())
}

/// Sends the console every message there was in 1.0, and a greeting.
fn drive(plugin: &Path) -> Result<()> {
    let (mut reader, writer) = pipe()?;
    let (host, ram) = (TestHost::new(), TestRam::new(4096));
    host.add_chardev(
        "con",
        Chardev {
            output: Some(writer.into()),
            input: None,
        },
    );
    let said = [("chardev", Value::String("con".into()))];
    let mut device = realized(&root(plugin)?, "con0", &said, &host)?;
    for greeting in [b"hello", b"again"] {
        start(&mut device, &ram)?;
        for byte in greeting {
            device.write(0, 0, &[*byte]);
        }
        let mut text = [0; 5];
        reader.read_exact(&mut text)?;
        ensure!(text == *greeting);
        let mut port = [0];
        device.read(0, 0, &mut port);
        ensure!(port == [0xe9]);
        let mode = Mode::CprTransfer;
        let blockers = device.call_if_known(&Request::Blockers { mode })?;
        ensure!(blockers.is_none_or(|b| b == Reply::Blockers(Vec::new())));
        let fds = device.call_if_known(&Request::Fds { mode })?;
        ensure!(fds.is_none_or(|fds| fds == Reply::Fds(Vec::new())));
        device.call_if_known(&Request::Notify {
            event: MigrationEvent::Setup,
        })?;
        quiesce(&mut device)?;
        device.call(&Request::Reset)?;
        let section = "none".to_owned();
        device
            .call(&Request::Save { section })
            .err()
            .context("It has no section")?;
    }
    ensure!(host.failures().is_empty(), "{:?}", host.failures());
    Ok(())
}
