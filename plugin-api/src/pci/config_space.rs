//! A type 0 or type 1 config space: PCI 3.0 section 6.1 and 6.2, PCI Express 4.0 section 7.5.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Bytes of config space with the extended part.
const SIZE: usize = 4096;
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const STATUS_CAPABILITIES: u8 = 0x10;
const HEADER_TYPE: usize = 0x0e;
const BAR0: usize = 0x10;
/// Of a bridge.
const BRIDGE_CONTROL: usize = 0x3e;
/// Parity and SERR forwarding, and the secondary bus's reset.
const BRIDGE_CONTROL_WRITABLE: u16 = 0x0043;
/// The type of a root port in the PCI Express capability.
pub const PORT_ROOT: u8 = 4;
const CAPABILITY_POINTER: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const FIRST_CAPABILITY: usize = 0x40;
/// Where capabilities end and extended config space begins.
const CAPABILITIES_END: usize = 0x100;

const COMMAND_IO: u16 = 1 << 0;
const COMMAND_MEMORY: u16 = 1 << 1;
/// I/O, memory, bus master, and INTx disable.
const COMMAND_WRITABLE: u16 = 0x0407;

/// What a function is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem: u16,
    /// Class, subclass and interface.
    pub class: u32,
    /// Revision.
    pub revision: u8,
}

/// What a BAR decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarKind {
    /// Ports.
    Port,
    /// Memory below 4 GiB.
    Memory32,
    /// Memory anywhere, prefetchable; takes the next BAR's place too.
    Memory64,
}

/// What a write has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ConfigWrite {
    /// A BAR may decode elsewhere, or begin or cease to: see [`ConfigSpace::bar_address`].
    pub bars: bool,
}

/// Everything of a config space that can change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigSpaceState {
    /// Its bytes up to the last capability.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

/// A function's config space. Only bits that the specification, or a capability's mask, makes
/// writable change on writes.
#[derive(Debug, Clone)]
pub struct ConfigSpace {
    bytes: Vec<u8>,
    writable: Vec<u8>,
    bars: [Option<(BarKind, u64)>; 6],
    last_capability: Option<usize>,
    last_extended: Option<usize>,
    /// Where capabilities begin and end.
    placed: Vec<Range<usize>>,
    end: usize,
}

impl ConfigSpace {
    /// A function with no BAR and no capability.
    pub fn new(id: Identity) -> Self {
        let mut this = Self {
            bytes: vec![0; SIZE],
            writable: vec![0; SIZE],
            bars: [None; 6],
            last_capability: None,
            last_extended: None,
            placed: Vec::new(),
            end: FIRST_CAPABILITY,
        };
        this.put(0x00, &id.vendor.to_le_bytes());
        this.put(0x02, &id.device.to_le_bytes());
        this.put(0x08, &[id.revision]);
        this.put(0x09, &id.class.to_le_bytes()[..3]);
        this.put(0x2c, &id.subsystem_vendor.to_le_bytes());
        this.put(0x2e, &id.subsystem.to_le_bytes());
        this.writable[COMMAND..COMMAND + 2].copy_from_slice(&COMMAND_WRITABLE.to_le_bytes());
        this.writable[INTERRUPT_LINE] = 0xff;
        this
    }

    /// A bridge with no BAR and no capability, behind which is a bus of its own: a type 1 header. A
    /// bridge has no subsystem in its header.
    pub fn bridge(id: Identity) -> Self {
        let mut this = Self::new(id);
        this.put(0x2c, &[0; 4]);
        this.put(HEADER_TYPE, &[1]);
        // Bus numbers, and the windows for ports, memory and prefetchable memory of 64 bits.
        this.writable[0x18..0x1b].fill(0xff);
        this.writable[0x1c..0x1e].fill(0xf0);
        for at in [0x20, 0x22, 0x24, 0x26] {
            this.writable[at..at + 2].copy_from_slice(&0xfff0u16.to_le_bytes());
        }
        this.put(0x24, &[1, 0, 1, 0]);
        this.writable[0x28..0x30].fill(0xff);
        this.writable[BRIDGE_CONTROL..BRIDGE_CONTROL + 2]
            .copy_from_slice(&BRIDGE_CONTROL_WRITABLE.to_le_bytes());
        this
    }

    /// Adds the PCI Express capability (version 2) of a port of this type and number, without a slot;
    /// its link is up.
    pub fn add_express(&mut self, port_type: u8, number: u8) -> Result<usize> {
        let mut body = [0; 0x3a];
        body[0] = 2 | port_type << 4;
        // Device Capabilities: role-based error reporting. Control: reporting and payload size.
        body[2..6].copy_from_slice(&0x8000u32.to_le_bytes());
        // Link Capabilities and Status: 2.5 GT/s, one lane.
        body[0x0a..0x0e].copy_from_slice(&(0x11 | u32::from(number) << 24).to_le_bytes());
        body[0x10..0x12].copy_from_slice(&0x11u16.to_le_bytes());
        let mut writable = [0; 0x1c];
        writable[6..8].copy_from_slice(&0x70ffu16.to_le_bytes());
        // Root Control.
        writable[0x1a] = 0x0f;
        self.add_capability(0x10, &body, &writable)
    }

    /// Adds a BAR of `size` bytes, a power of two of at least 16, or 4 of ports. An error if it does not
    /// fit.
    pub fn add_bar(&mut self, bar: usize, kind: BarKind, size: u64) -> Result<()> {
        let slots = if kind == BarKind::Memory64 { 2 } else { 1 };
        let most = if self.bytes[HEADER_TYPE] == 1 { 2 } else { 6 };
        let free = bar + slots <= most && self.bars[bar..bar + slots].iter().all(Option::is_none);
        let (least, flag_bits) = if kind == BarKind::Port {
            (4, 0x3)
        } else {
            (16, 0xf)
        };
        if !free || !size.is_power_of_two() || size < least || (slots == 1 && size > 1 << 31) {
            return Err(Error::invalid(format!(
                "BAR {bar} of {size:#x} bytes does not fit"
            )));
        }
        let (flags, mask) = match kind {
            BarKind::Port => (0x1u32, !(size - 1)),
            BarKind::Memory32 => (0x0, !(size - 1)),
            BarKind::Memory64 => (0xc, !(size - 1)),
        };
        let at = BAR0 + bar * 4;
        self.put(at, &flags.to_le_bytes());
        let width = slots * 4;
        self.writable[at..at + width].copy_from_slice(&mask.to_le_bytes()[..width]);
        self.writable[at] &= !flag_bits;
        self.bars[bar] = Some((kind, size));
        Ok(())
    }

    /// Adds a capability of `body` after its two header bytes; `writable` has a bit for each bit of
    /// `body` that the guest may change, and is as long or shorter. Returns where it begins.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Result<usize> {
        let at = self.end;
        self.place_capability(at, id, body, writable)?;
        Ok(at)
    }

    /// The same at `at`, as the last of the list: for a function that is like one that is there already.
    pub fn place_capability(
        &mut self,
        at: usize,
        id: u8,
        body: &[u8],
        writable: &[u8],
    ) -> Result<()> {
        let end = (at + 2 + body.len()).next_multiple_of(4);
        let fits = at.is_multiple_of(4) && at >= FIRST_CAPABILITY && end <= CAPABILITIES_END;
        if !fits || writable.len() > body.len() || !self.is_free(at..end) {
            return Err(Error::invalid(format!("Capability {id:#x} does not fit")));
        }
        self.placed.push(at..end);
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        self.writable[at + 2..at + 2 + writable.len()].copy_from_slice(writable);
        match self.last_capability {
            Some(last) => self.bytes[last + 1] = at as u8,
            None => {
                self.bytes[CAPABILITY_POINTER] = at as u8;
                self.bytes[STATUS] |= STATUS_CAPABILITIES;
            }
        }
        self.last_capability = Some(at);
        self.end = self.end.max(end);
        Ok(())
    }

    /// Puts the header of an extended capability at `at`, as the last of their list, the first at 0x100;
    /// the rest of it is the caller's to answer for.
    pub fn place_extended(&mut self, at: usize, id: u16, version: u8) -> Result<()> {
        let first = self.last_extended.is_none();
        let fits = at.is_multiple_of(4) && first == (at == CAPABILITIES_END) && at + 4 <= SIZE;
        if !fits || at < CAPABILITIES_END || !self.is_free(at..at + 4) {
            return Err(Error::invalid(format!(
                "Extended capability {id:#x} does not fit"
            )));
        }
        self.placed.push(at..at + 4);
        self.put(
            at,
            &(u32::from(id) | u32::from(version & 0xf) << 16).to_le_bytes(),
        );
        if let Some(last) = self.last_extended.replace(at) {
            self.bytes[last + 2] |= (at as u8 & 0xf) << 4;
            self.bytes[last + 3] = (at >> 4) as u8;
        }
        Ok(())
    }

    fn is_free(&self, range: Range<usize>) -> bool {
        let apart = |placed: &Range<usize>| range.end <= placed.start || placed.end <= range.start;
        self.placed.iter().all(apart)
    }

    /// Reads; what lies behind the end reads as all ones.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(range) = range(offset, data.len()) {
            data.copy_from_slice(&self.bytes[range]);
        }
    }

    /// Writes what is writable, and says what that changed.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> ConfigWrite {
        let Some(range) = range(offset, data.len()) else {
            return ConfigWrite::default();
        };
        let touched = |from: usize, to: usize| range.start < to && from < range.end;
        let effect = ConfigWrite {
            bars: touched(COMMAND, COMMAND + 2) || touched(BAR0, BAR0 + 24),
        };
        for (at, &new) in range.zip(data) {
            let mask = self.writable[at];
            self.bytes[at] = (self.bytes[at] & !mask) | (new & mask);
        }
        effect
    }

    /// Two bytes, little-endian.
    pub fn u16_at(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.bytes[offset], self.bytes[offset + 1]])
    }

    /// What a BAR decodes, if it is there.
    pub fn bar_kind(&self, bar: usize) -> Option<BarKind> {
        self.bars[bar].map(|(kind, _)| kind)
    }

    /// The size of a BAR, or 0.
    pub fn bar_size(&self, bar: usize) -> u64 {
        self.bars[bar].map_or(0, |(_, size)| size)
    }

    /// Where a BAR decodes, or nothing while it does not: switched off in the command register,
    /// never programmed, or left at all ones by a sizing.
    pub fn bar_address(&self, bar: usize) -> Option<u64> {
        let (kind, size) = self.bars[bar]?;
        let command = self.u16_at(COMMAND);
        let at = BAR0 + bar * 4;
        let low = u64::from(u32::from_le_bytes([
            self.bytes[at],
            self.bytes[at + 1],
            self.bytes[at + 2],
            self.bytes[at + 3],
        ]));
        let (on, address) = match kind {
            BarKind::Port => (command & COMMAND_IO, low & !0x3),
            BarKind::Memory32 => (command & COMMAND_MEMORY, low & !0xf),
            BarKind::Memory64 => {
                let high = u64::from(u32::from_le_bytes([
                    self.bytes[at + 4],
                    self.bytes[at + 5],
                    self.bytes[at + 6],
                    self.bytes[at + 7],
                ]));
                (command & COMMAND_MEMORY, (high << 32) | (low & !0xf))
            }
        };
        let end = address.checked_add(size - 1)?;
        let all_ones = match kind {
            BarKind::Port => 0xffff,
            BarKind::Memory32 => 0xffff_ffff,
            BarKind::Memory64 => u64::MAX,
        };
        (on != 0 && address != 0 && end < all_ones).then_some(address)
    }

    /// Back to the state of power-on: every writable bit is 0.
    pub fn reset(&mut self) {
        for (byte, writable) in self.bytes.iter_mut().zip(&self.writable) {
            *byte &= !writable;
        }
    }

    /// What can change of it.
    pub fn state(&self) -> ConfigSpaceState {
        ConfigSpaceState {
            bytes: self.bytes[..self.end].to_vec(),
        }
    }

    /// Takes the state of a config space with the same identity, BARs and capabilities; any other
    /// is refused and changes nothing.
    pub fn load(&mut self, state: &ConfigSpaceState) -> Result<()> {
        if state.bytes.len() != self.end {
            return Err(Error::state(format!(
                "The config space has {} bytes here and {} in the state",
                self.end,
                state.bytes.len()
            )));
        }
        for (at, &new) in state.bytes.iter().enumerate() {
            if (new ^ self.bytes[at]) & !self.writable[at] != 0 {
                return Err(Error::state(format!(
                    "The config space differs at {at:#x}: {:#04x} here, {new:#04x} in the state; \
                     start the target with the same device",
                    self.bytes[at]
                )));
            }
        }
        self.bytes[..self.end].copy_from_slice(&state.bytes);
        Ok(())
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

fn range(offset: u64, len: usize) -> Option<Range<usize>> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(len)?;
    (end <= SIZE).then_some(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        let mut space = ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1042,
            ..Identity::default()
        });
        space.add_bar(0, BarKind::Memory64, 0x8000).unwrap();
        space
            .add_capability(0x09, &[1, 2, 3, 4], &[0, 0xff])
            .unwrap();
        space
    }

    #[test]
    fn a_bar_sizes_and_decodes_as_the_specification_says() {
        let mut space = space();
        space.write(0x10, &[0xff; 8]);
        let mut sizing = [0; 8];
        space.read(0x10, &mut sizing);
        assert_eq!(u64::from_le_bytes(sizing), !0x7fff | 0xc);
        assert_eq!(space.bar_address(0), None);
        space.write(0x10, &0x1_2345_0000u64.to_le_bytes());
        assert_eq!(space.bar_address(0), None);
        assert!(space.write(0x04, &[0x02, 0]).bars);
        assert_eq!(space.bar_address(0), Some(0x1_2345_0000));
    }

    #[test]
    fn a_few_ports_are_a_bar_and_as_little_memory_is_not() {
        let mut space = ConfigSpace::new(Identity::default());
        space.add_bar(0, BarKind::Port, 4).unwrap();
        assert!(space.add_bar(1, BarKind::Memory32, 8).is_err());
        space.write(0x10, &[0xff; 4]);
        let mut sizing = [0; 4];
        space.read(0x10, &mut sizing);
        assert_eq!(u32::from_le_bytes(sizing), 0xffff_fffd);
        space.write(0x10, &0xc004u32.to_le_bytes());
        space.write(0x04, &[1, 0]);
        assert_eq!(space.bar_address(0), Some(0xc004));
    }

    #[test]
    fn only_writable_bits_change() {
        let mut space = space();
        space.write(0x00, &[0; 4]);
        space.write(0x40, &[0xee; 6]);
        assert_eq!(space.u16_at(0), 0x1af4);
        let mut capability = [0; 6];
        space.read(0x40, &mut capability);
        assert_eq!(capability, [0x09, 0, 1, 0xee, 3, 4]);
    }

    #[test]
    fn capabilities_are_listed_as_they_were_placed_and_do_not_overlap() {
        let mut space = ConfigSpace::new(Identity::default());
        space.place_capability(0x90, 0x10, &[0; 6], &[]).unwrap();
        space.place_capability(0x40, 0x01, &[0; 6], &[]).unwrap();
        assert_eq!(space.add_capability(0x09, &[], &[]).unwrap(), 0x98);
        let mut list = Vec::new();
        let mut at = usize::from(space.u16_at(CAPABILITY_POINTER));
        while at != 0 {
            let header = space.u16_at(at);
            list.push((at, header as u8));
            at = usize::from(header >> 8);
        }
        assert_eq!(list, [(0x90, 0x10), (0x40, 0x01), (0x98, 0x09)]);
        for at in [0x3c, 0x42, 0x44, 0x8c, 0x94, 0xfc] {
            assert!(space.place_capability(at, 0x09, &[0; 6], &[]).is_err());
        }
        assert_eq!(space.state().bytes.len(), 0x9c);
    }

    #[test]
    fn extended_capabilities_are_listed_from_their_first_place_on() {
        let mut space = ConfigSpace::new(Identity::default());
        assert!(space.place_extended(0x140, 0x0d, 1).is_err());
        space.place_extended(0x100, 0x01, 2).unwrap();
        space.place_extended(0x2a0, 0x0b, 1).unwrap();
        space.place_extended(0x150, 0x18, 1).unwrap();
        let header = |at| {
            let mut data = [0; 4];
            space.read(at, &mut data);
            u32::from_le_bytes(data)
        };
        assert_eq!(
            [header(0x100), header(0x2a0), header(0x150)],
            [0x2a02_0001, 0x1501_000b, 0x0001_0018]
        );
        for at in [0x80, 0x100, 0x142, 0x1000] {
            assert!(space.place_extended(at, 0x01, 1).is_err());
        }
    }

    #[test]
    fn state_of_another_device_is_refused_and_changes_nothing() {
        let mut space = space();
        let mut state = space.state();
        state.bytes[0x04] = 0x02;
        state.bytes[0x02] ^= 1;
        assert!(space.load(&state).unwrap_err().message.contains("0x2"));
        assert_eq!(space.u16_at(0x04), 0);
        state.bytes[0x02] ^= 1;
        space.load(&state).unwrap();
        assert_eq!(space.u16_at(0x04), 2);
    }

    #[test]
    fn accesses_behind_the_end_read_as_ones_and_write_nothing() {
        let mut space = space();
        let mut data = [0; 4];
        space.read(4094, &mut data);
        assert_eq!(data, [0xff; 4]);
        assert_eq!(space.write(u64::MAX, &[0]), ConfigWrite::default());
    }
}
