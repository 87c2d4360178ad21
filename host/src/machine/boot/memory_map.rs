//! What the kernel is told of physical memory: the e820 map, whose types PVH's memory map shares.

use linux_loader::loader::bootparam::E820_MAX_ENTRIES_ZEROPAGE;
use vm_memory::GuestAddress;

use super::Error;
use crate::machine::layout::{ECAM_SIZE, ECAM_START, KERNEL_START, KVM_IDENTITY_MAP, LOW_RAM_END};

/// Where a BIOS keeps its extended data: PCs have no RAM for the kernel from here to 1 MiB, which
/// also holds the ACPI tables. Reserved and not "ACPI": the waking vector in the FACS must stay
/// when the kernel takes back what tables occupy (ACPI 6.5 chapter 15).
const BIOS_START: u64 = 0x9_fc00;
/// [`KVM_IDENTITY_MAP`]'s page and the three of `KVM_TSS` behind it.
const KVM_PAGES_SIZE: u64 = 4 << 12;

/// What a range is for; values of ACPI 6.5 chapter 15, which Linux and Xen use as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// RAM to use.
    Ram = 1,
    /// Hands off.
    Reserved = 2,
}

/// A range of physical addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    /// The first address.
    pub(super) start: u64,
    /// How many bytes.
    pub(super) size: u64,
    /// What it is for.
    pub(super) kind: Kind,
}

/// RAM as a kernel sees it.
#[derive(Debug)]
pub(super) struct MemoryMap {
    /// All ranges, ascending, disjoint.
    pub(super) ranges: Vec<Range>,
    /// RAM is contiguous from 0 up to here, at most [`LOW_RAM_END`].
    pub(super) low_end: u64,
}

impl MemoryMap {
    /// The map of a machine with this RAM, in ascending order of address.
    pub(super) fn new(ram: &[(GuestAddress, usize)]) -> Result<Self, Error> {
        let mut runs = runs(ram);
        if runs.first().is_none_or(|run| run.0 != 0) {
            return Err(Error::NoLowRam);
        }
        let low_end = runs.remove(0).1;
        let range = |kind, start: u64, end: u64| Range {
            start,
            size: end - start,
            kind,
        };
        let mut ranges = vec![range(Kind::Ram, 0, BIOS_START.min(low_end))];
        ranges.push(range(Kind::Reserved, BIOS_START, KERNEL_START));
        if low_end > KERNEL_START {
            ranges.push(range(Kind::Ram, KERNEL_START, low_end));
        }
        // Linux uses ECAM only if it finds it reserved here or in a motherboard device's resources.
        ranges.push(range(Kind::Reserved, ECAM_START, ECAM_START + ECAM_SIZE));
        ranges.push(Range {
            start: KVM_IDENTITY_MAP,
            size: KVM_PAGES_SIZE,
            kind: Kind::Reserved,
        });
        ranges.extend(
            runs.iter()
                .map(|&(start, end)| range(Kind::Ram, start, end)),
        );
        ranges.sort_by_key(|r| r.start);
        if ranges.len() > E820_MAX_ENTRIES_ZEROPAGE {
            return Err(Error::TooManyRegions {
                regions: ranges.len(),
                limit: E820_MAX_ENTRIES_ZEROPAGE,
            });
        }
        Ok(Self {
            ranges,
            low_end: low_end.min(LOW_RAM_END),
        })
    }
}

/// RAM as start and end, with neighbours joined.
fn runs(ram: &[(GuestAddress, usize)]) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for &(start, size) in ram.iter().filter(|r| r.1 > 0) {
        let end = start.0.saturating_add(size as u64);
        match runs.last_mut() {
            Some(last) if last.1 == start.0 => last.1 = end,
            _ => runs.push((start.0, end)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ram(pieces: &[(u64, u64)]) -> Vec<(GuestAddress, usize)> {
        pieces
            .iter()
            .map(|&(a, s)| (GuestAddress(a), s as usize))
            .collect()
    }

    fn only(map: &MemoryMap, kind: Kind) -> Vec<(u64, u64)> {
        map.ranges
            .iter()
            .filter(|r| r.kind == kind)
            .map(|r| (r.start, r.start + r.size))
            .collect()
    }

    #[test]
    fn ram_above_the_hole_is_listed_with_everything_reserved_between() {
        let map =
            MemoryMap::new(&ram(&[(0, 0xc000_0000), (1 << 32, 1 << 30)])).expect("a valid map");
        assert_eq!(
            only(&map, Kind::Ram),
            [(0, 0x9_fc00), (0x10_0000, 0xc000_0000), (1 << 32, 5 << 30)]
        );
        assert_eq!(
            only(&map, Kind::Reserved),
            [
                (0x9_fc00, 0x10_0000),
                (0xe000_0000, 0xf000_0000),
                (0xfffb_c000, 0xfffc_0000)
            ]
        );
        assert_eq!(map.low_end, 0xc000_0000);
        assert!(
            map.ranges
                .windows(2)
                .all(|w| w[0].start + w[0].size <= w[1].start)
        );
    }

    #[test]
    fn neighbouring_regions_are_one_run_of_ram() {
        let map = MemoryMap::new(&ram(&[(0, 1 << 20), (1 << 20, 3 << 20)])).expect("a valid map");
        assert_eq!(map.low_end, 4 << 20);
        assert_eq!(
            only(&map, Kind::Ram),
            [(0, 0x9_fc00), (0x10_0000, 0x40_0000)]
        );
    }

    #[test]
    fn ram_that_does_not_begin_at_zero_is_refused() {
        assert!(matches!(
            MemoryMap::new(&ram(&[(0x1000, 1 << 20)])),
            Err(Error::NoLowRam)
        ));
        assert!(matches!(MemoryMap::new(&[]), Err(Error::NoLowRam)));
    }

    #[test]
    fn more_regions_than_e820_holds_are_refused() {
        let pieces: Vec<_> = (0..130)
            .map(|i| {
                if i == 0 {
                    (0, 1 << 20)
                } else {
                    ((i + 4) << 32, 4096)
                }
            })
            .collect();
        assert!(matches!(
            MemoryMap::new(&ram(&pieces)),
            Err(Error::TooManyRegions {
                regions: 133,
                limit: 128
            })
        ));
    }
}
