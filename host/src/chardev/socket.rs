//! A stream socket: a listener with one client at a time, or a connection that is made again (QEMU's
//! chardev/char-socket.c).

use std::io::{self, ErrorKind};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use baton_plugin_api::{Direction, Stream};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    SockType, SockaddrLike, SockaddrStorage, getsockname, getsockopt, setsockopt, sockopt,
};

use super::config::{ChardevAddress, ChardevSocket, SocketRole};
use super::service::Wake;
use crate::fd::accept;
use crate::monitor::{OwnPath, bind_tcp, bind_unix};

/// How long nothing is accepted after an error, such as a lack of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// The longest name in the abstract namespace.
const ABSTRACT_MAX: usize = 107;

/// A socket and its one connection.
pub(super) struct Socket {
    config: ChardevSocket,
    listener: Option<Arc<OwnedFd>>,
    connection: Option<Arc<Stream>>,
    path: Option<OwnPath>,
    attempt: Option<Attempt>,
    /// When to connect, or to look at the listener again.
    retry_at: Option<Instant>,
}

/// A connection that is being made, by a thread of its own: a name may have to be looked up.
struct Attempt(Arc<Mutex<Option<io::Result<OwnedFd>>>>);

impl Socket {
    /// Listens, and waits for a client if the configuration says so and it `waits` at all; or connects.
    pub(super) fn open(config: &ChardevSocket, waits: bool, now: Instant) -> Result<Self, String> {
        let mut socket = Self::closed(config);
        let at = &config.address;
        match config.role {
            SocketRole::Server { wait } => {
                let listener = socket
                    .bind()
                    .map_err(|e| format!("Failed to listen on '{at}': {e}"))?;
                if wait && waits {
                    tracing::info!("waiting for connection on: disconnected:{at},server=on");
                    let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
                    while socket.connection.is_none() {
                        let _ = poll(&mut fds, PollTimeout::NONE);
                        socket.accept(&listener, now);
                    }
                }
                socket.listener = Some(Arc::new(listener));
            }
            SocketRole::Client { reconnect: None } => {
                let fd = connect(at).map_err(|e| format!("Failed to connect to '{at}': {e}"))?;
                socket.connected(fd).map_err(|e| e.to_string())?;
            }
            SocketRole::Client { reconnect: Some(_) } => socket.retry_at = Some(now),
        }
        Ok(socket)
    }

    /// What was handed over: nothing of it is touched.
    pub(super) fn inherited(
        config: &ChardevSocket,
        listener: Option<OwnedFd>,
        connection: Option<OwnedFd>,
    ) -> Result<Self, String> {
        let mut socket = Self::closed(config);
        if let Some(listener) = listener {
            check(&listener, true)?;
            socket.listener = Some(Arc::new(listener));
        }
        if let Some(connection) = connection {
            check(&connection, false)?;
            let stream = Stream::new(connection, Direction::Input).map_err(|e| e.to_string())?;
            socket.connection = Some(Arc::new(stream));
        }
        match (config.role, &socket.listener) {
            (SocketRole::Server { .. }, None) => {
                Err("the listening socket was not handed over".to_owned())
            }
            (SocketRole::Client { .. }, Some(_)) => {
                Err("a listening socket was handed over, and server=off is said here".to_owned())
            }
            _ => Ok(socket),
        }
    }

    fn closed(config: &ChardevSocket) -> Self {
        Self {
            config: config.clone(),
            listener: None,
            connection: None,
            path: None,
            attempt: None,
            retry_at: None,
        }
    }

    fn bind(&mut self) -> Result<OwnedFd, String> {
        let listener: OwnedFd = match &self.config.address {
            ChardevAddress::Unix(path) => {
                let (listener, own) = bind_unix(path)?;
                self.path = Some(own);
                listener.into()
            }
            ChardevAddress::Abstract { name, tight } => abstract_address(name, *tight)
                .and_then(|address| UnixListener::bind_addr(&address))
                .map_err(|e| e.to_string())?
                .into(),
            ChardevAddress::Tcp { host, port } => bind_tcp(host, *port)?.into(),
        };
        fcntl(&listener, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(|e| e.to_string())?;
        Ok(listener)
    }

    /// The connection, if there is one.
    pub(super) fn connection(&self) -> Option<&Arc<Stream>> {
        self.connection.as_ref()
    }

    /// Where a client is waited for, if one can be taken.
    pub(super) fn waits_on(&self) -> Option<&Arc<OwnedFd>> {
        match (&self.connection, self.retry_at) {
            (None, None) => self.listener.as_ref(),
            _ => None,
        }
    }

    /// Duplicates of the listener and the connection.
    pub(super) fn duplicate(&self) -> io::Result<(Option<OwnedFd>, Option<OwnedFd>)> {
        let listener = self.listener.as_ref().map(|fd| fd.try_clone());
        let connection = self.connection.as_ref();
        let connection = connection.map(|fd| fd.as_fd().try_clone_to_owned());
        Ok((listener.transpose()?, connection.transpose()?))
    }

    /// Takes a client, begins to connect or finds out how that went.
    pub(super) fn advance(&mut self, now: Instant, wake: &Wake) {
        if self.connection.is_some() {
            return;
        }
        if self.retry_at.is_some_and(|at| at > now) {
            return;
        }
        if let Some(listener) = self.listener.clone() {
            self.retry_at = None;
            return self.accept(&listener, now);
        }
        match self.attempt.as_ref().map(Attempt::outcome) {
            None if self.retry_at.take().is_some() => self.attempt = self.begin(now, wake),
            None | Some(None) => {}
            Some(Some(outcome)) => {
                self.attempt = None;
                if let Err(e) = outcome.and_then(|fd| self.connected(fd)) {
                    tracing::debug!("{} is not connected: {e}", self.config.address);
                    self.retry_at = self.reconnects().map(|after| now + after);
                }
            }
        }
    }

    fn begin(&mut self, now: Instant, wake: &Wake) -> Option<Attempt> {
        let attempt = Attempt::begin(self.config.address.clone(), wake.clone());
        if attempt.is_none() {
            self.retry_at = self.reconnects().map(|after| now + after.max(PAUSE));
        }
        attempt
    }

    fn accept(&mut self, listener: &OwnedFd, now: Instant) {
        let outcome = match accept(listener) {
            Ok(fd) => self.connected(fd),
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNABORTED) => return,
            Err(e) => Err(e.into()),
        };
        if let Err(e) = outcome {
            tracing::warn!("a client of {} was not taken: {e}", self.config.address);
            self.retry_at = Some(now + PAUSE);
        }
    }

    fn connected(&mut self, fd: OwnedFd) -> io::Result<()> {
        if self.config.nodelay {
            setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
        }
        self.connection = Some(Arc::new(Stream::new(fd, Direction::Input)?));
        Ok(())
    }

    /// The connection is over.
    pub(super) fn disconnect(&mut self, now: Instant) {
        self.connection = None;
        self.retry_at = self.reconnects().map(|after| now + after);
    }

    fn reconnects(&self) -> Option<Duration> {
        match self.config.role {
            SocketRole::Client { reconnect } => reconnect,
            SocketRole::Server { .. } => None,
        }
    }

    /// When [`Self::advance`] has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.retry_at.filter(|_| self.connection.is_none())
    }

    /// What is to be at the path when it is removed in the end.
    pub(super) fn identity(&self) -> Option<(u64, u64)> {
        self.path.as_ref().and_then(OwnPath::identity)
    }

    /// The path becomes this process's, once it is served.
    pub(super) fn inherit_path(&mut self, identity: (u64, u64)) {
        if let ChardevAddress::Unix(path) = &self.config.address
            && self.listener.as_ref().is_some_and(|fd| is_at(fd, path))
        {
            self.path = Some(OwnPath::inherited(path.clone(), identity));
        }
    }

    /// It is this process's from here on. A client that was connecting is connected anew.
    pub(super) fn own(&mut self, now: Instant) {
        self.path.iter_mut().for_each(OwnPath::serve);
        if self.connection.is_none() && self.reconnects().is_some() {
            self.retry_at = Some(now);
        }
    }

    /// It is another process's from here on.
    pub(super) fn give_up(&mut self) {
        self.path.take().map(OwnPath::give_up);
    }

    /// As QEMU describes it.
    pub(super) fn filename(&self) -> String {
        let server = match self.config.role {
            SocketRole::Server { .. } => ",server=on",
            SocketRole::Client { .. } => "",
        };
        let at = &self.config.address;
        let Some(connection) = &self.connection else {
            return format!("disconnected:{at}{server}");
        };
        let ChardevAddress::Tcp { .. } = at else {
            return format!("{at}{server}");
        };
        let Ok(copy) = connection.as_fd().try_clone_to_owned() else {
            return format!("{at}{server}");
        };
        let stream = TcpStream::from(copy);
        let shown = |name: io::Result<std::net::SocketAddr>| {
            name.map_or_else(|_| "?".to_owned(), |name| name.to_string())
        };
        let (local, peer) = (shown(stream.local_addr()), shown(stream.peer_addr()));
        format!("tcp:{local}{server} <-> {peer}")
    }
}

impl Attempt {
    fn begin(address: ChardevAddress, wake: Wake) -> Option<Self> {
        let outcome = Arc::new(Mutex::new(None));
        let told = Arc::clone(&outcome);
        let thread = std::thread::Builder::new().name("connect".into());
        let begun = thread.spawn(move || {
            let outcome = connect(&address);
            *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
            wake.signal();
        });
        begun
            .inspect_err(|e| tracing::warn!("a thread to connect cannot be started: {e}"))
            .ok()
            .map(|_| Self(outcome))
    }

    fn outcome(&self) -> Option<io::Result<OwnedFd>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

fn connect(address: &ChardevAddress) -> io::Result<OwnedFd> {
    Ok(match address {
        ChardevAddress::Unix(path) => UnixStream::connect(path)?.into(),
        ChardevAddress::Abstract { name, tight } => {
            UnixStream::connect_addr(&abstract_address(name, *tight)?)?.into()
        }
        ChardevAddress::Tcp { host, port } => {
            let host = if host.is_empty() { "localhost" } else { host };
            TcpStream::connect((host, *port))?.into()
        }
    })
}

fn abstract_address(name: &str, tight: bool) -> io::Result<SocketAddr> {
    let mut name = name.as_bytes().to_vec();
    if name.len() > ABSTRACT_MAX {
        let text = format!("the name is longer than {ABSTRACT_MAX} bytes");
        return Err(io::Error::new(ErrorKind::InvalidInput, text));
    }
    if !tight {
        name.resize(ABSTRACT_MAX, 0);
    }
    SocketAddr::from_abstract_name(name)
}

/// Refuses what is no stream socket, or not of the kind.
fn check(fd: &OwnedFd, listens: bool) -> Result<(), String> {
    let kind = if listens { "listening" } else { "connected" };
    let fits = getsockopt(fd, sockopt::SockType) == Ok(SockType::Stream)
        && getsockopt(fd, sockopt::AcceptConn) == Ok(listens);
    match fits {
        true => Ok(()),
        false => Err(format!("what was handed over is no {kind} socket")),
    }
}

/// Whether a listener is bound to this path.
fn is_at(listener: &OwnedFd, path: &Path) -> bool {
    let name = getsockname::<SockaddrStorage>(listener.as_raw_fd());
    name.is_ok_and(|name| {
        name.family() == Some(nix::sys::socket::AddressFamily::Unix)
            && name.as_unix_addr().and_then(|unix| unix.path()) == Some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> std::path::PathBuf {
        let folder = std::env::temp_dir().join(format!("baton-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn config(address: ChardevAddress, role: SocketRole) -> ChardevSocket {
        ChardevSocket {
            address,
            role,
            nodelay: false,
        }
    }

    const SERVER: SocketRole = SocketRole::Server { wait: false };

    #[test]
    fn a_server_has_one_client_at_a_time_and_says_which() {
        let folder = folder("chardev-server");
        let path = folder.join("sock");
        let (now, wake) = (Instant::now(), Wake::new().unwrap());
        let at = ChardevAddress::Unix(path.clone());
        let mut socket = Socket::open(&config(at, SERVER), false, now).unwrap();
        let name = format!("unix:{},server=on", path.display());
        socket.advance(now, &wake);
        assert_eq!(socket.filename(), format!("disconnected:{name}"));
        let first = UnixStream::connect(&path).unwrap();
        let _second = UnixStream::connect(&path).unwrap();
        socket.advance(now, &wake);
        assert_eq!(socket.filename(), name);
        assert!(socket.waits_on().is_none());
        drop(first);
        let stream = Arc::clone(socket.connection().unwrap());
        assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
        socket.disconnect(now);
        assert!(socket.waits_on().is_some());
        socket.advance(now, &wake);
        assert!(socket.connection().is_some(), "the second has waited");
        drop(socket);
        assert!(!path.exists());
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_is_handed_over_is_checked_and_its_path_goes_with_its_last_owner() {
        let folder = folder("chardev-inherit");
        let path = folder.join("sock");
        let (now, wake) = (Instant::now(), Wake::new().unwrap());
        let config = config(ChardevAddress::Unix(path.clone()), SERVER);
        let mut source = Socket::open(&config, false, now).unwrap();
        let _client = UnixStream::connect(&path).unwrap();
        source.advance(now, &wake);
        let (listener, connection) = source.duplicate().unwrap();
        let file: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        Socket::inherited(&config, Some(file), None).err().unwrap();
        let swapped = Socket::inherited(&config, connection, None).err();
        assert_eq!(
            swapped.unwrap(),
            "what was handed over is no listening socket"
        );
        let (_, connection) = source.duplicate().unwrap();
        let mut target = Socket::inherited(&config, listener, connection).unwrap();
        target.inherit_path(source.identity().unwrap());
        assert!(target.connection().is_some());
        source.give_up();
        drop(source);
        assert!(path.exists());
        target.own(now);
        drop(target);
        assert!(!path.exists());
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_client_connects_again_and_again() {
        let name = format!("baton-chardev-{}", std::process::id());
        for tight in [true, false] {
            let name = name.clone();
            let at = ChardevAddress::Abstract { name, tight };
            let reconnect = Some(Duration::from_millis(1));
            let role = SocketRole::Client { reconnect };
            let wake = Wake::new().unwrap();
            let mut client =
                Socket::open(&config(at.clone(), role), false, Instant::now()).unwrap();
            let connected = |client: &mut Socket| {
                let end = Instant::now() + Duration::from_secs(10);
                while client.connection().is_none() {
                    assert!(Instant::now() < end, "it does not connect");
                    client.advance(Instant::now(), &wake);
                    std::thread::yield_now();
                }
            };
            client.advance(Instant::now(), &wake);
            let mut server = Socket::open(&config(at, SERVER), false, Instant::now()).unwrap();
            for _ in 0..3 {
                connected(&mut client);
                client.disconnect(Instant::now());
                server.disconnect(Instant::now());
                server.advance(Instant::now(), &wake);
            }
        }
    }

    #[test]
    fn tcp_says_both_ends() {
        // A port that was free a moment ago.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let host = "127.0.0.1".to_owned();
        let at = ChardevAddress::Tcp { host, port };
        let (now, wake) = (Instant::now(), Wake::new().unwrap());
        let mut config = config(at.clone(), SERVER);
        config.nodelay = true;
        let mut server = Socket::open(&config, false, now).unwrap();
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let end = now + Duration::from_secs(10);
        while server.connection().is_none() && Instant::now() < end {
            server.advance(now, &wake);
        }
        let peer = client.local_addr().unwrap();
        assert_eq!(server.filename(), format!("{at},server=on <-> {peer}"));
        let connection = server.connection().unwrap();
        assert_eq!(getsockopt(connection, sockopt::TcpNoDelay), Ok(true));
    }
}
