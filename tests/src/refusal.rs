//! A VMM that does not start, and the one line it says of why.

use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, File};
use std::process::{Command, Stdio};

use crate::process;
use crate::scratch::Scratch;
use crate::wait::{PATIENCE, wait_for};

/// What a program said that has refused to start.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The reason, without the program's name.
    pub reason: String,
    /// The lines before it, which are the log's.
    pub log: Vec<String>,
}

/// Runs `command`, which must end with exit status 1, nothing on its standard output, and the
/// reason as the last line of its standard error.
///
/// # Errors
/// When it starts, or ends in another way.
pub fn refusal(command: &mut Command) -> Result<Refusal> {
    let scratch = Scratch::new()?;
    let create = |name: &str| {
        let path = scratch.join(name);
        File::create(&path).with_context(|| format!("Cannot make {}", path.display()))
    };
    command
        .stdin(Stdio::null())
        .stdout(create("out")?)
        .stderr(create("err")?);
    let mut child = process::spawn(command)?;
    let ended = wait_for("a refusal", PATIENCE, || {
        child.try_wait().context("Cannot ask for its end")
    });
    if ended.is_err() {
        child.kill().ok();
        child.wait().ok();
    }
    let (out, err) = (
        fs::read_to_string(scratch.join("out"))?,
        fs::read_to_string(scratch.join("err"))?,
    );
    let status = ended.with_context(|| format!("It has said: {err}"))?;
    ensure!(
        status.code() == Some(1),
        "It ended with {}, and has said: {err}",
        process::ending(status)
    );
    ensure!(out.is_empty(), "It printed '{out}'");
    let mut lines: Vec<_> = err.lines().map(str::to_owned).collect();
    let last = lines.pop().unwrap_or_default();
    let Some(reason) = last.strip_prefix("baton: ") else {
        bail!("Its last line is '{last}'");
    };
    Ok(Refusal {
        reason: reason.to_owned(),
        log: lines,
    })
}

impl Refusal {
    /// The reason, which must be all that was said.
    ///
    /// # Errors
    /// When there was more.
    pub fn line(self) -> Result<String> {
        ensure!(self.log.is_empty(), "It has said more: {:?}", self.log);
        Ok(self.reason)
    }
}
