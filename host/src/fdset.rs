//! Sets of descriptors that clients of the monitor pass, and the paths `/dev/fdset/N` that stand for
//! them: QEMU's `monitor/fds.c`.
//!
//! Who passes files need not give this process the right to open them. A set may have the same file
//! several times, opened in different ways: who opens the path gets a duplicate of the one that was
//! opened as he asks. The sets are the process's, as paths are.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::mem::take;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use baton_migration::HostError;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::cli::AddFd;
use crate::fd;

/// The most descriptors in all sets together.
pub const MOST: usize = 256;

/// What the paths begin with.
const FOLDER: &str = "/dev/fdset/";

/// The sets of this process, which paths stand for.
pub static SETS: FdSets = FdSets(Mutex::new(BTreeMap::new()));

/// A descriptor's number, and what is written beside it.
pub type Row = (RawFd, Option<String>);

/// Sets of descriptors, by number.
#[derive(Debug)]
pub struct FdSets(Mutex<BTreeMap<u32, Vec<Passed>>>);

/// A descriptor in a set.
#[derive(Debug)]
pub struct Passed {
    /// The descriptor.
    pub fd: OwnedFd,
    /// What whoever passed it wrote beside it.
    pub opaque: Option<String>,
    /// Whether it was opened here, and may be again.
    pub used: bool,
}

impl FdSets {
    /// Adds a descriptor to a set, or makes a set for it. Returns the set and the descriptor's number.
    pub fn add(
        &self,
        fd: OwnedFd,
        set: Option<u32>,
        opaque: Option<String>,
    ) -> Result<(u32, RawFd), String> {
        let mut sets = self.lock();
        if sets.values().map(Vec::len).sum::<usize>() >= MOST {
            return Err(format!(
                "The sets have {MOST} descriptors, which is the most; remove some with remove-fd"
            ));
        }
        let free = || (0..).find(|set| !sets.contains_key(set));
        let set = set
            .or_else(free)
            .ok_or("There is no number for another set")?;
        let number = fd.as_raw_fd();
        let used = false;
        let passed = Passed { fd, opaque, used };
        sets.entry(set).or_default().push(passed);
        Ok((set, number))
    }

    /// Removes a descriptor of a set, or all of it. What is open stays open.
    pub fn remove(&self, set: u32, fd: Option<RawFd>) -> Result<(), String> {
        let name = match fd {
            Some(fd) => format!("fdset-id:{set}, fd:{fd}"),
            None => format!("fdset-id:{set}"),
        };
        let missing = format!("File descriptor named '{name}' not found");
        let mut sets = self.lock();
        let Some(passed) = sets.get_mut(&set) else {
            return Err(missing);
        };
        match fd {
            None => passed.clear(),
            Some(fd) => {
                let at = passed.iter().position(|one| one.fd.as_raw_fd() == fd);
                passed.remove(at.ok_or(missing)?);
            }
        }
        sets.retain(|_, passed| !passed.is_empty());
        Ok(())
    }

    /// Each set with the numbers of its descriptors and what is written beside them.
    pub fn list(&self) -> Vec<(u32, Vec<Row>)> {
        let row = |passed: &Passed| (passed.fd.as_raw_fd(), passed.opaque.clone());
        let sets = self.lock();
        sets.iter()
            .map(|(set, all)| (*set, all.iter().map(row).collect()))
            .collect()
    }

    /// Nobody is there any more who could say what becomes of the sets: what was never opened is
    /// closed.
    pub fn abandon(&self) {
        self.lock().retain(|_, passed| {
            passed.retain(|one| one.used);
            !passed.is_empty()
        });
    }

    /// Takes all sets away, for another program.
    pub fn take_all(&self) -> BTreeMap<u32, Vec<Passed>> {
        take(&mut *self.lock())
    }

    /// Adds what [`Self::take_all`] took, here or in another program.
    pub fn put_back(&self, sets: BTreeMap<u32, Vec<Passed>>) {
        let mut now = self.lock();
        for (set, passed) in sets {
            now.entry(set).or_default().extend(passed);
        }
    }

    fn duplicate(&self, set: &str, access: Access) -> io::Result<File> {
        let mut sets = self.lock();
        let found = set.parse().ok().and_then(|set: u32| sets.get_mut(&set));
        let passed = found.ok_or_else(|| {
            let text = format!("there is no set {set} of descriptors; make it with add-fd");
            io::Error::new(ErrorKind::NotFound, text)
        })?;
        for one in passed {
            let flags = OFlag::from_bits_retain(fcntl(&one.fd, FcntlArg::F_GETFL)?);
            if access.is_of(flags) {
                one.used = true;
                return one.fd.try_clone().map(File::from);
            }
        }
        let how = match (access.read, access.write) {
            (true, true) => "reading and writing",
            (false, true) => "writing alone",
            _ => "reading alone",
        };
        let direct = if access.direct { " with O_DIRECT" } else { "" };
        Err(io::Error::new(
            ErrorKind::PermissionDenied,
            format!("no descriptor of set {set} is open for {how}{direct}; add one with add-fd"),
        ))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Vec<Passed>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts what the command line names into the sets of this process. Must be called before it opens
/// anything.
pub fn adopt(passed: &[AddFd]) -> Result<(), HostError> {
    for AddFd { fd, set, opaque } in passed {
        let inherited = fd::duplicate(*fd).map_err(|e| {
            format!("-add-fd fd={fd}: {e}; let this process inherit the descriptor")
        })?;
        SETS.add(inherited, Some(*set), opaque.clone())?;
    }
    Ok(())
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// For reading.
    pub read: bool,
    /// For writing.
    pub write: bool,
    /// Past the page cache.
    pub direct: bool,
}

impl Access {
    /// For reading.
    pub const READ: Self = Self {
        read: true,
        write: false,
        direct: false,
    };
    /// For both.
    pub const READ_WRITE: Self = Self {
        write: true,
        ..Self::READ
    };

    /// Whether a descriptor with these flags was opened like this.
    fn is_of(self, flags: OFlag) -> bool {
        let access = match (self.read, self.write) {
            (true, true) => OFlag::O_RDWR,
            (false, true) => OFlag::O_WRONLY,
            (_, false) => OFlag::O_RDONLY,
        };
        flags & OFlag::O_ACCMODE == access && flags.contains(OFlag::O_DIRECT) == self.direct
    }
}

/// Opens `path` if it is that of a set; nothing if it is another.
pub fn open(path: &Path, access: Access) -> Option<io::Result<File>> {
    let set = path.to_str()?.strip_prefix(FOLDER)?;
    Some(SETS.duplicate(set, access))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;
    use std::io::Write;

    fn none() -> FdSets {
        FdSets(Mutex::default())
    }

    fn null(write: bool) -> OwnedFd {
        let mut options = OpenOptions::new();
        options.read(!write).write(write);
        options.open("/dev/null").unwrap().into()
    }

    #[test]
    fn a_set_gives_what_was_opened_as_is_asked() {
        let sets = none();
        let path = std::env::temp_dir().join(format!("baton-fdset-{}", std::process::id()));
        std::fs::write(&path, "a").unwrap();
        let mut options = OpenOptions::new();
        let both = options.read(true).write(true).open(&path).unwrap();
        let (set, number) = sets.add(both.into(), None, Some("both".into())).unwrap();
        assert_eq!(set, 0);
        let denied = sets.duplicate("0", Access::READ).unwrap_err();
        assert_eq!(denied.kind(), ErrorKind::PermissionDenied);
        let read = File::open(&path).unwrap();
        assert_eq!(sets.add(read.into(), Some(set), None).unwrap().0, set);
        assert!(sets.duplicate("0", Access::READ).is_ok());
        let mut file = sets.duplicate("0", Access::READ_WRITE).unwrap();
        // What was opened is another's from then on.
        sets.remove(set, Some(number)).unwrap();
        assert_eq!(sets.list()[0].1.len(), 1);
        file.write_all(b"bc").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"bc");
        sets.remove(set, None).unwrap();
        let gone = sets.duplicate("0", Access::READ).unwrap_err();
        assert_eq!(gone.kind(), ErrorKind::NotFound);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn paths_of_sets_that_are_not_there_are_errors_and_others_are_none() {
        assert!(open(Path::new("/dev/null"), Access::READ).is_none());
        for place in [
            "/dev/fdset/4000000000",
            "/dev/fdset/",
            "/dev/fdset/-1",
            "/dev/fdset/x",
        ] {
            let error = open(Path::new(place), Access::READ).unwrap().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound);
        }
    }

    #[test]
    fn what_is_not_there_is_refused_in_qemus_words_and_more_than_the_most_in_ours() {
        let sets = none();
        assert_eq!(
            sets.remove(77, Some(3)).unwrap_err(),
            "File descriptor named 'fdset-id:77, fd:3' not found"
        );
        let (set, number) = sets.add(null(false), Some(77), None).unwrap();
        assert_eq!(set, 77);
        assert!(sets.remove(77, Some(number + 1000)).is_err());
        let mut added = 1;
        while sets.add(null(false), Some(77), None).is_ok() {
            added += 1;
        }
        assert_eq!(added, MOST);
        sets.abandon();
        assert_eq!(sets.list(), []);
    }

    #[test]
    fn what_was_opened_outlives_who_passed_it() {
        let sets = none();
        let (set, _) = sets.add(null(true), None, None).unwrap();
        sets.add(null(false), Some(set), None).unwrap();
        let access = Access {
            read: false,
            write: true,
            direct: false,
        };
        sets.duplicate(&set.to_string(), access).unwrap();
        sets.abandon();
        assert_eq!(sets.list()[0].1.len(), 1);
        let all = sets.take_all();
        assert_eq!(sets.list(), []);
        sets.put_back(all);
        assert_eq!(sets.list()[0].0, set);
    }
}
