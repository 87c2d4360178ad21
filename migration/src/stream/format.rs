//! The numbers of the stream format and its header. `docs/state-format.md` draws the layout.

use crate::fingerprint::MachineFingerprint;

/// First bytes of every stream.
pub(super) const MAGIC: [u8; 8] = *b"BATONVMS";

/// Written in the byte order of the stream, which is little-endian; a reader that finds the bytes
/// reversed has a stream of another order.
pub(super) const BYTE_ORDER_MARK: u32 = 0x0102_0304;

/// The version of the layout, not of any section.
pub const FORMAT_VERSION: u32 = 1;

/// Opens a section.
pub(super) const TAG_SECTION: u8 = b'S';

/// Opens the end mark.
pub(super) const TAG_END: u8 = b'E';

/// Longest producer string, in bytes.
pub const MAX_PRODUCER: usize = 255;

/// Longest encoded fingerprint, in bytes: 64 KiB hold a thousand RAM regions and CPU features.
pub const MAX_FINGERPRINT: usize = 64 << 10;

/// Longest section name, in bytes: its length is one byte.
pub const MAX_NAME: usize = 255;

/// Longest section payload, in bytes.
pub const MAX_SECTION: usize = 64 << 20;

/// Most sections in one stream.
pub const MAX_SECTIONS: usize = 65536;

/// What a stream says of itself before its first section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The program that wrote it and its version, such as `baton 0.1.0`; for people only.
    pub producer: String,
    /// The machine it came from.
    pub fingerprint: MachineFingerprint,
}
