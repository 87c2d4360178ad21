//! The device: its life, its config space, and the ports that come and go.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use baton_plugin_api::{
    BusClass, Child, ChildBus, Config, Device, DeviceType, Error, Host, Property, QueueProgress,
    Result, Section, Stream, VirtioDevice, VirtioInfo, VirtioRun, Watched, Worker, config_bytes,
    no_such_section,
};

use crate::seats;
use crate::service::{Ports, Service};
use crate::state::{self, SECTION};

/// The device number of VIRTIO 1.3 section 5.
const DEVICE_ID: u16 = 3;
/// VIRTIO_CONSOLE_F_MULTIPORT, VIRTIO 1.3 section 5.3.3.
pub(crate) const MULTIPORT: u64 = 1 << 1;
/// How many ports there may be, as in QEMU.
pub(crate) const PORTS_MAX: u32 = 31;
const QUEUE_SIZE: u16 = 128;
/// PCI class "communication controller, other", as QEMU has it for this device.
const PCI_CLASS: u32 = 0x07_8000;
/// Bytes of `struct virtio_console_config`.
const CONFIG_LEN: u32 = 12;

/// A controller of ports.
pub(crate) struct Serial {
    id: String,
    host: Host,
    max_ports: u32,
    ports: Arc<Mutex<Ports>>,
    worker: Option<Worker<Service>>,
}

impl Serial {
    fn ports(&self) -> MutexGuard<'_, Ports> {
        // As in the service.
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Device for Serial {
    fn device_type() -> DeviceType {
        DeviceType {
            properties: vec![Property::uint(
                "max_ports",
                1,
                PORTS_MAX.into(),
                PORTS_MAX.into(),
                "How many ports there may be, number 0 included",
            )],
            sections: vec![Section::new(SECTION, 1, 1)],
            child_bus: Some(ChildBus {
                name: "virtio-serial-bus".into(),
                devices: seats::types(),
            }),
            ..DeviceType::new(
                "virtio-serial-pci",
                BusClass::Virtio,
                "Controller of ports and consoles",
            )
        }
    }

    fn create(config: Config, host: Host) -> Result<Self> {
        let max_ports = config.uint("max_ports")? as u32;
        let mut all = BTreeMap::new();
        // Those that say their number first, so that no other takes it.
        let said = |child: &&Child| child.config.properties.contains_key("nr");
        let (fixed, free): (Vec<_>, Vec<_>) = config.children.iter().partition(said);
        for child in fixed.into_iter().chain(free) {
            let port = seats::seat(&all, child, max_ports)?;
            all.insert(port.number, port);
        }
        Ok(Self {
            id: config.id,
            max_ports,
            ports: Arc::new(Mutex::new(Ports {
                all,
                ..Ports::default()
            })),
            host,
            worker: None,
        })
    }

    fn realize(&mut self) -> Result<()> {
        let mut ports = self.ports();
        let mut all = ports.all.values_mut();
        all.try_for_each(|port| port.connect(&self.host))
    }

    fn reset(&mut self) -> Result<()> {
        self.ports().reset(&self.host)
    }

    fn save(&mut self, section: &str) -> Result<Vec<u8>> {
        match section {
            SECTION => state::save(&self.ports(), self.max_ports),
            other => Err(no_such_section(other)),
        }
    }

    fn load(&mut self, section: &str, _version: u32, data: &[u8]) -> Result<()> {
        if section != SECTION {
            return Err(no_such_section(section));
        }
        let mut ports = self.ports();
        state::load(data, &ports, self.max_ports)?.apply(&mut ports);
        Ok(())
    }

    fn attach(&mut self, child: Child) -> Result<()> {
        let mut ports = self.ports();
        let mut port = seats::seat(&ports.all, &child, self.max_ports)?;
        port.connect(&self.host)?;
        ports.add(port);
        Ok(())
    }

    fn detach(&mut self, id: &str) -> Result<()> {
        match self.ports().remove(id) {
            true => Ok(()),
            false => Err(Error::invalid(format!("There is no port '{id}'"))),
        }
    }
}

impl VirtioDevice for Serial {
    fn virtio(&self) -> VirtioInfo {
        VirtioInfo {
            device_id: DEVICE_ID,
            features: MULTIPORT,
            // Two for each port, and two for control messages.
            queue_sizes: vec![QUEUE_SIZE; 2 * (self.max_ports as usize + 1)],
            config_len: CONFIG_LEN,
            pci_class: PCI_CLASS,
        }
    }

    fn read_config(&mut self, offset: u64, data: &mut [u8]) {
        let mut config = [0; CONFIG_LEN as usize];
        config[4..8].copy_from_slice(&self.max_ports.to_le_bytes());
        config_bytes(&config, offset, data);
    }

    fn start(&mut self, run: VirtioRun) -> Result<()> {
        let (mut events, mut watched) = (Vec::new(), Vec::new());
        for port in self.ports().all.values_mut() {
            port.tell(&self.host)?;
            // The end of a terminal, say, may be over when the guest goes on.
            port.at_end = false;
            let streams = [&port.input, &port.output].into_iter().flatten();
            // A file is always ready, and cannot be waited for.
            let streams: Vec<&Arc<Stream>> = streams.filter(|stream| !stream.is_file()).collect();
            events.extend(streams.iter().map(|_| port.number));
            watched.extend(streams.iter().map(|s| Watched::Changes(s.as_raw_fd())));
        }
        let service = Service {
            ports: Arc::clone(&self.ports),
            host: self.host.clone(),
            features: run.features,
            events,
        };
        let host = self.host.clone();
        self.worker = Some(Worker::spawn(&self.id, host, run, service, &watched)?);
        Ok(())
    }

    fn quiesce(&mut self) -> Result<Vec<QueueProgress>> {
        Worker::quiesce(&mut self.worker)
    }
}
