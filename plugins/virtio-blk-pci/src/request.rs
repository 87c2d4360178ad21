//! What a chain of descriptors asks for (VIRTIO 1.3 section 5.2.6), checked against what the device
//! has. Nothing is done here but reading guest memory.

use baton_plugin_api::virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use baton_plugin_api::virtio_queue::desc::split::Descriptor;
use baton_plugin_api::vm_memory::{Address, Bytes, GuestAddress};
use baton_plugin_api::{Error, GuestRam, Result};

use crate::buffers::Segment;

/// The unit of all addresses in requests, whatever the block size.
pub(crate) const SECTOR: u64 = 512;
const HEADER_BYTES: usize = 16;
const RANGE_BYTES: usize = 16;

/// How much one discard or write zeroes may ask for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RangeLimits {
    /// Of each range.
    pub(crate) sectors: u32,
    /// How many ranges.
    pub(crate) segments: u32,
}

/// Up to 32 ranges of 2 GiB.
pub(crate) const DISCARD: RangeLimits = RangeLimits {
    sectors: 1 << 22,
    segments: DISCARD_SEGMENTS as u32,
};
/// One range of 64 MiB: where the file system cannot make zeroes they are written one by one, and a
/// handover waits for what has begun.
pub(crate) const WRITE_ZEROES: RangeLimits = RangeLimits {
    sectors: 1 << 17,
    segments: 1,
};
const DISCARD_SEGMENTS: usize = 32;

/// What requests are checked against.
#[derive(Debug)]
pub(crate) struct Limits {
    /// Of 512 bytes.
    pub(crate) sectors: u64,
    /// Bytes of the unit requests are made of.
    pub(crate) block: u32,
    pub(crate) read_only: bool,
    /// Of a queue.
    pub(crate) queue_size: u16,
    /// If it is offered.
    pub(crate) discard: Option<RangeLimits>,
    /// If it is offered.
    pub(crate) write_zeroes: Option<RangeLimits>,
}

impl Limits {
    /// The most segments of data in a request: what fits beside its header and its status.
    pub(crate) fn seg_max(&self) -> u32 {
        u32::from(self.queue_size) - 2
    }

    /// Bytes from where to where, if `sectors` from `sector` on exist and are whole blocks.
    fn place(&self, sector: u64, sectors: u64) -> Option<(u64, u64)> {
        let per_block = u64::from(self.block) / SECTOR;
        let fits = sector.checked_add(sectors)? <= self.sectors;
        let whole = sector.is_multiple_of(per_block) && sectors.is_multiple_of(per_block);
        (fits && whole).then(|| (sector * SECTOR, sectors * SECTOR))
    }
}

/// The status byte of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Status {
    Ok = VIRTIO_BLK_S_OK as u8,
    IoError = VIRTIO_BLK_S_IOERR as u8,
    Unsupported = VIRTIO_BLK_S_UNSUPP as u8,
}

/// A request that can be answered.
#[derive(Debug)]
pub(crate) struct Request {
    /// Where its status goes.
    pub(crate) status_at: GuestAddress,
    /// Bytes for data before the status that the device may write.
    pub(crate) writable: u32,
    /// What it asks for, or the answer to what cannot be done.
    pub(crate) work: std::result::Result<Work, Status>,
}

/// What a request asks for. Offsets and lengths are in bytes of the image.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Work {
    Read { offset: u64, data: Vec<Segment> },
    Write { offset: u64, data: Vec<Segment> },
    Flush,
    Discard(Vec<Range>),
    WriteZeroes(Vec<Range>),
    GetId { data: Vec<Segment> },
}

/// A range of a discard or of write zeroes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) offset: u64,
    pub(crate) len: u64,
    /// Whether the blocks of zeroes may be freed.
    pub(crate) unmap: bool,
}

impl Request {
    /// Reads a chain. An error is a chain that cannot even be answered, which breaks the device.
    pub(crate) fn parse(
        memory: &GuestRam,
        chain: impl Iterator<Item = Descriptor>,
        limits: &Limits,
    ) -> Result<Self> {
        let mut chain = Segments::collect(chain, limits.queue_size)?;
        let status_at = chain.take_status()?;
        // A chain has less than 4 GiB.
        let writable = bytes(&chain.writable) as u32;
        let work = chain.work(memory, limits);
        Ok(Self {
            status_at,
            writable,
            work,
        })
    }
}

/// The descriptors of a chain. How they split the request up is the driver's choice (section
/// 2.7.4), so that only their order counts.
struct Segments {
    readable: Vec<Segment>,
    writable: Vec<Segment>,
    /// Whether a readable one follows a writable one, which section 2.7.4.2 forbids.
    disordered: bool,
}

impl Segments {
    fn collect(chain: impl Iterator<Item = Descriptor>, queue_size: u16) -> Result<Self> {
        let mut segments = Self {
            readable: Vec::new(),
            writable: Vec::new(),
            disordered: false,
        };
        let mut count = 0;
        let mut ends = false;
        for descriptor in chain {
            count += 1;
            // Section 2.7.5.3.1: not even an indirect table may have more.
            if count > queue_size {
                return Err(Error::state(
                    "A request has more descriptors than the queue",
                ));
            }
            let segment = Segment {
                at: descriptor.addr(),
                len: descriptor.len(),
            };
            if descriptor.is_write_only() {
                segments.writable.push(segment);
            } else {
                segments.disordered |= !segments.writable.is_empty();
                segments.readable.push(segment);
            }
            ends = !descriptor.has_next();
        }
        if ends {
            Ok(segments)
        } else {
            Err(Error::state("A request's chain of descriptors is broken"))
        }
    }

    /// The last byte of the chain, which the device writes.
    fn take_status(&mut self) -> Result<GuestAddress> {
        let nowhere = || Error::state("A request has no place for its status");
        let last = self
            .writable
            .last_mut()
            .filter(|last| last.len > 0)
            .ok_or_else(nowhere)?;
        last.len -= 1;
        last.at.checked_add(u64::from(last.len)).ok_or_else(nowhere)
    }

    /// Takes the first bytes the driver wrote.
    fn read<const N: usize>(&mut self, memory: &GuestRam) -> Option<[u8; N]> {
        let mut data = [0; N];
        let mut filled = 0;
        for segment in &mut self.readable {
            let n = (segment.len as usize).min(N - filled);
            memory
                .read_slice(&mut data[filled..filled + n], segment.at)
                .ok()?;
            segment.at = segment.at.checked_add(n as u64)?;
            segment.len -= n as u32;
            filled += n;
        }
        (filled == N).then_some(data)
    }

    fn work(mut self, memory: &GuestRam, limits: &Limits) -> std::result::Result<Work, Status> {
        if self.disordered {
            return Err(Status::IoError);
        }
        let header: [u8; HEADER_BYTES] = self.read(memory).ok_or(Status::IoError)?;
        // Between the two stands a word that is reserved.
        let (kind, sector) = (le32(&header, 0), le64(&header, 8));
        let (to_device, to_driver) = (bytes(&self.readable), bytes(&self.writable));
        match kind {
            VIRTIO_BLK_T_IN if to_device == 0 => Ok(Work::Read {
                offset: transfer(limits, sector, to_driver)?,
                data: self.writable,
            }),
            VIRTIO_BLK_T_OUT if to_driver == 0 && !limits.read_only => Ok(Work::Write {
                offset: transfer(limits, sector, to_device)?,
                data: self.readable,
            }),
            VIRTIO_BLK_T_FLUSH if to_device == 0 && to_driver == 0 => Ok(Work::Flush),
            VIRTIO_BLK_T_GET_ID if to_device == 0 => Ok(Work::GetId {
                data: self.writable,
            }),
            VIRTIO_BLK_T_DISCARD => {
                let allowed = limits.discard.ok_or(Status::Unsupported)?;
                self.ranges(memory, limits, allowed, 0).map(Work::Discard)
            }
            VIRTIO_BLK_T_WRITE_ZEROES => {
                let allowed = limits.write_zeroes.ok_or(Status::Unsupported)?;
                self.ranges(memory, limits, allowed, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP)
                    .map(Work::WriteZeroes)
            }
            // With data in the wrong direction, or a write to what is read-only.
            VIRTIO_BLK_T_IN | VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_FLUSH | VIRTIO_BLK_T_GET_ID => {
                Err(Status::IoError)
            }
            _ => Err(Status::Unsupported),
        }
    }

    /// The ranges of a discard or of write zeroes.
    fn ranges(
        mut self,
        memory: &GuestRam,
        limits: &Limits,
        allowed: RangeLimits,
        flags_known: u32,
    ) -> std::result::Result<Vec<Range>, Status> {
        let len = bytes(&self.readable);
        let count = len / RANGE_BYTES as u64;
        let whole = len.is_multiple_of(RANGE_BYTES as u64);
        if !whole || count == 0 || count > u64::from(allowed.segments) || bytes(&self.writable) != 0
        {
            return Err(Status::IoError);
        }
        let mut ranges = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let raw: [u8; RANGE_BYTES] = self.read(memory).ok_or(Status::IoError)?;
            let (sector, sectors, flags) = (le64(&raw, 0), le32(&raw, 8), le32(&raw, 12));
            // Section 5.2.6.2 asks for this status.
            if flags & !flags_known != 0 {
                return Err(Status::Unsupported);
            }
            if sectors > allowed.sectors {
                return Err(Status::IoError);
            }
            let (offset, len) = limits
                .place(sector, u64::from(sectors))
                .ok_or(Status::IoError)?;
            ranges.push(Range {
                offset,
                len,
                unmap: flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0,
            });
        }
        Ok(ranges)
    }
}

/// Where in the image `len` bytes from `sector` on are.
fn transfer(limits: &Limits, sector: u64, len: u64) -> std::result::Result<u64, Status> {
    if !len.is_multiple_of(SECTOR) {
        return Err(Status::IoError);
    }
    let (offset, _) = limits.place(sector, len / SECTOR).ok_or(Status::IoError)?;
    Ok(offset)
}

fn bytes(segments: &[Segment]) -> u64 {
    segments.iter().map(|s| u64::from(s.len)).sum()
}

fn le32(raw: &[u8; 16], at: usize) -> u32 {
    u32::from_le_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]])
}

fn le64(raw: &[u8; 16], at: usize) -> u64 {
    u64::from(le32(raw, at)) | u64::from(le32(raw, at + 4)) << 32
}
