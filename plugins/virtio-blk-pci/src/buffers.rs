//! The parts of guest memory a request reads into or writes from.
// Pointers into guest memory outlive the borrow they came from, since the kernel or another thread
// works on them after the queue's thread went on: that is what needs `unsafe`. They are valid since
// the host keeps guest memory mapped from `Start` to `Quiesce`, and every `Buffers` is made by the
// queue's thread after the one and dropped, with its job, before the other is answered.
#![allow(unsafe_code)]

use baton_plugin_api::GuestRam;
use baton_plugin_api::memory::DirtyBitmap;
use baton_plugin_api::vm_memory::bitmap::Bitmap;
use baton_plugin_api::vm_memory::{GuestAddress, GuestMemoryBackend, VolatileSlice};
use nix::libc::iovec;

/// What the kernel takes in one call.
const PARTS_MAX: usize = nix::libc::UIO_MAXIOV as usize;

/// A piece of guest memory, as a descriptor names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) at: GuestAddress,
    pub(crate) len: u32,
}

/// Guest memory for one transfer, part of which may be done.
pub(crate) struct Buffers {
    parts: Vec<iovec>,
    /// The first part that is not done.
    first: usize,
    /// Bytes not done.
    left: usize,
    /// The pages behind the parts, for a transfer that writes them.
    pages: Vec<(DirtyBitmap, usize)>,
}

// SAFETY: guest memory may be used from any thread, and the top of this file says how long.
unsafe impl Send for Buffers {}

impl Buffers {
    /// The memory of `segments`, or nothing if an address among them is no memory. `written` tells
    /// that the transfer is towards the guest.
    pub(crate) fn new(memory: &GuestRam, segments: &[Segment], written: bool) -> Option<Self> {
        let mut buffers = Self {
            parts: Vec::with_capacity(segments.len()),
            first: 0,
            left: 0,
            pages: Vec::with_capacity(if written { segments.len() } else { 0 }),
        };
        for segment in segments {
            // A segment may span several regions.
            for slice in GuestMemoryBackend::get_slices(memory, segment.at, segment.len as usize) {
                let slice = slice.ok()?;
                buffers.left += slice.len();
                buffers.parts.push(iovec {
                    iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                    iov_len: slice.len(),
                });
                if written {
                    buffers.pages.push((*slice.bitmap(), slice.len()));
                }
            }
        }
        Some(buffers)
    }

    /// Bytes not done.
    pub(crate) fn left(&self) -> usize {
        self.left
    }

    /// What is not done, or as much of it as the kernel takes at once.
    pub(crate) fn parts(&self) -> &[iovec] {
        let parts = &self.parts[self.first..];
        &parts[..parts.len().min(PARTS_MAX)]
    }

    /// The next `done` bytes are done.
    pub(crate) fn advance(&mut self, done: usize) {
        let mut done = done.min(self.left);
        self.left -= done;
        while let Some(part) = self.parts.get_mut(self.first) {
            if done < part.iov_len {
                part.iov_base = part.iov_base.wrapping_byte_add(done);
                part.iov_len -= done;
                return;
            }
            done -= part.iov_len;
            self.first += 1;
        }
    }

    /// Whether every part begins and ends at a multiple of `bytes` in this process's memory.
    pub(crate) fn aligned(&self, bytes: usize) -> bool {
        self.parts[self.first..].iter().all(|part| {
            part.iov_base.addr().is_multiple_of(bytes) && part.iov_len.is_multiple_of(bytes)
        })
    }

    /// Copies the next bytes out of guest memory; they are not done by that.
    pub(crate) fn copy_to(&self, mut data: &mut [u8]) {
        for part in &self.parts[self.first..] {
            let (piece, rest) = data.split_at_mut(part.iov_len.min(data.len()));
            volatile(part).copy_to(piece);
            data = rest;
        }
    }

    /// Copies `data` into guest memory, which makes so many bytes done.
    pub(crate) fn copy_from(&mut self, data: &[u8]) {
        let mut rest = data;
        for part in &self.parts[self.first..] {
            let (piece, after) = rest.split_at(part.iov_len.min(rest.len()));
            volatile(part).copy_from(piece);
            rest = after;
        }
        self.advance(data.len());
    }

    /// Tells whoever tracks guest memory that the transfer has written it. To be called when it
    /// is over: a page marked earlier could be copied before its content arrives.
    pub(crate) fn mark_written(&self) {
        for (bitmap, len) in &self.pages {
            bitmap.mark_dirty(0, *len);
        }
    }
}

/// A part, for copying while the guest may use it too.
fn volatile(part: &iovec) -> VolatileSlice<'_> {
    // SAFETY: the part is mapped guest memory, see the top of this file.
    unsafe { VolatileSlice::new(part.iov_base.cast(), part.iov_len) }
}
