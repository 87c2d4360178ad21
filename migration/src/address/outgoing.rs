//! The channels of `migrate`.

use std::path::PathBuf;

use super::{
    AddressError, ChannelType, MigrationAddress, MigrationChannel, SocketAddress, parse_uri,
};

/// The main address of `migrate` for modes that have only that one.
pub fn main_address(
    uri: Option<&str>,
    channels: Option<&[MigrationChannel]>,
) -> Result<MigrationAddress, AddressError> {
    split(uri, channels).map(|(main, _)| main)
}

/// The two channels of an outgoing cpr-transfer, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransferChannels {
    /// The UNIX socket the target listens on.
    pub cpr: PathBuf,
    /// Where the target listens for the state once it is ready: unix, inet or fd.
    pub main: SocketAddress,
}

impl TransferChannels {
    /// Checks the arguments of `migrate` in mode cpr-transfer.
    pub fn from_arguments(
        uri: Option<&str>,
        channels: Option<&[MigrationChannel]>,
    ) -> Result<Self, AddressError> {
        let (main, cpr) = split(uri, channels)?;
        let cpr = match cpr.ok_or(AddressError::NoCpr)? {
            MigrationAddress::Socket(SocketAddress::Unix { path }) => path,
            // Whatever else it is: QEMU tells them apart only for -incoming.
            _ => return Err(AddressError::CprAddress),
        };
        Ok(Self {
            cpr,
            main: transfer_main(&main)?,
        })
    }
}

/// The main channel's address, if cpr-transfer can use it.
pub(super) fn transfer_main(main: &MigrationAddress) -> Result<SocketAddress, AddressError> {
    match main {
        MigrationAddress::File { .. } => Err(AddressError::NotStreamable),
        MigrationAddress::Exec { .. } => Err(AddressError::Unsupported("exec".to_owned())),
        MigrationAddress::Rdma(_) => Err(AddressError::Unsupported("rdma".to_owned())),
        MigrationAddress::Socket(SocketAddress::Vsock { .. }) => {
            Err(AddressError::Unsupported("vsock".to_owned()))
        }
        MigrationAddress::Socket(SocketAddress::Inet(inet)) if inet.port == "0" => {
            Err(AddressError::PortZero)
        }
        MigrationAddress::Socket(address) => Ok(address.clone()),
    }
}

/// The main address and, if there is one, the cpr address.
fn split(
    uri: Option<&str>,
    channels: Option<&[MigrationChannel]>,
) -> Result<(MigrationAddress, Option<MigrationAddress>), AddressError> {
    let channels = match (uri, channels) {
        (Some(uri), None) => return Ok((parse_uri(uri)?, None)),
        (None, Some(channels)) => channels,
        _ => return Err(AddressError::UriOrChannels),
    };
    let only = |wanted: ChannelType| {
        let mut found = channels
            .iter()
            .filter(|channel| channel.channel_type == wanted);
        match (found.next(), found.next()) {
            (_, Some(_)) => Err(AddressError::MoreThanOne(wanted)),
            (first, None) => Ok(first.map(|channel| channel.addr.clone())),
        }
    };
    let (main, cpr) = (only(ChannelType::Main)?, only(ChannelType::Cpr)?);
    Ok((main.ok_or(AddressError::NoMain)?, cpr))
}
