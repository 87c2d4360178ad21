//! Doing a job from its beginning to its end on one thread.

use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use crate::buffers::Buffers;
use crate::engine::{Job, Operation};
use crate::image::{Image, Kind};
use crate::request::Range;
use crate::syscalls;

/// Does what `job` asks for.
pub(crate) fn perform(image: &Image, unmap: bool, job: &mut Job) -> io::Result<()> {
    match &mut job.operation {
        Operation::Read { offset, buffers } => match must_bounce(image, buffers) {
            true => read_bounced(image, *offset, buffers)?,
            false => repeat(buffers, *offset, |buffers, at| {
                syscalls::read(&image.file, buffers, at)
            })?,
        },
        Operation::Write { offset, buffers } => match must_bounce(image, buffers) {
            true => write_bounced(image, *offset, buffers)?,
            false => repeat(buffers, *offset, |buffers, at| {
                syscalls::write(&image.file, buffers, at)
            })?,
        },
        Operation::Flush => image.file.sync_data()?,
        Operation::Discard(ranges) => {
            for range in ranges.iter().filter(|_| unmap) {
                discard(image, range)?;
            }
        }
        Operation::WriteZeroes(ranges) => {
            for range in ranges.iter() {
                write_zeroes(image, range, unmap)?;
            }
        }
    }
    if job.durable {
        image.file.sync_data()?;
    }
    Ok(())
}

/// Whether the buffers are not where an unbuffered transfer needs them.
pub(crate) fn must_bounce(image: &Image, buffers: &Buffers) -> bool {
    image
        .alignment
        .is_some_and(|alignment| !buffers.aligned(alignment))
}

/// What a transfer of no bytes means while some are left.
pub(crate) fn ended_early() -> io::Error {
    io::Error::new(
        ErrorKind::UnexpectedEof,
        "The image is shorter than it was when it was opened",
    )
}

/// Goes on with a transfer that was interrupted or done in part.
fn repeat(
    buffers: &mut Buffers,
    mut offset: u64,
    mut transfer: impl FnMut(&Buffers, u64) -> io::Result<usize>,
) -> io::Result<()> {
    while buffers.left() > 0 {
        match transfer(buffers, offset) {
            Ok(0) => return Err(ended_early()),
            Ok(done) => {
                buffers.advance(done);
                offset += done as u64;
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn read_bounced(image: &Image, mut offset: u64, buffers: &mut Buffers) -> io::Result<()> {
    let mut bounce = Bounce::new();
    while buffers.left() > 0 {
        let data = bounce.aligned(buffers.left());
        image.file.read_exact_at(data, offset)?;
        offset += data.len() as u64;
        buffers.copy_from(data);
    }
    Ok(())
}

fn write_bounced(image: &Image, mut offset: u64, buffers: &mut Buffers) -> io::Result<()> {
    let mut bounce = Bounce::new();
    while buffers.left() > 0 {
        let data = bounce.aligned(buffers.left());
        buffers.copy_to(data);
        image.file.write_all_at(data, offset)?;
        offset += data.len() as u64;
        buffers.advance(data.len());
    }
    Ok(())
}

/// A discard is a wish: where it cannot be done, it is done.
fn discard(image: &Image, range: &Range) -> io::Result<()> {
    let done = match image.kind {
        Kind::File => allocate(image, FallocateFlags::FALLOC_FL_PUNCH_HOLE, range),
        Kind::BlockDevice => syscalls::discard(&image.file, range.offset, range.len),
    };
    match done {
        Err(e) if not_supported(&e) => Ok(()),
        other => other,
    }
}

fn write_zeroes(image: &Image, range: &Range, unmap: bool) -> io::Result<()> {
    // Both work on block devices too, as long as these can do the like.
    let how = if range.unmap && unmap {
        FallocateFlags::FALLOC_FL_PUNCH_HOLE
    } else {
        FallocateFlags::FALLOC_FL_ZERO_RANGE
    };
    match allocate(image, how, range) {
        Err(e) if not_supported(&e) => {}
        other => return other,
    }
    let mut bounce = Bounce::new();
    let (mut offset, end) = (range.offset, range.offset + range.len);
    while offset < end {
        // Nothing has written to it, so it is zeroes.
        let zeroes = bounce.aligned(usize::try_from(end - offset).unwrap_or(usize::MAX));
        image.file.write_all_at(zeroes, offset)?;
        offset += zeroes.len() as u64;
    }
    Ok(())
}

/// The range fits the image, so neither number passes what is signed.
fn allocate(image: &Image, how: FallocateFlags, range: &Range) -> io::Result<()> {
    if range.len == 0 {
        return Ok(());
    }
    let how = how | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    loop {
        match fallocate(
            &image.file,
            how,
            range.offset.cast_signed(),
            range.len.cast_signed(),
        ) {
            Err(Errno::EINTR) => {}
            other => return Ok(other?),
        }
    }
}

fn not_supported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::ENOTTY)
    )
}

/// Memory for unbuffered transfers: zeroes at first, aligned to all that such a transfer may need.
pub(crate) struct Bounce(Vec<u8>);

impl Bounce {
    const ALIGNMENT: usize = 4096;
    /// A bound that does not depend on the guest.
    const BYTES: usize = 256 << 10;

    pub(crate) fn new() -> Self {
        Self(vec![0; Self::BYTES + Self::ALIGNMENT])
    }

    /// The first `wanted` bytes, or as many as there are.
    pub(crate) fn aligned(&mut self, wanted: usize) -> &mut [u8] {
        let skip = self.0.as_ptr().align_offset(Self::ALIGNMENT);
        &mut self.0[skip..skip + wanted.min(Self::BYTES)]
    }
}
