//! Guest RAM: what it is backed by, and where the guest sees it.
// Memory mappings and the descriptors behind them need `unsafe`.
#![allow(unsafe_code)]

mod backing;
mod kept;
mod live;
mod program;
mod warm;

pub use kept::{Contents, Lasting, Stopped, lasting, leave_store, wants_mapping};
pub use live::{Live, file_identity};
pub use program::warm_program;

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use baton_migration::fingerprint::RamRegion;
use baton_plugin_api::memory::MemoryRegion;
use nix::libc;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, MmapRegion,
};

use crate::cli::MemoryBackend;
use crate::machine::layout;

/// The owner of guest RAM among handed-over descriptors.
pub const OWNER: &str = "memory";

/// Why there is no guest RAM.
#[derive(Debug, thiserror::Error)]
#[error("Memory backend '{id}': {reason}")]
pub struct MemoryError {
    id: String,
    reason: String,
}

/// Guest RAM, mapped.
pub struct Ram {
    id: String,
    memory: GuestMemoryMmap<()>,
    ranges: Vec<(GuestAddress, usize)>,
    backing: Option<File>,
    share: bool,
    written: live::Written,
}

impl Ram {
    /// Allocates what `config` describes, or maps `preserved`, which another process allocated, or
    /// what holds the guest already.
    pub fn new(
        config: &MemoryBackend,
        preserved: Option<OwnedFd>,
        contents: Contents,
    ) -> Result<Self, MemoryError> {
        let wrong = |reason: String| MemoryError {
            id: config.id.to_string(),
            reason,
        };
        let handed_over = preserved.is_some();
        // Elsewhere in a file of another kind than the backend's.
        let mut base = 0;
        let mut share = config.share;
        let backing = match (preserved, contents) {
            (Some(fd), _) => Some(backing::adopt(fd, config.size).map_err(&wrong)?),
            (None, Contents::New) => backing::open(config).map_err(&wrong)?,
            (None, Contents::InPlace) => Some(backing::in_place(config).map_err(&wrong)?),
            (None, Contents::Mapped(kept)) if kept.size != config.size => {
                return Err(wrong(format!(
                    "{} bytes were kept, and it has {}",
                    kept.size, config.size
                )));
            }
            (None, Contents::Mapped(kept)) => {
                (base, share) = (kept.offset, false);
                Some(kept.file)
            }
        };
        let flags = match (&backing, share) {
            (None, _) => libc::MAP_ANONYMOUS | libc::MAP_PRIVATE,
            (Some(_), true) => libc::MAP_SHARED,
            (Some(_), false) => libc::MAP_PRIVATE,
        } | libc::MAP_NORESERVE;
        let mut regions = Vec::new();
        let mut ranges = Vec::new();
        for (start, offset, size) in split(config.size) {
            let file = backing
                .as_ref()
                .map(|file| {
                    file.try_clone()
                        .map(|file| FileOffset::new(file, base + offset))
                })
                .transpose()
                .map_err(|e| wrong(format!("cannot be duplicated: {e}")))?;
            let size = usize::try_from(size).map_err(|_| wrong("does not fit this host".into()))?;
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            let mapping = MmapRegion::build(file, size, prot, flags)
                .map_err(|e| wrong(format!("{size} bytes cannot be mapped: {e}")))?;
            ranges.push((GuestAddress(start), size));
            regions.push(
                GuestRegionMmap::new(mapping, GuestAddress(start))
                    .ok_or_else(|| wrong("passes the end of the address space".into()))?,
            );
        }
        let memory = GuestMemoryMmap::from_regions(regions).map_err(|e| wrong(e.to_string()))?;
        let written = live::Written::new(memory.iter().map(GuestMemoryRegion::len));
        let written = written.map_err(|e| wrong(format!("its bitmap cannot be mapped: {e}")))?;
        let ram = Self {
            id: config.id.to_string(),
            memory,
            ranges,
            backing,
            share,
            written,
        };
        // What another process allocated is there already.
        if config.prealloc && !handed_over {
            warm::allocate(&ram)
                .map_err(|e| wrong(format!("cannot be allocated now, as prealloc=on asks: {e}")))?;
        }
        Ok(ram)
    }

    /// The memory itself.
    pub fn memory(&self) -> &GuestMemoryMmap<()> {
        &self.memory
    }

    /// Where it is in the guest, in ascending order.
    pub fn ranges(&self) -> &[(GuestAddress, usize)] {
        &self.ranges
    }

    /// The first address behind it.
    pub fn end(&self) -> u64 {
        self.ranges
            .last()
            .map_or(0, |(start, size)| start.0 + *size as u64)
    }

    /// The table that plugins get.
    pub fn table(&self) -> Vec<MemoryRegion> {
        let row = |(nth, region): (usize, &GuestRegionMmap<()>)| {
            // Nobody else can see what is mapped privately.
            let file = region.file_offset().filter(|_| self.share);
            MemoryRegion {
                guest_address: region.start_addr().0,
                size: region.len(),
                host_address: region.as_ptr() as u64,
                fd: file.map_or(-1, |f| f.file().as_raw_fd()),
                offset: file.map_or(0, FileOffset::start),
                dirty_bitmap: self.written.address(nth),
            }
        };
        self.memory.iter().enumerate().map(row).collect()
    }

    /// The backend's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// A duplicate of the file behind it, if another process can map the same memory from it.
    pub fn shared_file(&self) -> Option<std::io::Result<OwnedFd>> {
        let file = self.backing.as_ref().filter(|_| self.share)?;
        Some(file.as_fd().try_clone_to_owned())
    }

    /// Enters what the file already holds into this process's page tables, so that the guest does
    /// not fault on every page once it runs here. Allocates nothing.
    pub fn warm_up(&self) {
        if let Some(file) = self.backing.as_ref().filter(|_| self.share) {
            warm::populate(self, file);
        }
    }

    /// Where the guest sees what the file already holds, as (address, bytes).
    pub fn held(&self) -> Vec<(u64, u64)> {
        let file = self.backing.as_ref().filter(|_| self.share);
        let parts = file.map(|file| warm::held(self, file)).unwrap_or_default();
        parts
            .into_iter()
            .map(|part| (part.guest_address, part.length))
            .collect()
    }
}

/// Where RAM of `size` bytes is in the guest, as two machines must have it in common.
pub fn fingerprint(size: u64) -> Vec<RamRegion> {
    let region = |(guest_address, _, size)| RamRegion {
        guest_address,
        size,
    };
    split(size).into_iter().map(region).collect()
}

/// RAM of `size` bytes as (guest address, offset in the file, bytes).
fn split(size: u64) -> Vec<(u64, u64, u64)> {
    let low = size.min(layout::LOW_RAM_END);
    let mut parts = vec![(0, 0, low)];
    if size > low {
        parts.push((layout::HIGH_RAM_START, low, size - low));
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::BackendKind;

    /// A backend of 2 MiB.
    pub(super) fn backend(kind: &str, share: bool) -> MemoryBackend {
        MemoryBackend {
            id: "m".parse().unwrap(),
            size: 2 << 20,
            share,
            prealloc: false,
            kind: match kind {
                "memory-backend-memfd" => BackendKind::Memfd {
                    hugetlb: None,
                    seal: true,
                    fdstore: false,
                },
                _ => BackendKind::Ram,
            },
        }
    }

    /// A folder of its own, and a shared backend in a file that is to be named.
    pub(super) fn scratch() -> (std::path::PathBuf, MemoryBackend) {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder =
            std::env::temp_dir().join(format!("baton-memory-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let mut backend = backend("memory-backend-ram", true);
        backend.kind = BackendKind::File {
            path: folder.clone(),
            align: None,
            discard_data: false,
        };
        (folder, backend)
    }

    #[test]
    fn ram_leaves_the_hole_for_devices_free() {
        assert_eq!(split(1 << 30), vec![(0, 0, 1 << 30)]);
        assert_eq!(
            split(5 << 30),
            vec![(0, 0, 3 << 30), (4 << 30, 3 << 30, 2 << 30)]
        );
    }
}
