//! What a real config space says: PCI 3.0 section 6.1 and 6.7, PCI Express 4.0 section 7.6.

use baton_plugin_api::pci::{BarKind, Identity, MsiLayout, MsixLayout};
use baton_plugin_api::{Error, Result};

/// Bytes with the extended part.
pub(crate) const SIZE: usize = 4096;
pub(crate) const COMMAND: usize = 0x04;
pub(crate) const STATUS: usize = 0x06;
pub(crate) const HEADER_TYPE: usize = 0x0e;
pub(crate) const BAR0: usize = 0x10;
const STATUS_CAPABILITIES: u16 = 1 << 4;
const CAPABILITY_POINTER: usize = 0x34;
const FIRST_CAPABILITY: usize = 0x40;
/// Where the extended part begins.
const EXTENDED: usize = 0x100;

/// Ids of capabilities.
pub(crate) mod id {
    pub(crate) const POWER: u8 = 0x01;
    pub(crate) const MSI: u8 = 0x05;
    pub(crate) const EXPRESS: u8 = 0x10;
    pub(crate) const MSIX: u8 = 0x11;
}

/// The config space of a real device.
pub(crate) struct RealConfig(Vec<u8>);

/// An extended capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extended {
    pub(crate) at: usize,
    pub(crate) id: u16,
    pub(crate) version: u8,
}

impl RealConfig {
    /// From what was read; what is missing is zero.
    pub(crate) fn new(mut bytes: Vec<u8>) -> Result<Self> {
        bytes.resize(SIZE, 0);
        let this = Self(bytes);
        match this.0[HEADER_TYPE] & 0x7f {
            0 => Ok(this),
            _ => Err(Error::invalid(
                "The host device is a bridge; name a device behind it",
            )),
        }
    }

    pub(crate) fn u8(&self, at: usize) -> u8 {
        self.0.get(at).copied().unwrap_or(0)
    }

    pub(crate) fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.u8(at), self.u8(at + 1)])
    }

    pub(crate) fn u32(&self, at: usize) -> u32 {
        u32::from(self.u16(at)) | u32::from(self.u16(at + 2)) << 16
    }

    pub(crate) fn identity(&self) -> Identity {
        Identity {
            vendor: self.u16(0x00),
            device: self.u16(0x02),
            subsystem_vendor: self.u16(0x2c),
            subsystem: self.u16(0x2e),
            class: self.u32(0x08) >> 8,
            revision: self.u8(0x08),
        }
    }

    pub(crate) fn bar_kind(&self, bar: usize) -> BarKind {
        match self.u8(BAR0 + bar * 4) & 0x7 {
            low if low & 1 != 0 => BarKind::Port,
            0x4 => BarKind::Memory64,
            _ => BarKind::Memory32,
        }
    }

    /// Where each capability is, and its id, as they are listed.
    pub(crate) fn capabilities(&self) -> Vec<(usize, u8)> {
        let mut list: Vec<(usize, u8)> = Vec::new();
        if self.u16(STATUS) & STATUS_CAPABILITIES == 0 {
            return list;
        }
        let mut at = usize::from(self.u8(CAPABILITY_POINTER) & !3);
        while at >= FIRST_CAPABILITY && list.iter().all(|(known, _)| *known != at) {
            list.push((at, self.u8(at)));
            at = usize::from(self.u8(at + 1) & !3);
        }
        list
    }

    /// The extended capabilities as they are listed.
    pub(crate) fn extended(&self) -> Vec<Extended> {
        let mut list: Vec<Extended> = Vec::new();
        let mut at = EXTENDED;
        while at >= EXTENDED && list.iter().all(|known| known.at != at) {
            let header = self.u32(at);
            if header == 0 || header == u32::MAX {
                break;
            }
            list.push(Extended {
                at,
                id: header as u16,
                version: (header >> 16) as u8 & 0xf,
            });
            at = (header >> 20) as usize & !3;
        }
        list
    }

    /// What the MSI capability at `at` has.
    pub(crate) fn msi(&self, at: usize) -> MsiLayout {
        MsiLayout::from_control(self.u16(at + 2))
    }

    /// What the MSI-X capability at `at` has.
    pub(crate) fn msix(&self, at: usize) -> MsixLayout {
        let place = |register: u32| ((register & 7) as u8, register & !7);
        MsixLayout {
            vectors: (self.u16(at + 2) & 0x7ff) + 1,
            table: place(self.u32(at + 4)),
            pending: place(self.u32(at + 8)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn real(bytes: &[(usize, &[u8])]) -> RealConfig {
        let mut all = vec![0; SIZE];
        for (at, bytes) in bytes {
            all[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        RealConfig::new(all).unwrap()
    }

    #[test]
    fn lists_that_lead_back_or_nowhere_end() {
        let config = real(&[
            (STATUS, &[0x10]),
            (CAPABILITY_POINTER, &[0x43]),
            (0x40, &[0x01, 0x50]),
            (0x50, &[0x05, 0x40]),
            (0x100, &[0x01, 0, 0x02, 0x20]),
            (0x200, &[0x0b, 0, 0x01, 0x10]),
        ]);
        assert_eq!(config.capabilities(), [(0x40, 0x01), (0x50, 0x05)]);
        let extended: Vec<_> = config.extended().iter().map(|e| (e.at, e.id)).collect();
        assert_eq!(extended, [(0x100, 0x01), (0x200, 0x0b)]);
        let none = real(&[(CAPABILITY_POINTER, &[0x40]), (0x100, &[0xff; 4])]);
        assert!(none.capabilities().is_empty() && none.extended().is_empty());
    }

    #[test]
    fn a_bridge_is_refused_and_many_functions_are_not() {
        let mut bytes = vec![0; 256];
        bytes[HEADER_TYPE] = 0x81;
        assert!(RealConfig::new(bytes.clone()).is_err());
        bytes[HEADER_TYPE] = 0x80;
        assert!(RealConfig::new(bytes).is_ok());
    }
}
