//! The target's side.

mod driver;
mod machine;

use std::sync::Arc;

use super::link::Link;
use super::protocol::Hello;
use crate::channel::Listener;
use crate::checkpoint::RamSink;
use crate::handover::Timeouts;
use crate::status::Tracker;

/// With what a target receives a guest.
#[derive(Debug, Clone)]
pub struct IncomingOptions {
    /// Status; cancelling does nothing on a target.
    pub tracker: Arc<Tracker>,
    /// How long to wait.
    pub timeouts: Timeouts,
}

/// How it ended. The host was told already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IncomingOutcome {
    /// The guest is here.
    Running,
    /// The guest is the source's.
    Abandoned {
        /// Why.
        reason: String,
    },
    /// The guest was run here and cannot go on: it runs nowhere.
    Lost {
        /// Why.
        reason: String,
    },
}

/// A process that waits for a guest.
#[must_use = "nothing is received until `run` is called"]
pub struct Incoming {
    listener: Option<Listener>,
    options: IncomingOptions,
}

/// A migration that comes in.
struct Coming {
    link: Link,
    options: IncomingOptions,
    /// What the source said first.
    hello: Option<Hello>,
    /// The machine's RAM, once that is built, and its size.
    ram: Option<(Arc<dyn RamSink + Send>, u64)>,
    /// The state, between its receipt and the host.
    state: Vec<u8>,
    load_us: u64,
}

impl Incoming {
    /// Nothing is received yet.
    pub fn new(listener: Listener, options: IncomingOptions) -> Self {
        Self {
            listener: Some(listener),
            options,
        }
    }
}
