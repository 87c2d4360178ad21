//! Tests that need /dev/kvm, and passing over them loudly where there is none.

use anyhow::{Context, Result, bail};
use std::fs::OpenOptions;
use std::io::Write;

/// Whether guests can run here.
///
/// # Errors
/// Says why not.
pub fn kvm_available() -> Result<()> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .context("Cannot open /dev/kvm")
        .map(drop)
}

/// What a test needs that this machine or this VMM has not: the line that `cargo xtask test` counts.
pub fn skipped(test: &str, reason: &str) {
    // Not by a macro: the harness would swallow it.
    std::io::stderr()
        .write_all(format!("SKIPPED {test}: {reason}\n").as_bytes())
        .ok();
}

/// Passes over the calling test, and says so, unless guests can run here.
#[macro_export]
macro_rules! needs_kvm {
    () => {
        if let Err(error) = $crate::native::kvm_available() {
            $crate::native::skipped($crate::this_test!(), &format!("{error:#}"));
            return Ok(());
        }
    };
}

/// Passes over the calling test, and says so, when the VMM under test is not Baton.
#[macro_export]
macro_rules! needs_baton {
    () => {
        $crate::needs_kvm!();
        if $crate::Vmm::under_test()? != $crate::Vmm::Baton {
            $crate::native::skipped($crate::this_test!(), "QEMU does otherwise");
            return Ok(());
        }
    };
}

/// The path of the calling function.
#[macro_export]
macro_rules! this_test {
    () => {{
        fn here() {}
        $crate::native::caller(std::any::type_name_of_val(&here))
    }};
}

/// A function's path without the function in it, and without the crate.
pub fn caller(inner: &'static str) -> &'static str {
    let outer = inner.rsplit_once("::").map_or(inner, |(outer, _)| outer);
    outer.split_once("::").map_or(outer, |(_, path)| path)
}

/// An error unless `text` contains every one of `parts`.
///
/// # Errors
/// Exactly then.
pub fn expect_text(text: &str, parts: &[&str]) -> Result<()> {
    match parts.iter().find(|part| !text.contains(**part)) {
        Some(part) => bail!("'{text}' does not say '{part}'"),
        None => Ok(()),
    }
}
