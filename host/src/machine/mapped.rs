//! What the guest finds at which address and port, for people who look.

use baton_plugin_api::bus::RegionKind;

use super::Machine;

/// An address space of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappedSpace {
    /// QEMU's name of it.
    pub name: &'static str,
    /// Its last address.
    pub last: u64,
    /// What is in it, in ascending order.
    pub ranges: Vec<MappedRange>,
}

/// What decodes a range of addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappedRange {
    /// The first address.
    pub base: u64,
    /// The last one.
    pub last: u64,
    /// The device or the memory backend.
    pub name: String,
    /// Whether it is memory, and no registers.
    pub ram: bool,
}

impl Machine {
    /// Both address spaces. What KVM decodes itself, such as interrupt controllers, is not there.
    pub fn address_spaces(&self) -> [MappedSpace; 2] {
        let registers = |kind| {
            let ranges = self.around.spaces.ranges(kind).into_iter();
            ranges.map(|(base, last, name)| MappedRange {
                base,
                last,
                name,
                ram: false,
            })
        };
        let ram = &self.around.ram;
        let memory = ram.ranges().iter().map(|(start, size)| MappedRange {
            base: start.0,
            last: start.0 + (*size as u64).saturating_sub(1),
            name: ram.id().to_owned(),
            ram: true,
        });
        let mut all: Vec<_> = memory.chain(registers(RegionKind::Mmio)).collect();
        all.sort_by_key(|range| range.base);
        [
            MappedSpace {
                name: "memory",
                last: u64::MAX,
                ranges: all,
            },
            MappedSpace {
                name: "I/O",
                last: 0xffff,
                ranges: registers(RegionKind::Port).collect(),
            },
        ]
    }
}
