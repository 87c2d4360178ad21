//! Waiting for the peer to connect.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::PollFlags;
use nix::sys::socket::{SockFlag, accept4, getsockopt, setsockopt, sockopt};

use super::endpoint::{connect_unix, resolve_tcp};
use super::{Bounds, Channel, ChannelError, Deadline, Endpoint, wait};

/// How long to look whether somebody listens on a socket's path.
const PROBE: Duration = Duration::from_millis(100);

/// A socket that accepts connections, or one that is connected already and is accepted once.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    listens: bool,
    /// Whether the connected socket was given out.
    used: bool,
    address: String,
    /// The path to remove in the end.
    path: Option<BoundPath>,
}

/// A socket's path and what was there when it was bound, so that a successor's is not removed.
#[derive(Debug)]
struct BoundPath {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Listener {
    /// Listens. A UNIX socket left behind on the path is removed if nobody listens on it; the path
    /// goes when the listener is dropped.
    pub fn bind(endpoint: Endpoint) -> Result<Self, ChannelError> {
        let address = endpoint.to_string();
        let failed = |source| ChannelError::Listen {
            address: address.clone(),
            source,
        };
        let (socket, path): (OwnedFd, _) = match endpoint {
            Endpoint::Unix(path) => {
                let listener = bind_unix(&path, &address)?;
                let found = fs::symlink_metadata(&path).map_err(failed)?;
                let bound = BoundPath {
                    path,
                    device: found.dev(),
                    inode: found.ino(),
                };
                (listener.into(), Some(bound))
            }
            Endpoint::Tcp(inet) => {
                let addresses = resolve_tcp(&inet, [0, 0, 0, 0]).map_err(failed)?;
                (
                    TcpListener::bind(&addresses[..]).map_err(failed)?.into(),
                    None,
                )
            }
            Endpoint::Fd(fd) => (fd, None),
        };
        let system = |errno: nix::Error| failed(errno.into());
        let listens = getsockopt(&socket, sockopt::AcceptConn).map_err(system)?;
        if listens {
            // A connection that is gone before it is accepted must not block the acceptor.
            let flags = fcntl(&socket, FcntlArg::F_GETFL).map_err(system)?;
            let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
            fcntl(&socket, FcntlArg::F_SETFL(flags)).map_err(system)?;
        }
        Ok(Self {
            socket,
            listens,
            used: false,
            address,
            path,
        })
    }

    /// Where it listens, as a URI.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The next connection if there is one; `name` and `bounds` are the channel's.
    pub fn try_accept(
        &mut self,
        name: &'static str,
        bounds: Bounds,
    ) -> Result<Option<Channel>, ChannelError> {
        let failed = |source| ChannelError::System {
            channel: name,
            what: "accept on",
            source,
        };
        if !self.listens {
            if self.used {
                return Ok(None);
            }
            self.used = true;
            let socket = self.socket.try_clone().map_err(failed)?;
            return Channel::new(socket, name, bounds).map(Some);
        }
        let socket = match accept(self.socket.as_fd()) {
            Ok(socket) => socket,
            Err(error) => match error.kind() {
                // The last means that the peer has gone again.
                ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionAborted => {
                    return Ok(None);
                }
                _ => return Err(failed(error)),
            },
        };
        // Of no meaning, and an error, for a UNIX socket.
        let _ = setsockopt(&socket, sockopt::TcpNoDelay, &true);
        Channel::new(socket, name, bounds).map(Some)
    }

    /// The next connection before the deadline.
    pub fn accept(
        &mut self,
        name: &'static str,
        bounds: Bounds,
        deadline: Deadline,
    ) -> Result<Channel, ChannelError> {
        loop {
            if let Some(channel) = self.try_accept(name, bounds)? {
                return Ok(channel);
            }
            let own = Some((self.as_fd(), PollFlags::POLLIN));
            let failed = |source| ChannelError::System {
                channel: name,
                what: "wait for",
                source,
            };
            if wait([own], deadline).map_err(failed)? == [false] {
                return Err(ChannelError::TimedOut { channel: name });
            }
        }
    }

    /// Whether a further connection can ever come.
    pub fn exhausted(&self) -> bool {
        self.used
    }
}

impl AsFd for Listener {
    /// Readable when a connection waits.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(BoundPath {
            path,
            device,
            inode,
        }) = &self.path
            && fs::symlink_metadata(path).is_ok_and(|m| (m.dev(), m.ino()) == (*device, *inode))
        {
            // Left behind, it is removed by the next one to bind there.
            let _ = fs::remove_file(path);
        }
    }
}

/// `unsafe` because the wrapper returns a bare number.
#[allow(unsafe_code)]
fn accept(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    use std::os::fd::{AsRawFd, FromRawFd};
    let fd = accept4(socket.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: accept4 has just made this descriptor and nothing else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bind_unix(path: &Path, address: &str) -> Result<UnixListener, ChannelError> {
    let failed = |source| ChannelError::Listen {
        address: address.to_owned(),
        source,
    };
    match UnixListener::bind(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {}
        other => return other.map_err(failed),
    }
    if !fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        return Err(ChannelError::NotASocket {
            address: address.to_owned(),
        });
    }
    match connect_unix(path, Deadline::after(PROBE)) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
        _ => {
            return Err(ChannelError::InUse {
                address: address.to_owned(),
            });
        }
    }
    fs::remove_file(path).map_err(failed)?;
    UnixListener::bind(path).map_err(failed)
}
