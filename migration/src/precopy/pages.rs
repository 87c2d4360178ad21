//! The payload of PAGES: runs of neighbouring pages, with their bytes or as zeros.
//!
//! A CRC32C of all that follows it (4 bytes), then for each run its offset (8 bytes, a multiple of
//! the page size; the lowest bit is set for zeros), its number of pages (4 bytes) and, unless they
//! are zeros, the pages. Numbers are little-endian.

use super::page_set::PAGE;

/// The most bytes of pages in one message.
pub(super) const MAX_DATA: usize = 256 << 10;
/// Bytes in front of a run.
const HEAD: usize = 12;
/// The most bytes of a payload: what is full after one more run than it takes.
pub(super) const MAX_PAYLOAD: usize = 4 + 2 * (MAX_DATA + HEAD);
const ZEROS: u64 = 1;

/// A payload that is not what the protocol says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum PagesError {
    #[error("Pages were damaged on their way")]
    Damaged,
    #[error("A run of pages is cut short")]
    Short,
    #[error("{pages} pages at RAM offset {offset:#x} are not all in RAM")]
    Outside {
        /// Where they begin.
        offset: u64,
        /// How many.
        pages: u32,
    },
}

/// Some neighbouring pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run<'a> {
    pub(super) offset: u64,
    pub(super) bytes: Bytes<'a>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bytes<'a> {
    These(&'a [u8]),
    /// So many zeros.
    Zeros(u64),
}

/// A payload that grows.
#[derive(Debug)]
pub(super) struct Payload(Vec<u8>);

impl Payload {
    pub(super) fn new() -> Self {
        let mut bytes = Vec::with_capacity(MAX_PAYLOAD);
        bytes.resize(4, 0);
        Self(bytes)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.len() == 4
    }

    /// Whether it must be sent before another run is added.
    pub(super) fn is_full(&self) -> bool {
        self.0.len() >= MAX_DATA
    }

    /// Adds pages: at most [`MAX_DATA`] bytes.
    pub(super) fn data(&mut self, offset: u64, bytes: &[u8]) {
        self.head(offset, bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    /// Adds zeros.
    pub(super) fn zeros(&mut self, offset: u64, length: u64) {
        self.head(offset | ZEROS, length);
    }

    fn head(&mut self, offset: u64, length: u64) {
        self.0.extend_from_slice(&offset.to_le_bytes());
        let pages = (length / PAGE) as u32;
        self.0.extend_from_slice(&pages.to_le_bytes());
    }

    /// The whole, until [`Self::clear`].
    pub(super) fn finish(&mut self) -> &[u8] {
        let crc = crc32c::crc32c(&self.0[4..]);
        self.0[..4].copy_from_slice(&crc.to_le_bytes());
        &self.0
    }

    pub(super) fn clear(&mut self) {
        self.0.truncate(4);
    }
}

/// The runs of a payload for RAM of `size` bytes; nothing of a bad one is given.
pub(super) fn runs(payload: &[u8], size: u64) -> Result<Vec<Run<'_>>, PagesError> {
    let (crc, mut rest) = payload.split_first_chunk().ok_or(PagesError::Short)?;
    if crc32c::crc32c(rest) != u32::from_le_bytes(*crc) {
        return Err(PagesError::Damaged);
    }
    let mut runs = Vec::new();
    while !rest.is_empty() {
        let (offset, after) = rest.split_first_chunk().ok_or(PagesError::Short)?;
        let (pages, after) = after.split_first_chunk().ok_or(PagesError::Short)?;
        let offset = u64::from_le_bytes(*offset);
        let pages = u32::from_le_bytes(*pages);
        let zeros = offset & ZEROS != 0;
        let offset = offset & !ZEROS;
        let length = u64::from(pages) * PAGE;
        let end = offset.checked_add(length).filter(|end| *end <= size);
        if end.is_none() || pages == 0 || !offset.is_multiple_of(PAGE) {
            return Err(PagesError::Outside { offset, pages });
        }
        let bytes = match zeros {
            true => {
                rest = after;
                Bytes::Zeros(length)
            }
            false => {
                let data = usize::try_from(length).ok();
                let split = data.and_then(|length| after.split_at_checked(length));
                let (data, after) = split.ok_or(PagesError::Short)?;
                rest = after;
                Bytes::These(data)
            }
        };
        runs.push(Run { offset, bytes });
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 20;

    fn sealed(body: &[u8]) -> Vec<u8> {
        let mut bytes = crc32c::crc32c(body).to_le_bytes().to_vec();
        bytes.extend_from_slice(body);
        bytes
    }

    fn head(offset: u64, pages: u32) -> Vec<u8> {
        let mut bytes = offset.to_le_bytes().to_vec();
        bytes.extend_from_slice(&pages.to_le_bytes());
        bytes
    }

    #[test]
    fn runs_come_back() {
        let mut payload = Payload::new();
        assert!(payload.is_empty());
        payload.data(0x3000, &[7; 8192]);
        payload.zeros(0x8000, 0x5000);
        let expected = [
            Run {
                offset: 0x3000,
                bytes: Bytes::These(&[7; 8192]),
            },
            Run {
                offset: 0x8000,
                bytes: Bytes::Zeros(0x5000),
            },
        ];
        assert_eq!(runs(payload.finish(), SIZE).unwrap(), expected);
        payload.clear();
        assert!(payload.is_empty());
        assert_eq!(runs(payload.finish(), SIZE), Ok(Vec::new()));
    }

    #[test]
    fn damage_is_noticed() {
        let mut payload = Payload::new();
        payload.data(0, &[1; 4096]);
        let good = payload.finish().to_vec();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert_eq!(runs(&bad, SIZE), Err(PagesError::Damaged), "{at}");
        }
        assert_eq!(runs(&good[..3], SIZE), Err(PagesError::Short));
    }

    #[test]
    fn runs_outside_of_ram_or_without_their_bytes_are_refused() {
        for (offset, pages) in [
            (SIZE, 1),
            (SIZE - 4096, 2),
            (0, 0),
            (0x10, 1),
            (!0xfff, 2),
            (SIZE | 1, 1),
        ] {
            let mut body = head(offset, pages);
            body.extend_from_slice(&[0; 8192]);
            let error = runs(&sealed(&body), SIZE).unwrap_err();
            assert!(matches!(error, PagesError::Outside { .. }), "{error}");
        }
        let mut body = head(0, 1);
        body.extend_from_slice(&[0; 4095]);
        assert_eq!(runs(&sealed(&body), SIZE), Err(PagesError::Short));
        assert_eq!(runs(&sealed(&[0; 11]), SIZE), Err(PagesError::Short));
    }
}
