//! Where clients connect.

use std::fmt;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrLike, SockaddrStorage, UnixAddr, connect,
    getsockname, getsockopt, socket, sockopt,
};

use serde::{Deserialize, Serialize};

use super::stream::Plain;
use crate::fd::adopt_listed;
use crate::systemd;

/// A monitor of the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MonitorOption {
    /// Where it listens.
    pub address: MonitorAddress,
    /// Whom it is for.
    pub mode: MonitorMode,
}

/// QEMU's `-mon mode=`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MonitorMode {
    /// It speaks QMP, with programs.
    #[default]
    Control,
    /// It speaks HMP, with people.
    Readline,
}

impl fmt::Display for MonitorOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let option = match self.mode {
            MonitorMode::Control => "-qmp",
            MonitorMode::Readline => "-monitor",
        };
        write!(f, "{option} {}", self.address)
    }
}

/// Where a monitor listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MonitorAddress {
    /// Standard input and output.
    Stdio,
    /// A UNIX domain socket.
    Unix {
        /// Its path.
        path: PathBuf,
        /// Whether the guest waits for a first client.
        wait: bool,
    },
    /// A listening socket that this process was started with.
    Inherited {
        /// The service manager's name for it, or the descriptor's number.
        name: String,
        /// Whether the guest waits for a first client.
        wait: bool,
    },
    /// A TCP socket.
    Tcp {
        /// The address or name to listen on; nothing is every address.
        host: String,
        /// Its port.
        port: u16,
        /// Whether the guest waits for a first client.
        wait: bool,
    },
}

impl fmt::Display for MonitorAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdio => f.write_str("stdio"),
            Self::Unix { path, .. } => write!(f, "unix:{}", path.display()),
            Self::Inherited { name, .. } => write!(f, "fd:{name}"),
            Self::Tcp { host, port, .. } => write!(f, "tcp:{host}:{port}"),
        }
    }
}

impl MonitorAddress {
    /// Whether both are the same place; whether the guest waits is no matter.
    pub fn is_same_place(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Stdio, Self::Stdio) => true,
            (Self::Unix { path: a, .. }, Self::Unix { path: b, .. }) => a == b,
            (Self::Inherited { name: a, .. }, Self::Inherited { name: b, .. }) => a == b,
            (
                Self::Tcp {
                    host: a, port: x, ..
                },
                Self::Tcp {
                    host: b, port: y, ..
                },
            ) => a == b && x == y,
            _ => false,
        }
    }

    /// Whether the guest waits for a first client.
    pub(super) fn waits(&self) -> bool {
        match self {
            Self::Stdio => false,
            Self::Unix { wait, .. } | Self::Inherited { wait, .. } | Self::Tcp { wait, .. } => {
                *wait
            }
        }
    }
}

/// A monitor that listens, or did: the standard streams have their one client from the start.
pub(super) struct Listening {
    pub(super) option: MonitorOption,
    pub(super) socket: Option<Socket>,
}

/// Where clients connect.
pub(super) enum Socket {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Socket {
    /// A descriptor that listens.
    pub(super) fn from_fd(fd: OwnedFd) -> Result<Self, String> {
        let failed = |e| format!("is no socket: {e}");
        let listens = getsockopt(&fd, sockopt::AcceptConn).map_err(failed)?;
        let stream = getsockopt(&fd, sockopt::SockType).map_err(failed)? == SockType::Stream;
        let name: SockaddrStorage = getsockname(fd.as_raw_fd()).map_err(failed)?;
        match name.family() {
            _ if !listens || !stream => Err("does not listen for streams".to_owned()),
            Some(AddressFamily::Unix) => Ok(Self::Unix(fd.into())),
            Some(AddressFamily::Inet | AddressFamily::Inet6) => Ok(Self::Tcp(fd.into())),
            _ => Err("is neither a UNIX nor a TCP socket".to_owned()),
        }
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(listener) => listener.as_fd(),
            Self::Tcp(listener) => listener.as_fd(),
        }
    }

    /// Waits for a client.
    pub(super) fn accept(&self) -> io::Result<Plain> {
        Ok(match self {
            Self::Unix(listener) => Plain::Unix(listener.accept()?.0),
            Self::Tcp(listener) => Plain::Tcp(listener.accept()?.0),
        })
    }
}

/// A monitor that cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("{option}: {reason}")]
pub struct MonitorError {
    /// As it was said.
    pub(super) option: String,
    pub(super) reason: String,
}

/// A UNIX socket's path, removed in the end unless somebody else has bound it since.
pub(crate) struct OwnPath {
    path: PathBuf,
    identity: Option<Identity>,
    /// Whether it is this program's: one that is inherited stays for whoever comes next until it is
    /// served.
    served: bool,
}

/// A file's device and inode.
pub(crate) type Identity = (u64, u64);

impl OwnPath {
    /// Owns `path` as long as the socket there is the one of this identity.
    fn new(path: PathBuf, identity: Option<Identity>) -> Self {
        Self {
            path,
            identity,
            served: true,
        }
    }

    /// The same once it is served: the program it comes from may still get it back.
    pub(crate) fn inherited(path: PathBuf, identity: Identity) -> Self {
        Self {
            path,
            identity: Some(identity),
            served: false,
        }
    }

    /// It is this program's from here on.
    pub(crate) fn serve(&mut self) {
        self.served = true;
    }

    /// What is to be there when it is removed.
    pub(crate) fn identity(&self) -> Option<Identity> {
        self.identity
    }

    pub(super) fn is_of(&self, address: &MonitorAddress) -> bool {
        matches!(address, MonitorAddress::Unix { path, .. } if *path == self.path)
    }

    /// Leaves the path to whoever is told its identity.
    pub(crate) fn give_up(mut self) -> Option<Identity> {
        self.identity.take()
    }
}

impl Drop for OwnPath {
    fn drop(&mut self) {
        if self.served && self.identity.is_some() && identity(&self.path) == self.identity {
            // It is only a courtesy; a successor replaces a stale socket.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Nothing if there is no socket.
pub(super) fn identity(path: &Path) -> Option<Identity> {
    path.symlink_metadata()
        .ok()
        .filter(|meta| meta.file_type().is_socket())
        .map(|meta| (meta.dev(), meta.ino()))
}

/// Listens on `path`. A socket that nobody listens on any more is replaced; anything else there is
/// left alone.
pub(crate) fn bind_unix(path: &Path) -> Result<(UnixListener, OwnPath), String> {
    let listener = match UnixListener::bind(path) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
            check_stale(path)?;
            std::fs::remove_file(path)
                .map_err(|e| format!("the stale socket cannot be removed: {e}"))?;
            UnixListener::bind(path)
        }
        other => other,
    }
    .map_err(|e| format!("cannot be bound: {e}"))?;
    let own = OwnPath::new(path.to_owned(), identity(path));
    Ok((listener, own))
}

/// Checks that what is at `path` is a socket on which nobody listens.
fn check_stale(path: &Path) -> Result<(), String> {
    let meta = path
        .symlink_metadata()
        .map_err(|e| format!("cannot be examined: {e}"))?;
    // Connecting to a file of another kind is refused just as if nobody listened.
    if !meta.file_type().is_socket() {
        return Err("there is a file that is no socket; remove it, or say another path".to_owned());
    }
    // A listener that takes no clients now, because it is stopped, must not hold up this process.
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let probe = socket(AddressFamily::Unix, SockType::Stream, flags, None)
        .map_err(|e| format!("cannot be probed: {e}"))?;
    let address = UnixAddr::new(path).map_err(|e| format!("cannot be probed: {e}"))?;
    match connect(probe.as_raw_fd(), &address) {
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(()),
        Ok(()) | Err(Errno::EAGAIN | Errno::EPROTOTYPE) => {
            Err("another process listens there; give this one a path of its own".to_owned())
        }
        Err(e) => Err(format!("there is a socket that cannot be probed: {e}")),
    }
}

/// Takes the listening socket that the service manager calls `name`, or whose number that is.
pub(super) fn inherited(name: &str) -> Result<Socket, String> {
    let fd = match systemd::take(name) {
        Some(fd) => fd,
        None => adopt_listed(name).map_err(|e| e.to_string())?,
    };
    Socket::from_fd(fd)
}

/// Listens on a TCP port.
pub(crate) fn bind_tcp(host: &str, port: u16) -> Result<TcpListener, String> {
    let host = if host.is_empty() { "0.0.0.0" } else { host };
    TcpListener::bind((host, port)).map_err(|e| format!("cannot be bound: {e}"))
}
