//! The vmstate section: what a device in another process needs to go on.

use std::collections::BTreeSet;

use baton_plugin_api::serde::{Deserialize, Serialize};
use baton_plugin_api::{Error, Result, wire};

use crate::properties::{Options, SECTION};
use crate::request::Limits;

/// Requests that were taken from their queue and not given back: queue and head. What they ask for
/// is still in guest memory.
pub(crate) type InFlight = BTreeSet<(u16, u16)>;

/// The section, version 1.
#[derive(Debug, Serialize, Deserialize)]
#[serde(crate = "baton_plugin_api::serde", deny_unknown_fields)]
struct State {
    /// Of 512 bytes, which the image must still have.
    sectors: u64,
    /// Whether there is a volatile write cache.
    write_cache: bool,
    in_flight: Vec<Request>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(crate = "baton_plugin_api::serde", deny_unknown_fields)]
struct Request {
    queue: u16,
    head: u16,
}

/// What was loaded, and holds for this device.
pub(crate) struct Loaded {
    pub(crate) write_cache: bool,
    pub(crate) in_flight: InFlight,
}

pub(crate) fn save(limits: &Limits, write_cache: bool, in_flight: &InFlight) -> Result<Vec<u8>> {
    wire::encode(&State {
        sectors: limits.sectors,
        write_cache,
        in_flight: in_flight
            .iter()
            .map(|&(queue, head)| Request { queue, head })
            .collect(),
    })
}

pub(crate) fn load(data: &[u8], options: &Options, limits: &Limits) -> Result<Loaded> {
    let state: State = wire::decode(&format!("section '{SECTION}'"), data)?;
    if state.sectors != limits.sectors {
        return Err(Error::state(format!(
            "Image '{}' has {} sectors, the guest knows it with {}; give it its size back, or the \
             right image",
            options.drive.file, limits.sectors, state.sectors
        )));
    }
    let mut in_flight = InFlight::new();
    for Request { queue, head } in state.in_flight {
        if queue >= options.queues || head >= options.queue_size {
            return Err(Error::state(format!(
                "Section '{SECTION}' has request {head} of queue {queue} in flight, this device \
                 has {} queues of {}; say the same num-queues and queue-size as before",
                options.queues, options.queue_size
            )));
        }
        if !in_flight.insert((queue, head)) {
            return Err(Error::state(format!(
                "Section '{SECTION}' has request {head} of queue {queue} in flight twice; it is \
                 damaged, save it again"
            )));
        }
    }
    Ok(Loaded {
        write_cache: state.write_cache,
        in_flight,
    })
}
