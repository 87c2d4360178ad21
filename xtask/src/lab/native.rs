//! The job `native`: tests that need hardware this machine has not, run in L1, which has it.

use anyhow::{Context, Result, ensure};
use baton_testkit::guest;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::{Job, Options, paths};
use crate::cargo;

/// What L1 runs, with the program of the native tests as `native` and their guest as `guest.elf`.
const SCRIPT: &str = "tests/lab/native-tests.sh";

/// The job and options that stand for it.
pub(super) fn script(options: &Options) -> Result<(Job, Options)> {
    let folder = paths::lab_dir()?.join("native");
    fs::create_dir_all(&folder).with_context(|| format!("Cannot create {}", folder.display()))?;
    let copied = |file: &Path, name: &str| -> Result<PathBuf> {
        let copy = folder.join(name);
        fs::copy(file, &copy).with_context(|| format!("Cannot copy {}", file.display()))?;
        Ok(copy)
    };
    let mut options = options.clone();
    options.add.push(copied(&program()?, "native")?);
    options.add.push(copied(&guest::image()?, "guest.elf")?);
    Ok((Job::Script(guest::workspace().join(SCRIPT)), options))
}

/// The program of the native tests, built.
fn program() -> Result<PathBuf> {
    let built = cargo::cargo()
        .args(["test", "--quiet", "-p", "baton-testkit", "--test", "native"])
        .args(["--no-run", "--message-format", "json"])
        .stderr(Stdio::inherit())
        .output()
        .context("Cannot start cargo")?;
    ensure!(built.status.success(), "`cargo` failed: see above");
    let output = String::from_utf8_lossy(&built.stdout);
    let messages = output.lines().flat_map(serde_json::from_str::<Value>);
    let mut programs = messages.filter_map(|message| {
        let named = message["target"]["name"] == "native";
        let program = message["executable"].as_str().filter(|_| named)?;
        Some(PathBuf::from(program))
    });
    programs
        .next()
        .context("cargo names no program of the native tests")
}
