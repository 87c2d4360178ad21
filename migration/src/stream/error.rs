//! What can be wrong with a vmstate stream.

use std::io;

/// A stream that cannot be written, read or applied. Texts that QEMU also has are QEMU's.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The stream ended early.
    #[error(
        "The state ends at byte {offset} while {what} was being read; it was cut short, save it \
         again"
    )]
    Truncated {
        /// What was being read.
        what: String,
        /// Bytes read before it, from the start of the stream.
        offset: u64,
    },
    /// Reading failed.
    #[error("Reading {what} at byte {offset} of the state failed")]
    Read {
        /// What was being read.
        what: String,
        /// Bytes read before it.
        offset: u64,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// Writing failed.
    #[error("Writing {what} of the state failed")]
    Write {
        /// What was being written.
        what: String,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// The first bytes are something else.
    #[error("Not a migration stream (bad magic {found}); it must be one that Baton wrote")]
    BadMagic {
        /// The bytes found, in hexadecimal.
        found: String,
    },
    /// The mark after the magic is not the one a little-endian machine writes.
    #[error(
        "The byte order mark of the state is {found:#010x} instead of {expected:#010x}; it comes \
         from a machine of another byte order or is damaged"
    )]
    ByteOrder {
        /// The mark found.
        found: u32,
        /// The mark written here.
        expected: u32,
    },
    /// A format this build does not know.
    #[error(
        "Unsupported migration stream version {found}; this build reads version {supported}: use a \
         matching build of Baton"
    )]
    FormatVersion {
        /// The version found.
        found: u32,
        /// The version read here.
        supported: u32,
    },
    /// A length or a count is beyond its limit.
    #[error("{what} at byte {offset} of the state is {found}, more than the limit of {limit}")]
    TooLarge {
        /// What is too large.
        what: String,
        /// Where in the stream.
        offset: u64,
        /// The value found.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// A text is not UTF-8, a tag is unknown or a name is empty.
    #[error("{what} at byte {offset} of the state is malformed; the state is damaged")]
    Malformed {
        /// What is malformed.
        what: String,
        /// Where in the stream.
        offset: u64,
    },
    /// A checksum does not match.
    #[error(
        "The checksum of {what} is {found:#010x} but {computed:#010x} was expected; the state is \
         damaged, save it again"
    )]
    Checksum {
        /// What the checksum covers.
        what: String,
        /// The checksum in the stream.
        found: u32,
        /// The checksum of what was read.
        computed: u32,
    },
    /// Two sections have the same name and instance.
    #[error("Section '{name}' instance {instance} occurs twice in the state")]
    Duplicate {
        /// The section's name.
        name: String,
        /// Its instance.
        instance: u32,
    },
    /// A section that is needed is not there.
    #[error(
        "Section '{name}' instance {instance} is missing from the state. Make sure that your \
         current VM setup matches your saved VM setup, including any hotplugged devices"
    )]
    Missing {
        /// The section's name.
        name: String,
        /// Its instance.
        instance: u32,
    },
    /// A section that nobody took.
    #[error(
        "Unknown section or instance '{name}' {instance}. Make sure that your current VM setup \
         matches your saved VM setup, including any hotplugged devices"
    )]
    Unknown {
        /// The section's name.
        name: String,
        /// Its instance.
        instance: u32,
    },
    /// A subsection that the section does not have here.
    #[error(
        "VM subsection '{subsection}' in '{section}' does not exist; load it with the build that \
         wrote it, or a newer one"
    )]
    UnknownSubsection {
        /// The subsection, with its section's name and a slash before its own.
        subsection: String,
        /// The section, with its device's path.
        section: String,
    },
    /// The section was written by a newer build.
    #[error(
        "{name}: incoming version_id {found} is too new for local version_id {local}; load it with \
         the build that wrote it, or a newer one"
    )]
    TooNew {
        /// The section's name.
        name: String,
        /// The version in the stream.
        found: u32,
        /// The newest version loaded here.
        local: u32,
    },
    /// The section was written by a build too old for this one.
    #[error(
        "{name}: incoming version_id {found} is too old for local minimum version_id {minimum}; \
         go through a release in between"
    )]
    TooOld {
        /// The section's name.
        name: String,
        /// The version in the stream.
        found: u32,
        /// The oldest version loaded here.
        minimum: u32,
    },
    /// A payload could not be encoded.
    #[error("The state of section '{name}' cannot be encoded")]
    Encode {
        /// The section's name.
        name: String,
        /// The encoder's reason.
        #[source]
        source: rmp_serde::encode::Error,
    },
    /// A payload is not what the section's version says.
    #[error("The state of section '{name}' cannot be decoded")]
    Decode {
        /// The section's name.
        name: String,
        /// The decoder's reason.
        #[source]
        source: rmp_serde::decode::Error,
    },
    /// Bytes follow a payload's value.
    #[error(
        "{extra} bytes follow the state of section '{name}'; it is damaged or of another build"
    )]
    TrailingBytes {
        /// The section's name.
        name: String,
        /// How many.
        extra: u64,
    },
}
