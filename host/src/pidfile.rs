//! `-pidfile`: a locked file with the number of the process that runs the guest.
//!
//! A process that takes a guest over from another has the same `-pidfile` as a rule. It gets the
//! file once the guest is its own, by putting a new one in the place of the old one, so that at every
//! moment there is a whole file at that path.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// The file while it is this process's.
static HELD: Mutex<Option<PidFile>> = Mutex::new(None);

/// A locked file with this process's number.
struct PidFile {
    /// Absolute, since the working directory may become another.
    path: PathBuf,
    file: File,
}

/// Creates the file, or takes one that nobody has locked. Gives whether this process has it: a file
/// that another process has locked is left to it.
pub fn create(path: &Path) -> Result<bool, String> {
    let path = std::path::absolute(path).map_err(|e| cannot(&e))?;
    loop {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|e| cannot(&e))?;
        match lock(&file) {
            Ok(()) => {}
            Err(Errno::EAGAIN | Errno::EACCES) => return Ok(false),
            Err(e) => return Err(cannot(&e.into())),
        }
        // Whoever had it may have removed it between the two.
        if !is_at(&file, &path) {
            continue;
        }
        hold(path, file).map_err(|e| cannot(&e))?;
        return Ok(true);
    }
}

/// The guest is this process's now: so is the file, whoever had it.
pub fn take_over(path: &Path) -> Result<(), String> {
    let path = std::path::absolute(path).map_err(|e| cannot(&e))?;
    {
        let held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        if held.as_ref().is_some_and(|held| held.path == path) {
            return Ok(());
        }
    }
    if names_this_process(&path) {
        // The program before this one wrote it. Its lock may be held a little longer, by the memory of
        // that program.
        let file = OpenOptions::new().read(true).write(true).open(&path);
        if let Ok(file) = file {
            let _ = lock(&file);
            return hold(path, file).map_err(|e| cannot(&e));
        }
        return Ok(());
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let new = path.with_file_name(name);
    let replaced = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)
        .and_then(|mut file| {
            lock(&file)?;
            write_number(&mut file)?;
            fs::rename(&new, &path)?;
            Ok(file)
        });
    match replaced {
        Ok(file) => {
            *HELD.lock().unwrap_or_else(PoisonError::into_inner) = Some(PidFile { path, file });
            Ok(())
        }
        Err(e) => {
            let _ = fs::remove_file(&new);
            Err(cannot(&e))
        }
    }
}

/// Removes the file, if it is still this process's.
pub fn remove() {
    let held = HELD.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(held) = held
        && is_at(&held.file, &held.path)
        && let Err(e) = fs::remove_file(&held.path)
    {
        tracing::warn!("cannot remove PID file '{}': {e}", held.path.display());
    }
}

/// Locks all of it for this open file, as QEMU does.
fn lock(file: &File) -> Result<(), Errno> {
    let whole = libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&whole)).map(drop)
}

/// QEMU's text.
fn cannot(e: &io::Error) -> String {
    format!("cannot create PID file: {e}")
}

fn hold(path: PathBuf, mut file: File) -> io::Result<()> {
    file.set_len(0)?;
    write_number(&mut file)?;
    *HELD.lock().unwrap_or_else(PoisonError::into_inner) = Some(PidFile { path, file });
    Ok(())
}

fn write_number(file: &mut File) -> io::Result<()> {
    file.write_all(format!("{}\n", std::process::id()).as_bytes())
}

/// Whether `path` is where `file` is.
fn is_at(file: &File, path: &Path) -> bool {
    let Ok((own, there)) = file
        .metadata()
        .and_then(|own| Ok((own, fs::metadata(path)?)))
    else {
        return false;
    };
    (own.dev(), own.ino()) == (there.dev(), there.ino())
}

fn names_this_process(path: &Path) -> bool {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(32).read_to_string(&mut text));
    read.is_ok() && text.trim().parse() == Ok(std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One test, since a process has one such file.
    #[test]
    fn a_file_is_one_process_s_until_another_takes_it_over() {
        let folder = std::env::temp_dir().join(format!("baton-pidfile-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("pid");
        let number = format!("{}\n", std::process::id());

        // What nobody has locked is taken, whatever it says.
        fs::write(&path, "a stale number that is longer than ours").unwrap();
        assert_eq!(create(&path), Ok(true));
        assert_eq!(fs::read_to_string(&path).unwrap(), number);
        remove();
        assert!(!path.exists());

        // What is locked is left alone, and put aside only by who has the guest.
        fs::write(&path, "1\n").unwrap();
        let other = OpenOptions::new().write(true).open(&path).unwrap();
        lock(&other).unwrap();
        assert_eq!(create(&path), Ok(false));
        assert_eq!(fs::read_to_string(&path).unwrap(), "1\n");
        assert_eq!(take_over(&path), Ok(()));
        assert_eq!(fs::read_to_string(&path).unwrap(), number);
        assert!(!is_at(&other, &path));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        // Again is nothing.
        assert_eq!(take_over(&path), Ok(()));

        // Another's file is not removed.
        fs::remove_file(&path).unwrap();
        fs::write(&path, "1\n").unwrap();
        remove();
        assert!(path.exists());
        fs::remove_dir_all(&folder).unwrap();
    }
}
