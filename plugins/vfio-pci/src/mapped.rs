//! Which parts of a BAR the guest may reach without an exit.

use baton_plugin_api::pci::MsixLayout;

use crate::kernel::Region;

const PAGE: u64 = 4096;

/// The parts of `region`, which is BAR `bar`, that can be mapped, as (offset, bytes): whole pages, and
/// none with the emulated MSI-X structures.
pub(crate) fn parts(bar: u32, region: &Region, msix: Option<&MsixLayout>) -> Vec<(u64, u64)> {
    let structures = msix.into_iter().flat_map(|msix| {
        let table = (msix.table, msix.table_len());
        [table, (msix.pending, msix.pending_len())]
    });
    let structures = structures
        .filter(|((in_bar, _), _)| u32::from(*in_bar) == bar)
        .map(|((_, start), len)| u64::from(start)..u64::from(start) + len);
    let mut parts: Vec<_> = region
        .mappable
        .iter()
        .map(|(offset, size)| *offset..offset.saturating_add(*size).min(region.size))
        .collect();
    for structure in structures {
        let start = structure.start / PAGE * PAGE;
        let end = structure.end.next_multiple_of(PAGE);
        parts = parts
            .into_iter()
            .flat_map(|part| {
                let before = part.start..part.end.min(start);
                let after = part.start.max(end)..part.end;
                [before, after]
            })
            .collect();
    }
    let pages = parts.into_iter().filter_map(|part| {
        let start = part.start.next_multiple_of(PAGE);
        let end = part.end / PAGE * PAGE;
        (start < end).then(|| (start, end - start))
    });
    pages.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(size: u64, mappable: &[(u64, u64)]) -> Region {
        Region {
            size,
            offset: 0,
            mappable: mappable.to_vec(),
        }
    }

    fn msix(table: (u8, u32), pending: (u8, u32)) -> MsixLayout {
        MsixLayout {
            vectors: 300,
            table,
            pending,
        }
    }

    #[test]
    fn the_pages_of_the_msix_structures_are_left_out() {
        let whole = region(0x1_0000, &[(0, 0x1_0000)]);
        // 4800 bytes from 0x2800 on are two pages, the pending bits share the second one's neighbour.
        let layout = msix((1, 0x2800), (1, 0x4010));
        assert_eq!(
            parts(1, &whole, Some(&layout)),
            [(0, 0x2000), (0x5000, 0xb000)]
        );
        let apart = msix((1, 0), (1, 0xf000));
        assert_eq!(parts(1, &whole, Some(&apart)), [(0x2000, 0xd000)]);
        let split = msix((1, 0x2000), (0, 0x1000));
        assert_eq!(
            parts(1, &whole, Some(&split)),
            [(0, 0x2000), (0x4000, 0xc000)]
        );
        assert_eq!(
            parts(0, &whole, Some(&split)),
            [(0, 0x1000), (0x2000, 0xe000)]
        );
        assert_eq!(parts(2, &whole, Some(&split)), [(0, 0x1_0000)]);
        assert_eq!(parts(2, &whole, None), [(0, 0x1_0000)]);
    }

    #[test]
    fn only_whole_pages_of_what_can_be_mapped_are() {
        let sparse = region(
            0x8000,
            &[(0x800, 0x1800), (0x3000, 0x2000), (0x7000, 0x9000)],
        );
        assert_eq!(
            parts(0, &sparse, None),
            [(0x1000, 0x1000), (0x3000, 0x2000), (0x7000, 0x1000)]
        );
        let layout = msix((0, 0x4ff8), (0, 0x3000));
        assert_eq!(
            parts(0, &sparse, Some(&layout)),
            [(0x1000, 0x1000), (0x7000, 0x1000)]
        );
        assert!(parts(0, &region(0x100, &[(0, 0x100)]), None).is_empty());
        assert!(parts(0, &region(0x1000, &[]), None).is_empty());
        let table_only = msix((0, 0), (0, 0x1800));
        assert!(parts(0, &region(0x2000, &[(0, 0x2000)]), Some(&table_only)).is_empty());
    }
}
