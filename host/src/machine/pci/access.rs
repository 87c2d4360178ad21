//! The two ways to config space: ports 0xcf8 and 0xcfc (PCI 3.0 section 3.2.2.3.2), and ECAM
//! (PCI Express 4.0 section 7.2.2).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde::{Deserialize, Serialize};

use super::PciBus;
use crate::machine::bus::BusDevice;

/// The first port.
pub const CONFIG_PORTS: u64 = 0xcf8;
/// How many there are.
pub const CONFIG_PORTS_SIZE: u64 = 8;

const ENABLE: u32 = 1 << 31;
const DATA: u64 = 4;

/// The address and data ports.
pub struct ConfigPorts {
    bus: Arc<PciBus>,
    address: AtomicU32,
}

/// What can change of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigPortsState {
    /// The address register.
    pub address: u32,
}

impl ConfigPorts {
    /// Ports to `bus`.
    pub fn new(bus: Arc<PciBus>) -> Self {
        Self {
            bus,
            address: AtomicU32::new(0),
        }
    }

    /// What can change.
    pub fn state(&self) -> ConfigPortsState {
        ConfigPortsState {
            address: self.address.load(Ordering::SeqCst),
        }
    }

    /// Takes a state; every value of the register is valid.
    pub fn load(&self, state: ConfigPortsState) {
        self.address.store(state.address, Ordering::SeqCst);
    }

    fn target(&self, offset: u64) -> Option<(u8, u8, u64)> {
        let address = self.address.load(Ordering::SeqCst);
        let register = u64::from(address & 0xfc) + (offset - DATA);
        (address & ENABLE != 0).then_some(((address >> 16) as u8, (address >> 8) as u8, register))
    }
}

impl BusDevice for ConfigPorts {
    fn name(&self) -> String {
        "pci-conf".to_owned()
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if offset >= DATA {
            if let Some((bus, function, register)) = self.target(offset) {
                self.bus.read(bus, function, register, data);
            }
        } else if (offset, data.len()) == (0, 4) {
            data.copy_from_slice(&self.address.load(Ordering::SeqCst).to_le_bytes());
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset >= DATA {
            if let Some((bus, function, register)) = self.target(offset) {
                self.bus.write(bus, function, register, data);
            }
        } else if let (0, Ok(address)) = (offset, <[u8; 4]>::try_from(data)) {
            self.address
                .store(u32::from_le_bytes(address), Ordering::SeqCst);
        }
    }
}

/// The ports together with the reset register, which every chipset has had in their midst since
/// the first one with PCI.
pub struct PortsWithReset {
    ports: Arc<dyn BusDevice>,
    reset: Arc<dyn BusDevice>,
}

/// [`crate::machine::layout::RESET_PORT`] among the ports: one byte, while the register behind it
/// takes four.
const RESET: u64 = crate::machine::layout::RESET_PORT as u64 - CONFIG_PORTS;

impl PortsWithReset {
    /// Both.
    pub fn new(ports: Arc<dyn BusDevice>, reset: Arc<dyn BusDevice>) -> Self {
        Self { ports, reset }
    }

    fn behind(&self, offset: u64, len: usize) -> &dyn BusDevice {
        if (offset, len) == (RESET, 1) {
            &*self.reset
        } else {
            &*self.ports
        }
    }
}

impl BusDevice for PortsWithReset {
    fn name(&self) -> String {
        self.ports.name()
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        self.behind(offset, data.len()).read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.behind(offset, data.len()).write(offset, data);
    }
}

/// Config space as memory.
pub struct Ecam {
    bus: Arc<PciBus>,
}

impl Ecam {
    /// Memory-mapped config space of `bus`.
    pub fn new(bus: Arc<PciBus>) -> Self {
        Self { bus }
    }
}

impl BusDevice for Ecam {
    fn name(&self) -> String {
        "pcie-mmcfg".to_owned()
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        self.bus.read(
            (offset >> 20) as u8,
            (offset >> 12) as u8,
            offset & 0xfff,
            data,
        );
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.bus.write(
            (offset >> 20) as u8,
            (offset >> 12) as u8,
            offset & 0xfff,
            data,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::pci::{HostBridge, PciAddress};

    fn bus() -> Arc<PciBus> {
        let bus = Arc::new(PciBus::default());
        bus.insert(
            PciAddress {
                slot: 0,
                function: 0,
            },
            Arc::new(HostBridge::new()),
        );
        bus
    }

    #[test]
    fn both_ways_reach_the_same_function() {
        let (ports, ecam) = (ConfigPorts::new(bus()), Ecam::new(bus()));
        ports.write(0, &(ENABLE).to_le_bytes());
        let (mut by_port, mut by_memory) = ([0; 2], [0; 2]);
        ports.read(DATA, &mut by_port);
        ecam.read(0, &mut by_memory);
        assert_eq!(by_port, by_memory);
        assert_eq!(u16::from_le_bytes(by_port), 0x1b36);
    }

    #[test]
    fn where_no_function_is_all_bits_are_ones() {
        let (ports, ecam) = (ConfigPorts::new(bus()), Ecam::new(bus()));
        let mut data = [0; 4];
        ecam.read(1 << 20, &mut data);
        assert_eq!(data, [0xff; 4]);
        ports.write(0, &(ENABLE | 5 << 11).to_le_bytes());
        ports.read(DATA, &mut data);
        assert_eq!(data, [0xff; 4]);
        ports.write(0, &0u32.to_le_bytes());
        ports.read(DATA, &mut data);
        assert_eq!(data, [0xff; 4]);
    }
}
