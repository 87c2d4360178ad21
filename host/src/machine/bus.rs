//! The guest's two address spaces as vCPUs meet them: what decodes a port, and what an address.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use baton_plugin_api::bus::RegionKind;

/// Something that decodes a range. Called from any vCPU thread.
pub trait BusDevice: Send + Sync {
    /// What it is, for people: a device's id, or what part of the chipset.
    fn name(&self) -> String;
    /// Reads 1 to 8 bytes at `offset` of the range.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Writes 1 to 8 bytes at `offset` of the range.
    fn write(&self, offset: u64, data: &[u8]);
}

/// A range that something decodes already.
#[derive(Debug, thiserror::Error)]
#[error("{} {base:#x} to {last:#x} overlap with {} {other_base:#x} to {other_last:#x} of another device", word(*kind), word(*kind))]
pub struct Overlap {
    kind: RegionKind,
    base: u64,
    last: u64,
    other_base: u64,
    other_last: u64,
}

fn word(kind: RegionKind) -> &'static str {
    match kind {
        RegionKind::Port => "ports",
        RegionKind::Mmio => "addresses",
    }
}

#[derive(Clone)]
struct Range {
    last: u64,
    device: Arc<dyn BusDevice>,
}

/// Both address spaces of a machine.
#[derive(Default)]
pub struct AddressSpaces {
    ports: RwLock<BTreeMap<u64, Range>>,
    memory: RwLock<BTreeMap<u64, Range>>,
}

impl AddressSpaces {
    /// Lets `device` decode `size` bytes from `base` on.
    pub fn insert(
        &self,
        kind: RegionKind,
        base: u64,
        size: u64,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), Overlap> {
        let last = base.saturating_add(size.max(1) - 1);
        let mut map = self
            .space(kind)
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some((&other_base, other)) = map.range(..=last).next_back()
            && other.last >= base
        {
            return Err(Overlap {
                kind,
                base,
                last,
                other_base,
                other_last: other.last,
            });
        }
        map.insert(base, Range { last, device });
        Ok(())
    }

    /// Ends what begins at `base`.
    pub fn remove(&self, kind: RegionKind, base: u64) {
        self.space(kind)
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&base);
    }

    /// Ends everything.
    pub fn clear(&self) {
        for space in [&self.ports, &self.memory] {
            let gone = std::mem::take(&mut *space.write().unwrap_or_else(PoisonError::into_inner));
            // Without the lock, since a device that ends may want it for its BARs.
            drop(gone);
        }
    }

    /// Everything that decodes in a space, in ascending order: first and last address, and what it is.
    pub fn ranges(&self, kind: RegionKind) -> Vec<(u64, u64, String)> {
        let map = self
            .space(kind)
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        // Without the lock, since a device is asked.
        let range = |(base, range): (u64, Range)| (base, range.last, range.device.name());
        map.into_iter().map(range).collect()
    }

    /// Reads; where nothing decodes, all ones.
    pub fn read(&self, kind: RegionKind, address: u64, data: &mut [u8]) {
        match self.find(kind, address, data.len()) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes; where nothing decodes, nothing happens.
    pub fn write(&self, kind: RegionKind, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.find(kind, address, data.len()) {
            device.write(offset, data);
        }
    }

    /// The lock is not held while a device is called, since a device may move its own BAR.
    fn find(
        &self,
        kind: RegionKind,
        address: u64,
        len: usize,
    ) -> Option<(Arc<dyn BusDevice>, u64)> {
        let map = self
            .space(kind)
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let (base, range) = map.range(..=address).next_back()?;
        let last = address.checked_add(len as u64 - 1)?;
        (last <= range.last).then(|| (Arc::clone(&range.device), address - base))
    }

    fn space(&self, kind: RegionKind) -> &RwLock<BTreeMap<u64, Range>> {
        match kind {
            RegionKind::Port => &self.ports,
            RegionKind::Mmio => &self.memory,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    struct Echo(Mutex<Vec<(u64, Vec<u8>)>>);

    impl BusDevice for Echo {
        fn name(&self) -> String {
            "echo".to_owned()
        }
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    #[test]
    fn what_decodes_is_listed_in_order() {
        let spaces = AddressSpaces::default();
        let echo = Arc::new(Echo(Mutex::default()));
        for base in [0x3f8, 0x70] {
            let device = Arc::clone(&echo) as _;
            spaces.insert(RegionKind::Port, base, 8, device).unwrap();
        }
        let listed = spaces.ranges(RegionKind::Port);
        let name = || "echo".to_owned();
        assert_eq!(listed, [(0x70, 0x77, name()), (0x3f8, 0x3ff, name())]);
        assert_eq!(spaces.ranges(RegionKind::Mmio), []);
    }

    #[test]
    fn an_access_reaches_the_device_that_decodes_all_of_it() {
        let spaces = AddressSpaces::default();
        let echo = Arc::new(Echo(Mutex::default()));
        spaces
            .insert(RegionKind::Port, 0x3f8, 8, Arc::clone(&echo) as _)
            .unwrap();
        let mut data = [0; 1];
        spaces.read(RegionKind::Port, 0x3fd, &mut data);
        assert_eq!(data, [5]);
        let mut data = [0; 4];
        spaces.read(RegionKind::Port, 0x3fe, &mut data);
        assert_eq!(data, [0xff; 4]);
        spaces.read(RegionKind::Mmio, 0x3f8, &mut data);
        assert_eq!(data, [0xff; 4]);
        spaces.write(RegionKind::Port, 0x3f9, &[7]);
        assert_eq!(*echo.0.lock().unwrap(), vec![(1, vec![7])]);
    }

    #[test]
    fn overlapping_ranges_are_refused_and_a_removed_one_makes_room() {
        let spaces = AddressSpaces::default();
        let echo: Arc<dyn BusDevice> = Arc::new(Echo(Mutex::default()));
        spaces
            .insert(RegionKind::Mmio, 0x1000, 0x1000, Arc::clone(&echo))
            .unwrap();
        for (base, size) in [(0x0, 0x1001), (0x1fff, 1), (0x1800, 8), (0x0, 0x10000)] {
            assert!(
                spaces
                    .insert(RegionKind::Mmio, base, size, Arc::clone(&echo))
                    .is_err()
            );
        }
        spaces.remove(RegionKind::Mmio, 0x1000);
        spaces.insert(RegionKind::Mmio, 0x0, 0x10000, echo).unwrap();
    }
}
