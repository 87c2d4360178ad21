//! The test guest as a file to boot.

use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::SystemTime;

/// Names a guest that was built elsewhere, for a machine without a compiler.
pub const GUEST: &str = "BATON_TEST_GUEST";

/// Where the guest is; it is built when it is not there, or older than its sources.
///
/// # Errors
/// When it cannot be built.
pub fn image() -> Result<PathBuf> {
    if let Some(file) = std::env::var_os(GUEST) {
        return Ok(file.into());
    }
    // One build at a time in this process; other processes rename theirs into place as well.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock();
    let sources = workspace().join("tests/guest");
    let folder = target_dir().join("test-guest");
    let file = folder.join("guest.elf");
    if newest(&sources)? < modified(&file) {
        return Ok(file);
    }
    fs::create_dir_all(&folder)
        .with_context(|| format!("Cannot make the folder {}", folder.display()))?;
    let built = folder.join(format!("guest-{}.elf", std::process::id()));
    let script = sources.join("build.sh");
    let out = Command::new(&script)
        .arg(&built)
        .output()
        .with_context(|| format!("Cannot start {}", script.display()))?;
    if !out.status.success() {
        let errors = String::from_utf8_lossy(&out.stderr);
        bail!("The test guest cannot be built: {}", errors.trim());
    }
    fs::rename(&built, &file)
        .with_context(|| format!("Cannot rename {} into place", built.display()))?;
    Ok(file)
}

/// The folder that holds the workspace.
pub fn workspace() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_path_buf()
}

/// Where cargo builds.
pub fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => workspace().join(folder),
        None => workspace().join("target"),
    }
}

fn newest(folder: &Path) -> Result<SystemTime> {
    let about = || format!("Cannot list {}", folder.display());
    let mut newest = SystemTime::UNIX_EPOCH;
    for entry in fs::read_dir(folder).with_context(about)? {
        newest = newest.max(modified(&entry.with_context(about)?.path()));
    }
    Ok(newest)
}

/// Of a file that is not there: long ago.
fn modified(file: &Path) -> SystemTime {
    fs::metadata(file)
        .and_then(|metadata| metadata.modified())
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_at_the_same_time_give_one_whole_guest() {
        let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(image)).collect();
        let files: Vec<_> = threads
            .into_iter()
            .map(|t| t.join().unwrap().unwrap())
            .collect();
        assert!(files.iter().all(|file| *file == files[0]));
        assert_eq!(&fs::read(&files[0]).unwrap()[..4], b"\x7fELF");
    }
}
