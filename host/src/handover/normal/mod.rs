//! Mode normal: RAM is copied while the guest runs, to a process that opens everything else itself.
//! The order of events is the migration crate's.

mod source;
mod target;

use std::os::unix::fs::FileTypeExt;

use baton_migration::address::{MigrationAddress, SocketAddress};

use super::resolve_fd;

pub(super) use source::migrate;
pub(super) use target::begin as receive;

/// Where a guest is sent to a process that waits for it; nothing for a place that keeps it.
fn socket(address: &MigrationAddress) -> Option<&SocketAddress> {
    match address {
        MigrationAddress::Socket(socket @ SocketAddress::Fd { str }) => {
            let file = std::fs::File::from(resolve_fd(str).ok()?);
            let found = file.metadata().ok()?;
            found.file_type().is_socket().then_some(socket)
        }
        MigrationAddress::Socket(socket) => Some(socket),
        _ => None,
    }
}

/// Whether a guest that comes from there is copied by a source, rather than kept there.
pub(super) fn streams(address: &MigrationAddress) -> bool {
    socket(address).is_some()
}
