//! What a monitor leaves to a successor, which may be another program in the same process.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::events::{Events, Held};
use super::listener::{
    Listening, MonitorAddress, MonitorError, MonitorMode, MonitorOption, OwnPath, Socket, bind_tcp,
    bind_unix, inherited,
};
use super::served::Parked;
use super::stream::Plain;
use crate::fdset::Passed;

/// Listening sockets and connected clients that nobody serves, from [`super::Monitor::detach`] to
/// [`super::Monitor::attach`]. If it is dropped, clients are disconnected and sockets removed, but
/// for those that another program has left.
#[derive(Default)]
pub struct Kept {
    pub(super) listeners: Vec<Listening>,
    pub(super) clients: Vec<Parked>,
    pub(super) paths: Vec<OwnPath>,
    /// Descriptors that clients have passed.
    pub(super) sets: BTreeMap<u32, Vec<Passed>>,
    /// What was emitted before `events`, if there are any, held it.
    pub(super) held: Held,
    /// Where events of this program are held.
    events: Option<Events>,
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept")
            .field("listeners", &self.listeners.len())
            .field("clients", &self.clients.len())
            .field("events", &self.held.lines().len())
            .finish_non_exhaustive()
    }
}

impl Kept {
    /// What a monitor has left. `events` are held.
    pub(super) fn new(
        listeners: Vec<Listening>,
        clients: Vec<Parked>,
        paths: Vec<OwnPath>,
        sets: BTreeMap<u32, Vec<Passed>>,
        events: Events,
    ) -> Self {
        Self {
            listeners,
            clients,
            paths,
            sets,
            held: Held::default(),
            events: Some(events),
        }
    }

    /// Listens as `option` says, and waits for a client if asked to.
    pub(super) fn bind(&mut self, option: &MonitorOption, wait: bool) -> Result<(), MonitorError> {
        self.try_bind(option, wait).map_err(|reason| MonitorError {
            option: option.to_string(),
            reason,
        })
    }

    fn try_bind(&mut self, option: &MonitorOption, wait: bool) -> Result<(), String> {
        let prepared = |e: io::Error| format!("cannot be prepared: {e}");
        let socket = match &option.address {
            MonitorAddress::Stdio => {
                let copy = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned();
                let input = copy(std::io::stdin().as_fd()).map_err(prepared)?;
                let output = copy(std::io::stdout().as_fd()).map_err(prepared)?;
                self.add_streams(option.mode, input, output);
                return Ok(());
            }
            MonitorAddress::Unix { path, .. } => {
                let (listener, own) = bind_unix(path)?;
                self.paths.push(own);
                Socket::Unix(listener)
            }
            MonitorAddress::Inherited { name, .. } => inherited(name)?,
            MonitorAddress::Tcp { host, port, .. } => Socket::Tcp(bind_tcp(host, *port)?),
        };
        if wait {
            tracing::info!("{option}: the guest waits for a client");
            let stream = socket.accept().map_err(prepared)?;
            self.clients.push(Parked::new(option.mode, stream));
        }
        self.listeners.push(Listening {
            option: option.clone(),
            socket: Some(socket),
        });
        Ok(())
    }

    /// Adds the client on standard streams.
    pub(super) fn add_streams(&mut self, mode: MonitorMode, input: OwnedFd, output: OwnedFd) {
        let address = MonitorAddress::Stdio;
        self.listeners.push(Listening {
            option: MonitorOption { address, mode },
            socket: None,
        });
        let stream = Plain::Standard { input, output };
        self.clients.push(Parked::new(mode, stream));
    }

    /// What listens elsewhere than on standard streams: each address with a duplicate of its socket.
    pub(super) fn sockets(&self) -> io::Result<Vec<(MonitorAddress, OwnedFd)>> {
        let sockets = self.listeners.iter().filter_map(|listening| {
            let socket = listening.socket.as_ref()?;
            Some((&listening.option.address, socket.as_fd()))
        });
        sockets
            .map(|(address, fd)| Ok((address.clone(), fd.try_clone_to_owned()?)))
            .collect()
    }

    pub(super) fn listens_on(&self, address: &MonitorAddress) -> bool {
        self.listeners
            .iter()
            .any(|listening| listening.option.address.is_same_place(address))
    }

    /// Lets go of the clients, and of what they were to be told. The standard streams, which nobody
    /// could connect to again, begin anew.
    pub fn disconnect(&mut self) {
        self.clients = std::mem::take(&mut self.clients)
            .into_iter()
            .filter_map(Parked::begin_anew)
            .collect();
        self.held = Held::default();
    }

    /// Adds what listens besides.
    pub fn merge(&mut self, other: Self) {
        self.listeners.extend(other.listeners);
        self.clients.extend(other.clients);
        self.paths.extend(other.paths);
        self.sets.extend(other.sets);
    }

    /// Stops listening elsewhere than `options` say. Clients stay, and new ones are served as these
    /// options say.
    pub(super) fn retain(&mut self, options: &[MonitorOption]) {
        self.listeners.retain_mut(|kept| {
            let mut same = options.iter();
            let option = same.find(|option| option.address.is_same_place(&kept.option.address));
            kept.option.mode = option.map_or(kept.option.mode, |option| option.mode);
            option.is_some()
        });
        self.paths
            .retain(|own| options.iter().any(|option| own.is_of(&option.address)));
    }

    /// Takes what has been emitted until now from where it is held.
    pub(super) fn catch_up(&mut self) {
        if let Some(events) = &self.events {
            self.held.append(events.take_held());
        }
    }
}
