//! The vmstate section: what a device in another process needs to go on.

use std::collections::{BTreeMap, VecDeque};

use baton_plugin_api::serde::{Deserialize, Serialize};
use baton_plugin_api::{Error, Result, wire};

use crate::control::{Control, event};
use crate::port::Port;
use crate::service::{PENDING_MAX, Ports};

/// QEMU's name of it.
pub(crate) const SECTION: &str = "virtio-console";

/// The section, version 1.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(crate = "baton_plugin_api::serde", deny_unknown_fields)]
pub(crate) struct State {
    /// How many ports there may be, which the driver has seen.
    pub(crate) max_ports: u32,
    pub(crate) driver_ready: bool,
    pub(crate) ports: Vec<PortState>,
    /// Messages that the driver has had no buffers for yet.
    pub(crate) pending: Vec<Message>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(crate = "baton_plugin_api::serde", deny_unknown_fields)]
pub(crate) struct PortState {
    pub(crate) id: String,
    pub(crate) number: u32,
    pub(crate) name: String,
    pub(crate) console: bool,
    pub(crate) open: bool,
    pub(crate) sent: u32,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(crate = "baton_plugin_api::serde", deny_unknown_fields)]
pub(crate) struct Message {
    pub(crate) port: u32,
    pub(crate) event: u16,
    pub(crate) value: u16,
}

/// What was loaded, and holds for these ports: by the child's id, its number, whether it is open,
/// and how much was sent.
pub(crate) struct Loaded {
    driver_ready: bool,
    ports: BTreeMap<String, (u32, bool, u32)>,
    pending: VecDeque<Control>,
}

pub(crate) fn save(ports: &Ports, max_ports: u32) -> Result<Vec<u8>> {
    let port = |port: &Port| PortState {
        id: port.id.clone(),
        number: port.number,
        name: port.name.clone(),
        console: port.console,
        open: port.open,
        sent: port.sent,
    };
    let message = |&Control { port, event, value }: &Control| Message { port, event, value };
    wire::encode(&State {
        max_ports,
        driver_ready: ports.driver_ready,
        ports: ports.all.values().map(port).collect(),
        pending: ports.pending.iter().map(message).collect(),
    })
}

pub(crate) fn load(data: &[u8], ports: &Ports, max_ports: u32) -> Result<Loaded> {
    let state: State = wire::decode(&format!("section '{SECTION}'"), data)?;
    if state.max_ports != max_ports {
        return Err(Error::state(format!(
            "The guest knows it with max_ports={}, it has {max_ports} here; say the same",
            state.max_ports
        )));
    }
    let mut loaded = BTreeMap::new();
    for theirs in &state.ports {
        let PortState { id, number, .. } = theirs;
        let Some(ours) = ports.all.values().find(|port| port.id == *id) else {
            return Err(Error::state(format!(
                "Port '{id}' ({}) of the guest is not in this machine; add it, or start the target \
                 with the source's devices",
                theirs.name
            )));
        };
        let same = ours.name == theirs.name && ours.console == theirs.console;
        if !same || (ours.fixed && ours.number != *number) || *number >= max_ports {
            return Err(Error::state(format!(
                "Port '{id}' is number {number} for the guest, with name '{}', and number {} here, \
                 with name '{}'; start the target with the source's devices",
                theirs.name, ours.number, ours.name
            )));
        }
        let state = (*number, theirs.open, theirs.sent);
        if loaded.insert(id.clone(), state).is_some() {
            return Err(damaged(&format!("port '{id}' twice")));
        }
    }
    if let Some(extra) = ports
        .all
        .values()
        .find(|port| !loaded.contains_key(&port.id))
    {
        return Err(Error::state(format!(
            "Port '{}' of this machine is none of the guest's; leave it out",
            extra.id
        )));
    }
    let mut numbers: Vec<_> = loaded.values().map(|(number, ..)| *number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    if numbers.len() != loaded.len() {
        return Err(damaged("two ports of one number"));
    }
    if state.pending.len() > PENDING_MAX {
        return Err(damaged("more messages than ports give rise to"));
    }
    let mut pending = VecDeque::new();
    for Message { port, event, value } in state.pending {
        let said = [
            event::DEVICE_ADD,
            event::DEVICE_REMOVE,
            event::CONSOLE_PORT,
            event::PORT_OPEN,
            event::PORT_NAME,
        ];
        if port >= max_ports || !said.contains(&event) {
            return Err(damaged(&format!("message {event} for port {port}")));
        }
        pending.push_back(Control { port, event, value });
    }
    Ok(Loaded {
        driver_ready: state.driver_ready,
        ports: loaded,
        pending,
    })
}

impl Loaded {
    /// Takes all of it.
    pub(crate) fn apply(self, ports: &mut Ports) {
        ports.driver_ready = self.driver_ready;
        ports.pending = self.pending;
        for (_, mut port) in std::mem::take(&mut ports.all) {
            if let Some(&(number, open, sent)) = self.ports.get(&port.id) {
                (port.number, port.open, port.sent) = (number, open, sent);
            }
            ports.all.insert(port.number, port);
        }
    }
}

fn damaged(what: &str) -> Error {
    let text = format!("Section '{SECTION}' has {what}; it is damaged, save it again");
    Error::state(text)
}
