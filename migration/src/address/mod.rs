//! Migration addresses, as QAPI's `migration.json` and `sockets.json` define them.
//!
//! Three spellings lead to the same types: JSON (`{"transport": "socket", "type": "unix", ...}`),
//! URIs (`unix:/run/vm.sock`) and dotted keys (`cpr,addr.transport=socket,addr.type=unix,...`).

mod incoming;
mod members;
mod outgoing;
mod uri;

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use incoming::{Incoming, IncomingChannels};
pub use outgoing::{TransferChannels, main_address};
pub use uri::parse_uri;

use members::Members;

/// What can be wrong with an address. Texts that QEMU also has are QEMU's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Both or neither of `uri` and `channels` were given.
    #[error("need either 'uri' or 'channels' argument")]
    UriOrChannels,
    /// Several channels of one type.
    #[error("Channel list has more than one {0} entry")]
    MoreThanOne(ChannelType),
    /// No main channel.
    #[error("Channel list has no main entry")]
    NoMain,
    /// `migrate-incoming` takes only the main channel.
    #[error("Channel list must have only one entry, for type 'main'")]
    OnlyMain,
    /// cpr-transfer needs a second channel.
    #[error("missing 'cpr' migration channel")]
    NoCpr,
    /// The cpr channel's transport is not `socket`.
    #[error("bad cpr channel address; must be unix")]
    CprAddress,
    /// The cpr channel's socket is not a UNIX one.
    #[error("bad cpr channel socket type; must be unix")]
    CprSocketType,
    /// The main channel is a file.
    #[error("Migration requires streamable transport (eg unix)")]
    NotStreamable,
    /// The source could not know which port the kernel chose.
    #[error("tcp port 0 cannot be used for the main channel of cpr-transfer; choose a port")]
    PortZero,
    /// A transport that is known but not spoken here.
    #[error("Migration transport '{0}' is not supported; use unix, tcp or fd")]
    Unsupported(String),
    /// The URI begins with something else.
    #[error("unknown migration protocol: {0}")]
    UnknownProtocol(String),
    /// The URI's protocol is known, what follows is wrong.
    #[error("error parsing address '{address}': {reason}")]
    BadUri {
        /// What follows the protocol.
        address: String,
        /// What is wrong, and the right form.
        reason: &'static str,
    },
    /// A member that QAPI's type does not have.
    #[error("Parameter '{0}' is unexpected")]
    UnexpectedMember(String),
    /// A member that QAPI's type must have.
    #[error("Parameter '{0}' is missing")]
    MissingMember(String),
    /// A member of another JSON type.
    #[error("Invalid parameter type for '{name}', expected: {expected}")]
    MemberType {
        /// The member.
        name: String,
        /// QAPI's name of the right type.
        expected: &'static str,
    },
    /// A discriminator with an unknown value.
    #[error("Parameter '{name}' does not accept value '{value}'")]
    MemberValue {
        /// The member.
        name: String,
        /// Its value.
        value: String,
    },
    /// `-incoming` got text that is not JSON although it begins with a brace.
    #[error("JSON parse error in '{text}': {reason}")]
    Json {
        /// The text.
        text: String,
        /// The parser's reason.
        reason: String,
    },
    /// A dotted key that cannot be.
    #[error("Invalid parameter '{0}'; write key=value pairs separated by commas")]
    BadKey(String),
}

/// QAPI `MigrationChannelType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChannelType {
    /// Carries the state.
    Main,
    /// Carries descriptors, for cpr-transfer.
    Cpr,
}

impl fmt::Display for ChannelType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Main => "main",
            Self::Cpr => "cpr",
        })
    }
}

/// QAPI `MigrationChannel`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", try_from = "Value")]
pub struct MigrationChannel {
    /// What the channel is for.
    pub channel_type: ChannelType,
    /// Where it leads.
    pub addr: MigrationAddress,
}

/// QAPI `MigrationAddress`, a flat union on `transport`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "transport", rename_all = "lowercase", try_from = "Value")]
pub enum MigrationAddress {
    /// A socket.
    Socket(SocketAddress),
    /// A program that reads or writes the stream.
    Exec {
        /// Program and arguments.
        args: Vec<String>,
    },
    /// RDMA; known so that it is refused by name.
    Rdma(InetAddress),
    /// A file.
    File {
        /// Its path.
        filename: String,
        /// Where the stream begins, in bytes.
        offset: u64,
    },
}

/// QAPI `SocketAddress`, a flat union on `type`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", try_from = "Value")]
pub enum SocketAddress {
    /// TCP.
    Inet(InetAddress),
    /// A UNIX domain socket.
    Unix {
        /// Its path.
        path: PathBuf,
    },
    /// A socket of the VM sockets family.
    Vsock {
        /// Context id.
        cid: String,
        /// Port.
        port: String,
    },
    /// An open descriptor: a number, or a name given with `getfd`.
    Fd {
        /// Number or name.
        str: String,
    },
}

/// QAPI `InetSocketAddress` without its optional members, which are refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InetAddress {
    /// Host name or address; `0` or nothing is any address to listen on, and this host to connect
    /// to.
    pub host: String,
    /// Port number as text.
    pub port: String,
}

impl TryFrom<Value> for MigrationChannel {
    type Error = AddressError;

    fn try_from(value: Value) -> Result<Self, AddressError> {
        let mut members = Members::of("", value)?;
        let channel_type = match members.string("channel-type")?.as_str() {
            "main" => ChannelType::Main,
            "cpr" => ChannelType::Cpr,
            other => return Err(members.bad_value("channel-type", other)),
        };
        let addr = MigrationAddress::from_members(members.object("addr")?)?;
        members.finish()?;
        Ok(Self { channel_type, addr })
    }
}

impl TryFrom<Value> for MigrationAddress {
    type Error = AddressError;

    fn try_from(value: Value) -> Result<Self, AddressError> {
        Self::from_members(Members::of("", value)?)
    }
}

impl TryFrom<Value> for SocketAddress {
    type Error = AddressError;

    fn try_from(value: Value) -> Result<Self, AddressError> {
        Self::from_members(Members::of("", value)?)
    }
}

impl MigrationAddress {
    fn from_members(mut members: Members) -> Result<Self, AddressError> {
        let address = match members.string("transport")?.as_str() {
            "socket" => return SocketAddress::from_members(members).map(Self::Socket),
            "exec" => Self::Exec {
                args: members.strings("args")?,
            },
            "rdma" => Self::Rdma(InetAddress::from_members(&mut members)?),
            "file" => Self::File {
                filename: members.string("filename")?,
                offset: members.uint64("offset")?,
            },
            other => return Err(members.bad_value("transport", other)),
        };
        members.finish()?;
        Ok(address)
    }
}

impl SocketAddress {
    fn from_members(mut members: Members) -> Result<Self, AddressError> {
        let address = match members.string("type")?.as_str() {
            "inet" => Self::Inet(InetAddress::from_members(&mut members)?),
            "unix" => Self::Unix {
                path: members.string("path")?.into(),
            },
            "vsock" => Self::Vsock {
                cid: members.string("cid")?,
                port: members.string("port")?,
            },
            "fd" => Self::Fd {
                str: members.string("str")?,
            },
            other => return Err(members.bad_value("type", other)),
        };
        members.finish()?;
        Ok(address)
    }
}

impl InetAddress {
    fn from_members(members: &mut Members) -> Result<Self, AddressError> {
        Ok(Self {
            host: members.string("host")?,
            port: members.string("port")?,
        })
    }
}

impl fmt::Display for MigrationAddress {
    /// As a URI.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(address) => address.fmt(f),
            Self::Exec { args } => write!(f, "exec:{}", args.join(" ")),
            Self::Rdma(address) => write!(f, "rdma:{}:{}", address.host, address.port),
            Self::File {
                filename,
                offset: 0,
            } => write!(f, "file:{filename}"),
            Self::File { filename, offset } => write!(f, "file:{filename},offset={offset}"),
        }
    }
}

impl fmt::Display for SocketAddress {
    /// As a URI.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(InetAddress { host, port }) if host.contains(':') => {
                write!(f, "tcp:[{host}]:{port}")
            }
            Self::Inet(InetAddress { host, port }) => write!(f, "tcp:{host}:{port}"),
            Self::Unix { path } => write!(f, "unix:{}", path.display()),
            Self::Vsock { cid, port } => write!(f, "vsock:{cid}:{port}"),
            Self::Fd { str } => write!(f, "fd:{str}"),
        }
    }
}

#[cfg(test)]
mod tests;
