//! The ports at work, on the worker's thread. Nothing is in flight between two of its calls.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use baton_plugin_api::vm_memory::Bytes;
use baton_plugin_api::{GuestRam, Host, QueueHandler, Result, VirtQueue};

use crate::control::{Control, LEN, event};
use crate::device::MULTIPORT;
use crate::port::{Port, port_of, receive_queue, scatter};

const CONTROL_RECEIVE: u16 = 2;
const CONTROL_TRANSMIT: u16 = 3;

/// How many messages wait for the driver to have buffers; the driver is not listened to while there
/// are more. Ports are few, and each gives rise to five.
pub(crate) const PENDING_MAX: usize = 5 * crate::device::PORTS_MAX as usize;

/// The ports of a device.
#[derive(Default)]
pub(crate) struct Ports {
    pub(crate) all: BTreeMap<u32, Port>,
    /// The driver has said that it can use several ports, and was told of those there were.
    pub(crate) driver_ready: bool,
    /// Messages that the driver has had no buffers for yet.
    pub(crate) pending: VecDeque<Control>,
}

impl Ports {
    /// Back to power-on.
    pub(crate) fn reset(&mut self, host: &Host) -> Result<()> {
        self.driver_ready = false;
        self.pending.clear();
        for port in self.all.values_mut() {
            port.open = false;
            port.sent = 0;
            port.tell(host)?;
        }
        Ok(())
    }

    /// A port has come.
    pub(crate) fn add(&mut self, port: Port) {
        self.announce(port.number, event::DEVICE_ADD, 1);
        self.all.insert(port.number, port);
    }

    /// The port of this child goes; false if there is none.
    pub(crate) fn remove(&mut self, id: &str) -> bool {
        let number = self.all.values().find(|port| port.id == id);
        let Some(number) = number.map(|port| port.number) else {
            return false;
        };
        self.all.remove(&number);
        self.pending.retain(|message| message.port != number);
        self.announce(number, event::DEVICE_REMOVE, 1);
        true
    }

    /// Something for a driver that listens.
    fn announce(&mut self, port: u32, event: u16, value: u16) {
        if self.driver_ready {
            self.say(port, event, value);
        }
    }

    fn say(&mut self, port: u32, event: u16, value: u16) {
        self.pending.push_back(Control { port, event, value });
    }

    /// The driver has said something; the port that may have something to do now.
    fn hear(&mut self, message: Control, host: &Host) -> Result<Option<u32>> {
        let Control { port, event, value } = message;
        if event == event::DEVICE_READY {
            self.driver_ready = value == 1;
            let numbers: Vec<_> = self.all.keys().copied().collect();
            for number in numbers {
                self.announce(number, event::DEVICE_ADD, 1);
            }
            return Ok(None);
        }
        let Some(known) = self.all.get_mut(&port) else {
            return Ok(None);
        };
        match event {
            event::PORT_READY if value == 1 => {
                let (console, named) = (known.console, !known.name.is_empty());
                if console {
                    self.say(port, event::CONSOLE_PORT, 1);
                }
                if named {
                    self.say(port, event::PORT_NAME, 1);
                }
                // Who is at the other end comes and goes without the guest hearing of it.
                self.say(port, event::PORT_OPEN, 1);
                Ok(None)
            }
            event::PORT_OPEN => {
                known.open = value == 1;
                known.tell(host)?;
                Ok(Some(port))
            }
            _ => Ok(None),
        }
    }
}

/// The ports with the queues of a driver.
pub(crate) struct Service {
    pub(crate) ports: Arc<Mutex<Ports>>,
    pub(crate) host: Host,
    /// What the driver accepted.
    pub(crate) features: u64,
    /// Whose character device each event is.
    pub(crate) events: Vec<u32>,
}

impl QueueHandler for Service {
    fn kicked(&mut self, queues: &mut [VirtQueue], at: usize, memory: &GuestRam) -> Result<()> {
        let index = queues[at].index();
        match index {
            CONTROL_RECEIVE | CONTROL_TRANSMIT if self.multiport() => self.control(queues, memory),
            CONTROL_RECEIVE | CONTROL_TRANSMIT => Ok(()),
            _ => {
                let (number, receives) = port_of(index);
                match receives {
                    true => self.receive(queues, number, memory),
                    false => self.transmit(queues, number, memory),
                }
            }
        }
    }

    fn event(&mut self, queues: &mut [VirtQueue], at: usize, memory: &GuestRam) -> Result<()> {
        let number = self.events[at];
        self.receive(queues, number, memory)?;
        self.transmit(queues, number, memory)
    }
}

impl Service {
    fn multiport(&self) -> bool {
        self.features & MULTIPORT != 0
    }

    fn receive(&self, queues: &mut [VirtQueue], number: u32, memory: &GuestRam) -> Result<()> {
        let mut ports = self.lock();
        let port = ports.all.get_mut(&number);
        // A driver that knows of one port alone has it open.
        let port = port.filter(|port| port.open || !self.multiport());
        let (Some(port), Some(queue)) = (port, find(queues, receive_queue(number))) else {
            return Ok(());
        };
        let more = port.receive(queue, memory)?;
        again(queue, more);
        Ok(())
    }

    fn transmit(&self, queues: &mut [VirtQueue], number: u32, memory: &GuestRam) -> Result<()> {
        let Some(queue) = find(queues, receive_queue(number) + 1) else {
            return Ok(());
        };
        // What is written to a port that is not there is nobody's.
        let mut nobody = Port::default();
        let mut ports = self.lock();
        let port = ports.all.get_mut(&number).unwrap_or(&mut nobody);
        let more = port.transmit(queue, memory)?;
        again(queue, more);
        Ok(())
    }

    /// Hears what the driver says, and says what there is to say.
    fn control(&self, queues: &mut [VirtQueue], memory: &GuestRam) -> Result<()> {
        self.tell(queues, memory)?;
        let mut opened = Vec::new();
        if let Some(queue) = find(queues, CONTROL_TRANSMIT) {
            let mut turns = queue.size();
            let mut ports = self.lock();
            while turns > 0 && ports.pending.len() < PENDING_MAX {
                let Some(chain) = queue.pop(memory)? else {
                    break;
                };
                let head = chain.head_index();
                let message = chain.readable().next().and_then(|buffer| {
                    let mut bytes = [0; LEN];
                    let whole = buffer.len() as usize >= LEN;
                    let read = whole.then(|| memory.read_slice(&mut bytes, buffer.addr()));
                    matches!(read, Some(Ok(()))).then(|| Control::from(bytes))
                });
                queue.complete(memory, head, 0)?;
                if let Some(message) = message {
                    opened.extend(ports.hear(message, &self.host)?);
                }
                turns -= 1;
            }
            if turns < queue.size() {
                queue.notify(memory)?;
            }
            again(queue, turns == 0);
        }
        self.tell(queues, memory)?;
        for number in opened {
            self.receive(queues, number, memory)?;
        }
        Ok(())
    }

    /// Says what there is to say, as long as the driver has buffers for it.
    fn tell(&self, queues: &mut [VirtQueue], memory: &GuestRam) -> Result<()> {
        let Some(queue) = find(queues, CONTROL_RECEIVE) else {
            return Ok(());
        };
        let mut ports = self.lock();
        let mut told = false;
        while let Some(message) = ports.pending.front().copied() {
            let Some(chain) = queue.pop(memory)? else {
                break;
            };
            let head = chain.head_index();
            let buffers: Vec<_> = chain.writable().collect();
            let mut bytes = message.bytes().to_vec();
            if let (event::PORT_NAME, Some(port)) = (message.event, ports.all.get(&message.port)) {
                bytes.extend_from_slice(port.name.as_bytes());
                // QEMU ends it so, and drivers count on it.
                bytes.push(0);
            }
            let written = scatter(memory, &buffers, &bytes);
            queue.complete(memory, head, written)?;
            ports.pending.pop_front();
            told = true;
        }
        if told {
            queue.notify(memory)?;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Ports> {
        // A panic is caught and told further up; ports are whole at every point.
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The queue of this number, if the driver uses it; they are in order.
fn find(queues: &mut [VirtQueue], index: u16) -> Option<&mut VirtQueue> {
    let at = queues.binary_search_by_key(&index, VirtQueue::index).ok()?;
    queues.get_mut(at)
}

/// Comes back to a queue after the others have had their turn.
fn again(queue: &VirtQueue, more: bool) {
    if more {
        // An eventfd takes as many signals as there are.
        let _ = queue.kick().write(1);
    }
}
