//! RAM as it is kept in a file and comes back from it.

use std::fs::File;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use baton_migration::HostError;
use baton_migration::checkpoint::{RamPart, RamSink, RamSource};
use nix::errno::Errno;
use nix::libc;
use nix::unistd::{Whence, lseek64};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::Ram;
use crate::cli::{BackendKind, IMPLICIT_RAM_ID, MemoryBackend};
use crate::systemd;

/// What the RAM of a new machine holds at first.
#[derive(Debug)]
pub enum Contents {
    /// Nothing, or what its file happens to hold: a guest boots in it.
    New,
    /// A guest, in the shared file that backs it. The file must be there.
    InPlace,
    /// A guest, in this file: it is mapped, and what the guest writes goes nowhere else.
    Mapped(baton_migration::checkpoint::KeptRam),
}

/// Whether this RAM is mapped from the file it was kept in, if there is one: unless somebody has
/// said that it must be shared or of huge pages.
pub fn wants_mapping(config: &MemoryBackend) -> bool {
    let implicit = config.id.as_str() == IMPLICIT_RAM_ID;
    let huge = matches!(
        config.kind,
        BackendKind::Memfd {
            hugetlb: Some(_),
            ..
        }
    );
    implicit || !(config.share || huge)
}

/// Where RAM can stay while no process has it open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lasting<'a> {
    /// In the shared file of this path.
    File(&'a Path),
    /// In the service manager's descriptor store, under this name.
    Store(String),
}

/// Where RAM of this backend can stay, if it can.
pub fn lasting(config: &MemoryBackend) -> Option<Lasting<'_>> {
    match &config.kind {
        BackendKind::File { path, .. } if config.share && !path.is_dir() => {
            Some(Lasting::File(path))
        }
        BackendKind::Memfd { fdstore: true, .. } => {
            Some(Lasting::Store(format!("ram-{}", config.id)))
        }
        _ => None,
    }
}

/// Takes RAM that a process has from now on out of the store, if it may be there. The state file that
/// would be loaded with it is not whole, or is marked.
pub fn leave_store(config: &MemoryBackend) {
    if let Some(Lasting::Store(name)) = lasting(config)
        && let Err(e) = systemd::unstore(&name)
    {
        tracing::warn!("{e}");
    }
}

impl Ram {
    /// Whether a guest can stay there: a file must still be the one behind it.
    pub fn stays_in(&self, lasting: &Lasting<'_>) -> bool {
        let Some(file) = self.backing.as_ref().filter(|_| self.share) else {
            return false;
        };
        let Lasting::File(path) = lasting else {
            return true;
        };
        match (file.metadata(), path.metadata()) {
            (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
            _ => false,
        }
    }

    /// Writes what the guest has changed to the disk under the file behind it.
    pub fn write_back(&self) -> Result<(), HostError> {
        match &self.backing {
            // Persistent memory has nothing to be written to.
            Some(file) if !file.metadata()?.file_type().is_char_device() => Ok(file.sync_data()?),
            _ => Ok(()),
        }
    }

    /// Makes all of it zero, before a guest comes into it.
    pub fn clear(&self) -> Result<(), HostError> {
        let Some(file) = &self.backing else {
            // It is new, and this process's alone.
            return Ok(());
        };
        for region in self.memory.iter() {
            if data(file, region_start(region), region.len()) == Some(Vec::new()) {
                continue;
            }
            let (start, length) = (region.as_ptr(), region.size());
            // What is mapped privately is only covered: the file stays as it is.
            let removed = self.share && {
                // SAFETY: the region is mapped with this length, and nobody uses it yet.
                Errno::result(unsafe { libc::madvise(start.cast(), length, libc::MADV_REMOVE) })
                    .is_ok()
            };
            if !removed {
                // SAFETY: as above.
                unsafe { std::ptr::write_bytes(start, 0, length) };
            }
        }
        Ok(())
    }
}

/// The RAM of a guest that stands still.
pub struct Stopped(pub Arc<Ram>);

impl RamSource for Stopped {
    fn size(&self) -> u64 {
        self.0.ranges.iter().map(|(_, size)| *size as u64).sum()
    }

    fn parts(&self) -> Result<Vec<RamPart<'_>>, HostError> {
        let mut parts = Vec::new();
        let mut base = 0;
        for region in self.0.memory.iter() {
            let whole = || vec![(0, region.len())];
            // What is mapped privately is not all in its file.
            let filled = match self.0.backing.as_ref().filter(|_| self.0.share) {
                Some(file) => data(file, region_start(region), region.len()).unwrap_or_else(whole),
                None => whole(),
            };
            for (offset, size) in filled {
                // SAFETY: inside the region, which lives as long as `self`. The guest's CPUs are
                // stopped and its devices quiesced, so that nobody writes.
                let bytes = unsafe {
                    std::slice::from_raw_parts(
                        region.as_ptr().add(offset as usize),
                        usize::try_from(size)?,
                    )
                };
                parts.push(RamPart {
                    offset: base + offset,
                    bytes,
                });
            }
            base += region.len();
        }
        Ok(parts)
    }
}

impl RamSink for Ram {
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), HostError> {
        let mut base = 0;
        for (start, size) in &self.ranges {
            let end = base + *size as u64;
            if offset >= base && offset + bytes.len() as u64 <= end {
                let address = GuestAddress(start.0 + (offset - base));
                return Ok(self.memory.write_slice(bytes, address)?);
            }
            // A piece may lie across the gap in the guest's address space.
            if offset >= base && offset < end {
                let (here, there) = bytes.split_at((end - offset) as usize);
                self.write(offset, here)?;
                return self.write(end, there);
            }
            base = end;
        }
        Err(format!("RAM has no offset {offset:#x}").into())
    }
}

fn region_start(region: &impl GuestMemoryRegion) -> u64 {
    region.file_offset().map_or(0, FileOffset::start)
}

/// The parts of `file` from `start` on that are no holes, counted from `start`, in whole pages;
/// nothing if the file does not tell.
pub(super) fn data(file: &File, start: u64, size: u64) -> Option<Vec<(u64, u64)>> {
    let seek = |from: u64, whence| lseek64(file, from as i64, whence).map(|at| at as u64);
    let (mut at, end) = (start, start + size);
    let mut parts = Vec::new();
    while at < end {
        let from = match seek(at, Whence::SeekData) {
            Ok(from) if from < end => from & !4095,
            Ok(_) | Err(Errno::ENXIO) => break,
            Err(_) => return None,
        };
        let to = seek(from.max(at), Whence::SeekHole).ok()?;
        let to = to.next_multiple_of(4096).min(end);
        if to <= at {
            return None;
        }
        parts.push((from.max(at) - start, to - from.max(at)));
        at = to;
    }
    Some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::tests::{backend, scratch};

    #[test]
    fn only_ram_that_need_not_be_shared_is_mapped() {
        for (kind, share, mapped) in [
            ("memory-backend-ram", false, true),
            ("memory-backend-memfd", true, false),
            ("memory-backend-memfd", false, true),
        ] {
            assert_eq!(
                wants_mapping(&backend(kind, share)),
                mapped,
                "{kind} {share}"
            );
        }
        let mut implicit = backend("memory-backend-memfd", true);
        implicit.id = IMPLICIT_RAM_ID.parse().unwrap();
        assert!(wants_mapping(&implicit));
    }

    #[test]
    fn ram_with_a_gap_comes_back() {
        let mut config = backend("memory-backend-ram", false);
        config.size = (3 << 30) + (2 << 20);
        let ram = Arc::new(Ram::new(&config, None, Contents::New).unwrap());
        let around_the_gap = (3u64 << 30) - 4096;
        ram.write(around_the_gap, &[7; 8192]).unwrap();
        let mut found = [0; 4096];
        ram.memory
            .read_slice(&mut found, GuestAddress(4 << 30))
            .unwrap();
        assert_eq!(found, [7; 4096]);
        ram.write((3 << 30) + (2 << 20) - 4096, &[1; 4096]).unwrap();
        ram.write((3 << 30) + (2 << 20), &[1; 4096]).unwrap_err();
        assert_eq!(Stopped(ram).size(), config.size);
    }

    #[test]
    fn only_what_a_shared_file_holds_is_looked_at() {
        let config = backend("memory-backend-memfd", true);
        let ram = Arc::new(Ram::new(&config, None, Contents::New).unwrap());
        ram.write(1 << 20, &[1; 4096]).unwrap();
        let stopped = Stopped(Arc::clone(&ram));
        let parts = stopped.parts().unwrap();
        assert!(parts.iter().map(|part| part.bytes.len()).sum::<usize>() < 1 << 20);
        assert!(
            parts
                .iter()
                .any(|part| part.offset <= 1 << 20 && part.bytes.contains(&1))
        );
        ram.clear().unwrap();
        assert!(stopped.parts().unwrap().is_empty());
    }

    #[test]
    fn a_guest_is_not_looked_for_in_a_file_that_is_not_there() {
        let (folder, mut config) = scratch();
        let path = folder.join("ram");
        let BackendKind::File { path: named, .. } = &mut config.kind else {
            panic!("it is a file");
        };
        named.clone_from(&path);
        let error = Ram::new(&config, None, Contents::InPlace)
            .map(|_| ())
            .unwrap_err();
        assert!(error.to_string().contains("the guest stayed in"), "{error}");
        assert!(!path.exists());
        let ram = Ram::new(&config, None, Contents::New).unwrap();
        assert!(ram.stays_in(&Lasting::File(&path)));
        Ram::new(&config, None, Contents::InPlace).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(!ram.stays_in(&Lasting::File(&path)));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_a_private_file_held_is_covered_with_zeros() {
        let (folder, mut config) = scratch();
        let path = folder.join("old");
        std::fs::write(&path, vec![5; 2 << 20]).unwrap();
        config.share = false;
        let BackendKind::File { path: named, .. } = &mut config.kind else {
            panic!("it is a file");
        };
        named.clone_from(&path);
        let ram = Ram::new(&config, None, Contents::New).unwrap();
        ram.clear().unwrap();
        let mut found = [1; 4096];
        ram.memory.read_slice(&mut found, GuestAddress(0)).unwrap();
        assert_eq!(found, [0; 4096]);
        assert!(std::fs::read(&path).unwrap() == vec![5; 2 << 20]);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_is_mapped_is_read_and_not_written() {
        let (folder, _) = scratch();
        let path = folder.join("kept");
        std::fs::write(&path, vec![5; 3 << 20]).unwrap();
        let config = backend("memory-backend-ram", false);
        let kept = baton_migration::checkpoint::KeptRam {
            file: File::open(&path).unwrap(),
            offset: 1 << 20,
            size: config.size,
        };
        let ram = Ram::new(&config, None, Contents::Mapped(kept)).unwrap();
        let mut found = [0; 4096];
        ram.memory.read_slice(&mut found, GuestAddress(0)).unwrap();
        assert_eq!(found, [5; 4096]);
        ram.write(0, &[6; 4096]).unwrap();
        assert!(std::fs::read(&path).unwrap() == vec![5; 3 << 20]);
        assert!(ram.shared_file().is_none());
        std::fs::remove_dir_all(folder).unwrap();
    }
}
