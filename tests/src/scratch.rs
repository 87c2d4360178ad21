//! A folder of a test's own.

use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::guest;

/// Set to anything, it keeps every folder and its logs.
pub const KEEP: &str = "BATON_TEST_KEEP";

/// A folder that goes when this does. It is in memory where the system allows: the guest's RAM lies
/// in it, and the kernel would write RAM on a disk out again and again.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes a new folder.
    ///
    /// # Errors
    /// When that fails.
    pub fn new() -> Result<Self> {
        Self::within(&root())
    }

    /// The same where cargo builds: memory is often mounted so that nothing in it can be run.
    ///
    /// # Errors
    /// When that fails.
    pub fn for_programs() -> Result<Self> {
        Self::within(&guest::target_dir().join("tmp"))
    }

    fn within(root: &Path) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("baton-test-{}-{number}", std::process::id());
        let folder = root.join(name);
        // A process of an earlier day had the same number.
        fs::remove_dir_all(&folder).ok();
        fs::create_dir_all(&folder)
            .with_context(|| format!("Cannot make the folder {}", folder.display()))?;
        // As the system names it.
        let folder = folder.canonicalize().unwrap_or(folder);
        Ok(Self(folder))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A file in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::env::var_os(KEEP).is_some() || std::thread::panicking() {
            eprintln!("Kept {}", self.0.display());
        } else {
            // Nobody is left who could use it, or be told.
            fs::remove_dir_all(&self.0).ok();
        }
    }
}

fn root() -> PathBuf {
    let memory = Path::new("/dev/shm");
    let writable = nix::unistd::access(memory, nix::unistd::AccessFlags::W_OK).is_ok();
    if writable {
        memory.to_path_buf()
    } else {
        std::env::temp_dir()
    }
}
