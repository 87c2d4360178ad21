//! A plain file: written beside its place, and put there when it is whole.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc;

use super::{How, Writer};
use crate::HostError;
use crate::checkpoint::{Cancel, Keeper, RamSource};

/// What the name has behind it until the file is whole.
const UNFINISHED: &str = ".baton-unfinished";

/// A file that takes the place of whatever has its name.
pub(super) struct Replace {
    /// As it was named.
    name: PathBuf,
    how: How,
    open: Option<Open>,
}

struct Open {
    writer: Writer,
    /// Where it is until it is whole.
    unfinished: PathBuf,
    /// Where it goes, symbolic links followed.
    path: PathBuf,
    folder: File,
    /// Whether it may be there.
    renamed: bool,
}

impl Replace {
    pub(super) fn new(name: PathBuf, how: How) -> Self {
        Self {
            name,
            how,
            open: None,
        }
    }

    fn wrong(&self, error: &HostError) -> HostError {
        let (name, error) = (self.name.display(), crate::error_chain(&**error));
        format!("Cannot keep the state in '{name}': {error}").into()
    }

    fn try_open(&self) -> Result<Open, HostError> {
        // What a link leads to is replaced, not the link.
        let path = match fs::canonicalize(&self.name) {
            Ok(path) => path,
            Err(_) => self.name.clone(),
        };
        let mut name = path
            .file_name()
            .ok_or("it is no name of a file; say file:PATH")?
            .to_owned();
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let opened = File::open(folder)
            .map_err(|e| format!("folder '{}' cannot be opened: {e}", folder.display()))?;
        name.push(UNFINISHED);
        let unfinished = folder.join(name);
        let writer = Writer::new(self.begin(&unfinished)?, 0, self.how, true);
        Ok(Open {
            writer,
            unfinished,
            path,
            folder: opened,
            renamed: false,
        })
    }

    /// Makes the unfinished file, or takes one that a process that died has left.
    fn begin(&self, unfinished: &Path) -> Result<File, HostError> {
        // RAM and registers are the guest's secret.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(unfinished)
            .map_err(|e| format!("'{}' cannot be made: {e}", unfinished.display()))?;
        match file.try_lock() {
            Ok(()) if is(unfinished, &file)? => {}
            Ok(()) | Err(TryLockError::WouldBlock) => {
                return Err("another process is writing it; wait for its end".into());
            }
            // File systems without locks.
            Err(TryLockError::Error(e)) => tracing::debug!("no lock on the state file: {e}"),
        }
        file.set_len(0)?;
        Ok(file)
    }
}

impl Open {
    fn finish(&mut self) -> Result<(), HostError> {
        self.writer.seal()?;
        if !is(&self.unfinished, &self.writer.file)? {
            let name = self.unfinished.display();
            return Err(format!("'{name}' was removed or replaced meanwhile").into());
        }
        self.renamed = true;
        fs::rename(&self.unfinished, &self.path)?;
        // The name must outlast a crash as well as what it names.
        self.folder.sync_all()?;
        self.writer.release();
        Ok(())
    }

    fn discard(&self) {
        let here = match self.renamed {
            true => [&self.path, &self.unfinished].into_iter(),
            false => [&self.unfinished, &self.unfinished].into_iter(),
        };
        for path in here {
            if let Ok(true) = is(path, &self.writer.file)
                && let Err(e) = fs::remove_file(path)
            {
                tracing::error!("'{}' must not be used, and stays: {e}", path.display());
            }
        }
    }
}

impl Keeper for Replace {
    fn open(&mut self) -> Result<(), HostError> {
        self.open = Some(self.try_open().map_err(|e| self.wrong(&e))?);
        Ok(())
    }

    fn write(
        &mut self,
        state: &[u8],
        ram: Option<&dyn RamSource>,
        cancel: Cancel<'_>,
    ) -> Result<(), HostError> {
        let open = self.open.as_mut().ok_or("the file is not open")?;
        let written = open.writer.write(state, ram, cancel);
        written.map_err(|e| self.wrong(&e))
    }

    fn finish(&mut self, _: Cancel<'_>) -> Result<(), HostError> {
        let open = self.open.as_mut().ok_or("the file is not open")?;
        let finished = open.finish();
        finished.map_err(|e| self.wrong(&e))
    }

    fn discard(&mut self) {
        if let Some(open) = self.open.take() {
            open.discard();
        }
    }
}

/// Whether `path` names `file`.
fn is(path: &Path, file: &File) -> io::Result<bool> {
    let open = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (open.dev(), open.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}
