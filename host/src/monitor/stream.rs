//! A client's connection.
// Waiting for a descriptor that is no socket asks for a promise about it.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

use baton_migration::channel::rights;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpStream, UnixStream};

use super::terminal::{self, RawMode};

/// What is written at once to a standard stream: a pipe that is ready takes this much.
const CHUNK: usize = 4096;

/// A connection that nobody serves.
pub(super) enum Plain {
    Unix(std::os::unix::net::UnixStream),
    Tcp(std::net::TcpStream),
    /// The process's standard input and output.
    Standard {
        input: OwnedFd,
        output: OwnedFd,
    },
}

impl Plain {
    /// Whether somebody sits at a terminal on the other side.
    pub(super) fn is_terminal(&self) -> bool {
        match self {
            Self::Standard { input, output } => terminal::is_terminal(input, output),
            _ => false,
        }
    }

    /// Lets a terminal send keys as they are struck.
    pub(super) fn raw_mode(&self, already: Option<RawMode>) -> Option<RawMode> {
        self.is_terminal()
            .then(|| RawMode::enter(already))
            .flatten()
    }
}

/// A connection that is served. Reading and writing may be given up at any time: what they have not
/// returned is neither taken nor written.
pub(super) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
    Standard { input: Side, output: Side },
}

impl Stream {
    /// Must be called on the runtime that serves it.
    pub(super) fn open(plain: Plain) -> io::Result<Self> {
        Ok(match plain {
            Plain::Unix(stream) => {
                stream.set_nonblocking(true)?;
                Self::Unix(UnixStream::from_std(stream)?)
            }
            Plain::Tcp(stream) => {
                stream.set_nonblocking(true)?;
                // Answers are small, and are waited for.
                let _ = stream.set_nodelay(true);
                Self::Tcp(TcpStream::from_std(stream)?)
            }
            Plain::Standard { input, output } => Self::Standard {
                input: Side::open(input, Interest::READABLE)?,
                output: Side::open(output, Interest::WRITABLE)?,
            },
        })
    }

    /// The opposite of [`Self::open`].
    pub(super) fn close(self) -> io::Result<Plain> {
        Ok(match self {
            Self::Unix(stream) => Plain::Unix(stream.into_std()?),
            Self::Tcp(stream) => Plain::Tcp(stream.into_std()?),
            Self::Standard { input, output } => Plain::Standard {
                input: input.original,
                output: output.original,
            },
        })
    }

    /// Reads something, with the descriptors that came with it; 0 bytes are the end.
    pub(super) async fn read(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        let bytes = match self {
            Self::Unix(stream) => {
                let mut receive = || rights::receive(stream.as_fd(), buffer);
                let received = stream.async_io(Interest::READABLE, &mut receive).await?;
                if received.cut {
                    tracing::warn!("a monitor client has passed descriptors that had no room here");
                }
                return Ok((received.bytes, received.fds));
            }
            Self::Tcp(stream) => stream.read(buffer).await,
            Self::Standard { input, .. } => {
                let mut read = |mut file: &File| file.read(buffer);
                input.once_ready(PollFlags::POLLIN, &mut read).await
            }
        };
        bytes.map(|bytes| (bytes, Vec::new()))
    }

    /// Writes some of `bytes`.
    pub(super) async fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(bytes).await,
            Self::Tcp(stream) => stream.write(bytes).await,
            Self::Standard { output, .. } => {
                let mut write = |mut file: &File| file.write(chunk(bytes));
                output.once_ready(PollFlags::POLLOUT, &mut write).await
            }
        }
    }

    /// Writes what can be written now; that it is nothing is the error `WouldBlock`.
    pub(super) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.try_write(bytes),
            Self::Tcp(stream) => stream.try_write(bytes),
            Self::Standard { output, .. } => {
                output.if_ready(PollFlags::POLLOUT, |mut file| file.write(chunk(bytes)))
            }
        }
    }
}

fn chunk(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len().min(CHUNK)]
}

/// One of the standard streams. It is shared with other processes, so that it must not be made
/// non-blocking.
pub(super) struct Side {
    original: OwnedFd,
    open: Open,
}

enum Open {
    Waited(AsyncFd<File>),
    /// A regular file is always ready.
    AtOnce(File),
}

impl Side {
    fn open(original: OwnedFd, interest: Interest) -> io::Result<Self> {
        let file = match reopen(&original, interest) {
            Some(own) => own,
            None => File::from(original.try_clone()?),
        };
        // SAFETY: a `File` has one descriptor, which is open as long as the file lives; it is not
        // replaced or taken out of the `AsyncFd`.
        let waited = unsafe { AsyncFd::register_with_interest(file, interest) };
        let open = match waited.map_err(|e| e.into_parts()) {
            Ok(waited) => Open::Waited(waited),
            // It cannot be waited for.
            Err((file, e)) if e.kind() == ErrorKind::PermissionDenied => Open::AtOnce(file),
            Err((_, e)) => return Err(e),
        };
        Ok(Self { original, open })
    }

    async fn once_ready(
        &self,
        flags: PollFlags,
        io: &mut impl FnMut(&File) -> io::Result<usize>,
    ) -> io::Result<usize> {
        // Other clients have their turn between two chunks.
        tokio::task::coop::consume_budget().await;
        let waited = match &self.open {
            Open::Waited(waited) => waited,
            Open::AtOnce(file) => return uninterrupted(|| io(file)),
        };
        loop {
            let mut ready = match flags {
                PollFlags::POLLIN => waited.readable().await?,
                _ => waited.writable().await?,
            };
            let result = ready.try_io(|_| self.if_ready(flags, &mut *io));
            if let Ok(result) = result {
                return result;
            }
        }
    }

    /// A stream that could not be opened again would block, unless it is ready.
    fn if_ready(
        &self,
        flags: PollFlags,
        mut io: impl FnMut(&File) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let file = match &self.open {
            Open::Waited(waited) => waited.get_ref(),
            Open::AtOnce(file) => return uninterrupted(|| io(file)),
        };
        uninterrupted(|| {
            let mut fds = [PollFd::new(file.as_fd(), flags)];
            match poll(&mut fds, PollTimeout::ZERO)? {
                0 => Err(ErrorKind::WouldBlock.into()),
                _ => io(file),
            }
        })
    }
}

fn uninterrupted(mut io: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match io() {
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// A pipe or a terminal can be opened again, to be non-blocking for this process alone. The others
/// have an offset, or cannot be opened.
fn reopen(original: &OwnedFd, interest: Interest) -> Option<File> {
    let kind = File::from(original.try_clone().ok()?)
        .metadata()
        .ok()?
        .file_type();
    if !kind.is_fifo() && !nix::unistd::isatty(original).unwrap_or(false) {
        return None;
    }
    OpenOptions::new()
        .read(interest.is_readable())
        .write(interest.is_writable())
        .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY)
        .open(format!("/proc/self/fd/{}", original.as_raw_fd()))
        .ok()
}
