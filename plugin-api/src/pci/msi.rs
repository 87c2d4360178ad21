//! An MSI capability: PCI 3.0 section 6.8.1.

use super::ConfigSpace;
use crate::error::{Error, Result};
use crate::protocol::MsiMessage;

const CAPABILITY: u8 = 0x05;
const CONTROL_ENABLE: u16 = 1 << 0;
/// How many messages the driver uses, as a power of two.
const CONTROL_USED: u16 = 0x7 << 4;
const CONTROL_USED_SHIFT: u16 = 4;
const CONTROL_WIDE: u16 = 1 << 7;
const CONTROL_MASKABLE: u16 = 1 << 8;
const VECTORS_MAX: u16 = 32;

/// What a function's MSI capability has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsiLayout {
    /// How many messages it can send: a power of two, at most 32.
    pub vectors: u16,
    /// Whether the address has 64 bits.
    pub wide: bool,
    /// Whether each message can be masked, and shows when it is pending.
    pub maskable: bool,
}

/// An MSI capability. All that can change of it is in config space.
#[derive(Debug, Clone)]
pub struct Msi {
    capability: usize,
    layout: MsiLayout,
}

impl MsiLayout {
    /// What a Message Control register says.
    pub fn from_control(control: u16) -> Self {
        Self {
            vectors: 1 << (control >> 1 & 0x7),
            wide: control & CONTROL_WIDE != 0,
            maskable: control & CONTROL_MASKABLE != 0,
        }
    }

    /// The capability's bytes, with its header.
    pub fn size(self) -> usize {
        match (self.wide, self.maskable) {
            (false, false) => 0x0a,
            (true, false) => 0x0e,
            (false, true) => 0x14,
            (true, true) => 0x18,
        }
    }

    /// Where the data are, in the capability.
    fn data(self) -> usize {
        if self.wide { 0x0c } else { 0x08 }
    }
}

impl Msi {
    /// Puts the capability at `at` of `config`.
    pub fn place(config: &mut ConfigSpace, at: usize, layout: MsiLayout) -> Result<Self> {
        let vectors = layout.vectors;
        if !vectors.is_power_of_two() || vectors > VECTORS_MAX {
            return Err(Error::invalid(format!(
                "An MSI capability of {vectors} messages does not fit"
            )));
        }
        let mut body = vec![0; layout.size() - 2];
        let mut writable = body.clone();
        let control = (vectors.trailing_zeros() as u16) << 1
            | if layout.wide { CONTROL_WIDE } else { 0 }
            | if layout.maskable { CONTROL_MASKABLE } else { 0 };
        body[..2].copy_from_slice(&control.to_le_bytes());
        writable[..2].copy_from_slice(&(CONTROL_ENABLE | CONTROL_USED).to_le_bytes());
        let data = layout.data() - 2;
        writable[2..data].fill(0xff);
        writable[2] = 0xfc;
        writable[data..data + 2].fill(0xff);
        if layout.maskable {
            let bits = ((1u64 << vectors) - 1) as u32;
            writable[data + 4..data + 8].copy_from_slice(&bits.to_le_bytes());
        }
        config.place_capability(at, CAPABILITY, &body, &writable)?;
        Ok(Self {
            capability: at,
            layout,
        })
    }

    /// How many messages it can send.
    pub fn vectors(&self) -> u16 {
        self.layout.vectors
    }

    /// How many messages the guest uses, or nothing while MSI is off.
    pub fn enabled(&self, config: &ConfigSpace) -> Option<u16> {
        let control = config.u16_at(self.capability + 2);
        let used = 1u16 << ((control & CONTROL_USED) >> CONTROL_USED_SHIFT);
        (control & CONTROL_ENABLE != 0).then_some(used.min(self.layout.vectors))
    }

    /// What a vector sends now, or nothing while it is masked, MSI is off, or the guest does not use it.
    pub fn message(&self, config: &ConfigSpace, vector: u16) -> Option<MsiMessage> {
        let used = self.enabled(config).filter(|used| vector < *used)?;
        let word = |at: usize| {
            let (low, high) = (config.u16_at(at), config.u16_at(at + 2));
            u32::from(low) | u32::from(high) << 16
        };
        let data = self.capability + self.layout.data();
        if self.layout.maskable && word(data + 4) & 1 << vector != 0 {
            return None;
        }
        let high = if self.layout.wide {
            word(self.capability + 8)
        } else {
            0
        };
        Some(MsiMessage {
            address: u64::from(word(self.capability + 4)) | u64::from(high) << 32,
            data: u32::from(config.u16_at(data) & !(used - 1) | vector),
        })
    }

    /// Puts the pending bits into what was read of config space at `offset`; `pending` tells a
    /// vector's.
    pub fn read_pending(&self, offset: u64, data: &mut [u8], pending: impl Fn(u16) -> bool) {
        if !self.layout.maskable {
            return;
        }
        let start = (self.capability + self.layout.data() + 8) as u64;
        for (at, byte) in (offset..).zip(data) {
            let Some(nth) = at.checked_sub(start).filter(|nth| *nth < 4) else {
                continue;
            };
            *byte = (0..8).fold(0, |bits, bit| {
                let vector = nth as u16 * 8 + bit;
                let set = vector < self.layout.vectors && pending(vector);
                bits | u8::from(set) << bit
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::Identity;

    const AT: usize = 0x50;

    fn msi(wide: bool, maskable: bool) -> (ConfigSpace, Msi) {
        let mut config = ConfigSpace::new(Identity::default());
        let layout = MsiLayout {
            vectors: 4,
            wide,
            maskable,
        };
        let msi = Msi::place(&mut config, AT, layout).unwrap();
        let control = config.u16_at(AT + 2);
        assert_eq!(MsiLayout::from_control(control), layout);
        (config, msi)
    }

    #[test]
    fn each_vector_has_its_number_in_the_data_once_msi_is_on() {
        for wide in [false, true] {
            let (mut config, msi) = msi(wide, false);
            config.write(AT as u64 + 4, &0xfee0_1003u32.to_le_bytes());
            let (data, high) = if wide { (0x0c, 7u64) } else { (0x08, 0) };
            if wide {
                config.write(AT as u64 + 8, &7u32.to_le_bytes());
            }
            config.write(AT as u64 + data, &0x4043u16.to_le_bytes());
            assert_eq!(
                (msi.enabled(&config), msi.message(&config, 0)),
                (None, None)
            );
            config.write(AT as u64 + 2, &0x0011u16.to_le_bytes());
            assert_eq!(msi.enabled(&config), Some(2));
            let message = |data| {
                Some(MsiMessage {
                    address: high << 32 | 0xfee0_1000,
                    data,
                })
            };
            assert_eq!(msi.message(&config, 0), message(0x4042));
            assert_eq!(msi.message(&config, 1), message(0x4043));
            assert_eq!(msi.message(&config, 2), None);
            // No more than there are.
            config.write(AT as u64 + 2, &0x0071u16.to_le_bytes());
            assert_eq!(msi.enabled(&config), Some(4));
        }
    }

    #[test]
    fn a_masked_vector_sends_nothing_and_shows_when_it_is_pending() {
        let (mut config, msi) = msi(true, true);
        config.write(AT as u64 + 2, &0x0021u16.to_le_bytes());
        config.write(AT as u64 + 0x10, &[0xff; 4]);
        let mut mask = [0; 4];
        config.read(AT as u64 + 0x10, &mut mask);
        assert_eq!(u32::from_le_bytes(mask), 0xf);
        config.write(AT as u64 + 0x10, &[0x4, 0, 0, 0]);
        assert!(msi.message(&config, 1).is_some());
        assert_eq!(msi.message(&config, 2), None);
        let mut bits = [0xaa; 6];
        msi.read_pending(AT as u64 + 0x13, &mut bits, |vector| vector == 2);
        assert_eq!(bits, [0xaa, 4, 0, 0, 0, 0xaa]);
    }

    #[test]
    fn a_capability_that_does_not_fit_is_refused() {
        let layout = MsiLayout {
            vectors: 4,
            wide: true,
            maskable: true,
        };
        for vectors in [0, 3, 64] {
            let mut config = ConfigSpace::new(Identity::default());
            assert!(Msi::place(&mut config, AT, MsiLayout { vectors, ..layout }).is_err());
        }
        let mut config = ConfigSpace::new(Identity::default());
        assert!(Msi::place(&mut config, 0xec, layout).is_err());
    }
}
