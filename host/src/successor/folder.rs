//! The private folder of an update's sockets.

use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, chown};

/// How such folders are called, with a random word after it.
const PREFIX: &str = ".baton-update-";
/// The sockets in it.
const CPR: &str = "cpr";
const MAIN: &str = "main";
const REPORT: &str = "report";
/// The longest path of a socket, of which the kernel wants one byte for itself.
const LONGEST: usize = 107;

/// A folder that only its owner may look into. Update and successor both remove it: whichever of the
/// two is left.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// Makes one in `parent` that belongs to `owner`.
    pub fn create(parent: &Path, owner: Option<Uid>) -> io::Result<Self> {
        let mut attempts = 0;
        let folder = loop {
            let path = parent.join(format!("{PREFIX}{:08x}", random()?));
            if path.as_os_str().len() + 1 + REPORT.len() > LONGEST {
                return Err(io::Error::other("its path is too long for a socket"));
            }
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => break Self(path),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && attempts < 16 => {
                    attempts += 1;
                }
                Err(e) => return Err(e),
            }
        };
        if let Some(owner) = owner.filter(|owner| *owner != Uid::effective()) {
            chown(&folder.0, Some(owner), None)?;
        }
        Ok(folder)
    }

    /// The folder of the socket `report`, if that is one of an update.
    pub fn of_report(report: &Path) -> Option<Self> {
        let folder = report.parent()?;
        let named = folder.file_name()?.to_str()?.starts_with(PREFIX);
        (named && report.file_name()? == REPORT).then(|| Self(folder.to_owned()))
    }

    /// Where the successor waits for the source.
    pub fn cpr(&self) -> PathBuf {
        self.0.join(CPR)
    }

    /// Where it waits for the guest's state.
    pub fn main(&self) -> PathBuf {
        self.0.join(MAIN)
    }

    /// Where it reports to.
    pub fn report(&self) -> PathBuf {
        self.0.join(REPORT)
    }

    /// Removes it with its sockets. Nobody needs it any more; what cannot be removed stays.
    pub fn remove(&self) {
        for socket in [self.cpr(), self.main(), self.report()] {
            if socket
                .symlink_metadata()
                .is_ok_and(|m| m.file_type().is_socket())
            {
                let _ = std::fs::remove_file(socket);
            }
        }
        let _ = std::fs::remove_dir(&self.0);
    }

    /// Removes folders in `parent` whose update died before it had a successor.
    pub fn sweep(parent: &Path) {
        let Ok(entries) = std::fs::read_dir(parent) else {
            return;
        };
        for entry in entries.flatten() {
            let folder = Self(entry.path());
            let named = entry
                .file_name()
                .to_str()
                .is_some_and(|n| n.starts_with(PREFIX));
            // Who listens, or has not come to it yet, is alive.
            let gone = || {
                std::os::unix::net::UnixStream::connect(folder.report())
                    .is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
            };
            if named && gone() {
                folder.remove();
            }
        }
    }
}

fn random() -> io::Result<u32> {
    let mut bytes = [0; 4];
    io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(u32::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_folder_is_private_and_leaves_nothing() {
        let folder = Folder::create(&std::env::temp_dir(), None).unwrap();
        let mode = folder.0.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let _listener = UnixListener::bind(folder.report()).unwrap();
        let other = Folder::of_report(&folder.report()).unwrap();
        other.remove();
        assert!(!folder.0.exists());
    }

    #[test]
    fn only_an_updates_folder_is_removed() {
        for path in ["/tmp/report", "/run/.baton-update-1/other", "report", "/"] {
            assert!(Folder::of_report(Path::new(path)).is_none(), "{path}");
        }
    }

    #[test]
    fn what_a_dead_update_left_is_swept_away_and_what_is_in_use_is_not() {
        let parent = std::env::temp_dir().join(format!("baton-sweep-{}", std::process::id()));
        std::fs::create_dir(&parent).unwrap();
        let [dead, live] = [(); 2].map(|()| Folder::create(&parent, None).unwrap());
        drop(UnixListener::bind(dead.report()).unwrap());
        let listener = UnixListener::bind(live.report()).unwrap();
        Folder::sweep(&parent);
        assert!(!dead.0.exists() && live.0.exists());
        drop(listener);
        Folder::sweep(&parent);
        std::fs::remove_dir(&parent).unwrap();
    }
}
