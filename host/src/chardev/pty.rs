//! A pseudo-terminal: its master side, of which the other side is for people (QEMU's
//! chardev/char-pty.c).
// Asking for the name of the other side wants a promise about the descriptor.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use baton_plugin_api::{Direction, Stream};
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::stat::{fstat, major, minor};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

/// How often it is looked whether somebody has opened the other side: nothing tells.
const LOOK: Duration = Duration::from_secs(1);

/// The master side.
pub(super) struct Pty {
    master: Arc<Stream>,
    name: PathBuf,
    link: Option<OwnLink>,
    /// Somebody has the other side open.
    connected: bool,
    look_at: Instant,
}

impl Pty {
    /// A new one, in raw mode, and `link` to it.
    pub(super) fn open(link: Option<&Path>) -> Result<Self, String> {
        let failed = |e: nix::Error| format!("Failed to create PTY: {}", e.desc());
        let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY).map_err(failed)?;
        grantpt(&master).map_err(failed)?;
        unlockpt(&master).map_err(failed)?;
        let name = PathBuf::from(ptsname_r(&master).map_err(failed)?);
        // SAFETY: `into_raw_fd` gives the one descriptor away, and nobody else has it.
        let master = unsafe { OwnedFd::from_raw_fd(master.into_raw_fd()) };
        fcntl(&master, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(failed)?;
        fcntl(
            &master,
            FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK),
        )
        .map_err(failed)?;
        let mut raw = tcgetattr(&master).map_err(failed)?;
        cfmakeraw(&mut raw);
        tcsetattr(&master, SetArg::TCSANOW, &raw).map_err(failed)?;
        // Only a terminal that was open once tells that it is not.
        std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(nix::libc::O_NOCTTY)
            .open(&name)
            .map_err(|e| format!("Failed to create PTY: {}: {e}", name.display()))?;
        let link = link.map(|link| OwnLink::create(link, &name)).transpose()?;
        Self::with(master, name, link)
    }

    /// One that was handed over; it is not touched. `link` is this process's once it is served.
    pub(super) fn inherited(master: OwnedFd, link: Option<&Path>) -> Result<Self, String> {
        let stat = fstat(&master).map_err(|e| e.desc().to_owned())?;
        if (major(stat.st_rdev), minor(stat.st_rdev)) != (5, 2) {
            return Err("what was handed over is no pseudo-terminal".to_owned());
        }
        let copy = master.try_clone().map_err(|e| e.to_string())?;
        // SAFETY: it is the master of a pseudo-terminal, as was just checked.
        let copy = unsafe { PtyMaster::from_owned_fd(copy) };
        let name = PathBuf::from(ptsname_r(&copy).map_err(|e| e.desc().to_owned())?);
        let link = link.map(|path| OwnLink {
            path: path.to_owned(),
            target: name.clone(),
            owned: false,
        });
        Self::with(master, name, link)
    }

    fn with(master: OwnedFd, name: PathBuf, link: Option<OwnLink>) -> Result<Self, String> {
        let master = Stream::new(master, Direction::Input)
            .map_err(|e| format!("Failed to create PTY: {e}"))?;
        Ok(Self {
            master: Arc::new(master),
            name,
            link,
            connected: false,
            look_at: Instant::now(),
        })
    }

    /// The path of the other side.
    pub(super) fn name(&self) -> &Path {
        &self.name
    }

    /// The master side, if somebody has the other side open.
    pub(super) fn connection(&self) -> Option<&Arc<Stream>> {
        self.connected.then_some(&self.master)
    }

    /// The master side, for another process.
    pub(super) fn duplicate(&self) -> io::Result<OwnedFd> {
        self.master.as_fd().try_clone_to_owned()
    }

    /// Looks whether somebody has the other side open.
    pub(super) fn look(&mut self, now: Instant) {
        let mut fds = [PollFd::new(self.master.as_fd(), PollFlags::empty())];
        let hung_up = match poll(&mut fds, PollTimeout::ZERO) {
            Ok(_) => fds[0]
                .revents()
                .is_some_and(|flags| flags.contains(PollFlags::POLLHUP)),
            // It is looked at again.
            Err(_) => true,
        };
        self.connected = !hung_up;
        self.look_at = now + LOOK;
    }

    /// Nobody has the other side open any more.
    pub(super) fn disconnect(&mut self, now: Instant) {
        self.connected = false;
        self.look_at = now + LOOK;
    }

    /// When to look again.
    pub(super) fn deadline(&self) -> Option<Instant> {
        (!self.connected).then_some(self.look_at)
    }

    /// The link is this process's.
    pub(super) fn own(&mut self) {
        self.link.iter_mut().for_each(|link| link.owned = true);
    }

    /// The link is another process's.
    pub(super) fn give_up(&mut self) {
        self.link.iter_mut().for_each(|link| link.owned = false);
    }
}

/// A symbolic link, removed in the end if it is still the one.
struct OwnLink {
    path: PathBuf,
    target: PathBuf,
    owned: bool,
}

impl OwnLink {
    fn create(path: &Path, target: &Path) -> Result<Self, String> {
        let made = match symlink(target, path) {
            // What a process that was killed has left leads nowhere.
            Err(e)
                if e.kind() == io::ErrorKind::AlreadyExists
                    && path.is_symlink()
                    && !path.exists() =>
            {
                std::fs::remove_file(path).and_then(|()| symlink(target, path))
            }
            other => other,
        };
        made.map_err(|e| {
            let path = path.display();
            format!("Failed to create PTY symbolic link '{path}': {e}; remove it, or say another")
        })?;
        Ok(Self {
            path: path.to_owned(),
            target: target.to_owned(),
            owned: true,
        })
    }
}

impl Drop for OwnLink {
    fn drop(&mut self) {
        if self.owned && std::fs::read_link(&self.path).is_ok_and(|to| to == self.target) {
            // A link that stays is replaced by the next process.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{File, OpenOptions};
    use std::io::{Read, Write};

    fn other_side(pty: &Pty) -> File {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        options.custom_flags(nix::libc::O_NOCTTY);
        options.open(pty.name()).unwrap()
    }

    #[test]
    fn it_is_connected_while_somebody_has_the_other_side_open() {
        let mut pty = Pty::open(None).unwrap();
        pty.look(Instant::now());
        assert!(pty.connection().is_none());
        let mut person = other_side(&pty);
        pty.look(Instant::now());
        let master = Arc::clone(pty.connection().unwrap());
        // Raw: neither echoed nor cooked.
        person.write_all(b"\x03\r").unwrap();
        let mut bytes = [0; 8];
        assert_eq!(master.read(&mut bytes).unwrap(), 2);
        assert_eq!(&bytes[..2], b"\x03\r");
        master.write(b"x\n").unwrap();
        assert_eq!(person.read(&mut bytes).unwrap(), 2);
        assert_eq!(&bytes[..2], b"x\n");
        drop(person);
        pty.look(Instant::now());
        assert!(pty.connection().is_none());
    }

    #[test]
    fn its_link_goes_with_it_and_no_other_file_does() {
        let folder = std::env::temp_dir().join(format!("baton-pty-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let link = folder.join("tty");
        let pty = Pty::open(Some(&link)).unwrap();
        assert_eq!(std::fs::read_link(&link).unwrap(), pty.name());
        let inherited = Pty::inherited(pty.duplicate().unwrap(), Some(&link)).unwrap();
        assert_eq!(inherited.name(), pty.name());
        drop(inherited);
        assert!(link.is_symlink(), "it was not its own yet");
        drop(pty);
        assert!(!link.is_symlink());

        symlink("/nowhere/at/all", &link).unwrap();
        drop(Pty::open(Some(&link)).unwrap());
        std::fs::write(&link, b"mine").unwrap();
        let refused = Pty::open(Some(&link)).err().unwrap();
        assert!(refused.starts_with("Failed to create PTY symbolic link"));
        assert_eq!(std::fs::read(&link).unwrap(), b"mine");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn what_is_no_pseudo_terminal_is_not_inherited() {
        let file = File::open("/dev/null").unwrap();
        Pty::inherited(file.into(), None).err().unwrap();
    }
}
