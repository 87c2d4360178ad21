//! What the old program tells its successor, in a memfd.
//!
//! The outer layer, with the way back, is the same for all versions: unknown fields are passed over
//! there. The inner one has a version, so that a successor that cannot read it still goes back.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{OwnedFd, RawFd};

use baton_migration::HostError;
use baton_migration::fds::FdKey;
use baton_migration::fingerprint::MachineFingerprint;
use baton_plugin_api::Object;
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// First bytes of a handoff.
const MAGIC: [u8; 8] = *b"BATONEXC";
/// The version of [`Handoff`].
const VERSION: u32 = 1;
/// Longest handoff, in bytes: clients' unread and unsent bytes are in it.
const LONGEST: u64 = 64 << 20;

/// How to execute the old program again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OldProgram {
    /// A descriptor of its file.
    pub exe: RawFd,
    /// Its arguments, with its own name.
    pub arguments: Vec<ByteBuf>,
    /// The plugins it has loaded: their paths, and descriptors of their files, since other files may
    /// be there when it is needed again.
    #[serde(default)]
    pub plugins: Vec<(ByteBuf, RawFd)>,
    /// Its block nodes that have come since it was started, each as the JSON that `blockdev-add` takes.
    #[serde(default)]
    pub nodes: Vec<String>,
    /// Its objects that have come.
    #[serde(default)]
    pub objects: Vec<Object>,
    /// Its character devices that have come, each as the JSON of a `-chardev`.
    #[serde(default)]
    pub chardevs: Vec<String>,
    /// The ids of those that have gone.
    #[serde(default)]
    pub chardevs_gone: Vec<String>,
    /// The devices it has if some have come or gone since it was started: each as the JSON that
    /// `device_add` takes.
    #[serde(default)]
    pub devices: Option<Vec<String>>,
}

/// What the successor needs; descriptors are numbers that it inherits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Handoff {
    /// Guest RAM, devices' and character devices' descriptors.
    pub fds: Vec<(FdKey, RawFd)>,
    /// The machine as the old program has it.
    pub fingerprint: MachineFingerprint,
    /// In a rehearsal: the sections that the state will have, as name, instance and version.
    #[serde(default)]
    pub outline: Vec<(String, u32, u32)>,
    /// The state stream; nothing in a rehearsal.
    #[serde(default)]
    pub state: Option<RawFd>,
    /// Where the state was written as well, as `migrate` named it.
    #[serde(default)]
    pub uri: Option<String>,
    /// The page that says whether the guest was started.
    #[serde(default)]
    pub claim: Option<RawFd>,
    /// In a rehearsal: where to say how it went.
    #[serde(default)]
    pub answer: Option<RawFd>,
    /// The monitors' clients and listeners.
    #[serde(default)]
    pub monitors: Option<Monitors>,
    /// The holder of the old program's memory.
    #[serde(default)]
    pub holder: Option<HolderHandle>,
    /// Whether clients asked for events of the migration (capability `events`).
    #[serde(default)]
    pub events: bool,
    /// Milliseconds that the migration has taken so far, for `query-migrate`.
    #[serde(default)]
    pub total_ms: u64,
    /// And until the guest was stopped.
    #[serde(default)]
    pub setup_ms: u64,
}

/// The monitors of the old program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Monitors {
    /// As the monitor describes them.
    pub description: ByteBuf,
    /// Their descriptors, in the description's order.
    pub fds: Vec<RawFd>,
    /// Whether the next program has served them meanwhile, and this is how it left them.
    #[serde(default)]
    pub renewed: bool,
}

/// How the successor lets go of the holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HolderHandle {
    /// The child's number, to be waited for.
    pub pid: i32,
    /// Closed to let it end.
    pub leash: RawFd,
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    old: OldProgram,
    version: u32,
    handoff: ByteBuf,
}

/// A handoff in a memfd.
pub fn write(old: &OldProgram, handoff: &Handoff) -> Result<OwnedFd, HostError> {
    let envelope = Envelope {
        old: old.clone(),
        version: VERSION,
        handoff: ByteBuf::from(rmp_serde::to_vec_named(handoff)?),
    };
    let mut file = File::from(memfd_create("baton-cpr-exec", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&MAGIC)?;
    file.write_all(&rmp_serde::to_vec_named(&envelope)?)?;
    Ok(file.into())
}

/// Reads one. The old program is there even if the rest cannot be understood.
pub(super) fn read(fd: OwnedFd) -> Result<(OldProgram, Result<Handoff, String>), String> {
    let mut file = File::from(fd);
    let mut bytes = Vec::new();
    file.rewind()
        .and_then(|()| file.take(LONGEST).read_to_end(&mut bytes))
        .map_err(|e| format!("cannot be read: {e}"))?;
    let rest = bytes
        .strip_prefix(&MAGIC)
        .ok_or("is none of Baton's; unset the variable")?;
    let envelope: Envelope =
        rmp_serde::from_slice(rest).map_err(|e| format!("cannot be understood: {e}"))?;
    let handoff = if envelope.version == VERSION {
        rmp_serde::from_slice(&envelope.handoff)
            .map_err(|e| format!("What the old program handed over cannot be understood: {e}"))
    } else {
        Err(format!(
            "What the old program handed over has version {}, this program reads {VERSION}; use \
             builds of Baton that fit together",
            envelope.version
        ))
    };
    Ok((envelope.old, handoff))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn old() -> OldProgram {
        OldProgram {
            exe: 7,
            arguments: vec![ByteBuf::from(*b"baton"), ByteBuf::from(*b"-m")],
            plugins: vec![(ByteBuf::from(*b"/a.so"), 8)],
            nodes: vec!["{}".into()],
            objects: vec![Object::default()],
            chardevs: vec!["{}".into()],
            chardevs_gone: vec!["c".into()],
            devices: Some(vec!["{}".into()]),
        }
    }

    fn handoff() -> Handoff {
        Handoff {
            fds: vec![(FdKey::new("memory", "ram", 0), 9)],
            fingerprint: MachineFingerprint::default(),
            outline: vec![("machine/cpu".into(), 0, 1)],
            state: Some(10),
            uri: Some("file:/state".into()),
            claim: Some(11),
            answer: None,
            monitors: None,
            holder: None,
            events: true,
            total_ms: 4,
            setup_ms: 3,
        }
    }

    #[test]
    fn a_handoff_reads_back() {
        let (read_old, read_handoff) = read(write(&old(), &handoff()).unwrap()).unwrap();
        assert_eq!(read_old, old());
        assert_eq!(read_handoff.unwrap(), handoff());
    }

    #[test]
    fn a_handoff_of_a_later_version_still_shows_the_way_back() {
        let envelope = Envelope {
            old: old(),
            version: VERSION + 1,
            handoff: ByteBuf::from(*b"who knows"),
        };
        let mut file = File::from(memfd_create("test", MFdFlags::empty()).unwrap());
        file.write_all(&MAGIC).unwrap();
        file.write_all(&rmp_serde::to_vec_named(&envelope).unwrap())
            .unwrap();
        let (read_old, refused) = read(file.into()).unwrap();
        assert_eq!(read_old, old());
        assert!(refused.unwrap_err().contains("has version 2"));
    }

    #[test]
    fn a_file_of_another_kind_and_one_cut_off_anywhere_are_refused() {
        let whole = {
            let mut file = File::from(write(&old(), &handoff()).unwrap());
            let mut bytes = Vec::new();
            file.rewind().unwrap();
            file.read_to_end(&mut bytes).unwrap();
            bytes
        };
        for end in 0..whole.len() {
            let mut file = File::from(memfd_create("test", MFdFlags::empty()).unwrap());
            file.write_all(&whole[..end]).unwrap();
            read(file.into()).unwrap_err();
        }
    }
}
