//! A part of a file, a block device, or a file that is open already: written where it is.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use nix::libc;
use nix::unistd::{Whence, lseek64};

use super::{How, Kind, Pipe, Writer, kind};
use crate::HostError;
use crate::checkpoint::{Cancel, Keeper, RamSource};

/// A place that is written in place. What it held before is lost as soon as it is opened.
pub(super) struct InPlace {
    name: String,
    /// Absent for a descriptor.
    path: Option<PathBuf>,
    offset: u64,
    how: How,
    /// A descriptor before it is taken into use.
    given: Option<File>,
    to: To,
}

enum To {
    Nothing,
    File(Writer),
    Pipe(Pipe),
}

impl InPlace {
    pub(super) fn at(path: PathBuf, offset: u64, how: How) -> Self {
        Self {
            name: path.display().to_string(),
            path: Some(path),
            offset,
            how,
            given: None,
            to: To::Nothing,
        }
    }

    /// A descriptor, from its position on.
    pub(super) fn open(name: &str, fd: File, how: How) -> Result<Self, HostError> {
        let offset = lseek64(&fd, 0, Whence::SeekCur)? as u64;
        Ok(Self {
            name: format!("fd:{name}"),
            path: None,
            offset,
            how,
            given: Some(fd),
            to: To::Nothing,
        })
    }

    fn wrong(&self, error: &HostError) -> HostError {
        let (name, error) = (&self.name, crate::error_chain(&**error));
        format!("Cannot keep the state in '{name}': {error}").into()
    }

    fn try_open(&mut self) -> Result<To, HostError> {
        let file = match (self.given.take(), &self.path) {
            (Some(file), _) => file,
            (None, Some(path)) => {
                let special = path.metadata().is_ok_and(|found| !found.is_file());
                let mut options = OpenOptions::new();
                options.write(true).mode(0o600);
                if special {
                    // A pipe that nobody reads must not be waited for.
                    options.custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
                } else {
                    options.create(true).truncate(false);
                }
                options.open(path)?
            }
            (None, None) => return Err("it was used up".into()),
        };
        if kind(&file)? == Kind::Pipe {
            if self.offset > 0 {
                return Err("a pipe has no offset; leave it out".into());
            }
            let mut pipe = Pipe::fd(&self.name, file, self.how);
            pipe.open()?;
            return Ok(To::Pipe(pipe));
        }
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(
                    "a guest's memory is mapped from it, or it is being written; use \
                            another file"
                        .into(),
                );
            }
            Err(TryLockError::Error(e)) => tracing::debug!("no lock on the state file: {e}"),
        }
        let writer = Writer::new(file, self.offset, self.how, false);
        writer.invalidate()?;
        Ok(To::File(writer))
    }

    /// Refuses to have written into a file that nobody finds any more.
    fn still_there(&self, writer: &Writer) -> Result<(), HostError> {
        let Some(path) = &self.path else {
            return Ok(());
        };
        let (open, named) = (writer.file.metadata()?, path.metadata()?);
        match (open.dev(), open.ino()) == (named.dev(), named.ino()) {
            true => Ok(()),
            false => Err("it was replaced meanwhile".into()),
        }
    }
}

impl Keeper for InPlace {
    fn open(&mut self) -> Result<(), HostError> {
        let opened = self.try_open();
        self.to = opened.map_err(|e| self.wrong(&e))?;
        Ok(())
    }

    fn write(
        &mut self,
        state: &[u8],
        ram: Option<&dyn RamSource>,
        cancel: Cancel<'_>,
    ) -> Result<(), HostError> {
        let written = match &mut self.to {
            To::Nothing => Err("it is not open".into()),
            To::File(writer) => writer.write(state, ram, cancel),
            To::Pipe(pipe) => pipe.write(state, ram, cancel),
        };
        written.map_err(|e| self.wrong(&e))
    }

    fn finish(&mut self, cancel: Cancel<'_>) -> Result<(), HostError> {
        let finished = match &mut self.to {
            To::Nothing => Err("it is not open".into()),
            To::Pipe(pipe) => pipe.finish(cancel),
            To::File(_) => Ok(()),
        };
        let finished = match &self.to {
            To::File(writer) => self
                .still_there(writer)
                .and_then(|()| writer.seal())
                .map(|()| writer.release()),
            _ => finished,
        };
        finished.map_err(|e| self.wrong(&e))
    }

    fn discard(&mut self) {
        match &mut self.to {
            To::Nothing => {}
            To::Pipe(pipe) => pipe.discard(),
            To::File(writer) => {
                if writer.complete()
                    && let Err(e) = writer.invalidate()
                {
                    tracing::error!("what is in '{}' must not be used: {e}", self.name);
                }
            }
        }
        self.to = To::Nothing;
    }
}
