//! What a character device is to be, checked.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::cli::Id;
use crate::monitor::MonitorMode;

/// The most users of a character device with `mux=on`, as in QEMU.
pub const MUX_MAX: usize = 4;

/// A `-chardev`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chardev {
    /// Its id; those of `-serial` are `serial0`, `serial1`, ...
    pub id: Id,
    /// Where its bytes go and come from.
    pub backend: ChardevBackend,
    /// Whether several can use it, of which one has the input at a time (`mux=on`).
    pub mux: bool,
    /// The monitors on it.
    pub monitors: Vec<MonitorMode>,
}

impl Chardev {
    /// How many devices can use it.
    pub fn users_max(&self) -> usize {
        let all = if self.mux { MUX_MAX } else { 1 };
        all.saturating_sub(self.monitors.len())
    }
}

/// Where the bytes of a character device go and come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChardevBackend {
    /// Nowhere.
    Null,
    /// Standard input and output.
    Stdio {
        /// Whether a terminal's keys still send signals: Ctrl-C ends the process.
        signal: bool,
    },
    /// A file, and maybe one to read from.
    File {
        /// Where output goes; it is made if need be.
        path: PathBuf,
        /// Whether what it holds stays.
        append: bool,
        /// Where input comes from.
        input: Option<PathBuf>,
    },
    /// The named pipes `PATH.in` and `PATH.out`, or the one at `PATH`.
    Pipe {
        /// The name.
        path: PathBuf,
    },
    /// The master side of a new pseudo-terminal.
    Pty {
        /// A symbolic link to the other side.
        link: Option<PathBuf>,
    },
    /// A stream socket.
    Socket(ChardevSocket),
    /// Memory that holds the last bytes of output, for `ringbuf-read`.
    Ringbuf {
        /// How many bytes: a power of two.
        size: usize,
    },
}

impl ChardevBackend {
    /// QEMU's name of the kind.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Stdio { .. } => "stdio",
            Self::File { .. } => "file",
            Self::Pipe { .. } => "pipe",
            Self::Pty { .. } => "pty",
            Self::Socket(_) => "socket",
            Self::Ringbuf { .. } => "ringbuf",
        }
    }

    /// Whether it uses standard input and output, which only one can.
    pub fn is_stdio(&self) -> bool {
        matches!(self, Self::Stdio { .. })
    }
}

/// A stream socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChardevSocket {
    /// Where.
    pub address: ChardevAddress,
    /// Whether it listens or connects.
    pub role: SocketRole,
    /// TCP: whether small pieces are sent at once.
    pub nodelay: bool,
}

/// Where a socket is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChardevAddress {
    /// A path.
    Unix(PathBuf),
    /// A name in Linux's abstract namespace.
    Abstract {
        /// The name, without the NUL before it.
        name: String,
        /// Whether the address ends with the name, or NULs fill it up.
        tight: bool,
    },
    /// A TCP port.
    Tcp {
        /// An address or a name; nothing is every address.
        host: String,
        /// Its port.
        port: u16,
    },
}

/// As QEMU writes it in `query-chardev`.
impl fmt::Display for ChardevAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Abstract { name, tight } => {
                let tight = if *tight { ",tight=on" } else { "" };
                write!(f, "unix:{name},abstract=on{tight}")
            }
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
        }
    }
}

/// Which side of a connection a socket is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketRole {
    /// It listens, and has one client at a time.
    Server {
        /// Whether the guest waits for a first client.
        wait: bool,
    },
    /// It connects.
    Client {
        /// How long after a connection was lost or refused it tries again; if it is not said, a
        /// lost connection stays lost.
        reconnect: Option<Duration>,
    },
}
