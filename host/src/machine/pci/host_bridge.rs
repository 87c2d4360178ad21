//! The bridge between the vCPUs and bus 0: a function with an identity and nothing else.

use std::sync::{Mutex, PoisonError};

use baton_plugin_api::pci::{ConfigSpace, Identity};

use super::PciFunction;

/// The generic PCI Express host bridge of QEMU's PCI ids (docs/specs/pci-ids.rst).
const IDENTITY: Identity = Identity {
    vendor: 0x1b36,
    device: 0x0008,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
    class: 0x06_0000,
    revision: 0,
};

/// Function 0 of slot 0.
pub struct HostBridge(Mutex<ConfigSpace>);

impl Default for HostBridge {
    fn default() -> Self {
        Self::new()
    }
}

impl HostBridge {
    /// The bridge. It keeps nothing that matters to the guest across a handover.
    pub fn new() -> Self {
        Self(Mutex::new(ConfigSpace::new(IDENTITY)))
    }
}

impl PciFunction for HostBridge {
    fn config_read(&self, offset: u64, data: &mut [u8]) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .read(offset, data);
    }

    /// The bridge has no register that does anything; to stay the same in every process, it takes
    /// no write.
    fn config_write(&self, _offset: u64, _data: &[u8]) {}
}
