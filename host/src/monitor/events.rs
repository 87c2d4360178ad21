//! Events on their way from the machine to the clients.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use tokio::sync::broadcast;

use super::table;

/// How many events a client may be behind before it loses the oldest.
pub(super) const BEHIND: usize = 1024;

/// How many bytes of events are kept for clients that are not served.
pub(super) const BEHIND_BYTES: usize = 8 << 20;

/// Where events are emitted. Cheap to clone; never waits for a client.
///
/// While no monitor serves, from the beginning until one does and from [`super::Monitor::detach`] to
/// [`super::Monitor::attach`], events are held for the clients that were kept.
#[derive(Clone)]
pub struct Events(Arc<Inner>);

struct Inner {
    sender: broadcast::Sender<Arc<str>>,
    /// The lock orders events with the change from held to served.
    held: Mutex<Option<Held>>,
}

/// Events that nobody is there to take yet, oldest first. Beyond [`BEHIND`] the oldest are lost.
#[derive(Debug, Default)]
pub(super) struct Held {
    lines: VecDeque<Arc<str>>,
    bytes: usize,
    lost: u64,
}

impl Held {
    pub(super) fn push(&mut self, line: Arc<str>) {
        self.bytes += line.len();
        self.lines.push_back(line);
        while self.lines.len() > BEHIND || self.bytes > BEHIND_BYTES {
            let oldest = self.lines.pop_front();
            self.bytes -= oldest.map_or(0, |line| line.len());
            self.lost = self.lost.saturating_add(1);
        }
    }

    /// Adds what was emitted later.
    pub(super) fn append(&mut self, later: Self) {
        self.lose(later.lost);
        later.lines.into_iter().for_each(|line| self.push(line));
    }

    /// Counts events as lost.
    pub(super) fn lose(&mut self, events: u64) {
        self.lost = self.lost.saturating_add(events);
    }

    pub(super) fn lines(&self) -> impl ExactSizeIterator<Item = &Arc<str>> {
        self.lines.iter()
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost
    }
}

impl Default for Events {
    fn default() -> Self {
        Self::new()
    }
}

impl Events {
    /// A sink with no client yet.
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            sender: broadcast::channel(BEHIND).0,
            held: Mutex::new(Some(Held::default())),
        }))
    }

    /// Sends an event to every client that has finished negotiation. Any thread may call it.
    /// What is sent is in the table of events.
    pub fn emit(&self, name: &str, data: Option<Value>) {
        // The monitor's own tests number their events.
        debug_assert!(
            cfg!(test) || table::fits(name, data.as_ref()),
            "{name} {data:?}"
        );
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let mut event = Map::new();
        event.insert(
            "timestamp".into(),
            json!({ "seconds": now.as_secs(), "microseconds": now.subsec_micros() }),
        );
        event.insert("event".into(), name.into());
        if let Some(data) = data {
            event.insert("data".into(), data);
        }
        let line: Arc<str> = super::json::line(&Value::Object(event)).into();
        match &mut *self.held() {
            Some(held) => held.push(line),
            None => {
                // An error means that nobody listens.
                let _ = self.0.sender.send(line);
            }
        }
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<Arc<str>> {
        self.0.sender.subscribe()
    }

    /// From now on events are held. Those that were emitted before are in the receivers.
    pub(super) fn hold(&self) {
        self.held().get_or_insert_default();
    }

    /// What is held until now. If events are held, they are from now on as well.
    pub(super) fn take_held(&self) -> Held {
        self.held().as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// From now on events go to receivers. Gives what was held, and a receiver for each of `clients`
    /// that misses nothing that comes after.
    pub(super) fn release(&self, clients: usize) -> (Held, Vec<broadcast::Receiver<Arc<str>>>) {
        let mut held = self.held();
        let receivers = (0..clients).map(|_| self.subscribe()).collect();
        (held.take().unwrap_or_default(), receivers)
    }

    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
