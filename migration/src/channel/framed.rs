//! Frames over a socket.

use std::io::{self, ErrorKind, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::poll::PollFlags;
use nix::sys::socket::{setsockopt, sockopt};

use super::{ChannelError, Deadline, MAX_FDS_PER_FRAME, rights, wait};

/// Length of the payload as little-endian `u32`, then the kind.
const HEADER: usize = 5;

/// Asked of the kernel so that a whole state usually goes with one call; it may grant less.
const SEND_BUFFER: usize = 4 << 20;

/// What a frame of one kind may carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of payload.
    pub length: usize,
    /// Descriptors, at most [`MAX_FDS_PER_FRAME`].
    pub fds: usize,
}

/// The limits of each kind of frame; `None` for a kind that does not exist.
pub type Bounds = fn(kind: u8) -> Option<Limits>;

/// One frame.
#[derive(Debug)]
pub struct Frame {
    /// What it is.
    pub kind: u8,
    /// Its bytes.
    pub payload: Vec<u8>,
    /// Its descriptors, close-on-exec.
    pub fds: Vec<OwnedFd>,
}

/// A connected stream socket. One thread at a time.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
    name: &'static str,
    bounds: Bounds,
    incoming: Incoming,
}

/// A frame of which some bytes may have come.
#[derive(Debug, Default)]
struct Incoming {
    header: [u8; HEADER],
    /// Bytes of header and payload that have come.
    have: usize,
    payload: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Channel {
    /// Makes a channel of a connected stream socket; `name` is for errors.
    pub fn new(socket: OwnedFd, name: &'static str, bounds: Bounds) -> Result<Self, ChannelError> {
        // Without the larger buffer the channel works just as well, only in more steps.
        let _ = setsockopt(&socket, sockopt::SndBuf, &SEND_BUFFER);
        Ok(Self {
            socket,
            name,
            bounds,
            incoming: Incoming::default(),
        })
    }

    /// Its name in errors.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Sends a frame. Waiting for room ends with an error at the `deadline` or when `stop` becomes
    /// readable; the channel is of no use after that, since half a frame may have gone.
    pub fn send(
        &mut self,
        kind: u8,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
        stop: Option<BorrowedFd<'_>>,
        deadline: Deadline,
    ) -> Result<(), ChannelError> {
        let limits = self.limits(kind)?;
        self.check(limits, kind, payload.len(), fds.len())?;
        let mut header = [0; HEADER];
        header[..4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        header[4] = kind;

        let mut fds = fds;
        let mut sent = 0;
        while sent < HEADER + payload.len() {
            let rest = [
                IoSlice::new(&header[sent.min(HEADER)..]),
                IoSlice::new(&payload[sent.saturating_sub(HEADER)..]),
            ];
            match rights::send(self.socket.as_fd(), &rest, fds) {
                Ok(bytes) => {
                    sent += bytes;
                    // They went with the first byte.
                    fds = &[];
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let own = Some((self.socket.as_fd(), PollFlags::POLLOUT));
                    let stop = stop.map(|fd| (fd, PollFlags::POLLIN));
                    match wait([own, stop], deadline).map_err(self.system("wait for"))? {
                        [_, true] => return Err(ChannelError::Interrupted { channel: self.name }),
                        [true, _] => {}
                        _ => return Err(ChannelError::TimedOut { channel: self.name }),
                    }
                }
                Err(error) => self.failed("send on", error)?,
            }
        }
        Ok(())
    }

    /// The next frame if all of it has come; `None` if more must come, for which the caller waits
    /// until the channel is readable.
    pub fn try_receive(&mut self) -> Result<Option<Frame>, ChannelError> {
        loop {
            if let Some(frame) = self.complete()? {
                return Ok(Some(frame));
            }
            let incoming = &mut self.incoming;
            let into = match incoming.have {
                have @ ..HEADER => &mut incoming.header[have..],
                have => &mut incoming.payload[have - HEADER..],
            };
            let received = match rights::receive(self.socket.as_fd(), into) {
                Ok(received) => received,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => {
                    self.failed("receive from", error)?;
                    continue;
                }
            };
            incoming.fds.extend(received.fds);
            incoming.have += received.bytes;
            if received.cut {
                incoming.fds.clear();
                return Err(ChannelError::FdsCut { channel: self.name });
            }
            if received.bytes == 0 {
                return Err(ChannelError::HungUp { channel: self.name });
            }
        }
    }

    /// Makes room once the header has come; takes the frame out once all of it has.
    fn complete(&mut self) -> Result<Option<Frame>, ChannelError> {
        if self.incoming.have < HEADER {
            return Ok(None);
        }
        let [a, b, c, d, kind] = self.incoming.header;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        let limits = self.limits(kind)?;
        self.check(limits, kind, length, self.incoming.fds.len())?;
        if self.incoming.have < HEADER + length {
            if self.incoming.payload.is_empty() {
                // Zeroed by the kernel page by page as the bytes come.
                self.incoming.payload = vec![0; length];
            }
            return Ok(None);
        }
        let Incoming { payload, fds, .. } = std::mem::take(&mut self.incoming);
        Ok(Some(Frame { kind, payload, fds }))
    }

    fn limits(&self, kind: u8) -> Result<Limits, ChannelError> {
        (self.bounds)(kind).ok_or(ChannelError::UnknownKind {
            channel: self.name,
            kind,
        })
    }

    fn check(
        &self,
        limits: Limits,
        kind: u8,
        length: usize,
        fds: usize,
    ) -> Result<(), ChannelError> {
        let channel = self.name;
        if length > limits.length {
            return Err(ChannelError::TooLong {
                channel,
                kind,
                length,
                limit: limits.length,
            });
        }
        let limit = limits.fds.min(MAX_FDS_PER_FRAME);
        if fds > limit {
            return Err(ChannelError::TooManyFds {
                channel,
                kind,
                found: fds,
                limit,
            });
        }
        Ok(())
    }

    /// Sorts an error of the socket; an interrupted call is none.
    fn failed(&self, what: &'static str, error: io::Error) -> Result<(), ChannelError> {
        match error.kind() {
            ErrorKind::Interrupted => Ok(()),
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => {
                Err(ChannelError::HungUp { channel: self.name })
            }
            _ => Err(self.system(what)(error)),
        }
    }

    fn system(&self, what: &'static str) -> impl Fn(io::Error) -> ChannelError + use<> {
        let channel = self.name;
        move |source| ChannelError::System {
            channel,
            what,
            source,
        }
    }
}

impl AsFd for Channel {
    /// To wait on.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
