//! Where the lab keeps its files on this machine.

use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// The folder that holds the workspace.
pub(crate) fn workspace() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_path_buf()
}

/// The lab's own folder, created when absent: `target/lab`, or what `BATON_LAB_DIR` says.
pub(crate) fn lab_dir() -> Result<PathBuf> {
    let dir = match std::env::var_os("BATON_LAB_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => workspace().join("target/lab"),
    };
    fs::create_dir_all(&dir)
        .with_context(|| format!("Cannot create the lab's folder {}", dir.display()))?;
    // Commands are started from other folders.
    fs::canonicalize(&dir)
        .with_context(|| format!("Cannot resolve the lab's folder {}", dir.display()))
}

/// A program on PATH or in the system folders that a plain user's PATH leaves out.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}
