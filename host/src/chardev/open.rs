//! How a character device comes to be: opened, or out of what was handed over.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use baton_migration::Mode;
use baton_migration::fds::FdTable;

use super::config::{Chardev, ChardevBackend};
use super::link::{Link, Streams};
use super::pty::Pty;
use super::relay::Relay;
use super::ring::Ring;
use super::socket::Socket;
use super::{Descriptors, Frontend, OWNER, carried, terminal};

/// What the descriptors of a character device are, in a handover.
const INPUT: u32 = 0;
const OUTPUT: u32 = 1;
const LISTENER: u32 = 2;
const CONNECTION: u32 = 3;
const MASTER: u32 = 4;
const CARRIER: u32 = 5;
const TERMINAL: u32 = 6;
/// And of a user of it.
const NEAR: u32 = 0;
const FAR: u32 = 1;

const NOT_THERE: &str = "the source has none of that kind; give the target the same as the source";

/// How a character device reaches its users.
pub(super) enum Kind {
    /// They have its descriptors.
    Direct(Direct),
    /// Its bytes are moved to and from them.
    Relayed(Box<Relayed>),
}

/// A character device whose users have its descriptors.
pub(super) struct Direct {
    input: Option<OwnedFd>,
    output: Option<OwnedFd>,
    /// Standard streams are each process's own: a successor was started with the ones it shall use.
    stdio: bool,
}

/// A character device whose bytes are moved.
pub(super) struct Relayed {
    pub(super) relay: Relay,
    stdio: bool,
}

/// The name of a user's descriptors in a handover.
pub(super) fn frontend_key(id: &str, user: &str) -> String {
    // An id has no slash.
    format!("{id}/{user}")
}

/// Opens `config`, or takes what was handed over for it.
pub(super) fn open(
    config: &Chardev,
    preserved: Option<&FdTable>,
    restoring: bool,
) -> Result<Kind, String> {
    let id = config.id.as_str();
    let take = |instance| match preserved {
        Some(table) if table.has(OWNER, id, instance) => table
            .take(OWNER, id, instance)
            .map(Some)
            .map_err(|e| e.to_string()),
        _ => Ok(None),
    };
    // One that only monitors use is each process's own, unless the process stays.
    let handed_over =
        |table: &&FdTable| config.monitors.is_empty() || table.has(OWNER, id, CARRIER);
    // For a client of one that is new nobody waits: the guest has started long ago.
    let waits = preserved.is_none();
    let preserved = preserved.filter(handed_over);
    let carrier = take(CARRIER)?;
    let link = match &config.backend {
        ChardevBackend::Socket(socket) => {
            let link = match preserved {
                Some(_) => Socket::inherited(socket, take(LISTENER)?, take(CONNECTION)?)?,
                None => Socket::open(socket, waits, Instant::now())?,
            };
            Link::Socket(link)
        }
        ChardevBackend::Pty { link } => Link::Pty(match (take(MASTER)?, preserved) {
            (Some(master), _) => Pty::inherited(master, link.as_deref())?,
            (None, None) => Pty::open(link.as_deref())?,
            (None, Some(_)) => return Err(NOT_THERE.to_owned()),
        }),
        ChardevBackend::Ringbuf { size } => Link::Ring(Ring::new(*size)),
        backend => {
            let (input, output) = match (take(INPUT)?, take(OUTPUT)?) {
                (None, None) => streams(backend, restoring)?,
                preserved => preserved,
            };
            let stdio = backend.is_stdio();
            if let ChardevBackend::Stdio { signal } = backend {
                if let Some(before) = take(TERMINAL)? {
                    let before = carried::contents(before, terminal::CARRIED + 1)
                        .map_err(|e| format!("the terminal's settings cannot be read: {e}"))?;
                    terminal::adopt(&before)?;
                }
                terminal::begin(*signal)
                    .map_err(|e| format!("the terminal cannot be set up: {e}"))?;
            }
            if !config.mux && config.monitors.is_empty() {
                return Ok(Kind::Direct(Direct {
                    input,
                    output,
                    stdio,
                }));
            }
            match (&input, &output) {
                (None, None) => Link::Null,
                _ => Link::Streams(Streams::new(input, output).map_err(|e| e.to_string())?),
            }
        }
    };
    let mut relay = Relay::new(link, config.mux);
    relay.held = preserved.is_some();
    for number in 0..config.monitors.len() {
        let mut monitor = Frontend::monitor(number, None);
        let name = frontend_key(id, &monitor.user);
        if let Some(table) = preserved.filter(|table| table.has(OWNER, &name, NEAR)) {
            let near = table.take(OWNER, &name, NEAR).map_err(|e| e.to_string())?;
            monitor = Frontend::monitor(number, Some(near));
        }
        relay.attach(monitor);
    }
    match (carrier, preserved) {
        (Some(carrier), _) => relay.inherit(carrier),
        (None, Some(_)) => return Err(NOT_THERE.to_owned()),
        (None, None) => {}
    }
    Ok(Kind::Relayed(Box::new(Relayed {
        relay,
        stdio: config.backend.is_stdio(),
    })))
}

/// Opens what is no more than two descriptors.
fn streams(backend: &ChardevBackend, restoring: bool) -> Result<Descriptors, String> {
    let cannot = |path: &Path, e: io::Error| format!("cannot open '{}': {e}", path.display());
    match backend {
        ChardevBackend::Stdio { .. } => {
            let copy = |fd: std::os::fd::BorrowedFd<'_>| {
                fd.try_clone_to_owned()
                    .map_err(|e| format!("standard streams are closed: {e}"))
            };
            let input = copy(io::stdin().as_fd())?;
            Ok((Some(input), Some(copy(io::stdout().as_fd())?)))
        }
        ChardevBackend::File {
            path,
            append,
            input,
        } => {
            let append = *append || restoring;
            let output = OpenOptions::new()
                .append(append)
                .write(true)
                .create(true)
                .truncate(!append)
                .open(path)
                .map_err(|e| cannot(path, e))?;
            let open = |path: &PathBuf| {
                let options = OpenOptions::new()
                    .read(true)
                    // The other end of a pipe is not waited for.
                    .custom_flags(nix::libc::O_NONBLOCK)
                    .open(path);
                options.map_err(|e| cannot(path, e))
            };
            let input = input.as_ref().map(open).transpose()?;
            Ok((input.map(OwnedFd::from), Some(output.into())))
        }
        ChardevBackend::Pipe { path } => {
            // Both ways, so that neither opening waits nor the other end's leaving is an end.
            let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path);
            let end = |suffix: &str| {
                let mut name = path.clone().into_os_string();
                name.push(suffix);
                open(Path::new(&name)).map(OwnedFd::from)
            };
            match (end(".in"), end(".out")) {
                (Ok(input), Ok(output)) => Ok((Some(input), Some(output))),
                _ => {
                    let both: OwnedFd = open(path)
                        .map_err(|e| {
                            let path = path.display();
                            format!("cannot open '{path}.in' and '{path}.out', nor '{path}': {e}")
                        })?
                        .into();
                    let copy = both.try_clone().map_err(|e| cannot(path, e))?;
                    Ok((Some(copy), Some(both)))
                }
            }
        }
        _ => Ok((None, None)),
    }
}

impl Kind {
    /// Duplicates of its descriptors, to hand over in `mode`: names, instances.
    pub(super) fn offer(
        &mut self,
        id: &str,
        mode: Mode,
    ) -> io::Result<Vec<(String, u32, OwnedFd)>> {
        let mut all = Vec::new();
        let mut add = |instance, fd: Option<OwnedFd>| {
            all.extend(fd.map(|fd| (id.to_owned(), instance, fd)));
        };
        let stdio = match self {
            Self::Direct(direct) => {
                if !direct.stdio {
                    let (input, output) = direct.duplicate()?;
                    add(INPUT, input);
                    add(OUTPUT, output);
                }
                direct.stdio
            }
            Self::Relayed(relayed) => {
                match &relayed.relay.link {
                    Link::Socket(socket) => {
                        let (listener, connection) = socket.duplicate()?;
                        add(LISTENER, listener);
                        add(CONNECTION, connection);
                    }
                    Link::Pty(pty) => add(MASTER, Some(pty.duplicate()?)),
                    Link::Streams(streams) if !relayed.stdio => {
                        let (input, output) = streams.duplicate()?;
                        add(INPUT, input);
                        add(OUTPUT, output);
                    }
                    Link::Streams(_) | Link::Null | Link::Ring(_) => {}
                }
                add(CARRIER, Some(relayed.relay.carrier()?));
                relayed.stdio
            }
        };
        if stdio && mode == Mode::CprExec {
            // The same terminal, which the process must leave as it was in the end.
            let before = terminal::carried().map(|bytes| carried::filled(&bytes));
            add(TERMINAL, before.transpose()?);
        }
        if let Self::Relayed(relayed) = self {
            let frontends = relayed.relay.frontends.iter();
            // A monitor's sessions go on if the monitors do.
            let go_on = |f: &&Frontend| f.monitor.is_none() || mode == Mode::CprExec;
            for frontend in frontends.filter(go_on) {
                let name = frontend_key(id, &frontend.user);
                let (near, far) = frontend.duplicate()?;
                all.extend(near.map(|near| (name.clone(), NEAR, near)));
                all.extend(far.map(|far| (name, FAR, far)));
            }
        }
        Ok(all)
    }

    /// As QEMU describes it.
    pub(super) fn filename(&self, config: &Chardev) -> String {
        match self {
            Self::Direct(_) => config.backend.name().to_owned(),
            Self::Relayed(relayed) => match &relayed.relay.link {
                Link::Socket(socket) => socket.filename(),
                Link::Pty(pty) => format!("pty:{}", pty.name().display()),
                _ => config.backend.name().to_owned(),
            },
        }
    }
}

impl Direct {
    /// Input and output.
    pub(super) fn duplicate(&self) -> io::Result<Descriptors> {
        let copy = |fd: &Option<OwnedFd>| fd.as_ref().map(OwnedFd::try_clone).transpose();
        Ok((copy(&self.input)?, copy(&self.output)?))
    }
}

impl Relayed {
    /// A new or known user's end; of one that was handed over, the same as before.
    pub(super) fn attach(
        &mut self,
        id: &str,
        user: &str,
        preserved: Option<&FdTable>,
    ) -> io::Result<OwnedFd> {
        if let Some(known) = self.relay.frontends.iter().find(|f| f.user == user) {
            return known.far();
        }
        let name = frontend_key(id, user);
        let frontend = match preserved {
            Some(table) if table.has(OWNER, &name, NEAR) => {
                let take = |instance| table.take(OWNER, &name, instance).map_err(io::Error::other);
                Frontend::inherited(user, take(NEAR)?, take(FAR)?)
            }
            _ => Frontend::new(user)?,
        };
        let far = frontend.far()?;
        self.relay.attach(frontend);
        Ok(far)
    }

    /// The path of a pseudo-terminal.
    pub(super) fn pty(&self) -> Option<&Path> {
        match &self.relay.link {
            Link::Pty(pty) => Some(pty.name()),
            _ => None,
        }
    }
}
