//! Plugins that are none, that do not fit, or that fail.

use anyhow::{Context, Result, ensure};
use baton_plugin_api::magic::MagicBlock;
use baton_testkit::fixtures::{baton, fixture, patched};
use baton_testkit::native::expect_text;
use baton_testkit::needs_kvm;
use baton_testkit::refusal::refusal;
use baton_testkit::scratch::Scratch;
use std::fs;
use std::mem::offset_of;
use std::path::Path;

use crate::machine;

/// What a Baton that is to run a guest says of a plugin. It has not come to /dev/kvm.
fn said_of(plugin: &Path) -> Result<String> {
    let mut command = baton()?;
    let line = refusal(command.args(["-kernel", "none", "-plugin"]).arg(plugin))?.line()?;
    expect_text(&line, &[&format!("Plugin '{}': ", plugin.display())])?;
    Ok(line)
}

#[test]
fn a_plugin_that_is_no_library() -> Result<()> {
    let scratch = Scratch::for_programs()?;
    let file = scratch.join("plugin.so");
    fs::write(&file, "What is this?")?;
    expect_text(
        &said_of(&file)?,
        &["is not an ELF file; a plugin is a shared object (.so)"],
    )
}

#[test]
fn a_library_that_is_no_plugin() -> Result<()> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let mut words = maps.split_whitespace();
    let libc = words.find(|word| word.contains("/libc.so") || word.contains("/libc-"));
    let libc = Path::new(libc.context("This program has no C library")?).canonicalize()?;
    expect_text(
        &said_of(&libc)?,
        &["is no Baton plugin: it has no symbol 'baton_plugin_magic'"],
    )
}

#[test]
fn a_plugin_of_another_abi() -> Result<()> {
    let scratch = Scratch::for_programs()?;
    let file = patched(&scratch, offset_of!(MagicBlock, abi_major), &[7])?;
    expect_text(
        &said_of(&file)?,
        &[
            "was built for plugin ABI 7.0, this Baton has ABI 1.0",
            "build it with an API crate of",
        ],
    )
}

#[test]
fn a_plugin_with_another_layout() -> Result<()> {
    let line = said_of(&fixture("changed_layout")?)?;
    expect_text(
        &line,
        &[
            "its functions are not those of this Baton",
            "build it with the released API crate",
        ],
    )
}

#[test]
fn a_plugin_that_is_cut_off() -> Result<()> {
    let library = fs::read(fixture("probe")?)?;
    let scratch = Scratch::for_programs()?;
    let file = scratch.join("plugin.so");
    fs::write(&file, &library[..library.len() / 20])?;
    expect_text(&said_of(&file)?, &["is cut off", "copy it again"])
}

#[test]
fn two_plugins_that_offer_the_same_device() -> Result<()> {
    let mut command = baton()?;
    for name in ["probe", "twin"] {
        command.arg("-plugin").arg(fixture(name)?);
    }
    let line = refusal(command.args(["-kernel", "none"]))?.line()?;
    expect_text(
        &line,
        &[
            "Device 'fixture-probe' is offered by both",
            "libfixture_probe.so",
            "libfixture_twin.so",
            "leave one of them out",
        ],
    )
}

#[test]
fn a_plugin_that_panics_in_create() -> Result<()> {
    needs_kvm!();
    let device = "fixture-panics,id=p0,at=create";
    let mut command = machine()?;
    command
        .arg("-plugin")
        .arg(fixture("panics")?)
        .args(["-device", device]);
    let refusal = refusal(&mut command)?;
    let words =
        "-device fixture-panics,id=p0,at=create: Device 'p0': Panicked: told to panic in create";
    ensure!(refusal.reason == words, "{}", refusal.reason);
    // The log tells the developer where.
    ensure!(refusal.log.len() == 1, "{:?}", refusal.log);
    expect_text(&refusal.log[0], &["ERROR", "fixtures/panics.rs"])
}
