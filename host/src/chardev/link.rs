//! The outer end of a character device: what its bytes go to and come from.

use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use baton_plugin_api::{Direction, Stream};
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{MsgFlags, recv};

use super::pty::Pty;
use super::ring::Ring;
use super::service::{Wake, Watch};
use super::socket::Socket;

/// The outer end.
pub(super) enum Link {
    /// Nothing is there.
    Null,
    /// A socket.
    Socket(Socket),
    /// A pseudo-terminal.
    Pty(Pty),
    /// Standard streams, files and pipes.
    Streams(Streams),
    /// Memory.
    Ring(Ring),
}

/// Two descriptors that stay as they are.
pub(super) struct Streams {
    input: Option<(OwnedFd, Arc<Stream>)>,
    output: Option<(OwnedFd, Arc<Stream>)>,
}

impl Streams {
    /// A way in and a way out.
    pub(super) fn new(input: Option<OwnedFd>, output: Option<OwnedFd>) -> io::Result<Self> {
        let open = |fd: Option<OwnedFd>, direction| {
            fd.map(|fd| {
                let stream = Stream::new(fd.try_clone()?, direction)?;
                Ok::<_, io::Error>((fd, Arc::new(stream)))
            })
            .transpose()
        };
        Ok(Self {
            input: open(input, Direction::Input)?,
            output: open(output, Direction::Output)?,
        })
    }

    /// Input and output, for another process.
    pub(super) fn duplicate(&self) -> io::Result<(Option<OwnedFd>, Option<OwnedFd>)> {
        let copy = |of: &Option<(OwnedFd, Arc<Stream>)>| {
            of.as_ref().map(|(fd, _)| fd.try_clone()).transpose()
        };
        Ok((copy(&self.input)?, copy(&self.output)?))
    }
}

impl Link {
    /// Whether somebody is at the other end: what is written while nobody is, is gone.
    pub(super) fn is_open(&self) -> bool {
        match self {
            Self::Socket(socket) => socket.connection().is_some(),
            Self::Pty(pty) => pty.connection().is_some(),
            Self::Null | Self::Streams(_) | Self::Ring(_) => true,
        }
    }

    /// Finds out who has come; that somebody has gone is found by reading and writing.
    /// While `frozen` no connection begins.
    pub(super) fn advance(&mut self, now: Instant, frozen: bool, wake: &Wake) {
        match self {
            Self::Socket(socket) if !frozen => socket.advance(now, wake),
            Self::Pty(pty) if pty.connection().is_none() => pty.look(now),
            _ => {}
        }
    }

    /// Nobody is at the other end any more.
    pub(super) fn close(&mut self, now: Instant) {
        match self {
            Self::Socket(socket) => socket.disconnect(now),
            Self::Pty(pty) => pty.disconnect(now),
            Self::Null | Self::Streams(_) | Self::Ring(_) => {}
        }
    }

    /// Whether the other end can go and another come.
    pub(super) fn comes_and_goes(&self) -> bool {
        matches!(self, Self::Socket(_) | Self::Pty(_))
    }

    /// Whether it is a terminal, which sends keys as they are struck and shows what it is sent.
    pub(super) fn sends_keys(&self) -> bool {
        match self {
            Self::Pty(_) => true,
            Self::Streams(streams) => streams
                .input
                .as_ref()
                .is_some_and(|(fd, _)| nix::unistd::isatty(fd).unwrap_or(false)),
            _ => false,
        }
    }

    /// When [`Self::advance`] has something to do that no descriptor tells.
    pub(super) fn deadline(&self, frozen: bool) -> Option<Instant> {
        match self {
            Self::Socket(socket) if !frozen => socket.deadline(),
            Self::Pty(pty) => pty.deadline(),
            _ => None,
        }
    }

    fn input(&self) -> Option<&Arc<Stream>> {
        match self {
            Self::Socket(socket) => socket.connection(),
            Self::Pty(pty) => pty.connection(),
            Self::Streams(streams) => streams.input.as_ref().map(|(_, stream)| stream),
            Self::Null | Self::Ring(_) => None,
        }
    }

    fn output(&self) -> Option<&Arc<Stream>> {
        match self {
            Self::Streams(streams) => streams.output.as_ref().map(|(_, stream)| stream),
            _ => self.input(),
        }
    }

    /// Reads; 0 at the end, `WouldBlock` if there is nothing now.
    pub(super) fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        match self.input() {
            Some(stream) => stream.read(into),
            None => Err(ErrorKind::WouldBlock.into()),
        }
    }

    /// Writes as much as is taken now; `WouldBlock` if that is nothing.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Self::Ring(ring) = self {
            ring.push(bytes);
            return Ok(bytes.len());
        }
        match self.output() {
            Some(stream) => stream.write(bytes),
            None => Ok(bytes.len()),
        }
    }

    /// Adds what to wait for: somebody who comes, input if it is wanted, and room for output.
    pub(super) fn watch(&self, reads: bool, writes: bool, frozen: bool, watches: &mut Vec<Watch>) {
        if let Self::Socket(socket) = self
            && !frozen
            && let Some(listener) = socket.waits_on()
        {
            watches.push((Arc::clone(listener) as _, PollFlags::POLLIN));
        }
        if let Some(input) = self.input().filter(|_| reads) {
            watches.push((Arc::clone(input) as _, PollFlags::POLLIN));
        }
        if let Some(output) = self.output().filter(|_| writes) {
            watches.push((Arc::clone(output) as _, PollFlags::POLLOUT));
        }
    }

    /// Whether a peer has gone that has said nothing more.
    pub(super) fn was_left(&self) -> bool {
        let Self::Socket(socket) = self else {
            return false;
        };
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        let look = |stream: &Arc<Stream>| recv(stream.as_raw_fd(), &mut [0], flags);
        socket
            .connection()
            .is_some_and(|stream| match look(stream) {
                Ok(said) => said == 0,
                Err(e) => !matches!(e, Errno::EAGAIN | Errno::EINTR),
            })
    }
}
