//! Whatever a user gets wrong ends in one line: what is wrong, where, and what to do.

// A helper of tests fails its test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod kvm;
mod machine;
mod only_migratable;
mod plugin;

use anyhow::Result;
use baton_testkit::fixtures::baton;
use baton_testkit::guest;
use std::process::Command;

/// A Baton with a guest that would start, stopped, if nothing more were said.
fn machine() -> Result<Command> {
    let mut command = baton()?;
    command.args(["-nodefaults", "-serial", "none", "-S", "-kernel"]);
    command.arg(guest::image()?);
    Ok(command)
}
