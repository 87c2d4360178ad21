//! A driver, ports, and who is at their other ends.

mod hostile;
mod ports;
mod seats;
mod state;
mod traffic;
mod turns;

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use baton_plugin_api::testing::{
    Buffer, DEADLINE, GuestQueue, TestHost, TestRam, TestVirtio, Used, config_of,
};
use baton_plugin_api::{Chardev, Child, Config, Result, Value};

use crate::control::{Control, LEN, event};
use crate::device::{MULTIPORT, Serial};

/// Where the driver's buffers are: 64 KiB for each queue, after 64 KiB for the rings of each.
const BUFFERS: u64 = 1 << 20;
const EACH: u64 = 64 << 10;
const MAX_PORTS: u32 = 4;
/// Bytes of a buffer for input or a message.
const ROOM: u32 = 4096;

/// A child with these properties.
fn child(kind: &str, id: &str, said: &[(&str, Value)]) -> Child {
    let said = said.iter().map(|(k, v)| ((*k).to_owned(), v.clone()));
    Child {
        device_type: kind.to_owned(),
        config: Config {
            id: id.to_owned(),
            properties: said.collect(),
            ..Config::default()
        },
    }
}

/// A port `id` named so, at a character device of its id.
fn port(id: &str) -> Child {
    let said = [("chardev", id), ("name", id)].map(|(k, v)| (k, Value::String(v.to_owned())));
    child("virtserialport", id, &said)
}

fn config(children: Vec<Child>) -> Config {
    let max_ports = ("max_ports", Value::Uint(MAX_PORTS.into()));
    Config {
        children,
        ..config_of::<Serial>("vs0", &[max_ports])
    }
}

/// A host with a socket for each of these character devices, and their other ends.
fn host(chardevs: &[&str]) -> (Arc<TestHost>, Vec<UnixStream>) {
    let host = TestHost::new();
    let ends = chardevs.iter().map(|id| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_read_timeout(Some(DEADLINE)).unwrap();
        let input = Some(ours.try_clone().unwrap().into());
        let output = Some(ours.into());
        host.add_chardev(id, Chardev { input, output });
        theirs
    });
    let ends = ends.collect();
    (host, ends)
}

/// A device with a driver that uses all its queues.
struct Rig {
    ram: Arc<TestRam>,
    device: TestVirtio<Serial>,
    queues: Vec<GuestQueue>,
    features: u64,
    /// Where each buffer is that the device may write into, by its queue and head.
    offered: BTreeMap<(usize, u16), u64>,
}

impl Rig {
    fn new(host: &Arc<TestHost>, children: Vec<Child>) -> Result<Self> {
        Self::with(host, children, MULTIPORT)
    }

    /// Not started yet.
    fn with(host: &Arc<TestHost>, children: Vec<Child>, features: u64) -> Result<Self> {
        let ram = TestRam::new(4 << 20);
        let device = TestVirtio::new(config(children), host)?;
        let count = device.info().queue_sizes.len() as u16;
        let queue = |index| GuestQueue::new(&ram, index, 16, u64::from(index) * 4096);
        let queues = (0..count).map(queue).collect();
        Ok(Self {
            ram,
            device,
            queues,
            features,
            offered: BTreeMap::new(),
        })
    }

    fn start(&mut self) {
        self.device
            .start(&self.ram, self.features, &mut self.queues)
            .unwrap();
    }

    fn stop(&mut self) {
        self.device.quiesce(&mut self.queues).unwrap();
    }

    /// The guest's memory for buffer `slot` of a queue.
    fn place(queue: usize, slot: u64) -> u64 {
        BUFFERS + queue as u64 * EACH + slot * u64::from(ROOM)
    }

    /// Gives the device `count` buffers of a queue to write into, at slots from 0 on.
    fn offer(&mut self, queue: usize, count: u64) {
        for slot in 0..count {
            self.offer_at(queue, Self::place(queue, slot));
        }
        self.queues[queue].kick();
    }

    fn offer_at(&mut self, queue: usize, at: u64) {
        let head = self.queues[queue].add(&[Buffer::writable(at, ROOM)]);
        self.offered.insert((queue, head), at);
    }

    /// What the device wrote into the next `count` buffers, in order; each is offered again.
    fn taken(&mut self, queue: usize, count: usize) -> Vec<Vec<u8>> {
        let used = self.queues[queue].wait_used(count);
        let place = |used: &Used| self.offered[&(queue, used.head)];
        let places: Vec<_> = used.iter().map(place).collect();
        let bytes = |(used, at): (&Used, &u64)| self.ram.read(*at, used.written as usize);
        let all = used.iter().zip(&places).map(bytes).collect();
        for at in places {
            self.offer_at(queue, at);
        }
        self.queues[queue].kick();
        all
    }

    /// The driver writes `bytes` to a queue, in one buffer at `slot`; it is told, not waited for.
    fn write(&mut self, queue: usize, slot: u64, bytes: &[u8]) {
        let at = Self::place(queue, slot);
        self.ram.write(at, bytes);
        self.queues[queue].add(&[Buffer::readable(at, bytes.len() as u32)]);
        self.queues[queue].kick();
    }

    /// The driver says something of a port, and waits until it was heard.
    fn say(&mut self, port: u32, event: u16, value: u16) {
        let message = Control { port, event, value };
        self.write(3, 0, &message.bytes());
        assert_eq!(self.queues[3].wait_used(1).len(), 1);
    }

    /// The next `count` messages, and what came behind them.
    fn hear(&mut self, count: usize) -> Vec<(Control, Vec<u8>)> {
        let all = self.taken(2, count).into_iter();
        all.map(|bytes| {
            let (message, rest) = bytes.split_at(LEN);
            let message: [u8; LEN] = message.try_into().unwrap();
            (Control::from(message), rest.to_vec())
        })
        .collect()
    }

    /// A driver that begins: it has buffers for messages, and hears of `ports` ports.
    fn begin(&mut self, ports: usize) -> Vec<u32> {
        self.start();
        self.offer(2, 8);
        self.say(0, event::DEVICE_READY, 1);
        let heard = self.hear(ports).into_iter().map(|(message, _)| {
            assert_eq!((message.event, message.value), (event::DEVICE_ADD, 1));
            message.port
        });
        heard.collect()
    }

    /// The driver sets a port up and a program opens it: it hears its name and that it is open.
    fn open(&mut self, port: u32) -> String {
        self.say(port, event::PORT_READY, 1);
        let heard = self.hear(2);
        assert_eq!(heard[0].0.event, event::PORT_NAME);
        assert_eq!((heard[1].0.event, heard[1].0.value), (event::PORT_OPEN, 1));
        self.say(port, event::PORT_OPEN, 1);
        let (end, name) = heard[0].1.split_last().unwrap();
        assert_eq!(*end, 0);
        String::from_utf8(name.to_vec()).unwrap()
    }
}

/// Reads as much.
fn read(end: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    end.read_exact(&mut bytes).unwrap();
    bytes
}
