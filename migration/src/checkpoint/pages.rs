//! RAM at fixed places of a file, by several threads at once.
// To have the disk begin early is a system call without a safe wrapper.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use nix::libc;
use nix::unistd::{Whence, lseek64};

use super::format::PAGE;
use super::{Cancel, RamPart, RamSink, RamSource};
use crate::HostError;
use crate::settings::{Capability, Settings, ZeroPageDetection};

/// How RAM is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Writing {
    /// How many threads write to a file; as many as there are CPUs, up to 8, unless said.
    pub threads: Option<usize>,
    /// Whether pages of zeros are written as well.
    pub zeros: bool,
    /// Whether files are written past the page cache.
    pub direct: bool,
}

impl Writing {
    /// As the settings say: those of QEMU for several threads mean something with their
    /// capabilities alone.
    pub fn of(settings: &Settings) -> Self {
        let on = |capability| settings.capabilities.contains(capability);
        let parameters = &settings.parameters;
        let multifd = on(Capability::Multifd);
        Self {
            threads: multifd.then_some(usize::from(parameters.multifd_channels)),
            zeros: parameters.zero_page_detection == ZeroPageDetection::None,
            direct: parameters.direct_io && multifd && on(Capability::MappedRam),
        }
    }
}

/// What a thread works on at a time.
const UNIT: u64 = 4 << 20;
/// More threads than this do not make a disk faster.
const MAX_THREADS: usize = 8;
static ZEROS: Aligned = Aligned([0; 1 << 20]);

/// Can be written past the page cache.
#[repr(align(4096))]
struct Aligned([u8; 1 << 20]);

/// The runs of pages of `bytes` that are not all zero, with where they begin.
pub(super) fn filled(bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let page = PAGE as usize;
    let is_zero = move |at: usize| {
        let end = bytes.len().min(at + page);
        bytes[at..end] == ZEROS.0[..end - at]
    };
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < bytes.len() && is_zero(at) {
            at += page;
        }
        if at >= bytes.len() {
            return None;
        }
        let start = at;
        while at < bytes.len() && !is_zero(at) {
            at += page;
        }
        at = at.min(bytes.len());
        Some((start, &bytes[start..at]))
    })
}

/// Writes RAM to `file` from `base` on. What is there already is all zero if `zeroed`, so that
/// zeros need not be written; without it they are.
pub(super) fn write(
    file: &File,
    base: u64,
    ram: &dyn RamSource,
    zeroed: bool,
    how: Writing,
    cancel: Cancel<'_>,
) -> Result<(), HostError> {
    let direct;
    let file = match how.direct {
        true => {
            direct = past_the_cache(file)?;
            &direct
        }
        false => file,
    };
    let zeroed = zeroed && !how.zeros;
    let parts = ram.parts()?;
    if !zeroed {
        write_gaps(file, base, &parts, ram.size(), cancel)?;
    }
    let units: Vec<RamPart<'_>> = parts
        .iter()
        .flat_map(|part| {
            let unit = move |(nth, bytes)| RamPart {
                offset: part.offset + nth as u64 * UNIT,
                bytes,
            };
            part.bytes.chunks(UNIT as usize).enumerate().map(unit)
        })
        .collect();
    in_parallel(units.len(), how.threads, |nth| {
        if cancel.requested() {
            return Err("it was cancelled".into());
        }
        let unit = units[nth];
        if !zeroed {
            file.write_all_at(unit.bytes, base + unit.offset)?;
        }
        for (at, run) in filled(unit.bytes).filter(|_| zeroed) {
            file.write_all_at(run, base + unit.offset + at as u64)?;
        }
        if !how.direct {
            to_disk(file, base + unit.offset, unit.bytes.len());
        }
        Ok(())
    })
}

/// Has the disk begin with what was written, so that it is not idle until all of it is. A hint: whether
/// it gets there is seen when the file is synced.
fn to_disk(file: &File, at: u64, length: usize) {
    let (at, length) = (at as libc::off64_t, length as libc::off64_t);
    // SAFETY: it is about a descriptor that is open, and touches no memory.
    unsafe { libc::sync_file_range(file.as_raw_fd(), at, length, libc::SYNC_FILE_RANGE_WRITE) };
}

/// The same file, opened anew so that what is written goes past the page cache.
fn past_the_cache(file: &File) -> Result<File, HostError> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let opened = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_DIRECT | libc::O_CLOEXEC)
        .open(path);
    opened.map_err(|e| format!("its file system does not do direct-io: {e}; switch it off").into())
}

/// Writes zeros wherever no part is.
fn write_gaps(
    file: &File,
    base: u64,
    parts: &[RamPart<'_>],
    size: u64,
    cancel: Cancel<'_>,
) -> Result<(), HostError> {
    let mut at = 0;
    let ends = parts.iter().map(|part| (part.offset, part.bytes.len()));
    for (start, length) in ends.chain([(size, 0)]) {
        while at < start {
            if cancel.requested() {
                return Err("it was cancelled".into());
            }
            let step = (start - at).min(ZEROS.0.len() as u64);
            file.write_all_at(&ZEROS.0[..step as usize], base + at)?;
            at += step;
        }
        at = start + length as u64;
    }
    Ok(())
}

/// Reads `size` bytes of RAM from `file`, from `base` on, into RAM that is all zero.
pub(super) fn read(
    file: &File,
    base: u64,
    size: u64,
    ram: &dyn RamSink,
    cancel: Cancel<'_>,
) -> Result<(), HostError> {
    in_parallel(size.div_ceil(UNIT) as usize, None, |nth| {
        let start = nth as u64 * UNIT;
        let end = size.min(start + UNIT);
        let mut buffer = Vec::new();
        let mut at = start;
        while let Some((data, hole)) = next_data(file, base + at, base + end)? {
            if cancel.requested() {
                return Err("it was cancelled".into());
            }
            // Holes need not end where pages do.
            let data = (data - base) / PAGE * PAGE;
            let hole = (hole - base).next_multiple_of(PAGE).min(end);
            buffer.resize((hole - data) as usize, 0);
            file.read_exact_at(&mut buffer, base + data)?;
            for (offset, run) in filled(&buffer) {
                ram.write(data + offset as u64, run)?;
            }
            at = hole;
            if at >= end {
                break;
            }
        }
        Ok(())
    })
}

/// The next part of `file` between `from` and `to` that is no hole. Where holes are not known, all
/// is data.
fn next_data(file: &File, from: u64, to: u64) -> io::Result<Option<(u64, u64)>> {
    if from >= to {
        return Ok(None);
    }
    // The position of the descriptor, which this moves, is used by nobody.
    let seek = |from: u64, whence| lseek64(file, from as i64, whence).map(|at| at as u64);
    let data = match seek(from, Whence::SeekData) {
        Ok(data) => data,
        Err(nix::errno::Errno::ENXIO) => return Ok(None),
        Err(_) => return Ok(Some((from, to))),
    };
    if data >= to {
        return Ok(None);
    }
    let hole = seek(data, Whence::SeekHole).unwrap_or(to).min(to);
    Ok(Some((data, hole)))
}

/// Does `units` pieces of work, the first error ending all.
fn in_parallel(
    units: usize,
    threads: Option<usize>,
    work: impl Fn(usize) -> Result<(), HostError> + Sync,
) -> Result<(), HostError> {
    let next = AtomicU64::new(0);
    let failed = AtomicBool::new(false);
    let outcome = Mutex::new(Ok(()));
    let run = || {
        while !failed.load(Ordering::Relaxed) {
            let unit = next.fetch_add(1, Ordering::Relaxed) as usize;
            if unit >= units {
                return;
            }
            if let Err(error) = work(unit) {
                failed.store(true, Ordering::Relaxed);
                let mut outcome = outcome.lock().unwrap_or_else(PoisonError::into_inner);
                if outcome.is_ok() {
                    *outcome = Err(error);
                }
            }
        }
    };
    let threads = threads.unwrap_or_else(|| {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        cpus.min(MAX_THREADS)
    });
    let threads = threads.min(units);
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(run);
        }
        run();
    });
    outcome.into_inner().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::tests::fakes::{FakeRam, FakeSink, Stage, scratch};

    const HOW: Writing = Writing {
        threads: None,
        zeros: false,
        direct: false,
    };

    #[test]
    fn ram_is_written_as_the_settings_say() {
        use std::os::unix::fs::MetadataExt;
        let mut settings = Settings::default();
        settings.parameters.multifd_channels = 5;
        settings.parameters.direct_io = true;
        assert_eq!(Writing::of(&settings), HOW);
        settings.parameters.zero_page_detection = ZeroPageDetection::None;
        settings.capabilities.set(Capability::Multifd, true);
        settings.capabilities.set(Capability::MappedRam, true);
        let how = Writing::of(&settings);
        let expected = Writing {
            threads: Some(5),
            zeros: true,
            direct: true,
        };
        assert_eq!(how, expected);

        let stage = Stage::new(None);
        let cancel = Cancel::of(&stage.tracker);
        let ram = FakeRam(vec![0; 3 << 20]);
        let file = scratch();
        file.set_len(3 << 20).unwrap();
        // A vector is not aligned as RAM is.
        let how = Writing {
            direct: false,
            ..how
        };
        write(&file, 0, &ram, true, how, cancel).unwrap();
        assert!(file.metadata().unwrap().blocks() * 512 >= 3 << 20);
    }

    #[test]
    fn runs_of_filled_pages_are_found() {
        let mut bytes = vec![0; 8 * 4096];
        bytes[4096] = 1;
        bytes[3 * 4096 - 1] = 1;
        bytes[7 * 4096] = 1;
        let runs: Vec<_> = filled(&bytes).map(|(at, run)| (at, run.len())).collect();
        assert_eq!(runs, [(4096, 8192), (7 * 4096, 4096)]);
        assert_eq!(filled(&[]).count(), 0);
    }

    #[test]
    fn ram_goes_to_a_file_and_back_with_its_holes() {
        use std::os::unix::fs::MetadataExt;
        let stage = Stage::new(None);
        let cancel = Cancel::of(&stage.tracker);
        let mut bytes = vec![0; 20 << 20];
        bytes[5 << 20..6 << 20].fill(5);
        bytes[(17 << 20) + 1] = 6;
        let ram = FakeRam(bytes);
        let file = scratch();
        file.set_len(30 << 20).unwrap();
        write(&file, 8192, &ram, true, HOW, cancel).unwrap();
        assert!(file.metadata().unwrap().blocks() * 512 < 3 << 20);
        let sink = FakeSink::new(ram.size());
        read(&file, 8192, ram.size(), &sink, cancel).unwrap();
        assert!(sink.bytes() == ram.0);
    }

    #[test]
    fn where_something_else_was_zeros_are_written() {
        let stage = Stage::new(None);
        let cancel = Cancel::of(&stage.tracker);
        let mut bytes = vec![0; 3 << 20];
        bytes[1 << 20] = 1;
        let ram = FakeRam(bytes);
        let file = scratch();
        file.write_all_at(&vec![0xaa; 4 << 20], 0).unwrap();
        write(&file, 4096, &ram, false, HOW, cancel).unwrap();
        let mut found = vec![0; 3 << 20];
        file.read_exact_at(&mut found, 4096).unwrap();
        assert!(found == ram.0);
        let mut after = [0];
        file.read_exact_at(&mut after, (3 << 20) + 4096).unwrap();
        assert_eq!(after, [0xaa]);
    }

    #[test]
    fn an_error_of_one_thread_is_the_error() {
        let error = in_parallel(100, Some(3), |unit| match unit {
            57 => Err("unit 57".into()),
            _ => Ok(()),
        });
        assert_eq!(error.unwrap_err().to_string(), "unit 57");
    }
}
