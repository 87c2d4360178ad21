//! A kept guest, opened for loading.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::libc;
use nix::poll::PollFlags;
use nix::unistd::{Whence, lseek64};

use super::command::Command;
use super::format::{KeptHeader, PAGE, RamLayout, TAKEN, TAKEN_AT};
use super::pages::filled;
use super::place::{Kind, Place, check_flags, duplicate, kind};
use super::{Cancel, RamSink, chunks, pages};
use crate::HostError;
use crate::channel::{Deadline, wait};
use crate::stream::{StateImage, StateReader};

/// A guest that is kept somewhere. Its header was checked.
pub struct Kept {
    name: String,
    header: KeptHeader,
    from: From,
    /// Whether it has the mark of a guest that was loaded.
    taken: bool,
    /// Whether somebody has its file for good.
    mapped: bool,
}

enum From {
    /// Can be read anywhere, from the header at this offset.
    File(File, u64),
    /// Is read in order; `at` bytes behind the header's beginning.
    Pipe {
        pipe: File,
        child: Option<Command>,
        at: u64,
    },
}

/// RAM that can be mapped from the file it was kept in.
#[derive(Debug)]
pub struct KeptRam {
    /// The file; it must stay as it is for as long as it is mapped.
    pub file: File,
    /// Where RAM begins in it; a multiple of the page size.
    pub offset: u64,
    /// Bytes of RAM, all of which are there.
    pub size: u64,
}

impl Kept {
    /// Opens what is kept in `place`, and checks that it is a guest, and as long as it must be.
    pub fn open(place: Place, cancel: Cancel<'_>) -> Result<Self, HostError> {
        let name = match &place {
            Place::File { path, .. } => path.display().to_string(),
            Place::Exec(command) => format!("exec:{}", command.join(" ")),
            Place::Fd { name, .. } => format!("fd:{name}"),
        };
        let opened = Self::try_open(&name, place, cancel);
        opened.map_err(|e| wrong(&name, &e))
    }

    fn try_open(name: &str, place: Place, cancel: Cancel<'_>) -> Result<Self, HostError> {
        let mut from = match place {
            Place::Exec(command) => {
                let (child, pipe) = Command::writing(&command)?;
                From::Pipe {
                    pipe,
                    child: Some(child),
                    at: 0,
                }
            }
            Place::File { path, offset } => From::of(open(&path)?, Some(offset))?,
            Place::Fd { fd, .. } => {
                check_flags(&fd, false)?;
                From::of(fd, None)?
            }
        };
        let mut page = [0; PAGE as usize];
        let mut first = Section {
            from: &mut from,
            at: 0,
            end: PAGE,
            cancel,
        };
        first.read_exact(&mut page).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => io::Error::other("it is too short to be a kept guest"),
            _ => e,
        })?;
        let (header, taken) = KeptHeader::decode(&page)?;
        if let (From::File(file, base), Some(length)) = (&from, header.length()) {
            let there = lseek64(file, 0, Whence::SeekEnd)? as u64;
            let end = base
                .checked_add(length)
                .ok_or("the offset is too far out")?;
            if there < end {
                return Err(format!(
                    "it has {there} bytes, and {end} belong to it; it was cut short, save it again"
                )
                .into());
            }
        }
        Ok(Self {
            name: name.to_owned(),
            header,
            from,
            taken,
            mapped: false,
        })
    }

    /// Its name, for people.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it says of itself.
    pub fn header(&self) -> &KeptHeader {
        &self.header
    }

    /// Reads and checks the state; call it once, before RAM is read.
    pub fn state(&mut self, cancel: Cancel<'_>) -> Result<StateImage, HostError> {
        self.read_state(cancel).map_err(|e| wrong(&self.name, &e))
    }

    fn read_state(&mut self, cancel: Cancel<'_>) -> Result<StateImage, HostError> {
        let end = PAGE + self.header.state;
        let input = self.section(PAGE, end, cancel);
        let mut input = io::BufReader::with_capacity(1 << 16, input);
        let image = StateReader::new(&mut input)?.into_image()?;
        match input.buffer().is_empty() && input.get_ref().at == end {
            true => Ok(image),
            false => Err("its state is shorter than its header says; it is damaged".into()),
        }
    }

    /// Refuses one that has the mark of [`Self::take`]. A command or a pipe is not asked: who passes
    /// a guest on knows what it is.
    pub fn untaken(&self) -> Result<(), HostError> {
        match &self.from {
            From::File(..) if self.taken => Err(wrong(&self.name, &taken())),
            _ => Ok(()),
        }
    }

    /// Marks it as loaded, for good, before its guest runs in the RAM that it was left in: a second
    /// time, that RAM would be another than the state is of. Who dies between the mark and the guest's
    /// first instruction counts as having run it.
    pub fn take(&self) -> Result<(), HostError> {
        self.try_take().map_err(|e| wrong(&self.name, &e))
    }

    fn try_take(&self) -> Result<(), HostError> {
        let From::File(file, base) = &self.from else {
            tracing::warn!("'{}' cannot be marked; load it only once", self.name);
            return Ok(());
        };
        // Two may have come here, and neither lets go of the file before it runs the guest.
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err("another process is loading it".into()),
            Err(TryLockError::Error(e)) => tracing::debug!("no lock on the state file: {e}"),
        }
        let at = base + TAKEN_AT;
        let mut mark = [0; TAKEN.len()];
        file.read_exact_at(&mut mark, at)?;
        if mark == TAKEN {
            return Err(taken());
        }
        match file.write_all_at(&TAKEN, at) {
            Ok(()) => Ok(file.sync_data()?),
            // Opened for reading alone, since it can be no more than read.
            Err(e) if e.raw_os_error() == Some(libc::EBADF) => {
                tracing::warn!(
                    "'{}' is read-only and not marked; load it only once",
                    self.name
                );
                Ok(())
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Its RAM, if it can be mapped as it is.
    pub fn mappable(&mut self) -> Result<Option<KeptRam>, HostError> {
        let (From::File(file, base), RamLayout::Fixed { offset, size }) =
            (&self.from, self.header.ram)
        else {
            return Ok(None);
        };
        let offset = base + offset;
        if !offset.is_multiple_of(PAGE) || kind(file)? != Kind::Regular {
            return Ok(None);
        }
        let file = duplicate(file)?;
        self.mapped = true;
        Ok(Some(KeptRam { file, offset, size }))
    }

    /// Copies its RAM into `ram`, which is all zero.
    pub fn copy_ram(&mut self, ram: &dyn RamSink, cancel: Cancel<'_>) -> Result<(), HostError> {
        self.read_ram(ram, cancel)
            .map_err(|e| wrong(&self.name, &e))
    }

    fn read_ram(&mut self, ram: &dyn RamSink, cancel: Cancel<'_>) -> Result<(), HostError> {
        let begin = PAGE + self.header.state;
        match self.header.ram {
            RamLayout::InPlace => Ok(()),
            RamLayout::Fixed { offset, size } => match &self.from {
                From::File(file, base) => pages::read(file, base + offset, size, ram, cancel),
                From::Pipe { .. } => {
                    let mut input = self.section(begin, offset + size, cancel);
                    io::copy(&mut input.by_ref().take(offset - begin), &mut io::sink())?;
                    in_order(&mut input, size, ram)
                }
            },
            RamLayout::Chunks { size } => {
                let input = self.section(begin, u64::MAX, cancel);
                let mut input = io::BufReader::with_capacity(1 << 16, input);
                Ok(chunks::read(&mut input, size, ram)?)
            }
        }
    }

    fn section<'a>(&'a mut self, at: u64, end: u64, cancel: Cancel<'a>) -> Section<'a> {
        Section {
            from: &mut self.from,
            at,
            end,
            cancel,
        }
    }

    /// Everything was read: a command must agree.
    pub fn finish(&mut self, cancel: Cancel<'_>) -> Result<(), HostError> {
        let From::Pipe { child, at, .. } = &mut self.from else {
            return Ok(());
        };
        let (Some(mut child), at) = (child.take(), *at) else {
            return Ok(());
        };
        // It may have more to say, such as the rest of a device.
        let mut rest = self.section(at, u64::MAX, cancel);
        let ended = io::copy(&mut rest, &mut io::sink()).map_err(HostError::from);
        let ended = ended.and_then(|_| child.succeed(cancel));
        ended.map_err(|e| wrong(&self.name, &e))
    }
}

impl Drop for Kept {
    /// A lock outlives this descriptor if others have a duplicate, be it a child that is just being
    /// started.
    fn drop(&mut self) {
        if let (From::File(file, _), false) = (&self.from, self.mapped) {
            // An error means that there was none.
            let _ = file.unlock();
        }
    }
}

/// Opens a state file; for writing too, if its mode allows it to anybody, since it may be marked.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_CLOEXEC);
    let writable = path
        .metadata()
        .is_ok_and(|found| !found.permissions().readonly() && !found.file_type().is_fifo());
    if writable && let Ok(file) = options.clone().write(true).open(path) {
        return Ok(file);
    }
    options.open(path)
}

fn taken() -> HostError {
    "it was loaded before, and the RAM it was left in has gone on since; start the guest anew. Only \
     if that load ended before the guest ran, load it with exec:cat FILE"
        .into()
}

impl From {
    /// A file from `offset` or its position on, or a pipe.
    fn of(file: File, offset: Option<u64>) -> Result<Self, HostError> {
        if kind(&file)? == Kind::Pipe {
            return Ok(Self::Pipe {
                pipe: file,
                child: None,
                at: 0,
            });
        }
        let base = match offset {
            Some(offset) => offset,
            None => lseek64(&file, 0, Whence::SeekCur)? as u64,
        };
        match file.try_lock_shared() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err("it is being written; wait for the end of that".into());
            }
            Err(TryLockError::Error(e)) => tracing::debug!("no lock on the state file: {e}"),
        }
        Ok(Self::File(file, base))
    }

    /// Reads some bytes at `at`, which is the next position of a pipe.
    fn read(&mut self, into: &mut [u8], at: u64, cancel: Cancel<'_>) -> io::Result<usize> {
        if cancel.requested() {
            return Err(io::Error::other("it was cancelled"));
        }
        match self {
            Self::File(file, base) => file.read_at(into, *base + at),
            Self::Pipe { pipe, at: next, .. } => {
                if *next != at {
                    return Err(io::Error::other("a pipe can only be read in order"));
                }
                let fds = [
                    Some((pipe.as_fd(), PollFlags::POLLIN)),
                    Some((cancel.fd(), PollFlags::POLLIN)),
                ];
                wait(fds, Deadline::never())?;
                if cancel.requested() {
                    return Err(io::Error::other("it was cancelled"));
                }
                let read = pipe.read(into)?;
                *next += read as u64;
                Ok(read)
            }
        }
    }
}

/// A part of what is kept, read in order.
struct Section<'a> {
    from: &'a mut From,
    at: u64,
    end: u64,
    cancel: Cancel<'a>,
}

impl Read for Section<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let most = into.len().min(left);
        if most == 0 {
            return Ok(0);
        }
        let read = self.from.read(&mut into[..most], self.at, self.cancel)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// Reads RAM as it lies in a file.
fn in_order(input: &mut impl Read, size: u64, ram: &dyn RamSink) -> Result<(), HostError> {
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while at < size {
        let step = (size - at).min(buffer.len() as u64);
        let bytes = &mut buffer[..step as usize];
        input.read_exact(bytes)?;
        for (offset, run) in filled(bytes) {
            ram.write(at + offset as u64, run)?;
        }
        at += step;
    }
    Ok(())
}

fn wrong(name: &str, error: &HostError) -> HostError {
    let error = crate::error_chain(&**error);
    format!("Cannot load the guest from '{name}': {error}").into()
}
