//! Which files the disks of a kept guest had, and when they were last written: a guest that is loaded
//! a second time, after it has gone on with them, is found out.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use baton_migration::HostError;
use baton_migration::handover::OutgoingFd;
use baton_migration::stream::{SectionWriter, StateImage, section_name};
use baton_plugin_api::Section;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde::{Deserialize, Serialize};

use super::sections::MACHINE;

/// Of section `globalstate`: only a guest that is kept has it.
pub(super) const SUBSECTION: &str = "images";

/// The plain files that devices may write to. A block device does not tell when it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Images {
    images: Vec<Image>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Image {
    /// The device's id.
    owner: String,
    /// Where it is, or was when it was opened.
    path: String,
    /// `st_dev` and `st_ino`.
    device: u64,
    inode: u64,
    /// When it was last written, in nanoseconds since 1970.
    modified: i64,
}

impl Images {
    /// Those among open files.
    pub(super) fn among(fds: impl Iterator<Item = OutgoingFd>) -> Self {
        Self {
            images: fds.filter_map(Image::of).collect(),
        }
    }

    fn section() -> Section {
        Section::new(&format!("globalstate/{SUBSECTION}"), 1, 1)
    }

    /// Writes them; no device does so to them any more.
    pub fn save(&self, out: &mut SectionWriter<'_>) -> Result<(), HostError> {
        let section = Self::section();
        let name = section_name(MACHINE, &section.name);
        Ok(out.put(&name, 0, section.version, self)?)
    }

    /// Takes those of a kept guest out of its state, and refuses it if one of them is the same file
    /// here, and was written since.
    pub fn check(&self, state: &mut StateImage) -> Result<(), HostError> {
        let section = Self::section();
        let name = section_name(MACHINE, &section.name);
        let Some(data) = state.take_if_present(&name, 0) else {
            return Ok(());
        };
        data.check_version(&(section.minimum_version..=section.version))?;
        let then: Self = data.decode()?;
        match then.images.iter().find(|then| self.has_later(then)) {
            None => Ok(()),
            Some(Image { owner, path, .. }) => Err(format!(
                "'{path}' of device '{owner}' was written after the guest was kept: it has been \
                 loaded before and has gone on since, or somebody else has changed it; put back the \
                 image as it was then, with its time (cp -p)"
            )
            .into()),
        }
    }

    /// An earlier time is that of a copy, or of a host that went down before it wrote it to the disk.
    fn has_later(&self, then: &Image) -> bool {
        self.images
            .iter()
            .any(|now| now.is(then) && now.modified > then.modified)
    }
}

impl Image {
    fn of(OutgoingFd { key, fd }: OutgoingFd) -> Option<Self> {
        let flags = fcntl(&fd, FcntlArg::F_GETFL).ok()?;
        let writable = OFlag::from_bits_retain(flags) & OFlag::O_ACCMODE != OFlag::O_RDONLY;
        let path = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        let found = File::from(fd).metadata().ok()?;
        (writable && found.is_file()).then(|| Self {
            owner: key.owner,
            path: path.unwrap_or_default().to_string_lossy().into_owned(),
            device: found.dev(),
            inode: found.ino(),
            modified: found
                .mtime()
                .saturating_mul(1_000_000_000)
                .saturating_add(found.mtime_nsec()),
        })
    }

    /// Whether it is the same file. A file system's number may be another after the host was started
    /// anew.
    fn is(&self, other: &Self) -> bool {
        self.inode == other.inode && (self.device == other.device || self.path == other.path)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::FileTimes;
    use std::time::{Duration, SystemTime};

    use baton_migration::fds::FdKey;
    use baton_migration::fingerprint::MachineFingerprint;
    use baton_migration::stream::Header;
    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;

    fn images(files: &[&File]) -> Images {
        let outgoing = |file: &&File| OutgoingFd {
            key: FdKey::new("disk0", "image", 0),
            fd: file.try_clone().unwrap().into(),
        };
        Images::among(files.iter().map(outgoing))
    }

    /// What `now` says to a guest that was kept with `then`.
    fn checked(then: &Images, now: &Images) -> Result<(), String> {
        let mut stream = Vec::new();
        let header = Header {
            producer: String::new(),
            fingerprint: MachineFingerprint::default(),
        };
        let mut out = SectionWriter::new(&mut stream, &header).unwrap();
        then.save(&mut out).unwrap();
        out.finish().unwrap();
        let mut state = StateImage::read(&stream[..]).unwrap();
        now.check(&mut state).map_err(|e| e.to_string())?;
        state.all_taken().unwrap();
        Ok(())
    }

    fn file() -> File {
        memfd_create("image", MFdFlags::MFD_CLOEXEC).unwrap().into()
    }

    fn set_time(file: &File, seconds: u64) {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        file.set_times(FileTimes::new().set_modified(time)).unwrap();
    }

    #[test]
    fn a_file_that_was_written_since_is_found_out() {
        let file = file();
        set_time(&file, 1000);
        let then = images(&[&file]);
        assert_eq!(then.images.len(), 1);
        assert_eq!(checked(&then, &images(&[&file])), Ok(()));
        set_time(&file, 1001);
        let refused = checked(&then, &images(&[&file])).unwrap_err();
        assert!(refused.contains("of device 'disk0'"), "{refused}");
        // Restored with its time, or before that was on the disk.
        set_time(&file, 999);
        assert_eq!(checked(&then, &images(&[&file])), Ok(()));
    }

    #[test]
    fn another_file_and_one_that_nobody_writes_say_nothing() {
        let (file, other) = (file(), file());
        set_time(&file, 1000);
        let then = images(&[&file]);
        assert_eq!(checked(&then, &images(&[&other])), Ok(()));
        assert_eq!(checked(&then, &images(&[])), Ok(()));
        let reader = File::open("/proc/self/exe").unwrap();
        assert_eq!(images(&[&reader]).images, []);
    }

    #[test]
    fn a_file_system_may_have_another_number_after_a_restart() {
        let file = file();
        set_time(&file, 1000);
        let mut then = images(&[&file]);
        then.images[0].device += 1;
        set_time(&file, 1001);
        checked(&then, &images(&[&file])).unwrap_err();
        then.images[0].path.push('x');
        assert_eq!(checked(&then, &images(&[&file])), Ok(()));
    }
}
