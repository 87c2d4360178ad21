//! The vmstate stream: a machine's state as named, versioned, checksummed sections.
//!
//! The byte layout is in `docs/state-format.md`. [`SectionWriter`] writes it, [`StateReader`] reads
//! it, a [`StateImage`] holds what was read until devices take their sections out, and
//! [`encode`]/[`decode`] turn a device's state into a payload and back.
//!
//! The stream is hostile input: every length is bounded before anything is allocated for it, and a
//! stream that is cut short or altered at any byte is refused whole.

mod error;
mod format;
mod image;
mod payload;
mod reader;
mod writer;

pub use error::StreamError;
pub use format::{
    FORMAT_VERSION, Header, MAX_FINGERPRINT, MAX_NAME, MAX_PRODUCER, MAX_SECTION, MAX_SECTIONS,
};
pub use image::{Expected, SectionData, StateImage};
pub use payload::{decode, encode};
pub use reader::StateReader;
pub use writer::SectionWriter;

/// The name a device's section has in the stream: its path in the machine, a slash, and the name
/// the device declared, such as `0000:00:01.0/virtio-rng`.
pub fn section_name(device_path: &str, section: &str) -> String {
    format!("{device_path}/{section}")
}

#[cfg(test)]
mod tests;
