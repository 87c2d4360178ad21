//! A command or a pipe, which takes everything in order.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::PollFlags;

use super::How;
use crate::HostError;
use crate::channel::{Deadline, wait};
use crate::checkpoint::command::{Command, LOOK, unread};
use crate::checkpoint::format::{KeptHeader, RamLayout};
use crate::checkpoint::{Cancel, Keeper, RamSource, chunks};

/// Keeps by way of a pipe.
pub(in crate::checkpoint) struct Pipe {
    /// As an error names it.
    name: String,
    how: How,
    command: Option<Vec<String>>,
    child: Option<Command>,
    /// The end that is written; absent before it is open, and once everything is written.
    end: Option<End>,
    /// What makes it whole, and is written last.
    tail: Vec<u8>,
}

impl Pipe {
    /// To a command that keeps what it reads.
    pub(super) fn command(command: Vec<String>, how: How) -> Self {
        Self {
            name: format!("exec:{}", command.join(" ")),
            how,
            command: Some(command),
            child: None,
            end: None,
            tail: Vec::new(),
        }
    }

    /// To whoever reads from `fd`.
    pub(super) fn fd(name: &str, fd: File, how: How) -> Self {
        Self {
            name: format!("fd:{name}"),
            how,
            command: None,
            child: None,
            end: Some(End::new(fd)),
            tail: Vec::new(),
        }
    }

    /// What a failure to write means: a command that has ended says why best.
    fn wrong(&mut self, error: &HostError, cancel: Cancel<'_>) -> HostError {
        let name = &self.name;
        let mut text = crate::error_chain(&**error);
        let ending = |child: &mut Command| child.ending(cancel);
        if let Some(status) = self.child.as_mut().and_then(ending) {
            text = format!("it ended too early: {status}");
        }
        format!("Cannot keep the state with '{name}': {text}").into()
    }

    fn try_write(
        &mut self,
        state: &[u8],
        ram: Option<&dyn RamSource>,
        cancel: Cancel<'_>,
    ) -> Result<(), HostError> {
        let end = self.end.as_ref().ok_or("it is not open")?;
        let mut out = Out { end, cancel };
        let header = KeptHeader {
            mode: self.how.mode,
            state: state.len() as u64,
            ram: match ram {
                Some(ram) => RamLayout::Chunks { size: ram.size() },
                None => RamLayout::InPlace,
            },
        };
        out.write_all(&header.encode())?;
        self.tail = match ram {
            Some(ram) => {
                out.write_all(state)?;
                chunks::end(chunks::write(&mut out, ram, self.how.ram.zeros)?)
            }
            None => {
                // Without its end mark a state is not whole either.
                let (most, tail) = state.split_at(state.len().saturating_sub(8));
                out.write_all(most)?;
                tail.to_vec()
            }
        };
        end.drained(cancel)
    }

    fn try_finish(&mut self, cancel: Cancel<'_>) -> Result<(), HostError> {
        let end = self.end.take().ok_or("it is not open")?;
        Out { end: &end, cancel }.write_all(&self.tail)?;
        let Some(child) = &mut self.child else {
            return end.drained(cancel);
        };
        // The command reads the end only once nobody can write any more.
        drop(end);
        child.succeed(cancel)
    }
}

impl Keeper for Pipe {
    fn open(&mut self) -> Result<(), HostError> {
        if let Some(command) = &self.command {
            let (child, end) = Command::reading(command)?;
            self.end = Some(End::new(end));
            self.child = Some(child);
        }
        match &mut self.end {
            Some(end) => end.without_blocking(),
            None => Err("it is open no more".into()),
        }
    }

    fn write(
        &mut self,
        state: &[u8],
        ram: Option<&dyn RamSource>,
        cancel: Cancel<'_>,
    ) -> Result<(), HostError> {
        let written = self.try_write(state, ram, cancel);
        written.map_err(|e| self.wrong(&e, cancel))
    }

    fn finish(&mut self, cancel: Cancel<'_>) -> Result<(), HostError> {
        let finished = self.try_finish(cancel);
        finished.map_err(|e| self.wrong(&e, cancel))
    }

    fn discard(&mut self) {
        // Killed before it can read the end and take it for a good one.
        self.child = None;
        self.end = None;
    }
}

/// The end of a pipe that is written.
struct End {
    pipe: File,
    /// Its flags before, which others may count on.
    flags: Option<OFlag>,
}

impl End {
    fn new(pipe: File) -> Self {
        Self { pipe, flags: None }
    }

    fn without_blocking(&mut self) -> Result<(), HostError> {
        let flags = OFlag::from_bits_retain(fcntl(&self.pipe, FcntlArg::F_GETFL)?);
        fcntl(&self.pipe, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        self.flags = Some(flags);
        Ok(())
    }

    /// Waits until the reader has taken everything.
    fn drained(&self, cancel: Cancel<'_>) -> Result<(), HostError> {
        while unread(&self.pipe)? > 0 {
            let nothing = PollFlags::empty();
            let fds = [
                Some((self.pipe.as_fd(), nothing)),
                Some((cancel.fd(), PollFlags::POLLIN)),
            ];
            match wait(fds, Deadline::after(LOOK))? {
                [_, true] => return Err(cancelled().into()),
                [true, _] => return Err("nobody reads any more".into()),
                _ => {}
            }
        }
        Ok(())
    }
}

impl Drop for End {
    fn drop(&mut self) {
        if let Some(flags) = self.flags {
            // The pipe is not used here any more.
            let _ = fcntl(&self.pipe, FcntlArg::F_SETFL(flags));
        }
    }
}

/// Writes until somebody cancels.
struct Out<'a> {
    end: &'a End,
    cancel: Cancel<'a>,
}

impl Write for Out<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            if self.cancel.requested() {
                return Err(cancelled());
            }
            match (&self.end.pipe).write(bytes) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let fds = [
                        Some((self.end.pipe.as_fd(), PollFlags::POLLOUT)),
                        Some((self.cancel.fd(), PollFlags::POLLIN)),
                    ];
                    wait(fds, Deadline::never())?;
                }
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {
                    return Err(io::Error::other("nobody reads any more"));
                }
                other => return other,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn cancelled() -> io::Error {
    io::Error::other("it was cancelled")
}
