//! `cargo xtask bench abi`: a call through the plugin ABI beside a call of a Rust trait object.

use anyhow::{Context, Result, ensure};

use crate::cargo::{self, Profile};
use crate::options::Arguments;

pub(super) fn run(args: &[String]) -> Result<()> {
    Arguments::new(args).finish("cargo xtask bench abi")?;
    let build = ["build", "--quiet", "--release"];
    cargo::run(build.into_iter().chain(["-p", "isa-serial"]))?;
    cargo::run(
        build
            .into_iter()
            .chain(["-p", "baton-testkit", "--example", "probe"]),
    )?;
    let status = cargo::cargo()
        .args(["bench", "--quiet", "-p", "baton-testkit", "--bench", "abi"])
        .env(baton_testkit::vmm::PLUGINS, Profile::Release.folder())
        .status()
        .context("Cannot start cargo")?;
    ensure!(status.success(), "The bench failed: see above");
    Ok(())
}
