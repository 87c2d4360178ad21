//! Running a command and telling in one line what went wrong with it.

use anyhow::{Context, Result, bail};
use std::process::{Command, Stdio};

/// Runs a command to its end and gives its standard output.
///
/// # Errors
/// When it cannot start or fails: the command and the last line it wrote to standard error.
pub(crate) fn output(command: &mut Command) -> Result<Vec<u8>> {
    let name = command.get_program().to_string_lossy().into_owned();
    let out = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("Cannot start `{name}`"))?;
    if out.status.success() {
        return Ok(out.stdout);
    }
    let args: Vec<_> = command.get_args().map(|a| a.to_string_lossy()).collect();
    let errors = String::from_utf8_lossy(&out.stderr);
    let last = errors.lines().rev().find(|line| !line.trim().is_empty());
    bail!(
        "`{name} {}` failed ({}): {}",
        args.join(" "),
        out.status,
        last.unwrap_or("it said nothing")
    );
}

/// As [`output`], for text.
pub(crate) fn text(command: &mut Command) -> Result<String> {
    Ok(String::from_utf8_lossy(&output(command)?).into_owned())
}
