//! Guest memory, which crosses as a table of regions.
// Rebuilding `vm_memory` regions over memory that the host mapped is what needs `unsafe` here.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use vm_memory::bitmap::{Bitmap, BitmapSlice, NewBitmap, WithBitmapSlice};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestRegionMmap};

use crate::error::{Error, Result};

/// One region of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MemoryRegion {
    /// Guest physical address.
    pub guest_address: u64,
    /// Bytes.
    pub size: u64,
    /// Where the host has mapped it, in this process.
    pub host_address: u64,
    /// The file behind it, or -1 when there is none; the host's own, valid until `Quiesce`.
    pub fd: i32,
    /// Where the region begins in the file.
    pub offset: u64,
    /// Address of an array of 64-bit words with a bit a 4 KiB page, to be set after every page that
    /// was written, or 0 if nobody wants to know.
    #[serde(default)]
    pub dirty_bitmap: u64,
}

/// Guest memory as `vm-memory`, and so `virtio-queue`, knows it.
pub type GuestRam = vm_memory::GuestMemoryMmap<DirtyBitmap>;

/// The memory of a table.
///
/// # Safety
///
/// Every region with a size must be mapped readable and writable at `host_address`, and every dirty
/// bitmap must cover its region, for as long as the result lives. The host promises this from
/// `Start` to `Quiesce`.
pub unsafe fn guest_memory(table: &[MemoryRegion]) -> Result<GuestRam> {
    let mut regions = Vec::with_capacity(table.len());
    for r in table {
        let bad = |what: &str| {
            Error::invalid(format!(
                "Guest memory region at {:#x}: {what}",
                r.guest_address
            ))
        };
        let size = usize::try_from(r.size).map_err(|_| bad("its size does not fit"))?;
        let bitmap = DirtyBitmap {
            words: r.dirty_bitmap as *const AtomicU64,
            base: 0,
        };
        let builder = MmapRegionBuilder::new_with_bitmap(size, bitmap)
            .with_mmap_prot(PROT_READ_WRITE)
            .with_mmap_flags(MAP_SHARED);
        // SAFETY: the caller promises the mapping.
        let mapping = unsafe { builder.with_raw_mmap_pointer(r.host_address as *mut u8) }
            .build()
            .map_err(|e| bad(&e.to_string()))?;
        regions.push(
            GuestRegionMmap::new(mapping, GuestAddress(r.guest_address))
                .ok_or_else(|| bad("it passes the end of the address space"))?,
        );
    }
    GuestRam::from_regions(regions)
        .map_err(|e| Error::invalid(format!("The guest memory table: {e}")))
}

const PROT_READ_WRITE: i32 = 3;
const MAP_SHARED: i32 = 1;
const PAGE_SHIFT: usize = 12;

/// A dirty bitmap that lives in the host.
#[derive(Debug, Clone, Copy)]
pub struct DirtyBitmap {
    words: *const AtomicU64,
    base: usize,
}

// SAFETY: the words are only touched by atomic operations.
unsafe impl Send for DirtyBitmap {}
// SAFETY: as above.
unsafe impl Sync for DirtyBitmap {}

impl Default for DirtyBitmap {
    fn default() -> Self {
        Self {
            words: std::ptr::null(),
            base: 0,
        }
    }
}

impl NewBitmap for DirtyBitmap {
    fn with_len(_len: usize) -> Self {
        Self::default()
    }
}

impl WithBitmapSlice<'_> for DirtyBitmap {
    type S = Self;
}

impl BitmapSlice for DirtyBitmap {}

impl Bitmap for DirtyBitmap {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if self.words.is_null() || len == 0 {
            return;
        }
        let first = (self.base + offset) >> PAGE_SHIFT;
        let last = (self.base + offset + len - 1) >> PAGE_SHIFT;
        for page in first..=last {
            // SAFETY: vm-memory keeps `offset + len` inside the region, and the bitmap covers it.
            let word = unsafe { &*self.words.add(page / 64) };
            // Whoever takes the bit sees what was written before it was set.
            word.fetch_or(1 << (page % 64), Ordering::Release);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        if self.words.is_null() {
            return false;
        }
        let page = (self.base + offset) >> PAGE_SHIFT;
        // SAFETY: as in `mark_dirty`.
        let word = unsafe { &*self.words.add(page / 64) };
        word.load(Ordering::Relaxed) & (1 << (page % 64)) != 0
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self {
            words: self.words,
            base: self.base + offset,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn a_write_through_the_table_lands_in_the_mapping_and_marks_its_pages() {
        let ram = vm_memory::MmapRegion::<()>::new(4 << 12).unwrap();
        let dirty = [AtomicU64::new(0)];
        let table = [MemoryRegion {
            guest_address: 0x10_0000,
            size: ram.size() as u64,
            host_address: ram.as_ptr() as u64,
            fd: -1,
            offset: 0,
            dirty_bitmap: dirty.as_ptr() as u64,
        }];
        // SAFETY: `ram` and `dirty` outlive `memory`.
        let memory = unsafe { guest_memory(&table) }.unwrap();
        memory
            .write_slice(&[7; 2], GuestAddress(0x10_1fff))
            .unwrap();
        // SAFETY: both bytes lie in `ram`.
        let written = unsafe { std::slice::from_raw_parts(ram.as_ptr().add(0x1fff), 2) };
        assert_eq!(written, &[7, 7]);
        assert_eq!(dirty[0].load(Ordering::Relaxed), 0b110);
    }

    #[test]
    fn overlapping_regions_are_refused() {
        let ram = vm_memory::MmapRegion::<()>::new(2 << 12).unwrap();
        let region = MemoryRegion {
            size: ram.size() as u64,
            host_address: ram.as_ptr() as u64,
            fd: -1,
            ..MemoryRegion::default()
        };
        // SAFETY: `ram` outlives the result.
        assert!(unsafe { guest_memory(&[region, region]) }.is_err());
    }
}
