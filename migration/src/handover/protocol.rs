//! The messages of a cpr-transfer, and their order.
//!
//! ```text
//!  channel  source                                   target
//!  -------  ---------------------------------------  ---------------------------------------------
//!                                                    listens on the cpr channel, accepts
//!  cpr      HELLO {mode, fingerprint, ...} + claim ->  compares the machines, maps the claim page
//!  cpr      FDS {owners, names} + descriptors ------>  (as often as needed)
//!  cpr      PREVIEW stream ------------------------->  builds the machine, realizes devices, warms up
//!  cpr      <----------------------------------- READY  listens on the main channel
//!  main     ATTACH {token} ------------------------->  accepts, checks the token
//!  main     <-------------------------------- ATTACHED
//!           ---- blackout begins: stop, quiesce, save
//!  main     STATE stream --------------------------->  loads it
//!  main     <---------------------------------- LOADED
//!           claim: OPEN -> COMMITTED
//!  main     COMMIT --------------------------------->  claim: -> STARTED, enters the guest
//!           ---- blackout ends
//!  main     <--------------------------------- STARTED
//!           postmigrate
//!
//!  cpr      ABORT {reason, cancelled} -------------->  at any time, after claim: -> RECLAIMED
//!  cpr      <-------------------------- FAILED {reason}  at any time
//! ```
//!
//! The main channel carries the state and what acknowledges it; what ends a handover goes over the
//! cpr channel, where no half-sent state can be in its way. A hang-up without ABORT after LOADED
//! means to the target that the source died: it claims the guest.

use std::os::fd::OwnedFd;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::Mode;
use crate::address::ChannelType;
use crate::channel::{Frame, Limits, MAX_FDS_PER_FRAME};
use crate::fds::FdKey;
use crate::fingerprint::MachineFingerprint;

/// The version of this protocol; both sides must have the same.
pub const PROTOCOL_VERSION: u32 = 1;

/// First bytes of the first message.
const MAGIC: [u8; 8] = *b"BATONCPR";

/// Longest encoded HELLO: a fingerprint of the largest size and some room.
pub(crate) const MAX_HELLO: usize = 128 << 10;

/// Longest FDS: as many keys of the largest size as descriptors fit, and their encoding.
const MAX_FDS_MESSAGE: usize = MAX_FDS_PER_FRAME * 640;

/// Longest PREVIEW and STATE.
pub(crate) const MAX_STATE: usize = 256 << 20;

/// Longest reason sent to the peer; the rest is cut.
const MAX_REASON: usize = 16 << 10;

/// Room for the encoding around a reason.
pub(crate) const MAX_REASON_MESSAGE: usize = MAX_REASON + 64;

/// Most descriptors of one handover.
pub(super) const MAX_FDS: u32 = 16384;

/// Random bytes that only the peer on the cpr channel knows, so that nobody else can send the state.
pub(super) type Token = [u8; 16];

/// A message that is not what the protocol says.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// The peer is no Baton, or sends garbage.
    #[error("The peer does not speak Baton's handover protocol; is the address right?")]
    Magic,
    /// The peer speaks another version.
    #[error(
        "The source speaks version {0} of the handover protocol, the target version \
         {PROTOCOL_VERSION}; use builds of Baton that fit together"
    )]
    Version(u32),
    /// A message's content cannot be understood.
    #[error("The {message} message cannot be decoded; use builds of Baton that fit together")]
    Decode {
        /// Its name.
        message: &'static str,
        /// The decoder's reason.
        #[source]
        source: rmp_serde::decode::Error,
    },
    /// Bytes follow a message's content.
    #[error("The {0} message is longer than its content")]
    Trailing(&'static str),
    /// A message cannot be encoded.
    #[error("The {message} message cannot be encoded")]
    Encode {
        /// Its name.
        message: &'static str,
        /// The encoder's reason.
        #[source]
        source: rmp_serde::encode::Error,
    },
    /// A token of another length.
    #[error("The ATTACH message must carry {} bytes", size_of::<Token>())]
    TokenLength,
    /// Keys and descriptors do not match.
    #[error("A message names {keys} descriptors and carries {fds}")]
    FdCount {
        /// Named.
        keys: usize,
        /// Carried.
        fds: usize,
    },
    /// A message came on the wrong channel.
    #[error("The {message} message came on the {channel} channel")]
    WrongChannel {
        /// Its name.
        message: &'static str,
        /// Where it came.
        channel: ChannelType,
    },
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
    /// How many descriptors follow in FDS messages.
    pub(super) fds: u32,
    /// What ATTACH must repeat.
    pub(super) token: Token,
    /// Whether the source waits for its operator after READY, for as long as that takes.
    pub(super) pauses: bool,
}

/// The source ends the handover.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Abort {
    /// Why, for people.
    pub(crate) reason: String,
    /// Whether an operator wanted it.
    pub(crate) cancelled: bool,
}

/// The target cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Failed {
    reason: String,
}

/// A message with all that belongs to it.
#[derive(Debug)]
pub(super) enum Message {
    Hello(Box<Hello>, Option<OwnedFd>),
    Fds(Vec<(FdKey, OwnedFd)>),
    Preview(Vec<u8>),
    Ready,
    Attach(Token),
    Attached,
    State(Vec<u8>),
    Loaded,
    Commit,
    Started,
    Failed(String),
    Abort(Abort),
}

/// The kinds of frames, one per message.
pub(super) mod kind {
    pub(in super::super) const HELLO: u8 = 1;
    pub(in super::super) const FDS: u8 = 2;
    pub(in super::super) const PREVIEW: u8 = 3;
    pub(in super::super) const READY: u8 = 4;
    pub(in super::super) const ATTACH: u8 = 5;
    pub(in super::super) const ATTACHED: u8 = 6;
    pub(in super::super) const STATE: u8 = 7;
    pub(in super::super) const LOADED: u8 = 8;
    pub(in super::super) const COMMIT: u8 = 9;
    pub(in super::super) const STARTED: u8 = 10;
    pub(in super::super) const FAILED: u8 = 11;
    pub(in super::super) const ABORT: u8 = 12;
}

/// What each kind of frame may carry.
pub(super) fn bounds(kind: u8) -> Option<Limits> {
    let (length, fds) = match kind {
        kind::HELLO => (MAX_HELLO, 1),
        kind::FDS => (MAX_FDS_MESSAGE, MAX_FDS_PER_FRAME),
        kind::PREVIEW | kind::STATE => (MAX_STATE, 0),
        kind::ATTACH => (size_of::<Token>(), 0),
        kind::READY | kind::ATTACHED | kind::LOADED | kind::COMMIT | kind::STARTED => (0, 0),
        kind::FAILED | kind::ABORT => (MAX_REASON_MESSAGE, 0),
        _ => return None,
    };
    Some(Limits { length, fds })
}

impl Message {
    /// Its name, as in the drawing above.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Hello(..) => "HELLO",
            Self::Fds(_) => "FDS",
            Self::Preview(_) => "PREVIEW",
            Self::Ready => "READY",
            Self::Attach(_) => "ATTACH",
            Self::Attached => "ATTACHED",
            Self::State(_) => "STATE",
            Self::Loaded => "LOADED",
            Self::Commit => "COMMIT",
            Self::Started => "STARTED",
            Self::Failed(_) => "FAILED",
            Self::Abort(_) => "ABORT",
        }
    }

    /// The channel it goes over.
    fn channel(&self) -> ChannelType {
        match self {
            Self::Attach(_)
            | Self::Attached
            | Self::State(_)
            | Self::Loaded
            | Self::Commit
            | Self::Started => ChannelType::Main,
            Self::Hello(..)
            | Self::Fds(_)
            | Self::Preview(_)
            | Self::Ready
            | Self::Failed(_)
            | Self::Abort(_) => ChannelType::Cpr,
        }
    }

    /// The message in a frame that came on `channel`.
    pub(super) fn decode(channel: ChannelType, frame: Frame) -> Result<Self, ProtocolError> {
        let Frame {
            kind,
            payload,
            mut fds,
        } = frame;
        let message = match kind {
            kind::HELLO => Self::Hello(Box::new(decode_hello(&payload)?), fds.pop()),
            kind::FDS => {
                let keys: Vec<FdKey> = unpack("FDS", &payload)?;
                if keys.len() != fds.len() {
                    return Err(ProtocolError::FdCount {
                        keys: keys.len(),
                        fds: fds.len(),
                    });
                }
                Self::Fds(keys.into_iter().zip(fds).collect())
            }
            kind::PREVIEW => Self::Preview(payload),
            kind::READY => Self::Ready,
            kind::ATTACH => {
                Self::Attach(payload.try_into().map_err(|_| ProtocolError::TokenLength)?)
            }
            kind::ATTACHED => Self::Attached,
            kind::STATE => Self::State(payload),
            kind::LOADED => Self::Loaded,
            kind::COMMIT => Self::Commit,
            kind::STARTED => Self::Started,
            kind::FAILED => Self::Failed(unpack::<Failed>("FAILED", &payload)?.reason),
            kind::ABORT => Self::Abort(unpack("ABORT", &payload)?),
            // The channel refuses other kinds by the bounds above.
            _ => return Err(ProtocolError::Magic),
        };
        if message.channel() != channel {
            return Err(ProtocolError::WrongChannel {
                message: message.name(),
                channel,
            });
        }
        Ok(message)
    }
}

/// HELLO begins with magic and version outside of the encoding, so that a peer of another version is
/// told so whatever else it says.
pub(super) fn encode_hello(hello: &Hello) -> Result<Vec<u8>, ProtocolError> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&PROTOCOL_VERSION.to_le_bytes());
    bytes.extend_from_slice(&pack("HELLO", hello)?);
    Ok(bytes)
}

fn decode_hello(bytes: &[u8]) -> Result<Hello, ProtocolError> {
    let rest = bytes.strip_prefix(&MAGIC).ok_or(ProtocolError::Magic)?;
    let (version, rest) = rest.split_first_chunk().ok_or(ProtocolError::Magic)?;
    match u32::from_le_bytes(*version) {
        PROTOCOL_VERSION => unpack("HELLO", rest),
        other => Err(ProtocolError::Version(other)),
    }
}

/// The payload of FDS.
pub(super) fn encode_fds(keys: &[&FdKey]) -> Result<Vec<u8>, ProtocolError> {
    pack("FDS", keys)
}

/// The payload of FAILED.
pub(super) fn encode_failed(reason: &str) -> Result<Vec<u8>, ProtocolError> {
    pack(
        "FAILED",
        &Failed {
            reason: cut(reason),
        },
    )
}

/// The payload of ABORT.
pub(crate) fn encode_abort(reason: &str, cancelled: bool) -> Result<Vec<u8>, ProtocolError> {
    pack(
        "ABORT",
        &Abort {
            reason: cut(reason),
            cancelled,
        },
    )
}

pub(crate) fn cut(reason: &str) -> String {
    reason[..reason.floor_char_boundary(MAX_REASON)].to_owned()
}

pub(crate) fn pack<T: Serialize + ?Sized>(
    message: &'static str,
    value: &T,
) -> Result<Vec<u8>, ProtocolError> {
    rmp_serde::to_vec_named(value).map_err(|source| ProtocolError::Encode { message, source })
}

pub(crate) fn unpack<T: DeserializeOwned>(
    message: &'static str,
    bytes: &[u8],
) -> Result<T, ProtocolError> {
    let mut deserializer = rmp_serde::Deserializer::new(std::io::Cursor::new(bytes));
    let value = T::deserialize(&mut deserializer)
        .map_err(|source| ProtocolError::Decode { message, source })?;
    if deserializer.position() != bytes.len() as u64 {
        return Err(ProtocolError::Trailing(message));
    }
    Ok(value)
}
