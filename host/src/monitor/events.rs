//! Events on their way from the machine to the clients.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use tokio::sync::broadcast;

/// How many events a client may be behind before it loses the oldest.
const BEHIND: usize = 1024;

/// Where events are emitted. Cheap to clone; never blocks.
#[derive(Clone)]
pub struct Events(broadcast::Sender<Arc<str>>);

impl Default for Events {
    fn default() -> Self {
        Self::new()
    }
}

impl Events {
    /// A sink with no client yet.
    pub fn new() -> Self {
        Self(broadcast::channel(BEHIND).0)
    }

    /// Sends an event to every client that has finished negotiation. Any thread may call it.
    pub fn emit(&self, name: &str, data: Option<Value>) {
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
        let line = super::json::line(&Value::Object(event));
        // An error means that nobody listens.
        let _ = self.0.send(line.into());
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<Arc<str>> {
        self.0.subscribe()
    }
}
