//! A client of either monitor: QMP's for programs, HMP's for people.

use std::io;
use std::sync::Arc;

use tokio::sync::{broadcast, watch};

use super::client;
use super::hmp;
use super::listener::MonitorMode;
use super::outgoing::Outgoing;
use super::server::{End, Shared};
use super::stream::{Plain, Stream};

/// A client that nobody serves.
pub(super) enum Parked {
    Control(client::Parked),
    Readline(hmp::Parked),
}

impl Parked {
    /// A client that has just connected to a monitor of this mode.
    pub(super) fn new(mode: MonitorMode, stream: Plain) -> Self {
        match mode {
            MonitorMode::Control => Self::Control(client::Parked::new(stream)),
            MonitorMode::Readline => Self::Readline(hmp::Parked::new(stream)),
        }
    }

    /// The same on the standard streams with nothing said yet; others are disconnected.
    pub(super) fn begin_anew(self) -> Option<Self> {
        match self {
            Self::Readline(client) => client.begin_anew().map(Self::Readline),
            Self::Control(client) => matches!(client.stream, Plain::Standard { .. })
                .then(|| Self::new(MonitorMode::Control, client.stream)),
        }
    }

    /// What is on its way to it, if events go there.
    pub(super) fn hears_events(&mut self) -> Option<&mut Outgoing> {
        match self {
            Self::Control(client) if client.session.hears_events() => Some(&mut client.out),
            _ => None,
        }
    }
}

/// A client that is served.
pub(super) enum Client {
    Control(client::Client),
    Readline(hmp::Client),
}

impl Client {
    /// One that has just connected to a monitor of this mode. With `keys` it is a terminal that sends keys
    /// as they are struck.
    pub(super) fn new(mode: MonitorMode, stream: Stream, keys: bool, shared: &Shared) -> Self {
        match mode {
            MonitorMode::Control => Self::Control(client::Client::new(stream, shared)),
            MonitorMode::Readline => Self::Readline(hmp::Client::new(stream, keys, shared)),
        }
    }

    /// Goes on with one. Must be called on the runtime that serves it.
    pub(super) fn resume(
        parked: Parked,
        events: broadcast::Receiver<Arc<str>>,
        shared: &Shared,
    ) -> io::Result<Self> {
        Ok(match parked {
            Parked::Control(parked) => {
                Self::Control(client::Client::resume(parked, events, shared)?)
            }
            Parked::Readline(parked) => {
                Self::Readline(hmp::Client::resume(parked, Arc::clone(&shared.control))?)
            }
        })
    }

    /// Serves it until it leaves, or to the end. It is still there when clients shall be kept.
    pub(super) async fn run(self, ending: watch::Receiver<End>) -> Option<Self> {
        match self {
            Self::Control(client) => client.run(ending).await.map(Self::Control),
            Self::Readline(client) => client.run(ending).await.map(Self::Readline),
        }
    }

    /// Stops serving it; nothing if it has left. Must be called on the runtime that served it.
    pub(super) fn park(self) -> Option<Parked> {
        match self {
            Self::Control(client) => client.park().map(Parked::Control),
            Self::Readline(client) => client.park().map(Parked::Readline),
        }
    }
}
