//! What a monitor leaves, as bytes and descriptors that another program can go on with.

use std::collections::BTreeMap;
use std::mem::take;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, SockType, SockaddrLike, SockaddrStorage, getsockname, getsockopt, sockopt,
};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::client::{self, QUEUE, READ};
use super::events::{BEHIND, BEHIND_BYTES, Held};
use super::fds::{NAMES_MAX, NamedFds};
use super::framing::{Framing, MESSAGE_MAX};
use super::hmp;
use super::json;
use super::keep::Kept;
use super::listener::{
    Listening, MonitorAddress, MonitorMode, MonitorOption, OwnPath, Socket, identity,
};
use super::outgoing::{Line, Outgoing};
use super::served::Parked;
use super::session::Session;
use super::stream::Plain;
use super::terminal::RawMode;
use crate::fdset::{self, Passed};

/// The most bytes that may be on their way to one client: what it may be behind, and an answer.
const UNSENT_MAX: usize = BEHIND_BYTES + (64 << 20);
/// The most commands of a client that wait, and their bytes: what one read brings beside those that
/// wait already. As JSON they may be a little longer than they were said.
const WAITING_MAX: usize = QUEUE + READ;
const WAITING_BYTES: usize = (QUEUE + 1) * 2 * MESSAGE_MAX;
/// The most lines: what it may be behind, one that has begun, the greeting or an answer.
const UNSENT_LINES: usize = BEHIND + 16;

/// What a monitor left, but for its descriptors, which it names by their place in a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeptDescription {
    #[serde(default)]
    listeners: Vec<KeptListener>,
    #[serde(default)]
    clients: Vec<KeptClient>,
    /// Clients of monitors for people.
    #[serde(default)]
    people: Vec<KeptPerson>,
    /// Events that no client has been sent yet.
    #[serde(default)]
    events: Vec<String>,
    /// How many events before these are lost.
    #[serde(default)]
    lost: u64,
    /// Descriptors that clients have passed.
    #[serde(default)]
    sets: Vec<KeptPassed>,
}

/// What cannot be gone on with.
#[derive(Debug, thiserror::Error)]
#[error("What the monitor left cannot be taken over: {0}")]
pub struct KeptError(String);

/// An address as on the command line, with what is needed to go on there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum KeptListener {
    Stdio {
        #[serde(default)]
        mode: MonitorMode,
    },
    Unix {
        fd: usize,
        path: ByteBuf,
        /// The device and inode of the socket, which is to be removed in the end.
        #[serde(default)]
        owned: Option<(u64, u64)>,
        #[serde(default)]
        mode: MonitorMode,
    },
    Inherited {
        fd: usize,
        name: String,
        #[serde(default)]
        mode: MonitorMode,
    },
    Tcp {
        fd: usize,
        host: String,
        port: u16,
        #[serde(default)]
        mode: MonitorMode,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct KeptClient {
    stream: KeptStream,
    negotiated: bool,
    #[serde(default)]
    oob: bool,
    /// What it has said whole and nobody has taken, each as JSON.
    #[serde(default)]
    waiting: Vec<String>,
    /// What it has said beyond that.
    #[serde(default)]
    unread: ByteBuf,
    /// Whether it is in a line that was too long.
    #[serde(default)]
    skipping: bool,
    /// What it is still to be told.
    #[serde(default)]
    unsent: Vec<KeptLine>,
    /// Descriptors that it has given names to.
    #[serde(default)]
    named: Vec<(String, usize)>,
}

/// A descriptor in a set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct KeptPassed {
    set: u32,
    fd: usize,
    #[serde(default)]
    opaque: Option<String>,
    #[serde(default)]
    used: bool,
}

/// A client of a monitor for people.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct KeptPerson {
    stream: KeptStream,
    session: hmp::State,
    /// What its terminal was like before it sent keys.
    #[serde(default)]
    terminal: Option<ByteBuf>,
    /// What it is still to be told.
    #[serde(default)]
    unsent: Vec<KeptLine>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum KeptStream {
    Unix { fd: usize },
    Tcp { fd: usize },
    Standard { input: usize, output: usize },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct KeptLine {
    text: String,
    /// Whether it may be lost by a client that does not read.
    #[serde(default)]
    event: bool,
}

impl Kept {
    /// Takes it apart, for another program. Nothing is closed and no socket is removed unless it is
    /// put together again. Events that are emitted from now on are not in it.
    pub fn into_parts(mut self) -> (KeptDescription, Vec<OwnedFd>) {
        self.catch_up();
        let mut fds = Vec::new();
        let mut paths = take(&mut self.paths);
        let listeners = take(&mut self.listeners)
            .into_iter()
            .filter_map(|listening| describe_listener(listening, &mut paths, &mut fds))
            .collect();
        let (mut clients, mut people) = (Vec::new(), Vec::new());
        for client in take(&mut self.clients) {
            match client {
                Parked::Control(client) => clients.push(describe_client(client, &mut fds)),
                Parked::Readline(person) => people.push(describe_person(person, &mut fds)),
            }
        }
        let mut sets = Vec::new();
        for (set, passed) in take(&mut self.sets) {
            for Passed { fd, opaque, used } in passed {
                sets.push(KeptPassed {
                    set,
                    fd: fds.len(),
                    opaque,
                    used,
                });
                fds.push(fd);
            }
        }
        let description = KeptDescription {
            sets,
            listeners,
            clients,
            people,
            events: self.held.lines().map(|line| line.to_string()).collect(),
            lost: self.held.lost(),
        };
        (description, fds)
    }

    /// The opposite of [`Self::into_parts`], in this program or another. Everything is checked, and
    /// descriptors are closed on exec again.
    pub fn from_parts(description: KeptDescription, fds: Vec<OwnedFd>) -> Result<Self, KeptError> {
        build(description, fds).map_err(KeptError)
    }

    /// The listening sockets that another process has had until now. Their paths are this process's
    /// once they are served.
    pub fn from_sockets(sockets: Vec<(MonitorOption, OwnedFd)>) -> Result<Self, KeptError> {
        let mut listeners = Vec::new();
        let mut fds = Vec::new();
        for (MonitorOption { address, mode }, socket) in sockets {
            let fd = fds.len();
            listeners.push(match address {
                MonitorAddress::Stdio => continue,
                MonitorAddress::Unix { path, .. } => KeptListener::Unix {
                    fd,
                    owned: identity(&path),
                    path: ByteBuf::from(path.into_os_string().into_vec()),
                    mode,
                },
                MonitorAddress::Inherited { name, .. } => {
                    KeptListener::Inherited { fd, name, mode }
                }
                MonitorAddress::Tcp { host, port, .. } => KeptListener::Tcp {
                    fd,
                    host,
                    port,
                    mode,
                },
            });
            fds.push(socket);
        }
        let description = KeptDescription {
            listeners,
            clients: Vec::new(),
            people: Vec::new(),
            sets: Vec::new(),
            events: Vec::new(),
            lost: 0,
        };
        Self::from_parts(description, fds)
    }
}

fn describe_listener(
    Listening { option, socket }: Listening,
    paths: &mut Vec<OwnPath>,
    fds: &mut Vec<OwnedFd>,
) -> Option<KeptListener> {
    let MonitorOption { address, mode } = option;
    let own = paths.iter().position(|own| own.is_of(&address));
    let owned = own.and_then(|at| paths.swap_remove(at).give_up());
    let fd = fds.len();
    fds.extend(socket.map(|socket| match socket {
        Socket::Unix(listener) => OwnedFd::from(listener),
        Socket::Tcp(listener) => listener.into(),
    }));
    match address {
        MonitorAddress::Stdio => Some(KeptListener::Stdio { mode }),
        // One that has failed is bound again by the next program.
        _ if fds.len() == fd => None,
        MonitorAddress::Unix { path, .. } => Some(KeptListener::Unix {
            fd,
            path: ByteBuf::from(path.into_os_string().into_vec()),
            owned,
            mode,
        }),
        MonitorAddress::Tcp { host, port, .. } => Some(KeptListener::Tcp {
            fd,
            host,
            port,
            mode,
        }),
        MonitorAddress::Inherited { name, .. } => Some(KeptListener::Inherited { fd, name, mode }),
    }
}

fn describe_stream(stream: Plain, fds: &mut Vec<OwnedFd>) -> KeptStream {
    let mut index = |fd: OwnedFd| {
        fds.push(fd);
        fds.len() - 1
    };
    match stream {
        Plain::Unix(stream) => KeptStream::Unix {
            fd: index(stream.into()),
        },
        Plain::Tcp(stream) => KeptStream::Tcp {
            fd: index(stream.into()),
        },
        Plain::Standard { input, output } => KeptStream::Standard {
            input: index(input),
            output: index(output),
        },
    }
}

fn describe_unsent(out: Outgoing) -> Vec<KeptLine> {
    let line = |Line { text, event }| KeptLine {
        text: String::from(&*text),
        event,
    };
    out.into_lines().map(line).collect()
}

fn describe_person(person: hmp::Parked, fds: &mut Vec<OwnedFd>) -> KeptPerson {
    KeptPerson {
        stream: describe_stream(person.stream, fds),
        session: person.session.into_state(),
        terminal: person.raw.and_then(RawMode::leave).map(ByteBuf::from),
        unsent: describe_unsent(person.out),
    }
}

fn describe_client(client: client::Parked, fds: &mut Vec<OwnedFd>) -> KeptClient {
    let stream = describe_stream(client.stream, fds);
    let mut named = Vec::new();
    for (name, fd) in client.named.take_all() {
        named.push((name, fds.len()));
        fds.push(fd);
    }
    let waiting = client.waiting.iter().map(ToString::to_string).collect();
    let (unread, skipping) = client.framing.into_unread();
    KeptClient {
        stream,
        negotiated: client.session.hears_events(),
        oob: client.session.has_oob(),
        waiting,
        unread: ByteBuf::from(unread),
        skipping,
        named,
        unsent: describe_unsent(client.out),
    }
}

fn build(description: KeptDescription, fds: Vec<OwnedFd>) -> Result<Kept, String> {
    let mut fds = Descriptors(fds.into_iter().map(Some).collect());
    let mut kept = Kept::default();
    for listener in description.listeners {
        let (listening, own) = build_listener(listener, &mut fds)?;
        let address = &listening.option.address;
        if kept.listens_on(address) {
            return Err(format!("it listens on {address} twice"));
        }
        kept.listeners.push(listening);
        kept.paths.extend(own);
    }
    for client in description.clients {
        let client = build_client(client, &mut fds)?;
        kept.clients.push(Parked::Control(client));
    }
    for person in description.people {
        let person = build_person(person, &mut fds)?;
        kept.clients.push(Parked::Readline(person));
    }
    if description.sets.len() > fdset::MOST {
        return Err(format!(
            "its sets have {} descriptors, more than there ever are",
            description.sets.len()
        ));
    }
    for passed in description.sets {
        let KeptPassed {
            set,
            fd,
            opaque,
            used,
        } = passed;
        let fd = fds.take(fd)?;
        let all = kept.sets.entry(set).or_default();
        all.push(Passed { fd, opaque, used });
    }
    if let Some(at) = fds.0.iter().position(Option::is_some) {
        return Err(format!("descriptor {at} belongs to nothing"));
    }
    let bytes: usize = description.events.iter().map(String::len).sum();
    if description.events.len() > BEHIND || bytes > BEHIND_BYTES {
        return Err(format!(
            "it has {} events of {bytes} bytes, more than are ever held",
            description.events.len()
        ));
    }
    let mut held = Held::default();
    held.lose(description.lost);
    for event in description.events {
        held.push(event.into());
    }
    kept.held = held;
    Ok(kept)
}

fn build_listener(
    listener: KeptListener,
    fds: &mut Descriptors,
) -> Result<(Listening, Option<OwnPath>), String> {
    let (address, mode, socket, own) = match listener {
        KeptListener::Stdio { mode } => (MonitorAddress::Stdio, mode, None, None),
        KeptListener::Unix {
            fd,
            path,
            owned,
            mode,
        } => {
            let socket = UnixListener::from(fds.socket(fd, Kind::UnixListener)?);
            let path = PathBuf::from(std::ffi::OsString::from_vec(path.into_vec()));
            // So that no other file can be removed in the end.
            if !socket
                .local_addr()
                .is_ok_and(|at| at.as_pathname() == Some(&path))
            {
                return Err(format!(
                    "descriptor {fd} does not listen on {}",
                    shown(&path)
                ));
            }
            let own = owned.map(|identity| OwnPath::inherited(path.clone(), identity));
            let address = MonitorAddress::Unix { path, wait: false };
            (address, mode, Some(Socket::Unix(socket)), own)
        }
        KeptListener::Inherited { fd, name, mode } => {
            let socket = Socket::from_fd(fds.take(fd)?);
            let socket = socket.map_err(|e| format!("descriptor {fd} {e}"))?;
            let address = MonitorAddress::Inherited { name, wait: false };
            (address, mode, Some(socket), None)
        }
        KeptListener::Tcp {
            fd,
            host,
            port,
            mode,
        } => {
            let socket = TcpListener::from(fds.socket(fd, Kind::TcpListener)?);
            let wait = false;
            let address = MonitorAddress::Tcp { host, port, wait };
            (address, mode, Some(Socket::Tcp(socket)), None)
        }
    };
    let option = MonitorOption { address, mode };
    Ok((Listening { option, socket }, own))
}

fn shown(path: &Path) -> String {
    path.as_os_str().as_bytes().escape_ascii().to_string()
}

fn build_client(client: KeptClient, fds: &mut Descriptors) -> Result<client::Parked, String> {
    if client.unread.len() > MESSAGE_MAX + READ {
        return Err(format!(
            "a client has said {} bytes that nobody has taken, more than are ever read",
            client.unread.len()
        ));
    }
    let bytes: usize = client.waiting.iter().map(String::len).sum();
    if client.waiting.len() > WAITING_MAX || bytes > WAITING_BYTES {
        return Err(format!(
            "a client waits for {} commands of {bytes} bytes, more than are ever read",
            client.waiting.len()
        ));
    }
    let waiting = client
        .waiting
        .iter()
        .map(|text| json::parse(text.as_bytes()));
    let waiting = waiting.collect::<Result<_, _>>()?;
    if client.named.len() > NAMES_MAX {
        return Err(format!(
            "a client has {} named descriptors, more than it ever may",
            client.named.len()
        ));
    }
    let mut named = BTreeMap::new();
    for (name, fd) in client.named {
        named.insert(name, fds.take(fd)?);
    }
    Ok(client::Parked {
        stream: build_stream(&client.stream, fds)?,
        session: Session::resumed(client.negotiated, client.oob),
        waiting,
        framing: Framing::resumed(client.unread.into_vec(), client.skipping),
        out: build_unsent(client.unsent)?,
        named: NamedFds::from(named),
    })
}

fn build_person(person: KeptPerson, fds: &mut Descriptors) -> Result<hmp::Parked, String> {
    if !person.session.is_possible() {
        return Err("a client has said or typed more than is ever kept".to_owned());
    }
    Ok(hmp::Parked {
        stream: build_stream(&person.stream, fds)?,
        session: hmp::Session::resumed(person.session),
        out: build_unsent(person.unsent)?,
        raw: person
            .terminal
            .map(|before| RawMode::adopt(&before))
            .transpose()?,
    })
}

fn build_unsent(lines: Vec<KeptLine>) -> Result<Outgoing, String> {
    let bytes: usize = lines.iter().map(|line| line.text.len()).sum();
    if lines.len() > UNSENT_LINES || bytes > UNSENT_MAX {
        return Err(format!(
            "a client is to be told {} lines of {bytes} bytes, more than are ever kept",
            lines.len()
        ));
    }
    let mut out = Outgoing::default();
    // A line without a byte would never be through.
    for line in lines.into_iter().filter(|l| !l.text.is_empty()) {
        out.push(Line {
            text: line.text.into(),
            event: line.event,
        });
    }
    Ok(out)
}

fn build_stream(stream: &KeptStream, fds: &mut Descriptors) -> Result<Plain, String> {
    Ok(match *stream {
        KeptStream::Unix { fd } => Plain::Unix(UnixStream::from(fds.socket(fd, Kind::UnixClient)?)),
        KeptStream::Tcp { fd } => Plain::Tcp(TcpStream::from(fds.socket(fd, Kind::TcpClient)?)),
        KeptStream::Standard { input, output } => Plain::Standard {
            input: fds.take(input)?,
            output: fds.take(output)?,
        },
    })
}

/// What a descriptor has to be.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    UnixListener,
    UnixClient,
    TcpListener,
    TcpClient,
}

impl Kind {
    fn text(self) -> &'static str {
        match self {
            Self::UnixListener => "a listening UNIX socket",
            Self::UnixClient => "a connected UNIX socket",
            Self::TcpListener => "a listening TCP socket",
            Self::TcpClient => "a connected TCP socket",
        }
    }
}

/// Descriptors that something may take, each once.
struct Descriptors(Vec<Option<OwnedFd>>);

impl Descriptors {
    fn take(&mut self, at: usize) -> Result<OwnedFd, String> {
        let all = self.0.len();
        let fd = self
            .0
            .get_mut(at)
            .ok_or_else(|| format!("it names descriptor {at} of {all}"))?
            .take()
            .ok_or_else(|| format!("it names descriptor {at} twice"))?;
        fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))
            .map_err(|e| format!("descriptor {at} cannot be prepared: {e}"))?;
        Ok(fd)
    }

    fn socket(&mut self, at: usize, kind: Kind) -> Result<OwnedFd, String> {
        let fd = self.take(at)?;
        let failed = |e| format!("descriptor {at} is no socket: {e}");
        let listens = getsockopt(&fd, sockopt::AcceptConn).map_err(failed)?;
        let stream = getsockopt(&fd, sockopt::SockType).map_err(failed)? == SockType::Stream;
        let name: SockaddrStorage = getsockname(fd.as_raw_fd()).map_err(failed)?;
        let found = match (name.family(), listens) {
            (Some(AddressFamily::Unix), true) => Some(Kind::UnixListener),
            (Some(AddressFamily::Unix), false) => Some(Kind::UnixClient),
            (Some(AddressFamily::Inet | AddressFamily::Inet6), true) => Some(Kind::TcpListener),
            (Some(AddressFamily::Inet | AddressFamily::Inet6), false) => Some(Kind::TcpClient),
            _ => None,
        };
        match found {
            Some(found) if stream && found == kind => Ok(fd),
            found => Err(format!(
                "descriptor {at} is {}, not {}",
                found.map_or("something else", Kind::text),
                kind.text()
            )),
        }
    }
}
