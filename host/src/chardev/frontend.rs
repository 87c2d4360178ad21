//! One user of a character device: a pair of sockets, of which the user has the far end.
//!
//! What is on its way is in the kernel's buffers of the pair and nowhere else. Both ends are handed
//! over, so that it stays there while the processes change.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};

/// A user and the way to it.
pub(super) struct Frontend {
    /// The device's id.
    pub(super) user: String,
    near: Arc<UnixStream>,
    far: OwnedFd,
}

impl Frontend {
    /// A new way.
    pub(super) fn new(user: &str) -> io::Result<Self> {
        let (near, far) = UnixStream::pair()?;
        Ok(Self {
            user: user.to_owned(),
            near: Arc::new(near),
            far: far.into(),
        })
    }

    /// One that was handed over.
    pub(super) fn inherited(user: &str, near: OwnedFd, far: OwnedFd) -> Self {
        Self {
            user: user.to_owned(),
            near: Arc::new(near.into()),
            far,
        }
    }

    /// The end to wait for.
    pub(super) fn near(&self) -> &Arc<UnixStream> {
        &self.near
    }

    /// The user's end.
    pub(super) fn far(&self) -> io::Result<OwnedFd> {
        self.far.try_clone()
    }

    /// Both ends, near and far, for another process.
    pub(super) fn duplicate(&self) -> io::Result<(OwnedFd, OwnedFd)> {
        Ok((self.near.as_fd().try_clone_to_owned()?, self.far()?))
    }

    /// Looks at what the user has written; nothing is taken. `WouldBlock` if there is nothing.
    pub(super) fn peek(&self, into: &mut [u8]) -> io::Result<usize> {
        self.receive(into, MsgFlags::MSG_PEEK)
    }

    /// Takes `count` bytes that were looked at.
    pub(super) fn take(&self, mut count: usize) -> io::Result<()> {
        let mut bytes = [0; super::relay::CHUNK];
        while count > 0 {
            let most = count.min(bytes.len());
            match self.receive(&mut bytes[..most], MsgFlags::empty())? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                taken => count -= taken,
            }
        }
        Ok(())
    }

    /// Gives the user as much of `bytes` as fits; `WouldBlock` if that is nothing.
    pub(super) fn give(&self, bytes: &[u8]) -> io::Result<usize> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        again(|| send(self.near.as_raw_fd(), bytes, flags))
    }

    fn receive(&self, into: &mut [u8], flags: MsgFlags) -> io::Result<usize> {
        again(|| recv(self.near.as_raw_fd(), into, flags | MsgFlags::MSG_DONTWAIT))
    }
}

fn again(mut call: impl FnMut() -> nix::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            other => return other.map_err(io::Error::from),
        }
    }
}
