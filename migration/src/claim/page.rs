//! The shared page itself.
//!
//! `unsafe` is needed to map it and to see its words through a pointer.
#![allow(unsafe_code)]

use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::stat::fstat;
use nix::unistd::ftruncate;

use super::{Blackout, ClaimError, ClaimState, Moment};

/// One page of x86-64.
const SIZE: usize = 4096;

/// In front of the page: "BATONCL" and the version of this layout, read as a little-endian number.
const MAGIC: u64 = u64::from_le_bytes(*b"BATONCL1");

/// Without these the peer could shrink the page under the mapping, which is SIGBUS at the next look,
/// or take the seals off again.
fn seals() -> SealFlag {
    SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL
}

/// What is in the page. All zeros but for the magic is an open claim without times.
#[repr(C)]
struct Layout {
    magic: AtomicU64,
    word: AtomicU32,
    reserved: AtomicU32,
    /// CLOCK_MONOTONIC in nanoseconds, by [`Moment`]; 0 is "not yet".
    moments: [AtomicU64; Moment::COUNT],
}

const _: () = assert!(size_of::<Layout>() <= SIZE);

fn failed(what: &'static str) -> impl Fn(Errno) -> ClaimError {
    move |source| ClaimError::System { what, source }
}

/// A sealed memfd with an open claim in it.
pub(super) fn create() -> Result<OwnedFd, ClaimError> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let fd = memfd_create("baton-claim", flags).map_err(failed("create"))?;
    ftruncate(&fd, SIZE as i64).map_err(failed("size"))?;
    nix::sys::uio::pwrite(&fd, &MAGIC.to_ne_bytes(), 0).map_err(failed("write"))?;
    fcntl(&fd, FcntlArg::F_ADD_SEALS(seals())).map_err(failed("seal"))?;
    Ok(fd)
}

/// Refuses a descriptor whose mapping could ever fault.
pub(super) fn verify(fd: &OwnedFd) -> Result<(), ClaimError> {
    let found = fcntl(fd, FcntlArg::F_GET_SEALS)
        .map_err(|errno| ClaimError::NotAClaim(format!("it has no seals ({errno})")))?;
    let found = SealFlag::from_bits_retain(found);
    if !found.contains(seals()) {
        return Err(ClaimError::NotAClaim(format!("its seals are {found:?}")));
    }
    let size = fstat(fd).map_err(failed("look at"))?.st_size;
    if size != SIZE as i64 {
        return Err(ClaimError::NotAClaim(format!(
            "it has {size} bytes instead of {SIZE}"
        )));
    }
    Ok(())
}

/// The mapped page.
#[derive(Debug)]
pub(super) struct Page {
    at: NonNull<Layout>,
}

// SAFETY: the page holds nothing but atomics, stays mapped until the only `Page` that points to it
// is dropped, and is never moved.
unsafe impl Send for Page {}
// SAFETY: as above; all access goes through atomics.
unsafe impl Sync for Page {}

impl Page {
    /// Maps a page that [`create`] made or [`verify`] passed.
    pub(super) fn map(fd: impl AsFd) -> Result<Self, ClaimError> {
        let Some(size) = NonZeroUsize::new(SIZE) else {
            return Err(ClaimError::NotAClaim("its size is 0".to_owned()));
        };
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let at = unsafe { mmap(None, size, protection, MapFlags::MAP_SHARED, fd, 0) }
            .map_err(failed("map"))?;
        Ok(Self { at: at.cast() })
    }

    /// Refuses a page of another program or of another layout.
    pub(super) fn verify_magic(&self) -> Result<(), ClaimError> {
        let found = self.layout().magic.load(Ordering::Relaxed);
        if found == MAGIC {
            return Ok(());
        }
        Err(ClaimError::NotAClaim(format!(
            "it begins with {found:#018x} instead of {MAGIC:#018x}"
        )))
    }

    pub(super) fn state(&self) -> ClaimState {
        ClaimState::from_word(self.layout().word.load(Ordering::Acquire))
    }

    /// From exactly `from` to `to`; the error is what was found instead.
    pub(super) fn change(&self, from: ClaimState, to: ClaimState) -> Result<(), ClaimState> {
        self.layout()
            .word
            .compare_exchange(from.word(), to.word(), Ordering::AcqRel, Ordering::Acquire)
            .map(|_| ())
            .map_err(ClaimState::from_word)
    }

    /// From open or committed to `to`; the error is the state that forbids it.
    pub(super) fn leave(&self, to: ClaimState) -> Result<(), ClaimState> {
        let mut from = self.state();
        while matches!(from, ClaimState::Open | ClaimState::Committed) {
            match self.change(from, to) {
                Ok(()) => return Ok(()),
                Err(found) => from = found,
            }
        }
        Err(from)
    }

    pub(super) fn stamp(&self, moment: Moment) {
        self.layout().moments[moment as usize].store(super::times::now(), Ordering::Release);
    }

    /// When a moment was, or 0.
    pub(super) fn at(&self, moment: Moment) -> u64 {
        self.layout().moments[moment as usize].load(Ordering::Acquire)
    }

    pub(super) fn blackout(&self) -> Option<Blackout> {
        Blackout::between(|moment| self.at(moment))
    }

    fn layout(&self) -> &Layout {
        // SAFETY: `at` is page-aligned, points to SIZE >= size_of::<Layout>() mapped bytes that the
        // seals keep backed, any bit pattern is a valid Layout, and the mapping lives as long as
        // `self`. The peer writes the same bytes only as atomics of the same width.
        unsafe { self.at.as_ref() }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: `map` mapped exactly these bytes, and no reference into them outlives `self`.
        // An error is impossible for a mapping that exists, and could not be helped here.
        let _ = unsafe { munmap(self.at.cast(), SIZE) };
    }
}
