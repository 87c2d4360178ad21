//! What the host refuses, and in which words.

use anyhow::{Context, Result, ensure};
use baton_testkit::native::expect_text;
use baton_testkit::refusal::refusal;
use baton_testkit::scratch::Scratch;
use std::fs;
use std::mem::offset_of;
use std::path::Path;

use baton_plugin_api::abi::root_module;
use baton_plugin_api::magic::{ABI_MAJOR, ABI_MINOR, MagicBlock};

use baton_testkit::fixtures::{baton, copied, fixture, info, patched, printed, refused};

#[test]
fn a_sound_plugin_is_described_without_a_guest() -> Result<()> {
    let text = printed(&mut info(&fixture("probe")?)?)?;
    expect_text(
        &text,
        &[
            &format!("\nabi: {ABI_MAJOR}.{ABI_MINOR}\n"),
            "\ndevice: fixture-probe (platform)\n",
            "property port <uint 0..=65535>, default 1504: Its port",
            "section probe version 3, loads from 2",
            "descriptor token in cpr-transfer, cpr-exec: An open file",
        ],
    )
}

#[test]
fn a_file_that_is_no_shared_object_is_refused() -> Result<()> {
    let scratch = Scratch::for_programs()?;
    let file = scratch.join("file.so");
    for (content, reason) in [
        (b"".to_vec(), "is not an ELF file"),
        (b"#!/bin/sh\n".repeat(20), "is not an ELF file"),
        (elf(|header| header[16] = 2)?, "no shared object"),
        (elf(|header| header[18] = 183)?, "another kind of processor"),
        (elf(|header| header[4] = 1)?, "another kind of processor"),
    ] {
        fs::write(&file, content)?;
        expect_text(&refused(&file)?, &[reason])?;
    }
    for (path, reason) in [
        (scratch.path(), "is not a file"),
        (Path::new("/dev/null"), "is not a file"),
        (
            Path::new("/does/not/exist.so"),
            "cannot be opened: No such file",
        ),
    ] {
        expect_text(&refused(path)?, &[reason])?;
    }
    Ok(())
}

/// The probe with another ELF header.
fn elf(change: impl FnOnce(&mut [u8])) -> Result<Vec<u8>> {
    let mut library = fs::read(fixture("probe")?)?;
    change(&mut library);
    Ok(library)
}

#[test]
fn a_plugin_that_is_cut_off_anywhere_is_refused() -> Result<()> {
    let library = fs::read(fixture("probe")?)?;
    let scratch = Scratch::for_programs()?;
    let file = scratch.join("half.so");
    for bytes in [64, 100, 4096, 100_000, 1_000_000] {
        fs::write(&file, &library[..bytes])?;
        expect_text(
            &refused(&file)?,
            &["is cut off", &format!("has {bytes} bytes")],
        )?;
    }
    Ok(())
}

#[test]
fn a_plugin_without_a_magic_block_is_refused() -> Result<()> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let libc = maps
        .split_whitespace()
        .find(|word| word.contains("/libc.so") || word.contains("/libc-"))
        .context("This program has no C library")?;
    expect_text(
        &refused(Path::new(libc))?,
        &["has no symbol 'baton_plugin_magic'"],
    )?;

    let scratch = Scratch::for_programs()?;
    let foreign = patched(&scratch, offset_of!(MagicBlock, magic), b"OTHERPLG")?;
    expect_text(&refused(&foreign)?, &["does not begin with its magic"])
}

#[test]
fn a_magic_block_may_be_longer_than_this_hosts_and_not_shorter() -> Result<()> {
    let scratch = Scratch::for_programs()?;
    let at = offset_of!(MagicBlock, size);
    let short = patched(&scratch, at, &143_u32.to_le_bytes())?;
    expect_text(&refused(&short)?, &["has 143 bytes, 144 are needed"])?;
    let longer = patched(&scratch, at, &200_u32.to_le_bytes())?;
    printed(&mut info(&longer)?).map(drop)
}

#[test]
fn a_plugin_of_another_major_is_refused() -> Result<()> {
    let scratch = Scratch::for_programs()?;
    for major in [ABI_MAJOR - 1, ABI_MAJOR + 1, u16::MAX] {
        let other = patched(
            &scratch,
            offset_of!(MagicBlock, abi_major),
            &major.to_le_bytes(),
        )?;
        expect_text(
            &refused(&other)?,
            &[
                &format!("was built for plugin ABI {major}.{ABI_MINOR}"),
                &format!("this Baton has ABI {ABI_MAJOR}.{ABI_MINOR}"),
                &format!("build it with an API crate of ABI {ABI_MAJOR}"),
            ],
        )?;
    }
    Ok(())
}

#[test]
fn a_plugin_of_a_newer_minor_is_refused() -> Result<()> {
    let scratch = Scratch::for_programs()?;
    let minor = ABI_MINOR + 1;
    let newer = patched(
        &scratch,
        offset_of!(MagicBlock, abi_minor),
        &minor.to_le_bytes(),
    )?;
    expect_text(
        &refused(&newer)?,
        &[
            &format!("was built for plugin ABI {ABI_MAJOR}.{minor}"),
            "newer than this Baton's",
            "use a newer Baton",
        ],
    )
}

#[test]
fn the_magic_block_is_judged_before_the_functions_of_the_plugin() -> Result<()> {
    // Wrong in both ways: what is told is the first.
    let scratch = Scratch::for_programs()?;
    let mut library = fs::read(patched(
        &scratch,
        offset_of!(MagicBlock, abi_major),
        &[9, 0],
    )?)?;
    let name = b"_1as_0lib_1header";
    let at = library
        .windows(name.len())
        .position(|window| window == name)
        .context("The plugin exports no root module")?;
    library[at] = b'x';
    let both = scratch.join("both.so");
    fs::write(&both, &library)?;
    expect_text(&refused(&both)?, &["was built for plugin ABI 9.0"])
}

#[test]
fn functions_of_another_layout_are_refused_in_one_line_and_the_rest_is_logged() -> Result<()> {
    let plugin = fixture("changed_layout")?;
    let reason = refused(&plugin)?;
    expect_text(
        &reason,
        &[
            "its functions are not those of this Baton",
            "Expected: baton-plugin-api",
        ],
    )?;
    ensure!(reason.len() < 300, "{reason}");

    let mut run = baton()?;
    run.args(["-kernel", "none", "-plugin"]).arg(&plugin);
    let quiet = refusal(&mut run)?;
    ensure!(quiet.log.is_empty(), "{:?}", quiet.log);
    let told = refusal(run.env("BATON_LOG", "debug"))?;
    ensure!(told.reason == quiet.reason, "{}", told.reason);
    expect_text(
        &told.log.join("\n"),
        &["Layout of expected type:", "Layout of found type:"],
    )
}

#[test]
fn a_plugin_without_a_root_module_is_refused() -> Result<()> {
    let mut library = fs::read(fixture("probe")?)?;
    let name = b"_1as_0lib_1header";
    let all: Vec<_> = (0..library.len() - name.len())
        .filter(|at| library[*at..].starts_with(name))
        .collect();
    // Among these is the name in the table of exported symbols.
    for at in all {
        library[at] = b'x';
    }
    let scratch = Scratch::for_programs()?;
    let file = scratch.join("rootless.so");
    fs::write(&file, library)?;
    expect_text(&refused(&file)?, &["it exports no root module"])
}

#[test]
fn a_wrong_descriptor_is_refused_and_says_what_is_wrong() -> Result<()> {
    let plugin = fixture("bad_descriptor")?;
    for (wrong, reason) in [
        (
            "name",
            r#"its descriptor is wrong: the device name "fixture,wrong""#,
        ),
        ("default", "the default of property 'n' is not of its type"),
        ("twice", "the property 'b' is there twice"),
        (
            "versions",
            "section 's' has minimum version 2 above its version 1",
        ),
        ("panic", "Panicked: told to panic in the descriptor"),
    ] {
        let refused = refusal(info(&plugin)?.env("FIXTURE_DESCRIPTOR", wrong))?;
        expect_text(&refused.reason, &[reason])?;
    }
    printed(&mut info(&plugin)?).map(drop)
}

#[test]
fn a_descriptor_has_the_name_and_version_of_the_magic_block() -> Result<()> {
    let scratch = Scratch::for_programs()?;
    for at in [
        offset_of!(MagicBlock, name),
        offset_of!(MagicBlock, version),
    ] {
        let other = patched(&scratch, at, b"other\0")?;
        expect_text(&refused(&other)?, &["not those of the magic block"])?;
    }
    Ok(())
}

#[test]
fn each_file_is_a_plugin_of_its_own_and_stays_loaded() -> Result<()> {
    let scratch = Scratch::for_programs()?;
    let (probe, panics) = (copied("probe", &scratch)?, copied("panics", &scratch)?);
    for (plugin, name) in [(&probe, "fixture-probe"), (&panics, "fixture-panics")] {
        let descriptor = root_module(plugin)?.descriptor()?;
        ensure!(descriptor.devices[0].name == name, "{descriptor:?}");
    }
    let maps = fs::read_to_string("/proc/self/maps")?;
    for plugin in [&probe, &panics] {
        expect_text(&maps, &[&plugin.display().to_string()])?;
    }
    Ok(())
}
