//! Descriptors that clients of the monitor have passed, where an address names them.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};

use baton_migration::HostError;
use baton_migration::address::{
    ChannelType, MigrationAddress, MigrationChannel, SocketAddress, parse_uri,
};
use baton_migration::checkpoint::Place;

use super::resolve_fd;
use crate::fdset::{self, Access};
use crate::monitor::NamedFds;

/// The channels of a command, in which descriptors are named by their numbers alone.
#[derive(Debug)]
pub struct Numbered {
    /// The main channel as a URI.
    pub uri: Option<String>,
    /// All channels.
    pub channels: Option<Vec<MigrationChannel>>,
    /// What has been named, open as long as this is.
    _fds: Vec<OwnedFd>,
}

/// Takes what a client has given names to, as in QEMU: a name can be used once. The numbers are good
/// as long as the result is.
pub fn numbered(
    uri: Option<String>,
    channels: Option<Vec<MigrationChannel>>,
    named: &NamedFds,
) -> Result<Numbered, HostError> {
    let mut fds = Vec::new();
    let mut number = |address: &mut SocketAddress| -> Result<(), HostError> {
        let SocketAddress::Fd { str } = address else {
            return Ok(());
        };
        // A name does not begin with a digit.
        if str.starts_with(|c: char| c.is_ascii_digit()) {
            return Ok(());
        }
        let fd = named
            .take(str)
            .ok_or_else(|| format!("File descriptor named '{str}' has not been found"))?;
        *str = fd.as_raw_fd().to_string();
        fds.push(fd);
        Ok(())
    };
    let uri = match uri {
        // What is no address is told by whoever uses it.
        Some(uri) => match parse_uri(&uri) {
            Ok(MigrationAddress::Socket(mut socket @ SocketAddress::Fd { .. })) => {
                number(&mut socket)?;
                Some(socket.to_string())
            }
            _ => Some(uri),
        },
        None => None,
    };
    let mut channels = channels;
    for channel in channels.iter_mut().flatten() {
        // A source connects its cpr channel by a path, and says so.
        if let (ChannelType::Main, MigrationAddress::Socket(socket)) =
            (channel.channel_type, &mut channel.addr)
        {
            number(socket)?;
        }
    }
    Ok(Numbered {
        uri,
        channels,
        _fds: fds,
    })
}

/// The place that an address names, to write to or to read from: a path may be that of a set of
/// descriptors.
pub(super) fn place(address: &MigrationAddress, writing: bool) -> Result<Place, HostError> {
    let MigrationAddress::File { filename, offset } = address else {
        return Place::of(address, &resolve_fd);
    };
    match passed(filename, writing) {
        None => Place::of(address, &resolve_fd),
        Some(fd) => {
            let mut fd = fd.map_err(|e| format!("Cannot open '{filename}': {e}"))?;
            if fd.metadata()?.is_file() {
                fd.seek(SeekFrom::Start(*offset))?;
            }
            let name = filename.clone();
            Ok(Place::Fd { name, fd })
        }
    }
}

/// A descriptor of a set: one that can do both will do.
fn passed(filename: &str, writing: bool) -> Option<std::io::Result<File>> {
    let alone = Access {
        read: !writing,
        write: writing,
        direct: false,
    };
    let path = filename.as_ref();
    let first = fdset::open(path, alone)?;
    Some(first.or_else(|e| fdset::open(path, Access::READ_WRITE).unwrap_or(Err(e))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn null() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn a_name_becomes_the_number_of_its_descriptor_once() {
        let named = NamedFds::default();
        named.insert("main".into(), null()).unwrap();
        let given = numbered(Some("fd:main".into()), None, &named).unwrap();
        let number: i32 = given.uri.as_deref().unwrap()[3..].parse().unwrap();
        assert!(crate::fd::duplicate(number).is_ok());
        let gone = numbered(Some("fd:main".into()), None, &named).unwrap_err();
        assert_eq!(
            gone.to_string(),
            "File descriptor named 'main' has not been found"
        );
        for uri in ["fd:7", "unix:fd", "nonsense"] {
            let same = numbered(Some(uri.into()), None, &named).unwrap();
            assert_eq!(same.uri.as_deref(), Some(uri));
        }
    }

    #[test]
    fn channels_are_named_alike() {
        let named = NamedFds::default();
        named.insert("main".into(), null()).unwrap();
        let channel: MigrationChannel = serde_json::from_value(serde_json::json!({
            "channel-type": "main",
            "addr": { "transport": "socket", "type": "fd", "str": "main" }
        }))
        .unwrap();
        let given = numbered(None, Some(vec![channel]), &named).unwrap();
        let address = given.channels.as_ref().unwrap()[0].addr.to_string();
        assert!(address[3..].parse::<i32>().is_ok(), "{address}");
    }
}
