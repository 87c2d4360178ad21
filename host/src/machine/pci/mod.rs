//! The PCI bus: one root bus, no bridges yet, config space by ports and by ECAM.

mod access;
mod bars;
mod firmware;
mod host_bridge;
mod parts;
mod plugged;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

pub use access::{
    CONFIG_PORTS, CONFIG_PORTS_SIZE, ConfigPorts, ConfigPortsState, Ecam, PortsWithReset,
};
pub use bars::BarMap;
pub use firmware::{PciWindows, WindowFull, assign};
pub use host_bridge::HostBridge;
pub use plugged::PluggedPci;

/// A function on the bus. Called from any vCPU thread.
pub trait PciFunction: Send + Sync {
    /// Reads config space.
    fn config_read(&self, offset: u64, data: &mut [u8]);
    /// Writes config space.
    fn config_write(&self, offset: u64, data: &[u8]);
    /// The bytes of each BAR; 0 where there is none, and for the upper half of one before it.
    fn bar_sizes(&self) -> [u64; 6] {
        [0; 6]
    }
}

/// A place on bus 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    /// 0 to 31.
    pub slot: u8,
    /// 0 to 7.
    pub function: u8,
}

impl PciAddress {
    /// How many slots a bus has.
    pub const SLOTS: u8 = 32;
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0000:00:{:02x}.{:x}", self.slot, self.function)
    }
}

/// A place that is taken, or no place left.
#[derive(Debug, thiserror::Error)]
pub enum PciBusError {
    /// The address asked for is taken.
    #[error("PCI address {0} is taken; leave addr= out to get a free one")]
    Taken(PciAddress),
    /// All slots are taken.
    #[error(
        "The PCI bus has no free slot left; it has {} and no bridges",
        PciAddress::SLOTS
    )]
    Full,
}

/// Bus 0.
#[derive(Default)]
pub struct PciBus {
    functions: RwLock<BTreeMap<PciAddress, Arc<dyn PciFunction>>>,
}

impl PciBus {
    /// The first free slot, or `wanted` if it is free.
    pub fn place(&self, wanted: Option<PciAddress>) -> Result<PciAddress, PciBusError> {
        let functions = self
            .functions
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        match wanted {
            Some(at) if functions.contains_key(&at) => Err(PciBusError::Taken(at)),
            Some(at) => Ok(at),
            None => (0..PciAddress::SLOTS)
                .map(|slot| PciAddress { slot, function: 0 })
                .find(|at| !functions.keys().any(|taken| taken.slot == at.slot))
                .ok_or(PciBusError::Full),
        }
    }

    /// Puts a function where [`Self::place`] said there is room.
    pub fn insert(&self, at: PciAddress, function: Arc<dyn PciFunction>) {
        self.functions
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(at, function);
    }

    /// Takes the functions of a slot away; whether there was one.
    pub fn remove_slot(&self, slot: u8) -> bool {
        let mut functions = self
            .functions
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let gone: Vec<_> = functions.extract_if(.., |at, _| at.slot == slot).collect();
        drop(functions);
        !gone.is_empty()
    }

    /// Takes a function away, if it is there.
    pub fn remove(&self, at: PciAddress) {
        let mut functions = self
            .functions
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let gone = functions.remove(&at);
        drop(functions);
        drop(gone);
    }

    /// Takes every function away.
    pub fn clear(&self) {
        let mut functions = self
            .functions
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let gone = std::mem::take(&mut *functions);
        drop(functions);
        drop(gone);
    }

    /// Every function with its place.
    pub fn functions(&self) -> Vec<(PciAddress, Arc<dyn PciFunction>)> {
        let functions = self
            .functions
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        functions
            .iter()
            .map(|(at, function)| (*at, Arc::clone(function)))
            .collect()
    }

    fn function(&self, at: PciAddress) -> Option<Arc<dyn PciFunction>> {
        self.functions
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&at)
            .cloned()
    }

    /// Reads config space; where no function is, all ones.
    fn read(&self, bus: u8, device_function: u8, offset: u64, data: &mut [u8]) {
        let at = PciAddress {
            slot: device_function >> 3,
            function: device_function & 7,
        };
        match self.function(at).filter(|_| bus == 0) {
            Some(function) => function.config_read(offset, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, bus: u8, device_function: u8, offset: u64, data: &[u8]) {
        let at = PciAddress {
            slot: device_function >> 3,
            function: device_function & 7,
        };
        if let Some(function) = self.function(at).filter(|_| bus == 0) {
            function.config_write(offset, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_shown_as_guests_show_it() {
        assert_eq!(
            PciAddress {
                slot: 0x1f,
                function: 2
            }
            .to_string(),
            "0000:00:1f.2"
        );
    }

    #[test]
    fn a_free_slot_is_found_and_a_taken_place_is_refused() {
        let bus = PciBus::default();
        let first = PciAddress {
            slot: 0,
            function: 0,
        };
        bus.insert(first, Arc::new(HostBridge::new()));
        assert!(bus.place(None).is_ok_and(|at| at.slot == 1));
        assert!(matches!(bus.place(Some(first)), Err(PciBusError::Taken(_))));
        for slot in 1..PciAddress::SLOTS {
            bus.insert(
                PciAddress { slot, function: 0 },
                Arc::new(HostBridge::new()),
            );
        }
        assert!(matches!(bus.place(None), Err(PciBusError::Full)));
    }
}
