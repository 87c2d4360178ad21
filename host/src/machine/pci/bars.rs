//! What the BARs of a function decode in the machine's address spaces.

use std::collections::BTreeMap;
use std::sync::Arc;

use baton_plugin_api::bus::RegionKind;

use crate::machine::bus::{AddressSpaces, BusDevice};

/// The BARs of one function.
pub struct BarMap {
    spaces: Arc<AddressSpaces>,
    mapped: BTreeMap<u32, (RegionKind, u64)>,
}

impl BarMap {
    /// No BAR decodes yet.
    pub fn new(spaces: Arc<AddressSpaces>) -> Self {
        Self {
            spaces,
            mapped: BTreeMap::new(),
        }
    }

    /// Where a BAR decodes.
    pub fn address(&self, bar: u32) -> Option<u64> {
        self.mapped.get(&bar).map(|(_, base)| *base)
    }

    /// Lets `bar` decode at `address`, or not at all. True if that is a change. A place where
    /// something else decodes already stays that thing's, as on a bus where two answer.
    pub fn set(
        &mut self,
        bar: u32,
        kind: RegionKind,
        address: Option<u64>,
        size: u64,
        device: impl FnOnce() -> Arc<dyn BusDevice>,
    ) -> bool {
        let wanted = address.map(|address| (kind, address));
        if self.mapped.get(&bar).copied() == wanted {
            return false;
        }
        if let Some((kind, base)) = self.mapped.remove(&bar) {
            self.spaces.remove(kind, base);
        }
        if let Some((kind, base)) = wanted {
            match self.spaces.insert(kind, base, size, device()) {
                Ok(()) => {
                    self.mapped.insert(bar, (kind, base));
                }
                Err(overlap) => tracing::warn!("the guest placed BAR {bar} badly: {overlap}"),
            }
        }
        true
    }
}

impl Drop for BarMap {
    fn drop(&mut self) {
        for (kind, base) in std::mem::take(&mut self.mapped).into_values() {
            self.spaces.remove(kind, base);
        }
    }
}
