//! An MSI-X capability with its table and pending bits: PCI 3.0 section 6.8.2.

use serde::{Deserialize, Serialize};

use super::ConfigSpace;
use crate::error::{Error, Result};
use crate::protocol::MsiMessage;

const CAPABILITY: u8 = 0x11;
const ENTRY: u64 = 16;
const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_MASK_ALL: u16 = 1 << 14;
const VECTOR_MASKED: u32 = 1;
/// The table size field has 11 bits.
const VECTORS_MAX: u16 = 2048;

/// A vector that sends something else than before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VectorChange {
    /// Which one.
    pub vector: u16,
    /// What it sends, or nothing while it is masked or MSI-X is off.
    pub message: Option<MsiMessage>,
}

/// Everything of an MSI-X table that can change; the control word is in config space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MsixState {
    /// Each vector's address, data and control.
    pub entries: Vec<(u64, u32, u32)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    address: u64,
    data: u32,
    control: u32,
}

/// Where a function has its MSI-X structures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsixLayout {
    /// How many vectors.
    pub vectors: u16,
    /// The BAR with the table, and where in it, aligned to 8 bytes.
    pub table: (u8, u32),
    /// The BAR with the pending bits, and where in it, aligned to 8 bytes.
    pub pending: (u8, u32),
}

/// A place in the MSI-X structures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MsixPart {
    /// In the table.
    Table(u64),
    /// In the pending bits.
    Pending(u64),
}

/// An MSI-X table in a BAR.
#[derive(Debug, Clone)]
pub struct Msix {
    capability: usize,
    layout: MsixLayout,
    entries: Vec<Entry>,
    sent: Vec<Option<MsiMessage>>,
}

/// Of the capability's body.
const WRITABLE: [u8; 2] = (CONTROL_ENABLE | CONTROL_MASK_ALL).to_le_bytes();

impl MsixLayout {
    /// The capability behind its header.
    fn capability(&self) -> Result<Vec<u8>> {
        let Self {
            vectors,
            table,
            pending,
        } = *self;
        let odd = (table.1 | pending.1) & 7 != 0 || table.0.max(pending.0) > 5;
        if vectors == 0 || vectors > VECTORS_MAX || odd {
            return Err(Error::invalid(format!(
                "An MSI-X table of {vectors} vectors does not fit"
            )));
        }
        let mut body = Vec::with_capacity(10);
        body.extend((vectors - 1).to_le_bytes());
        body.extend((table.1 | u32::from(table.0)).to_le_bytes());
        body.extend((pending.1 | u32::from(pending.0)).to_le_bytes());
        Ok(body)
    }

    /// Bytes of the table.
    pub fn table_len(&self) -> u64 {
        u64::from(self.vectors) * ENTRY
    }

    /// Bytes of the pending bits.
    pub fn pending_len(&self) -> u64 {
        u64::from(self.vectors).div_ceil(64) * 8
    }
}

impl Msix {
    /// Adds the capability to `config`: `vectors` entries at `table` in BAR `bar`, the pending bits
    /// at `pending` in the same BAR, both aligned to 8 bytes.
    pub fn new(
        config: &mut ConfigSpace,
        bar: u8,
        vectors: u16,
        table: u32,
        pending: u32,
    ) -> Result<Self> {
        let layout = MsixLayout {
            vectors,
            table: (bar, table),
            pending: (bar, pending),
        };
        let body = layout.capability()?;
        let capability = config.add_capability(CAPABILITY, &body, &WRITABLE)?;
        Ok(Self::at(capability, layout))
    }

    /// Puts the capability at `at` of `config`.
    pub fn place(config: &mut ConfigSpace, at: usize, layout: MsixLayout) -> Result<Self> {
        config.place_capability(at, CAPABILITY, &layout.capability()?, &WRITABLE)?;
        Ok(Self::at(at, layout))
    }

    fn at(capability: usize, layout: MsixLayout) -> Self {
        let entry = Entry {
            address: 0,
            data: 0,
            control: VECTOR_MASKED,
        };
        let vectors = usize::from(layout.vectors);
        Self {
            capability,
            layout,
            entries: vec![entry; vectors],
            sent: vec![None; vectors],
        }
    }

    /// What of the structures is at `offset` of a BAR.
    pub fn part(&self, bar: u32, offset: u64) -> Option<MsixPart> {
        let within = |(in_bar, start): (u8, u32), len: u64| {
            let at = offset.checked_sub(u64::from(start))?;
            (bar == u32::from(in_bar) && at < len).then_some(at)
        };
        let table = within(self.layout.table, self.table_len()).map(MsixPart::Table);
        let pending = || within(self.layout.pending, self.pending_len()).map(MsixPart::Pending);
        table.or_else(pending)
    }

    /// How many vectors there are.
    pub fn vectors(&self) -> u16 {
        self.entries.len() as u16
    }

    /// Bytes of the table.
    pub fn table_len(&self) -> u64 {
        self.layout.table_len()
    }

    /// Bytes of the pending bits.
    pub fn pending_len(&self) -> u64 {
        self.layout.pending_len()
    }

    /// Whether the guest has switched MSI-X on.
    pub fn enabled(&self, config: &ConfigSpace) -> bool {
        config.u16_at(self.capability + 2) & CONTROL_ENABLE != 0
    }

    /// Reads the table at `offset`.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = self.byte(at);
        }
    }

    /// Writes the table at `offset`; [`Self::changes`] tells what follows.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) {
        for (at, &byte) in (offset..).zip(data) {
            let Some(entry) = self.entries.get_mut((at / ENTRY) as usize) else {
                return;
            };
            let shift = (at % 4) * 8;
            let set = |word: u32| (word & !(0xff << shift)) | (u32::from(byte) << shift);
            match at % ENTRY / 4 {
                0 => {
                    entry.address =
                        (entry.address & !0xffff_ffff) | u64::from(set(entry.address as u32))
                }
                1 => {
                    let high = set((entry.address >> 32) as u32);
                    entry.address = (entry.address & 0xffff_ffff) | (u64::from(high) << 32);
                }
                2 => entry.data = set(entry.data),
                _ => entry.control = set(entry.control) & VECTOR_MASKED,
            }
        }
    }

    /// Reads the pending bits at `offset`; `pending` tells a vector's.
    pub fn read_pending(&self, offset: u64, data: &mut [u8], pending: impl Fn(u16) -> bool) {
        for (at, byte) in (offset..).zip(data) {
            *byte = (0..8).fold(0, |bits, bit| {
                let vector = at * 8 + bit;
                let set = vector < self.entries.len() as u64 && pending(vector as u16);
                bits | (u8::from(set) << bit)
            });
        }
    }

    /// The vectors that send something else since the last call.
    pub fn changes(&mut self, config: &ConfigSpace) -> Vec<VectorChange> {
        let control = config.u16_at(self.capability + 2);
        let on = control & (CONTROL_ENABLE | CONTROL_MASK_ALL) == CONTROL_ENABLE;
        let mut changes = Vec::new();
        for (vector, (entry, sent)) in self.entries.iter().zip(&mut self.sent).enumerate() {
            let message = (on && entry.control & VECTOR_MASKED == 0).then_some(MsiMessage {
                address: entry.address,
                data: entry.data,
            });
            if *sent != message {
                *sent = message;
                changes.push(VectorChange {
                    vector: vector as u16,
                    message,
                });
            }
        }
        changes
    }

    /// What a vector sends now, or nothing while it is masked, MSI-X is off, or there is no such
    /// vector.
    pub fn message(&self, config: &ConfigSpace, vector: u16) -> Option<MsiMessage> {
        let control = config.u16_at(self.capability + 2);
        let on = control & (CONTROL_ENABLE | CONTROL_MASK_ALL) == CONTROL_ENABLE;
        let entry = self.entries.get(usize::from(vector))?;
        (on && entry.control & VECTOR_MASKED == 0).then_some(MsiMessage {
            address: entry.address,
            data: entry.data,
        })
    }

    /// Back to the state of power-on. Config space resets its own part.
    pub fn reset(&mut self) {
        self.entries.fill(Entry {
            address: 0,
            data: 0,
            control: VECTOR_MASKED,
        });
    }

    /// What can change of it.
    pub fn state(&self) -> MsixState {
        MsixState {
            entries: self
                .entries
                .iter()
                .map(|e| (e.address, e.data, e.control))
                .collect(),
        }
    }

    /// Takes the state of a table with as many vectors; any other is refused and changes nothing.
    pub fn load(&mut self, state: &MsixState) -> Result<()> {
        if state.entries.len() != self.entries.len() {
            return Err(Error::state(format!(
                "There are {} MSI-X vectors here and {} in the state",
                self.entries.len(),
                state.entries.len()
            )));
        }
        if let Some((_, _, control)) = state.entries.iter().find(|e| e.2 & !VECTOR_MASKED != 0) {
            return Err(Error::state(format!(
                "{control:#x} is no control word of an MSI-X vector"
            )));
        }
        for (entry, &(address, data, control)) in self.entries.iter_mut().zip(&state.entries) {
            *entry = Entry {
                address,
                data,
                control,
            };
        }
        Ok(())
    }

    fn byte(&self, at: u64) -> u8 {
        let Some(entry) = self.entries.get((at / ENTRY) as usize) else {
            return 0xff;
        };
        let mut bytes = [0; ENTRY as usize];
        bytes[..8].copy_from_slice(&entry.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&entry.data.to_le_bytes());
        bytes[12..].copy_from_slice(&entry.control.to_le_bytes());
        bytes[(at % ENTRY) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::Identity;

    fn table() -> (ConfigSpace, Msix) {
        let mut config = ConfigSpace::new(Identity::default());
        let msix = Msix::new(&mut config, 0, 3, 0x1000, 0x1800).unwrap();
        (config, msix)
    }

    #[test]
    fn a_vector_sends_once_it_is_programmed_unmasked_and_enabled() {
        let (mut config, mut msix) = table();
        msix.write_table(16, &0xfee0_0000u64.to_le_bytes());
        msix.write_table(24, &0x41u32.to_le_bytes());
        msix.write_table(28, &0u32.to_le_bytes());
        assert_eq!(msix.changes(&config), vec![]);
        config.write(0x42, &(CONTROL_ENABLE).to_le_bytes());
        let message = MsiMessage {
            address: 0xfee0_0000,
            data: 0x41,
        };
        assert_eq!(
            msix.changes(&config),
            vec![VectorChange {
                vector: 1,
                message: Some(message)
            }]
        );
        assert_eq!(msix.changes(&config), vec![]);
        config.write(0x42, &(CONTROL_ENABLE | CONTROL_MASK_ALL).to_le_bytes());
        assert_eq!(
            msix.changes(&config),
            vec![VectorChange {
                vector: 1,
                message: None
            }]
        );
    }

    #[test]
    fn the_table_reads_back_what_was_written_and_ones_behind_its_end() {
        let (_, mut msix) = table();
        msix.write_table(
            0,
            &[
                1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0xff, 0xff, 0xff, 0xff,
            ],
        );
        let mut read = [0; 16];
        msix.read_table(0, &mut read);
        assert_eq!(read, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 1, 0, 0, 0]);
        msix.read_table(48, &mut read);
        assert_eq!(read, [0xff; 16]);
    }

    #[test]
    fn state_with_another_number_of_vectors_is_refused() {
        let (_, mut msix) = table();
        let mut state = msix.state();
        state.entries.pop();
        assert!(msix.load(&state).is_err());
    }

    #[test]
    fn pending_bits_come_from_the_vectors() {
        let (_, msix) = table();
        let mut bits = [0; 8];
        msix.read_pending(0, &mut bits, |vector| vector == 2);
        assert_eq!(bits, [4, 0, 0, 0, 0, 0, 0, 0]);
    }
}
