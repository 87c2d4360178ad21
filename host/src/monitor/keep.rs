//! What a monitor leaves to a successor, which may be another program in the same process.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::client::Parked;
use super::events::{Events, Held};
use super::listener::{
    Listening, MonitorAddress, MonitorError, OwnPath, Socket, bind_tcp, bind_unix,
};
use super::stream::Plain;

/// Listening sockets and connected clients that nobody serves, from [`super::Monitor::detach`] to
/// [`super::Monitor::attach`]. If it is dropped, clients are disconnected and sockets removed, but
/// for those that another program has left.
#[derive(Default)]
pub struct Kept {
    pub(super) listeners: Vec<Listening>,
    pub(super) clients: Vec<Parked>,
    pub(super) paths: Vec<OwnPath>,
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
        events: Events,
    ) -> Self {
        Self {
            listeners,
            clients,
            paths,
            held: Held::default(),
            events: Some(events),
        }
    }

    /// Listens on `address`, and waits for a client if asked to.
    pub(super) fn bind(
        &mut self,
        address: &MonitorAddress,
        wait: bool,
    ) -> Result<(), MonitorError> {
        self.try_bind(address, wait).map_err(|reason| MonitorError {
            address: address.to_string(),
            reason,
        })
    }

    fn try_bind(&mut self, address: &MonitorAddress, wait: bool) -> Result<(), String> {
        let prepared = |e: io::Error| format!("cannot be prepared: {e}");
        let socket = match address {
            MonitorAddress::Stdio => {
                let copy = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned();
                let input = copy(std::io::stdin().as_fd()).map_err(prepared)?;
                let output = copy(std::io::stdout().as_fd()).map_err(prepared)?;
                self.add_streams(input, output);
                return Ok(());
            }
            MonitorAddress::Unix { path, .. } => {
                let (listener, own) = bind_unix(path)?;
                self.paths.push(own);
                Socket::Unix(listener)
            }
            MonitorAddress::Tcp { host, port, .. } => Socket::Tcp(bind_tcp(host, *port)?),
        };
        if wait {
            tracing::info!("-qmp {address}: the guest waits for a client");
            self.clients
                .push(Parked::new(socket.accept().map_err(prepared)?));
        }
        self.listeners.push(Listening {
            address: address.clone(),
            socket: Some(socket),
        });
        Ok(())
    }

    /// Adds the client on standard streams.
    pub(super) fn add_streams(&mut self, input: OwnedFd, output: OwnedFd) {
        self.listeners.push(Listening {
            address: MonitorAddress::Stdio,
            socket: None,
        });
        self.clients
            .push(Parked::new(Plain::Standard { input, output }));
    }

    pub(super) fn listens_on(&self, address: &MonitorAddress) -> bool {
        self.listeners
            .iter()
            .any(|listening| listening.address.is_same_place(address))
    }

    /// Lets go of the clients, and of what they were to be told. The standard streams, which nobody
    /// could connect to again, begin anew.
    pub fn disconnect(&mut self) {
        let standard = |client: Parked| match client.stream {
            stream @ Plain::Standard { .. } => Some(Parked::new(stream)),
            _ => None,
        };
        self.clients = std::mem::take(&mut self.clients)
            .into_iter()
            .filter_map(standard)
            .collect();
        self.held = Held::default();
    }

    /// Adds what listens besides.
    pub(super) fn merge(&mut self, other: Self) {
        self.listeners.extend(other.listeners);
        self.clients.extend(other.clients);
        self.paths.extend(other.paths);
    }

    /// Stops listening elsewhere than on `addresses`. Clients stay.
    pub(super) fn retain(&mut self, addresses: &[MonitorAddress]) {
        self.listeners
            .retain(|kept| addresses.iter().any(|a| a.is_same_place(&kept.address)));
        self.paths
            .retain(|own| addresses.iter().any(|address| own.is_of(address)));
    }

    /// Takes what has been emitted until now from where it is held.
    pub(super) fn catch_up(&mut self) {
        if let Some(events) = &self.events {
            self.held.append(events.take_held());
        }
    }
}
