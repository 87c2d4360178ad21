//! Connected sockets that carry frames: `u32` length, one byte of kind, payload, and descriptors.
//!
//! A [`Channel`] never blocks by itself: sending waits under a [`Deadline`], receiving returns what
//! is complete. What a kind of frame may carry is bounded by a table the channel is made with,
//! before anything is allocated for it.

mod deadline;
mod endpoint;
mod framed;
mod listener;
pub mod rights;

use std::io;

pub use deadline::{Deadline, wait};
pub use endpoint::{Endpoint, ResolveFd};
pub use framed::{Bounds, Channel, Frame, Limits};
pub use listener::Listener;
pub use rights::MAX_FDS_PER_FRAME;

/// What can go wrong with a channel.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// Nobody listens there, or not in time.
    #[error("Cannot connect to {address}; start the target first, with a matching -incoming")]
    Connect {
        /// Where.
        address: String,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// Cannot listen there.
    #[error("Cannot listen on {address}")]
    Listen {
        /// Where.
        address: String,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// Another process listens there.
    #[error("Cannot listen on {address}: another process does; stop it or choose another path")]
    InUse {
        /// Where.
        address: String,
    },
    /// Something that is not a socket has the path.
    #[error("Cannot listen on {address}: a file that is not a socket is there; remove it")]
    NotASocket {
        /// Where.
        address: String,
    },
    /// An `fd:` address cannot be resolved.
    #[error("Cannot use the descriptor '{name}' as a migration channel")]
    Descriptor {
        /// Its number or name.
        name: String,
        /// Why.
        #[source]
        source: crate::HostError,
    },
    /// An address of a kind no channel can have.
    #[error("Cannot use {address} as a migration channel; use unix, tcp or fd")]
    Unsupported {
        /// The address.
        address: String,
    },
    /// A system call failed.
    #[error("Cannot {what} the {channel} channel")]
    System {
        /// Which channel.
        channel: &'static str,
        /// What was being done.
        what: &'static str,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// The peer has closed the channel, perhaps because it died.
    #[error("The peer hung up the {channel} channel")]
    HungUp {
        /// Which channel.
        channel: &'static str,
    },
    /// The peer does not take what is sent.
    #[error("The peer did not read from the {channel} channel in time")]
    TimedOut {
        /// Which channel.
        channel: &'static str,
    },
    /// The caller's own signal came while it waited.
    #[error("Sending on the {channel} channel was interrupted")]
    Interrupted {
        /// Which channel.
        channel: &'static str,
    },
    /// A frame of a kind that does not exist.
    #[error(
        "The peer sent a message of unknown kind {kind} on the {channel} channel; source and \
         target must be builds of Baton that fit together"
    )]
    UnknownKind {
        /// Which channel.
        channel: &'static str,
        /// The kind.
        kind: u8,
    },
    /// A frame is longer than its kind allows.
    #[error(
        "A message of kind {kind} on the {channel} channel has {length} bytes; {limit} are allowed"
    )]
    TooLong {
        /// Which channel.
        channel: &'static str,
        /// Its kind.
        kind: u8,
        /// Its length.
        length: usize,
        /// The most that is allowed.
        limit: usize,
    },
    /// A frame carries more descriptors than its kind allows, or carries them in the wrong place.
    #[error(
        "A message of kind {kind} on the {channel} channel carries {found} descriptors; {limit} \
         are allowed"
    )]
    TooManyFds {
        /// Which channel.
        channel: &'static str,
        /// Its kind.
        kind: u8,
        /// How many came.
        found: usize,
        /// The most that is allowed.
        limit: usize,
    },
    /// The kernel could not deliver all descriptors.
    #[error(
        "Some descriptors sent on the {channel} channel did not arrive; raise the limit of open \
         files (ulimit -n) of the target"
    )]
    FdsCut {
        /// Which channel.
        channel: &'static str,
    },
}

#[cfg(test)]
mod tests;
