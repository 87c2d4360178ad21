//! How VFIO describes a region: a structure, and behind it a list of capabilities.

use std::mem::size_of;

use vfio_bindings::bindings::vfio::*;

use crate::kernel::Region;

/// The region that VFIO_DEVICE_GET_REGION_INFO describes by `info`, and by `data`, which begins with it.
pub(crate) fn region(info: &vfio_region_info, data: &[u8]) -> Region {
    let wanted =
        VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE | VFIO_REGION_INFO_FLAG_MMAP;
    let mappable = if info.flags & wanted != wanted {
        Vec::new()
    } else if info.flags & VFIO_REGION_INFO_FLAG_CAPS != 0 {
        sparse(data, info.cap_offset).unwrap_or_else(|| vec![(0, info.size)])
    } else {
        vec![(0, info.size)]
    };
    Region {
        size: info.size,
        offset: info.offset,
        mappable,
    }
}

/// The areas of VFIO_REGION_INFO_CAP_SPARSE_MMAP, if a region's description has it.
fn sparse(data: &[u8], first: u32) -> Option<Vec<(u64, u64)>> {
    let half = |at: usize| Some(u16::from_ne_bytes(data.get(at..at + 2)?.try_into().ok()?));
    let word = |at: usize| Some(u32::from_ne_bytes(data.get(at..at + 4)?.try_into().ok()?));
    let wide = |at: usize| Some(u64::from_ne_bytes(data.get(at..at + 8)?.try_into().ok()?));
    let mut at = first as usize;
    // A list that leads back would never end.
    for _ in 0..data.len() / size_of::<vfio_info_cap_header>() {
        if at == 0 {
            return None;
        }
        if u32::from(half(at)?) == VFIO_REGION_INFO_CAP_SPARSE_MMAP {
            let areas = word(at + 8)? as usize;
            let area = |nth: usize| Some((wide(at + 16 + nth * 16)?, wide(at + 24 + nth * 16)?));
            return (0..areas).map(area).collect();
        }
        at = word(at + 4)? as usize;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two capabilities: another at 32, the areas at 40.
    fn described() -> Vec<u8> {
        let mut data = vec![0; 32];
        data.extend([3, 0, 1, 0, 40, 0, 0, 0]);
        data.extend([1, 0, 1, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        for number in [0u64, 0x1000, 0x3000, 0x5000] {
            data.extend(number.to_ne_bytes());
        }
        data
    }

    #[test]
    fn the_areas_of_a_sparse_region_are_found_behind_other_capabilities() {
        let info = |flags| vfio_region_info {
            flags,
            size: 0x8000,
            cap_offset: 32,
            ..Default::default()
        };
        let areas = vec![(0, 0x1000), (0x3000, 0x5000)];
        assert_eq!(region(&info(0xf), &described()).mappable, areas);
        assert_eq!(region(&info(0x7), &described()).mappable, [(0, 0x8000)]);
        // It cannot be mapped, or not be written.
        for flags in [0xb, 0xd, 0xe] {
            assert!(region(&info(flags), &described()).mappable.is_empty());
        }
    }

    #[test]
    fn a_description_that_is_cut_off_or_leads_in_circles_has_no_areas() {
        let whole = described();
        assert!(sparse(&whole[..whole.len() - 1], 32).is_none());
        assert!(sparse(&whole, u32::MAX).is_none());
        assert!(sparse(&whole, 0).is_none());
        let mut circle = whole;
        circle[36] = 32;
        assert!(sparse(&circle, 32).is_none());
    }
}
