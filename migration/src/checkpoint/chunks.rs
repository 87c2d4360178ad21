//! RAM as a sequence of chunks, for what cannot be written or read at any place: pipes.

use std::io::{self, Read, Write};

use super::format::PAGE;
use super::pages::filled;
use super::{RamSink, RamSource};
use crate::HostError;

/// The most bytes of RAM in one chunk.
const MAX_CHUNK: usize = 1 << 20;

/// What can be wrong with chunks.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChunkError {
    #[error("The state ends in the midst of RAM; it was cut short, save it again")]
    Truncated,
    #[error("The state cannot be read")]
    Read(#[source] io::Error),
    #[error("The state is damaged at RAM offset {0:#x}; save it again")]
    Damaged(u64),
    #[error(transparent)]
    Sink(HostError),
}

/// Writes every page that is not zero, or every page that is no hole with `zeros`; [`end`] completes
/// it. Returns the bytes of RAM written.
pub(super) fn write(
    out: &mut impl Write,
    ram: &dyn RamSource,
    zeros: bool,
) -> Result<u64, HostError> {
    let mut written = 0;
    for part in ram.parts()? {
        let runs: Box<dyn Iterator<Item = (usize, &[u8])>> = match zeros {
            true => Box::new(std::iter::once((0, part.bytes))),
            false => Box::new(filled(part.bytes)),
        };
        for (at, run) in runs {
            for (nth, bytes) in run.chunks(MAX_CHUNK).enumerate() {
                let offset = part.offset + (at + nth * MAX_CHUNK) as u64;
                let head = head(offset, bytes);
                out.write_all(&head)?;
                out.write_all(bytes)?;
                written += bytes.len() as u64;
            }
        }
    }
    Ok(written)
}

/// The mark without which no reader accepts the chunks.
pub(super) fn end(written: u64) -> Vec<u8> {
    head(written, &[]).to_vec()
}

/// Offset, length and checksum of a chunk.
fn head(offset: u64, bytes: &[u8]) -> [u8; 16] {
    let mut head = [0; 16];
    head[..8].copy_from_slice(&offset.to_le_bytes());
    head[8..12].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&head[..12]), bytes);
    head[12..].copy_from_slice(&crc.to_le_bytes());
    head
}

/// Reads all chunks into RAM of `size` bytes.
pub(super) fn read(input: &mut impl Read, size: u64, ram: &dyn RamSink) -> Result<(), ChunkError> {
    let mut bytes = vec![0; MAX_CHUNK];
    let (mut end, mut total) = (0u64, 0u64);
    loop {
        let mut head = [0; 16];
        fill(input, &mut head)?;
        let offset = u64::from_le_bytes(head[..8].try_into().unwrap_or_default());
        let length = u32::from_le_bytes(head[8..12].try_into().unwrap_or_default()) as usize;
        let crc = u32::from_le_bytes(head[12..].try_into().unwrap_or_default());
        let damaged = || ChunkError::Damaged(end);
        if length > MAX_CHUNK || !(length as u64).is_multiple_of(PAGE) {
            return Err(damaged());
        }
        let bytes = &mut bytes[..length];
        fill(input, bytes)?;
        if crc != crc32c::crc32c_append(crc32c::crc32c(&head[..12]), bytes) {
            return Err(damaged());
        }
        if length == 0 {
            return match offset == total {
                true => Ok(()),
                false => Err(damaged()),
            };
        }
        let after = offset.checked_add(length as u64);
        let after = after.filter(|after| *after <= size && offset >= end);
        let after = after.filter(|_| offset.is_multiple_of(PAGE));
        let after = after.ok_or_else(damaged)?;
        ram.write(offset, bytes).map_err(ChunkError::Sink)?;
        end = after;
        total += length as u64;
    }
}

fn fill(input: &mut impl Read, into: &mut [u8]) -> Result<(), ChunkError> {
    input.read_exact(into).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => ChunkError::Truncated,
        _ => ChunkError::Read(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::tests::fakes::{FakeRam, FakeSink};

    fn ram() -> FakeRam {
        let mut bytes = vec![0; 3 << 20];
        bytes[5000..2_000_000].fill(3);
        bytes[(3 << 20) - 1] = 9;
        FakeRam(bytes)
    }

    fn stream(ram: &FakeRam) -> Vec<u8> {
        let mut out = Vec::new();
        let written = write(&mut out, ram, false).unwrap();
        out.extend_from_slice(&end(written));
        out
    }

    #[test]
    fn ram_comes_back_and_zeros_are_not_sent() {
        let ram = ram();
        let stream = stream(&ram);
        assert!(stream.len() < 2_010_000);
        let sink = FakeSink::new(ram.size());
        read(&mut &stream[..], ram.size(), &sink).unwrap();
        assert!(sink.bytes() == ram.0);
    }

    #[test]
    fn chunks_that_are_cut_short_or_altered_are_refused() {
        let ram = ram();
        let good = stream(&ram);
        for end in [0, 1, 16, 17, 5000, good.len() - 17, good.len() - 1] {
            let sink = FakeSink::new(ram.size());
            let error = read(&mut &good[..end], ram.size(), &sink).unwrap_err();
            assert!(matches!(error, ChunkError::Truncated), "{end}: {error}");
        }
        for at in [0, 9, 13, 16, 100_000, good.len() - 16, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            let sink = FakeSink::new(ram.size());
            read(&mut &bad[..], ram.size(), &sink).unwrap_err();
        }
        // Beyond the end of RAM.
        let sink = FakeSink::new(ram.size());
        read(&mut &good[..], ram.size() - 4096, &sink).unwrap_err();
    }
}
