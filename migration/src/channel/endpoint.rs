//! Where a channel leads, and connecting to it.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, socket, sockopt::AcceptConn,
};

use super::{Bounds, Channel, ChannelError, Deadline, wait};
use crate::HostError;
use crate::address::{InetAddress, SocketAddress};

/// Turns the number or name of an `fd` address into a descriptor that the channel may keep.
pub type ResolveFd<'a> = &'a dyn Fn(&str) -> Result<OwnedFd, HostError>;

/// How long to wait before asking again a listener whose queue is full: it gives no event.
const QUEUE_FULL: Duration = Duration::from_millis(2);

/// An address that a channel can be made of.
#[derive(Debug)]
pub enum Endpoint {
    /// A UNIX domain socket.
    Unix(PathBuf),
    /// TCP.
    Tcp(InetAddress),
    /// An open socket: connected, or listening to accept from it.
    Fd(OwnedFd),
}

impl Endpoint {
    /// The endpoint of an address; descriptors are resolved here, so that nothing about them can
    /// fail later.
    pub fn resolve(address: &SocketAddress, fd: ResolveFd<'_>) -> Result<Self, ChannelError> {
        match address {
            SocketAddress::Unix { path } => Ok(Self::Unix(path.clone())),
            SocketAddress::Inet(inet) => Ok(Self::Tcp(inet.clone())),
            SocketAddress::Fd { str } => {
                fd(str)
                    .map(Self::Fd)
                    .map_err(|source| ChannelError::Descriptor {
                        name: str.clone(),
                        source,
                    })
            }
            SocketAddress::Vsock { .. } => Err(ChannelError::Unsupported {
                address: address.to_string(),
            }),
        }
    }

    /// Connects, or takes the descriptor, which must be connected.
    pub fn connect(
        self,
        name: &'static str,
        bounds: Bounds,
        deadline: Deadline,
    ) -> Result<Channel, ChannelError> {
        let address = self.to_string();
        let connected = match self {
            Self::Unix(path) => connect_unix(&path, deadline),
            Self::Tcp(inet) => connect_tcp(&inet, deadline),
            Self::Fd(fd) => match nix::sys::socket::getsockopt(&fd, AcceptConn) {
                Ok(false) => Ok(fd),
                Ok(true) => Err(io::Error::other("the socket listens; give a connected one")),
                Err(errno) => Err(errno.into()),
            },
        };
        let socket = connected.map_err(|source| ChannelError::Connect { address, source })?;
        Channel::new(socket, name, bounds)
    }
}

impl std::fmt::Display for Endpoint {
    /// As a URI.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(InetAddress { host, port }) => write!(f, "tcp:{host}:{port}"),
            Self::Fd(fd) => write!(f, "fd:{}", fd.as_raw_fd()),
        }
    }
}

/// The socket addresses of a host and port; `any` stands for a host that is `0` or nothing.
pub(super) fn resolve_tcp(inet: &InetAddress, any: [u8; 4]) -> io::Result<Vec<SocketAddr>> {
    let port: u16 = inet.port.parse().map_err(|_| {
        io::Error::new(
            ErrorKind::InvalidInput,
            format!("the port '{}' is no number", inet.port),
        )
    })?;
    match inet.host.as_str() {
        "" | "0" => Ok(vec![SocketAddr::from((any, port))]),
        host => Ok((host, port).to_socket_addrs()?.collect()),
    }
}

fn connect_tcp(inet: &InetAddress, deadline: Deadline) -> io::Result<OwnedFd> {
    let mut last = io::Error::new(ErrorKind::NotFound, "the host has no address");
    for address in resolve_tcp(inet, [127, 0, 0, 1])? {
        let attempt = match deadline.left() {
            None => TcpStream::connect(address),
            Some(Duration::ZERO) => Err(ErrorKind::TimedOut.into()),
            Some(left) => TcpStream::connect_timeout(&address, left),
        };
        match attempt.and_then(|stream| stream.set_nodelay(true).map(|()| stream)) {
            Ok(stream) => return Ok(stream.into()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

pub(super) fn connect_unix(path: &Path, deadline: Deadline) -> io::Result<OwnedFd> {
    let address = UnixAddr::new(path)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    loop {
        let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        match connect(socket.as_raw_fd(), &address).map_err(io::Error::from) {
            Ok(()) => return Ok(socket),
            Err(error) if error.kind() == ErrorKind::WouldBlock && !deadline.passed() => {
                wait([], Deadline::after(QUEUE_FULL))?;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
