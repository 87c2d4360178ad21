//! The messages of a migration in mode normal, and their order.
//!
//! ```text
//!     source                                   target
//!     ---------------------------------------  ------------------------------------------------
//!                                              listens, accepts
//!     HELLO {mode, fingerprint, ...} -------->  compares the machines, builds its own
//!     <-------------------------------- READY
//!     PAGES ... ----------------------------->  puts them into its RAM
//!     (again for the pages written meanwhile, until so few are left that
//!      they go within the downtime that is allowed)
//!     ---- blackout begins: stop, quiesce, save
//!     PAGES ... ----------------------------->
//!     STATE stream -------------------------->  loads it
//!     <----------------- LOADED {microseconds}
//!     COMMIT -------------------------------->  enters the guest
//!     ---- blackout ends
//!     <------------------------------ STARTED
//!     postmigrate
//!
//!     ABORT {reason, cancelled} ------------->  before COMMIT, between two messages
//!     <----------------- FAILED {reason, ran}   at any time
//! ```
//!
//! The guest is the source's as long as COMMIT was not sent whole; a hang-up before it means that to
//! the target. Then it is the target's, unless that says with FAILED that the guest never ran there.

use serde::{Deserialize, Serialize};

use super::pages::MAX_PAYLOAD;
use crate::Mode;
use crate::channel::{Frame, Limits};
use crate::fingerprint::MachineFingerprint;
use crate::handover::ProtocolError;
use crate::handover::protocol::{
    Abort, MAX_HELLO, MAX_REASON_MESSAGE, MAX_STATE, cut, pack, unpack,
};

/// The version of this protocol; both sides must have the same.
pub const PRECOPY_VERSION: u32 = 1;

/// First bytes of the first message.
const MAGIC: [u8; 8] = *b"BATONMIG";

/// A message that is not what the protocol says.
#[derive(Debug, thiserror::Error)]
pub enum PrecopyError {
    /// The peer is no Baton, or migrates in another mode.
    #[error(
        "The peer does not speak Baton's migration protocol; look at the address, and that the \
         source is in mode normal"
    )]
    Magic,
    /// The peer speaks another version.
    #[error(
        "The source speaks version {0} of the migration protocol, the target version \
         {PRECOPY_VERSION}; use builds of Baton that fit together"
    )]
    Version(u32),
    /// A message's content cannot be understood.
    #[error(transparent)]
    Message(#[from] ProtocolError),
}

/// The source introduces itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Hello {
    /// How the guest moves.
    pub(super) mode: Mode,
    /// The source's program and version, for people.
    pub(super) producer: String,
    /// The machine the guest has.
    pub(super) fingerprint: MachineFingerprint,
    /// See [`super::PrecopyHost::ram_file`].
    pub(super) ram_file: Option<String>,
}

/// The target has loaded the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Loaded {
    /// How long that took, in microseconds.
    pub(super) microseconds: u64,
}

/// The target cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Failed {
    /// Why, for people.
    pub(super) reason: String,
    /// Whether the guest may have run there. If not, it never will.
    pub(super) ran: bool,
}

/// A message with all that belongs to it.
#[derive(Debug)]
pub(super) enum Message {
    Hello(Box<Hello>),
    Ready,
    Pages(Vec<u8>),
    State(Vec<u8>),
    Loaded(Loaded),
    Commit,
    Started,
    Failed(Failed),
    Abort(Abort),
}

/// The kinds of frames, one per message.
pub(super) mod kind {
    pub(in super::super) const HELLO: u8 = 1;
    pub(in super::super) const READY: u8 = 2;
    pub(in super::super) const PAGES: u8 = 3;
    pub(in super::super) const STATE: u8 = 4;
    pub(in super::super) const LOADED: u8 = 5;
    pub(in super::super) const COMMIT: u8 = 6;
    pub(in super::super) const STARTED: u8 = 7;
    pub(in super::super) const FAILED: u8 = 8;
    pub(in super::super) const ABORT: u8 = 9;
}

/// What each kind of frame may carry.
pub(super) fn bounds(kind: u8) -> Option<Limits> {
    let length = match kind {
        kind::HELLO => MAX_HELLO,
        kind::PAGES => MAX_PAYLOAD,
        kind::STATE => MAX_STATE,
        kind::LOADED => 64,
        kind::READY | kind::COMMIT | kind::STARTED => 0,
        kind::FAILED | kind::ABORT => MAX_REASON_MESSAGE,
        _ => return None,
    };
    Some(Limits { length, fds: 0 })
}

impl Message {
    /// Its name, as in the drawing above.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "HELLO",
            Self::Ready => "READY",
            Self::Pages(_) => "PAGES",
            Self::State(_) => "STATE",
            Self::Loaded(_) => "LOADED",
            Self::Commit => "COMMIT",
            Self::Started => "STARTED",
            Self::Failed(_) => "FAILED",
            Self::Abort(_) => "ABORT",
        }
    }

    /// The message in a frame.
    pub(super) fn decode(frame: Frame) -> Result<Self, PrecopyError> {
        let Frame { kind, payload, .. } = frame;
        Ok(match kind {
            kind::HELLO => Self::Hello(Box::new(decode_hello(&payload)?)),
            kind::READY => Self::Ready,
            kind::PAGES => Self::Pages(payload),
            kind::STATE => Self::State(payload),
            kind::LOADED => Self::Loaded(unpack("LOADED", &payload)?),
            kind::COMMIT => Self::Commit,
            kind::STARTED => Self::Started,
            kind::FAILED => Self::Failed(unpack("FAILED", &payload)?),
            kind::ABORT => Self::Abort(unpack("ABORT", &payload)?),
            // The channel refuses other kinds by the bounds above.
            _ => return Err(PrecopyError::Magic),
        })
    }
}

/// HELLO begins with magic and version outside of the encoding, so that a peer of another version is
/// told so whatever else it says.
pub(super) fn encode_hello(hello: &Hello) -> Result<Vec<u8>, ProtocolError> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&PRECOPY_VERSION.to_le_bytes());
    bytes.extend_from_slice(&pack("HELLO", hello)?);
    Ok(bytes)
}

fn decode_hello(bytes: &[u8]) -> Result<Hello, PrecopyError> {
    let rest = bytes.strip_prefix(&MAGIC).ok_or(PrecopyError::Magic)?;
    let (version, rest) = rest.split_first_chunk().ok_or(PrecopyError::Magic)?;
    match u32::from_le_bytes(*version) {
        PRECOPY_VERSION => Ok(unpack("HELLO", rest)?),
        other => Err(PrecopyError::Version(other)),
    }
}

/// The payload of LOADED.
pub(super) fn encode_loaded(microseconds: u64) -> Result<Vec<u8>, ProtocolError> {
    pack("LOADED", &Loaded { microseconds })
}

/// The payload of FAILED.
pub(super) fn encode_failed(reason: &str, ran: bool) -> Result<Vec<u8>, ProtocolError> {
    let reason = cut(reason);
    pack("FAILED", &Failed { reason, ran })
}
