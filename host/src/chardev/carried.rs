//! What of a character device is in neither a descriptor nor the kernel's buffers: it goes to
//! another process in a memfd, which is filled when the guest has stopped.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;

use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::relay::{AHEAD_MAX, CHUNK};

/// The most bytes of it, beside a ring buffer's.
const LONGEST: usize = 64 << 10;

/// What is carried.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Carried {
    /// Input that its user has had no room for.
    pub(super) input: ByteBuf,
    /// Text of the multiplexer that comes before all other output.
    pub(super) ahead: ByteBuf,
    /// Input is over: the other end has closed it.
    pub(super) input_ended: bool,
    /// The user who gets the input, if somebody has chosen.
    pub(super) focus: Option<String>,
    /// The key before was the escape.
    pub(super) escape: bool,
    /// Lines get time stamps.
    pub(super) timestamps: bool,
    /// What a ring buffer holds.
    pub(super) ring: ByteBuf,
    /// The device and inode of the socket at the path, which goes with its last owner.
    pub(super) path: Option<(u64, u64)>,
}

impl Carried {
    /// Writes it, over what was there.
    pub(super) fn write(&self, to: &File) -> Result<(), String> {
        let bytes = rmp_serde::to_vec_named(self).map_err(|e| e.to_string())?;
        let mut to = to;
        to.set_len(0)
            .and_then(|()| to.rewind())
            .and_then(|()| to.write_all(&bytes))
            .map_err(|e| format!("its state cannot be written: {e}"))
    }

    /// Reads what another process wrote, of a ring buffer of at most `ring` bytes.
    pub(super) fn read(from: &File, ring: usize) -> Result<Self, String> {
        let mut from = from;
        let mut bytes = Vec::new();
        from.seek(SeekFrom::Start(0))
            .and_then(|_| from.take((LONGEST + ring) as u64).read_to_end(&mut bytes))
            .map_err(|e| format!("its state cannot be read: {e}"))?;
        let carried: Self = rmp_serde::from_slice(&bytes)
            .map_err(|e| format!("its state cannot be understood: {e}"))?;
        for (what, len, most) in [
            ("input", carried.input.len(), CHUNK),
            ("text", carried.ahead.len(), AHEAD_MAX),
            ("its ring buffer", carried.ring.len(), ring),
        ] {
            if len > most {
                return Err(format!(
                    "its state has {len} bytes of {what}, at most {most} fit"
                ));
            }
        }
        Ok(carried)
    }
}

/// A file to carry it in.
pub(super) fn carrier() -> std::io::Result<File> {
    Ok(memfd_create("baton-chardev", MFdFlags::MFD_CLOEXEC)?.into())
}

/// A file with these bytes.
pub(super) fn filled(bytes: &[u8]) -> std::io::Result<OwnedFd> {
    let mut file = carrier()?;
    file.write_all(bytes)?;
    Ok(file.into())
}

/// All bytes of a file of that length.
pub(super) fn contents(file: OwnedFd, length: usize) -> std::io::Result<Vec<u8>> {
    let mut file = File::from(file);
    let mut bytes = Vec::new();
    file.rewind()?;
    file.take(length as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_carried_reads_back_and_what_is_damaged_is_refused() {
        let file = carrier().unwrap();
        Carried::read(&file, 0).unwrap_err();
        let carried = Carried {
            input: ByteBuf::from(*b"abc"),
            focus: Some("isa-serial.0".into()),
            escape: true,
            ring: ByteBuf::from(*b"0123"),
            path: Some((1, 2)),
            ..Carried::default()
        };
        for _ in 0..2 {
            carried.write(&file).unwrap();
            assert_eq!(Carried::read(&file, 4).unwrap(), carried);
        }
        let refused = Carried::read(&file, 3).unwrap_err();
        assert!(refused.contains("at most 3 fit"), "{refused}");
        let long = Carried {
            input: ByteBuf::from(vec![0; CHUNK + 1]),
            ..Carried::default()
        };
        long.write(&file).unwrap();
        Carried::read(&file, 0).unwrap_err();
        let whole = file.metadata().unwrap().len();
        carried.write(&file).unwrap();
        assert!(
            file.metadata().unwrap().len() < whole,
            "the old one is gone"
        );
        for end in 0..file.metadata().unwrap().len() {
            carried.write(&file).unwrap();
            file.set_len(end).unwrap();
            Carried::read(&file, 4).unwrap_err();
        }
    }
}
