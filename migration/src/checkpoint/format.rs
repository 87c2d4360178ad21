//! The page in front of a kept guest. `docs/state-format.md` draws the layout.

use crate::Mode;

/// First bytes of every kept guest.
const MAGIC: [u8; 8] = *b"BATONCKP";
/// The version of this layout.
const VERSION: u32 = 1;
/// Where the header has the mark of a guest that was loaded, and what it is then; 0 before. It is
/// set in one small write, so that it is not part of the checksum.
pub(super) const TAKEN_AT: u64 = 28;
/// See [`TAKEN_AT`].
pub(super) const TAKEN: [u8; 4] = *b"TAKE";
/// Bytes of the header, and what RAM consists of.
pub const PAGE: u64 = 4096;
/// RAM at fixed places begins at a multiple of this, counted from the beginning of the file, so that
/// huge pages can map it.
const RAM_ALIGNMENT: u64 = 2 << 20;
/// The most bytes a state may have.
pub(super) const MAX_STATE: u64 = 256 << 20;
/// The most bytes RAM may have: what 52 bits address.
const MAX_RAM: u64 = 1 << 52;

/// A header that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The first bytes are something else; QEMU's text.
    #[error(
        "Not a migration stream (bad magic {0}): it was not written by Baton, or its writing did \
         not come to an end"
    )]
    BadMagic(String),
    /// Written by another build.
    #[error(
        "Unsupported version {0} of a kept guest; this build reads version {VERSION}: use a \
         matching build of Baton"
    )]
    Version(u32),
    /// The checksum does not match, or a value cannot be.
    #[error("Its header is damaged ({0}); save it again")]
    Damaged(&'static str),
}

/// Where a kept guest's RAM is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RamLayout {
    /// It stayed in the shared file that backs it.
    InPlace,
    /// Behind the state, byte for byte; zeros may be holes.
    Fixed {
        /// Where it begins, counted from the header; a multiple of the page size.
        offset: u64,
        /// Its bytes.
        size: u64,
    },
    /// Behind the state, in chunks.
    Chunks {
        /// The bytes of RAM they fill.
        size: u64,
    },
}

/// What a kept guest says of itself first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeptHeader {
    /// The mode it was kept in.
    pub mode: Mode,
    /// Bytes of the vmstate stream, which follows the header.
    pub state: u64,
    /// Its RAM.
    pub ram: RamLayout,
}

impl KeptHeader {
    /// The header for a state of `state` bytes with RAM of `size` bytes at a fixed place, in a file
    /// in which it begins at `base`.
    pub(super) fn fixed(mode: Mode, base: u64, state: u64, size: u64) -> Self {
        let offset = (base + PAGE + state).next_multiple_of(RAM_ALIGNMENT) - base;
        let offset = offset.next_multiple_of(PAGE);
        let ram = RamLayout::Fixed { offset, size };
        Self { mode, state, ram }
    }

    /// Bytes of the whole, header included; not known of chunks, whose last says that it is.
    pub fn length(&self) -> Option<u64> {
        match self.ram {
            RamLayout::InPlace => Some(PAGE + self.state),
            RamLayout::Fixed { offset, size } => Some(offset + size),
            RamLayout::Chunks { .. } => None,
        }
    }

    /// As bytes.
    pub(super) fn encode(&self) -> Vec<u8> {
        let (kind, offset, size) = match self.ram {
            RamLayout::InPlace => (0u32, 0, 0),
            RamLayout::Fixed { offset, size } => (1, offset, size),
            RamLayout::Chunks { size } => (2, 0, size),
        };
        let mode = Mode::ALL.iter().position(|mode| *mode == self.mode);
        let mut page = Vec::with_capacity(PAGE as usize);
        page.extend_from_slice(&MAGIC);
        page.extend_from_slice(&VERSION.to_le_bytes());
        page.extend_from_slice(&(mode.unwrap_or_default() as u32).to_le_bytes());
        page.extend_from_slice(&self.state.to_le_bytes());
        page.extend_from_slice(&kind.to_le_bytes());
        page.extend_from_slice(&0u32.to_le_bytes());
        page.extend_from_slice(&offset.to_le_bytes());
        page.extend_from_slice(&size.to_le_bytes());
        page.resize(PAGE as usize - 4, 0);
        let crc = crc32c::crc32c(&page);
        page.extend_from_slice(&crc.to_le_bytes());
        page
    }

    /// From bytes, and whether they have the mark of a guest that was loaded; everything it says is
    /// within bounds.
    pub(super) fn decode(page: &[u8; PAGE as usize]) -> Result<(Self, bool), HeaderError> {
        let u32_at = |at: usize| {
            let mut bytes = [0; 4];
            bytes.copy_from_slice(&page[at..at + 4]);
            u32::from_le_bytes(bytes)
        };
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if page[..8] != MAGIC {
            let found = page[..8].iter().map(|byte| format!("{byte:02x}")).collect();
            return Err(HeaderError::BadMagic(found));
        }
        if u32_at(8) != VERSION {
            return Err(HeaderError::Version(u32_at(8)));
        }
        let end = page.len() - 4;
        let mark = TAKEN_AT as usize..TAKEN_AT as usize + TAKEN.len();
        let marked = match &page[mark.clone()] {
            [0, 0, 0, 0] => false,
            mark if *mark == TAKEN => true,
            _ => return Err(HeaderError::Damaged("its mark is none")),
        };
        let mut unmarked = *page;
        unmarked[mark].fill(0);
        if u32_at(end) != crc32c::crc32c(&unmarked[..end]) {
            return Err(HeaderError::Damaged("its checksum is wrong"));
        }
        let mode = Mode::ALL.get(u32_at(12) as usize);
        let mode = *mode.ok_or(HeaderError::Damaged("it names no mode"))?;
        let state = u64_at(16);
        if state > MAX_STATE {
            return Err(HeaderError::Damaged("the state is too long"));
        }
        let (offset, size) = (u64_at(32), u64_at(40));
        if size > MAX_RAM || !size.is_multiple_of(PAGE) {
            return Err(HeaderError::Damaged("RAM of that size cannot be"));
        }
        let ram = match u32_at(24) {
            0 => RamLayout::InPlace,
            1 if offset < PAGE + state
                || offset > PAGE + state + 2 * RAM_ALIGNMENT
                || !offset.is_multiple_of(PAGE) =>
            {
                return Err(HeaderError::Damaged("RAM cannot be there"));
            }
            1 => RamLayout::Fixed { offset, size },
            2 => RamLayout::Chunks { size },
            _ => return Err(HeaderError::Damaged("it does not say where RAM is")),
        };
        let header = Self { mode, state, ram };
        Ok((header, marked))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(header: &KeptHeader) -> [u8; PAGE as usize] {
        header.encode().try_into().unwrap()
    }

    #[test]
    fn a_header_reads_back() {
        for header in [
            KeptHeader::fixed(Mode::CprReboot, 0, 12345, 1 << 30),
            KeptHeader::fixed(Mode::CprReboot, 4096, 0, 4096),
            KeptHeader {
                mode: Mode::CprExec,
                state: 7,
                ram: RamLayout::InPlace,
            },
            KeptHeader {
                mode: Mode::CprReboot,
                state: 7,
                ram: RamLayout::Chunks { size: 8192 },
            },
        ] {
            let mut bytes = page(&header);
            assert_eq!(KeptHeader::decode(&bytes), Ok((header, false)));
            bytes[TAKEN_AT as usize..][..4].copy_from_slice(&TAKEN);
            assert_eq!(KeptHeader::decode(&bytes), Ok((header, true)));
        }
    }

    #[test]
    fn ram_is_aligned_in_the_file_wherever_the_header_is() {
        for base in [0, 4096, 3 << 20, 12288] {
            let header = KeptHeader::fixed(Mode::CprReboot, base, 100_000, 8192);
            let RamLayout::Fixed { offset, size } = header.ram else {
                panic!("{header:?}");
            };
            assert!((base + offset).is_multiple_of(RAM_ALIGNMENT));
            assert_eq!(header.length(), Some(offset + size));
            assert!(offset >= PAGE + 100_000);
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_is_noticed() {
        let good = page(&KeptHeader::fixed(Mode::CprReboot, 0, 999, 1 << 20));
        for byte in (0..64).chain(PAGE as usize - 64..PAGE as usize) {
            let mut bad = good;
            bad[byte] ^= 0x10;
            assert!(KeptHeader::decode(&bad).is_err(), "byte {byte}");
        }
    }

    #[test]
    fn values_that_cannot_be_are_refused_however_right_the_checksum() {
        for (at, value) in [
            (12, 9),
            (16, MAX_STATE + 1),
            (24, 7),
            (32, 4096),
            (32, (2 << 20) + 1),
            (40, 4097),
            (40, MAX_RAM + PAGE),
        ] {
            let mut bad = page(&KeptHeader::fixed(Mode::CprReboot, 0, 9999, 1 << 20));
            bad[at..at + 4].copy_from_slice(&(value as u32).to_le_bytes());
            if at >= 16 && at != 24 {
                bad[at..at + 8].copy_from_slice(&value.to_le_bytes());
            }
            let end = bad.len() - 4;
            let crc = crc32c::crc32c(&bad[..end]);
            bad[end..].copy_from_slice(&crc.to_le_bytes());
            let found = KeptHeader::decode(&bad);
            assert!(
                matches!(found, Err(HeaderError::Damaged(_))),
                "{at} {value}: {found:?}"
            );
        }
    }
}
