//! What does not go together: capabilities with each other when they are set, and the settings with
//! a mode and a channel when a migration begins, as in QEMU.

use super::{Capabilities, Capability, Settings};
use crate::Mode;
use crate::address::{AddressError, MigrationAddress, SocketAddress};

/// Pairs that QEMU refuses together, with its text. The first is the later of the two in its checks.
const INCOMPATIBLE: [(Capability, Capability, &str); 8] = [
    (
        Capability::PostcopyRam,
        Capability::XIgnoreShared,
        "Postcopy is not compatible with ignore-shared",
    ),
    (
        Capability::PostcopyRam,
        Capability::Multifd,
        "Postcopy is not yet compatible with multifd",
    ),
    (
        Capability::BackgroundSnapshot,
        Capability::PostcopyRam,
        "Background-snapshot is not compatible with postcopy-ram",
    ),
    (
        Capability::BackgroundSnapshot,
        Capability::ReturnPath,
        "Background-snapshot is not compatible with return-path",
    ),
    (
        Capability::BackgroundSnapshot,
        Capability::Multifd,
        "Background-snapshot is not compatible with multifd",
    ),
    (
        Capability::BackgroundSnapshot,
        Capability::PauseBeforeSwitchover,
        "Background-snapshot is not compatible with pause-before-switchover",
    ),
    (
        Capability::BackgroundSnapshot,
        Capability::XColo,
        "Background-snapshot is not compatible with x-colo",
    ),
    (
        Capability::MappedRam,
        Capability::PostcopyRam,
        "Mapped-ram migration is incompatible with postcopy",
    ),
];

impl Capabilities {
    /// These with `changes`, in their order; refused if a capability that Baton does not have is
    /// switched on, or if two do not go together.
    pub fn with(mut self, changes: &[(Capability, bool)]) -> Result<Self, String> {
        for &(capability, on) in changes {
            if on && let Some(why) = capability.missing() {
                return Err(format!(
                    "Capability '{capability}' cannot be switched on: {why}; leave it off"
                ));
            }
            self.set(capability, on);
        }
        match INCOMPATIBLE
            .iter()
            .find(|(a, b, _)| self.contains(*a) && self.contains(*b))
        {
            Some((.., text)) => Err((*text).to_owned()),
            None => Ok(self),
        }
    }
}

impl Capability {
    /// Why it cannot be switched on; nothing if it can.
    ///
    /// Those that only `migrate` refuses can, as in QEMU.
    const fn missing(self) -> Option<&'static str> {
        match self {
            Self::Events
            | Self::PostcopyRam
            | Self::XColo
            | Self::ReturnPath
            | Self::PauseBeforeSwitchover
            | Self::Multifd
            | Self::XIgnoreShared
            | Self::BackgroundSnapshot
            | Self::MappedRam => None,
            Self::Xbzrle => Some("pages are sent whole"),
            Self::RdmaPinAll => Some("there is no RDMA"),
            Self::AutoConverge | Self::DirtyLimit => {
                Some("Baton does not slow vCPUs down for a migration")
            }
            Self::ZeroBlocks | Self::DirtyBitmaps | Self::LateBlockActivate => {
                Some("disks are not part of a migration")
            }
            Self::ReleaseRam | Self::PostcopyBlocktime | Self::PostcopyPreempt => {
                Some("Baton has no postcopy")
            }
            Self::ValidateUuid => Some("a machine has no UUID"),
            Self::ZeroCopySend => Some("sockets are not written to without copying"),
            Self::SwitchoverAck => Some("a device cannot put the switchover off"),
        }
    }
}

impl Settings {
    /// Refuses a migration that these settings do not fit, with QEMU's texts: to `main`, or with the
    /// state in memory if there is no address.
    pub fn check_migration(&self, main: Option<&MigrationAddress>) -> Result<(), String> {
        let on = |capability| self.capabilities.contains(capability);
        let mode = self.parameters.mode;
        if let Some(main) = main {
            let to_file = matches!(main, MigrationAddress::File { .. });
            if on(Capability::MappedRam) && !to_file {
                return Err("Migration requires seekable transport (e.g. file)".to_owned());
            }
            if on(Capability::Multifd) && !several_channels(main, on(Capability::MappedRam)) {
                return Err("Migration requires multi-channel URIs (e.g. tcp)".to_owned());
            }
            // One of them is written past the page cache, and the other is not.
            if on(Capability::Multifd) && self.parameters.direct_io && !to_file {
                return Err(
                    "Migration requires a transport that allows for extra fds (e.g. file)"
                        .to_owned(),
                );
            }
            if mode == Mode::CprTransfer && to_file {
                return Err(AddressError::NotStreamable.to_string());
            }
        }
        for (capability, name) in [
            (Capability::PostcopyRam, "postcopy"),
            (Capability::BackgroundSnapshot, "background snapshot"),
            (Capability::XColo, "COLO"),
        ] {
            if on(capability) {
                return Err(match mode {
                    Mode::Normal => format!(
                        "Baton has no {name}; switch capability '{capability}' off with \
                         migrate-set-capabilities"
                    ),
                    _ => format!("Cannot use {name} with CPR"),
                });
            }
        }
        if on(Capability::PauseBeforeSwitchover)
            && !matches!(mode, Mode::CprTransfer | Mode::Normal)
        {
            return Err(format!(
                "Capability 'pause-before-switchover' belongs to modes normal and cpr-transfer, not {mode}; \
                 switch it off with migrate-set-capabilities"
            ));
        }
        if mode == Mode::CprExec && self.parameters.cpr_exec_command.is_empty() {
            return Err("cpr-exec mode requires setting cpr-exec-command".to_owned());
        }
        Ok(())
    }
}

/// Whether several connections can be made to `main`, or several threads can write there.
fn several_channels(main: &MigrationAddress, mapped_ram: bool) -> bool {
    match main {
        MigrationAddress::Socket(socket) => !matches!(socket, SocketAddress::Fd { .. }),
        MigrationAddress::File { .. } => mapped_ram,
        MigrationAddress::Exec { .. } | MigrationAddress::Rdma(_) => false,
    }
}

#[cfg(test)]
#[path = "conflicts_tests.rs"]
mod tests;
