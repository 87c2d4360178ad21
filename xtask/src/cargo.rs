//! Running cargo from a chore.

use anyhow::{Context, Result, ensure};
use std::path::PathBuf;
use std::process::Command;

/// What is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    Dev,
    Release,
}

impl Profile {
    /// The folder cargo builds it in.
    pub(crate) fn folder(self) -> PathBuf {
        baton_testkit::guest::target_dir().join(match self {
            Self::Dev => "debug",
            Self::Release => "release",
        })
    }
}

/// Builds the VMM and all plugins; gives the folder they are in.
///
/// # Errors
/// When cargo fails; it has said why.
pub(crate) fn build(profile: Profile) -> Result<PathBuf> {
    let build = ["build", "--quiet", "--workspace", "--exclude", "xtask"];
    let release = (profile == Profile::Release).then_some("--release");
    run(build.into_iter().chain(release))?;
    Ok(profile.folder())
}

/// Runs cargo with these arguments.
///
/// # Errors
/// When it fails; it has said why.
pub(crate) fn run<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Result<()> {
    let mut cargo = cargo();
    let status = cargo
        .args(arguments)
        .status()
        .context("Cannot start cargo")?;
    ensure!(status.success(), "`cargo` failed: see above");
    Ok(())
}

/// The cargo that runs this chore, in the workspace.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(baton_testkit::guest::workspace());
    cargo
}
