//! What hostile input reaches: see `fuzz/README.md`.

use std::io::Write;
use std::os::unix::net::UnixStream;

use crate::address::{ChannelType, Incoming, MigrationAddress, parse_uri};
use crate::channel::Channel;
use crate::handover::fuzzing::message;
use crate::stream::{SectionWriter, StateImage};

/// Reads a state, as it is and with its checksums put right. What is read must be what is written.
///
/// # Panics
/// When it is not.
pub fn stream(data: &[u8]) {
    for bytes in [data, &repaired(data)] {
        let Ok(image) = StateImage::read(bytes) else {
            continue;
        };
        let mut written = Vec::new();
        let result = SectionWriter::new(&mut written, image.header()).and_then(|mut writer| {
            for s in image.sections() {
                writer.put_raw(&s.name, s.instance, s.version, &s.payload)?;
            }
            writer.finish()
        });
        // The fingerprint of the longest encodings may be longer than it was.
        if result.is_ok() {
            assert!(StateImage::read(&written[..]).is_ok_and(|again| again == image));
        }
    }
}

/// The stream with right checksums, as far as it is one: a mutation would not get past them.
fn repaired(data: &[u8]) -> Vec<u8> {
    let mut bytes = data.to_vec();
    repair(&mut bytes);
    bytes
}

/// Ends, with `None`, where the stream does.
fn repair(bytes: &mut [u8]) -> Option<()> {
    let number = |bytes: &[u8], at: usize| {
        let four = bytes.get(at..)?.first_chunk()?;
        Some(u32::from_le_bytes(*four))
    };
    let whole = |bytes: &mut [u8], at: usize| {
        let crc = crc32c::crc32c(bytes.get(..at)?);
        bytes
            .get_mut(at..at + 4)?
            .copy_from_slice(&crc.to_le_bytes());
        Some(at + 4)
    };
    let producer = usize::from(*bytes.get(16)?);
    let at = 17 + producer;
    let fingerprint = number(bytes, at)? as usize;
    let mut at = whole(bytes, at.checked_add(4)?.checked_add(fingerprint)?)?;
    while *bytes.get(at)? == b'S' {
        let name = usize::from(*bytes.get(at + 1)?);
        let check = at + 2 + name + 12;
        let payload = number(bytes, check - 4)? as usize;
        let end = (check + 4).checked_add(payload)?;
        let crc = crc32c::crc32c(bytes.get(at..check)?);
        let crc = crc32c::crc32c_append(crc, bytes.get(check + 4..end)?);
        bytes[check..check + 4].copy_from_slice(&crc.to_le_bytes());
        at = end;
    }
    whole(bytes, at + 5).map(drop)
}

/// Receives frames and decodes their messages; the first byte says on which channel.
///
/// # Panics
/// When the input does not fit into a socket.
pub fn frames(data: &[u8]) {
    let Some((&which, data)) = data.split_first() else {
        return;
    };
    let channel = [ChannelType::Cpr, ChannelType::Main][usize::from(which) % 2];
    // As much as a socket holds without anybody reading.
    let data = &data[..data.len().min(32 << 10)];
    let pair = UnixStream::pair().and_then(|(mut ours, theirs)| {
        ours.write_all(data)?;
        theirs.set_nonblocking(true)?;
        Ok(theirs)
    });
    let Ok(socket) = pair else {
        panic!("There is no socket for the input");
    };
    let Ok(mut socket) = Channel::new(socket.into(), "fuzzed", crate::handover::fuzzing::bounds)
    else {
        return;
    };
    // It ends: each frame takes five bytes at least, and then the other end has hung up.
    while let Ok(Some(frame)) = socket.try_receive() {
        message(channel, frame);
    }
    if let Some((kind, payload)) = data.split_first()
        && crate::precopy::fuzzing::bounds(*kind).is_some_and(|most| payload.len() <= most.length)
    {
        crate::precopy::fuzzing::message(*kind, payload.to_vec());
    }
}

/// Reads an address in all its spellings. One that is understood is shown as what it is.
///
/// # Panics
/// When it is not understood again.
pub fn address(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let _ = text.parse::<Incoming>();
    let uri = parse_uri(text).ok();
    let json = serde_json::from_str::<MigrationAddress>(text).ok();
    for address in [uri, json].into_iter().flatten() {
        let again = serde_json::to_string(&address)
            .and_then(|json| serde_json::from_str::<MigrationAddress>(&json));
        assert!(again.is_ok_and(|again| again == address), "{address}");
    }
}

#[cfg(test)]
mod tests {
    use baton_plugin_api::testing::exercise;

    #[test]
    fn a_hostile_stream_is_refused_or_read_whole() {
        exercise("stream", 5_000, super::stream);
    }

    #[test]
    fn hostile_frames_are_refused_or_decoded() {
        exercise("frames", 5_000, super::frames);
    }

    #[test]
    fn a_hostile_address_is_refused_or_understood() {
        exercise("address", 20_000, super::address);
    }

    #[test]
    fn a_repaired_stream_is_one_that_is_read() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/seeds/stream");
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let good = std::fs::read(&path).unwrap();
            assert_eq!(super::repaired(&good), good);
            let mut bad = good.clone();
            // The last letter of the producer.
            bad[16 + usize::from(good[16])] ^= 1;
            assert!(super::StateImage::read(&bad[..]).is_err());
            assert!(
                super::StateImage::read(&super::repaired(&bad)[..]).is_ok(),
                "{path:?}"
            );
        }
    }
}
