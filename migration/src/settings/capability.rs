//! Migration capabilities: switches, all off at first.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// QAPI `MigrationCapability`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Capability {
    /// Send pages as differences.
    Xbzrle,
    /// Pin all memory of an RDMA migration.
    RdmaPinAll,
    /// Throttle the guest until RAM converges.
    AutoConverge,
    /// Send blocks of zeros short.
    ZeroBlocks,
    /// Emit the `MIGRATION` event.
    Events,
    /// Run the guest in the target before its RAM is there.
    PostcopyRam,
    /// Keep a second guest in step.
    XColo,
    /// Give RAM back to the host while it is sent.
    ReleaseRam,
    /// The target answers the source.
    ReturnPath,
    /// Wait for `migrate-continue` before the guest is stopped.
    PauseBeforeSwitchover,
    /// Move RAM by several threads.
    Multifd,
    /// Move bitmaps of dirty blocks.
    DirtyBitmaps,
    /// Measure how long postcopy makes the guest wait.
    PostcopyBlocktime,
    /// Leave images alone until the guest runs.
    LateBlockActivate,
    /// Leave RAM that is a shared file where it is.
    XIgnoreShared,
    /// Compare the machines' UUIDs.
    ValidateUuid,
    /// Save a guest that runs.
    BackgroundSnapshot,
    /// Send without copying.
    ZeroCopySend,
    /// Let urgent pages of postcopy pass others.
    PostcopyPreempt,
    /// Let the target say when to switch over.
    SwitchoverAck,
    /// Throttle vCPUs by the pages they write.
    DirtyLimit,
    /// Write each page of RAM to its own place in the file.
    MappedRam,
}

impl Capability {
    /// Every capability, in QAPI's order.
    pub const ALL: [Self; 22] = [
        Self::Xbzrle,
        Self::RdmaPinAll,
        Self::AutoConverge,
        Self::ZeroBlocks,
        Self::Events,
        Self::PostcopyRam,
        Self::XColo,
        Self::ReleaseRam,
        Self::ReturnPath,
        Self::PauseBeforeSwitchover,
        Self::Multifd,
        Self::DirtyBitmaps,
        Self::PostcopyBlocktime,
        Self::LateBlockActivate,
        Self::XIgnoreShared,
        Self::ValidateUuid,
        Self::BackgroundSnapshot,
        Self::ZeroCopySend,
        Self::PostcopyPreempt,
        Self::SwitchoverAck,
        Self::DirtyLimit,
        Self::MappedRam,
    ];

    /// The QAPI spelling.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Xbzrle => "xbzrle",
            Self::RdmaPinAll => "rdma-pin-all",
            Self::AutoConverge => "auto-converge",
            Self::ZeroBlocks => "zero-blocks",
            Self::Events => "events",
            Self::PostcopyRam => "postcopy-ram",
            Self::XColo => "x-colo",
            Self::ReleaseRam => "release-ram",
            Self::ReturnPath => "return-path",
            Self::PauseBeforeSwitchover => "pause-before-switchover",
            Self::Multifd => "multifd",
            Self::DirtyBitmaps => "dirty-bitmaps",
            Self::PostcopyBlocktime => "postcopy-blocktime",
            Self::LateBlockActivate => "late-block-activate",
            Self::XIgnoreShared => "x-ignore-shared",
            Self::ValidateUuid => "validate-uuid",
            Self::BackgroundSnapshot => "background-snapshot",
            Self::ZeroCopySend => "zero-copy-send",
            Self::PostcopyPreempt => "postcopy-preempt",
            Self::SwitchoverAck => "switchover-ack",
            Self::DirtyLimit => "dirty-limit",
            Self::MappedRam => "mapped-ram",
        }
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Capability {
    type Err = String;

    /// Takes the QAPI spelling only; the error is QEMU's text.
    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|capability| capability.as_str() == s)
            .ok_or_else(|| format!("Parameter 'capability' does not accept value '{s}'"))
    }
}

/// The capabilities that are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities(u32);

impl Capabilities {
    /// Whether `capability` is on.
    pub const fn contains(self, capability: Capability) -> bool {
        self.0 & Self::bit(capability) != 0
    }

    /// Switches `capability` on or off.
    pub const fn set(&mut self, capability: Capability, on: bool) {
        match on {
            true => self.0 |= Self::bit(capability),
            false => self.0 &= !Self::bit(capability),
        }
    }

    const fn bit(capability: Capability) -> u32 {
        1 << capability as u32
    }
}

impl FromIterator<Capability> for Capabilities {
    fn from_iter<T: IntoIterator<Item = Capability>>(all: T) -> Self {
        let mut set = Self::default();
        all.into_iter().for_each(|one| set.set(one, true));
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_capability_reads_back_from_its_qapi_spelling() {
        for capability in Capability::ALL {
            assert_eq!(capability.as_str().parse(), Ok(capability));
            let json = serde_json::to_value(capability).unwrap();
            assert_eq!(json, capability.as_str());
        }
        assert_eq!(
            "foo".parse::<Capability>(),
            Err("Parameter 'capability' does not accept value 'foo'".to_owned())
        );
    }

    #[test]
    fn a_set_holds_what_was_switched_on() {
        let mut set = Capabilities::default();
        for capability in Capability::ALL {
            assert!(!set.contains(capability));
            set.set(capability, true);
            assert!(set.contains(capability));
        }
        set.set(Capability::Events, false);
        let others = Capability::ALL
            .into_iter()
            .filter(|one| *one != Capability::Events);
        assert_eq!(set, others.collect());
    }
}
