//! RAM that is copied while the guest runs, and what devices have written of it meanwhile.
//!
//! What vCPUs write KVM notes, and only while it is told to. A plugin gets the address of its bitmap
//! with everything else when it starts, so that it marks its pages always: to begin with that later
//! would mean to stop every device once.

use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use baton_migration::HostError;
use baton_migration::checkpoint::RamSource;
use baton_migration::precopy::{LiveRam, PAGE, PageSet};
use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress, MmapRegion};

use super::{Lasting, Ram, Stopped, lasting};
use crate::cli::MemoryBackend;

/// A bitmap for each region of RAM, with a bit a page, lowest first.
pub(super) struct Written {
    /// Zeroed memory of the kernel's, taken page by page as bits are set.
    bitmaps: Vec<MmapRegion<()>>,
    /// Whether the host has written, which it does anywhere.
    all: AtomicBool,
}

impl Written {
    /// For regions of these sizes in bytes.
    pub(super) fn new(sizes: impl Iterator<Item = u64>) -> Result<Self, String> {
        let bitmap = |size: u64| {
            let bytes = size.div_ceil(PAGE).div_ceil(64) * 8;
            let bytes = usize::try_from(bytes).map_err(|e| e.to_string())?;
            MmapRegion::new(bytes.next_multiple_of(PAGE as usize)).map_err(|e| e.to_string())
        };
        Ok(Self {
            bitmaps: sizes.map(bitmap).collect::<Result<_, _>>()?,
            all: AtomicBool::new(false),
        })
    }

    /// Where the bitmap of a region is.
    pub(super) fn address(&self, region: usize) -> u64 {
        self.bitmaps
            .get(region)
            .map_or(0, |map| map.as_ptr() as u64)
    }

    /// The words of a region's bitmap.
    fn words(&self, region: usize) -> &[AtomicU64] {
        let Some(map) = self.bitmaps.get(region) else {
            return &[];
        };
        // SAFETY: mapped, aligned and long enough for as long as `self`; plugins, too, change it by
        // atomic operations alone.
        unsafe { std::slice::from_raw_parts(map.as_ptr().cast(), map.size() / 8) }
    }
}

impl Ram {
    /// The host has written to RAM.
    pub fn host_wrote(&self) {
        self.written.all.store(true, Ordering::Release);
    }

    /// Adds what devices and the host have written to `pages`, which is not noted any more.
    pub fn take_written(&self, pages: &mut PageSet) {
        if self.written.all.swap(false, Ordering::AcqRel) {
            pages.add(0..self.bytes());
        }
        let mut base = 0;
        for (nth, (_, size)) in self.ranges.iter().enumerate() {
            let taken = self.written.words(nth).iter().map(|word| {
                // Most are zero, and stay in this CPU's cache then. Whoever sets a bit right after
                // this is heard the next time.
                match word.load(Ordering::Relaxed) {
                    0 => 0,
                    _ => word.swap(0, Ordering::AcqRel),
                }
            });
            pages.add_bitmap(base, taken);
            base += *size as u64;
        }
    }

    /// All of RAM, in bytes.
    pub fn bytes(&self) -> u64 {
        self.ranges.iter().map(|(_, size)| *size as u64).sum()
    }
}

/// The RAM of a guest that runs.
pub struct Live(pub Arc<Ram>);

impl LiveRam for Live {
    fn size(&self) -> u64 {
        self.0.bytes()
    }

    fn filled(&self) -> Result<Vec<Range<u64>>, HostError> {
        // Where the file has holes matters alone, not what is there.
        let stopped = Stopped(Arc::clone(&self.0));
        let range = |offset: u64, length: usize| offset..offset + length as u64;
        let parts = stopped.parts()?;
        Ok(parts
            .iter()
            .map(|p| range(p.offset, p.bytes.len()))
            .collect())
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), HostError> {
        let mut base = 0;
        let (mut at, mut into) = (offset, into);
        for region in self.0.memory.iter() {
            let end = base + region.len();
            if at < end && !into.is_empty() {
                let here = (end - at).min(into.len() as u64) as usize;
                let (now, later) = into.split_at_mut(here);
                region.read_slice(now, MemoryRegionAddress(at - base))?;
                (at, into) = (at + here as u64, later);
            }
            base = end;
        }
        match into.is_empty() {
            true => Ok(()),
            false => Err(format!("RAM has no offset {at:#x}").into()),
        }
    }
}

/// What tells the file of this path from all others of all hosts, if it is there: which start of the
/// host, file system and number.
fn identity(path: &Path) -> Option<String> {
    let found = path.metadata().ok()?;
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(format!("{}:{}:{}", boot.trim(), found.dev(), found.ino()))
}

/// The file that RAM is in, shared or not, as another process could have it too.
pub fn file_identity(config: &MemoryBackend) -> Option<String> {
    let shared = MemoryBackend {
        share: true,
        ..config.clone()
    };
    match lasting(&shared)? {
        Lasting::File(path) => identity(path),
        // Nobody has it but who is given it.
        Lasting::Store(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Contents;
    use crate::memory::tests::{backend, scratch};
    use baton_migration::checkpoint::RamSink;

    fn ram() -> Arc<Ram> {
        let config = backend("memory-backend-memfd", true);
        Arc::new(Ram::new(&config, None, Contents::New).unwrap())
    }

    fn taken(ram: &Ram) -> Vec<Range<u64>> {
        let mut pages = PageSet::none_of(ram.bytes());
        ram.take_written(&mut pages);
        let mut runs = Vec::new();
        while let Some(run) = pages.take_run(0, u64::MAX) {
            runs.push(run);
        }
        runs
    }

    #[test]
    fn what_a_device_writes_is_told_once() {
        let ram = ram();
        // SAFETY: `ram` outlives the memory.
        let memory = unsafe { baton_plugin_api::memory::guest_memory(&ram.table()) }.unwrap();
        assert!(taken(&ram).is_empty());
        let at = |address| vm_memory::GuestAddress(address);
        memory.write_slice(&[1; 4097], at(0x3000)).unwrap();
        memory.write_slice(&[1], at((2 << 20) - 1)).unwrap();
        assert_eq!(taken(&ram), [0x3000..0x5000, 0x1f_f000..0x20_0000]);
        assert!(taken(&ram).is_empty());
    }

    #[test]
    fn what_the_host_writes_may_be_anywhere() {
        let ram = ram();
        ram.host_wrote();
        assert_eq!(taken(&ram).first(), Some(&(0..2 << 20)));
        assert!(taken(&ram).is_empty());
    }

    #[test]
    fn ram_is_read_across_the_gap_and_not_beyond_its_end() {
        let mut config = backend("memory-backend-ram", true);
        config.size = (3 << 30) + (2 << 20);
        let ram = Arc::new(Ram::new(&config, None, Contents::New).unwrap());
        let gap = 3u64 << 30;
        ram.write(gap - 4096, &[[5; 4096], [6; 4096]].concat())
            .unwrap();
        let live = Live(Arc::clone(&ram));
        let mut found = vec![0; 8192];
        live.read(gap - 4096, &mut found).unwrap();
        assert!(found[..4096] == [5; 4096] && found[4096..] == [6; 4096]);
        live.read(config.size - 4096, &mut found).unwrap_err();
        let filled = live.filled().unwrap();
        let holds = |at| filled.iter().any(|range: &Range<u64>| range.contains(&at));
        assert!(holds(gap - 4096) && holds(gap));
        assert!(
            filled
                .iter()
                .map(|range| range.end - range.start)
                .sum::<u64>()
                < 1 << 22
        );
    }

    #[test]
    fn a_file_is_told_from_others_whoever_maps_it() {
        let (folder, mut config) = scratch();
        let mut named = |name: &str, share| {
            let crate::cli::BackendKind::File { path, .. } = &mut config.kind else {
                panic!("it is a file");
            };
            *path = folder.join(name);
            config.share = share;
            file_identity(&config)
        };
        std::fs::write(folder.join("a"), "").unwrap();
        std::fs::write(folder.join("b"), "").unwrap();
        let a = named("a", true);
        assert!(a.is_some() && a == named("a", false) && a != named("b", true));
        assert_eq!(named("c", true), None);
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(file_identity(&backend("memory-backend-ram", true)), None);
    }
}
