//! One user of a character device: a pair of sockets, of which the user has the far end. A device has
//! one pair for good, a monitor one for each session.
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
    /// The device's id, or a monitor's name.
    pub(super) user: String,
    /// Nothing while a monitor has no session.
    near: Option<Arc<UnixStream>>,
    /// A device's; a monitor has its own.
    far: Option<OwnedFd>,
    /// Which of the monitors it is, if it is one.
    pub(super) monitor: Option<usize>,
    /// The monitor has ended its session; there is another when somebody comes.
    over: bool,
}

impl Frontend {
    /// A device, and a new way to it.
    pub(super) fn new(user: &str) -> io::Result<Self> {
        let (near, far) = UnixStream::pair()?;
        Ok(Self::inherited(user, near.into(), far.into()))
    }

    /// A device that was handed over.
    pub(super) fn inherited(user: &str, near: OwnedFd, far: OwnedFd) -> Self {
        Self {
            user: user.to_owned(),
            near: Some(Arc::new(near.into())),
            far: Some(far),
            monitor: None,
            over: false,
        }
    }

    /// The monitor of this number, maybe with a session that goes on.
    pub(super) fn monitor(number: usize, near: Option<OwnedFd>) -> Self {
        Self {
            user: format!("mon:{number}"),
            near: near.map(|near| Arc::new(near.into())),
            far: None,
            monitor: Some(number),
            over: false,
        }
    }

    /// Whether it is a monitor for which a session can begin.
    pub(super) fn wants_session(&self) -> bool {
        self.monitor.is_some() && self.near.is_none() && !self.over
    }

    /// Begins a session; gives the monitor's end.
    pub(super) fn begin(&mut self) -> io::Result<UnixStream> {
        let (near, far) = UnixStream::pair()?;
        self.near = Some(Arc::new(near));
        Ok(far)
    }

    /// Ends a monitor's session: by itself, or because nobody is there any more.
    pub(super) fn end(&mut self, by_itself: bool) {
        if self.monitor.is_some() {
            self.near = None;
            self.over = by_itself;
        }
    }

    /// Somebody has come.
    pub(super) fn renew(&mut self) {
        self.over = false;
    }

    /// The end to wait for.
    pub(super) fn near(&self) -> Option<&Arc<UnixStream>> {
        self.near.as_ref()
    }

    /// A device's end.
    pub(super) fn far(&self) -> io::Result<OwnedFd> {
        match &self.far {
            Some(far) => far.try_clone(),
            None => Err(ErrorKind::NotConnected.into()),
        }
    }

    /// Both ends, near and far, for another process.
    pub(super) fn duplicate(&self) -> io::Result<(Option<OwnedFd>, Option<OwnedFd>)> {
        let near = self.near.as_ref();
        let near = near.map(|near| near.as_fd().try_clone_to_owned());
        let far = self.far.as_ref().map(OwnedFd::try_clone);
        Ok((near.transpose()?, far.transpose()?))
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
        match &self.near {
            Some(near) => again(|| send(near.as_raw_fd(), bytes, flags)),
            None => Ok(bytes.len()),
        }
    }

    fn receive(&self, into: &mut [u8], flags: MsgFlags) -> io::Result<usize> {
        match &self.near {
            Some(near) => again(|| recv(near.as_raw_fd(), into, flags | MsgFlags::MSG_DONTWAIT)),
            None => Err(ErrorKind::WouldBlock.into()),
        }
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
