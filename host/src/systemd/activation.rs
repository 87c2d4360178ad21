//! Descriptors that the service manager has opened: sd_listen_fds(3).
// Descriptors are inherited by their numbers, and a variable is taken out of the environment.
#![allow(unsafe_code)]

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// The first of them; the others follow.
const FIRST: RawFd = 3;
/// What one without a name is called.
const UNNAMED: &str = "unknown";
/// More than a service has sockets.
const MOST: RawFd = 1024;

const COUNT: &str = "LISTEN_FDS";
const OWNER: &str = "LISTEN_PID";
const NAMES: &str = "LISTEN_FDNAMES";

/// Those that nobody has taken.
static INHERITED: Mutex<Vec<(String, OwnedFd)>> = Mutex::new(Vec::new());

/// Takes what the environment says into this process's keeping. Call it first of all, before there is
/// another thread, and once.
pub fn inherit() {
    let value = |name| std::env::var(name).ok();
    let said = (value(OWNER), value(COUNT), value(NAMES));
    for name in [COUNT, OWNER, NAMES] {
        // What this process starts shall not take them for its own.
        // SAFETY: there is no other thread yet.
        unsafe { std::env::remove_var(name) };
    }
    let (Some(owner), Some(count), names) = said else {
        return;
    };
    let mut inherited = INHERITED.lock().unwrap_or_else(PoisonError::into_inner);
    for (number, name) in listed(&owner, &count, names.as_deref(), std::process::id()) {
        // SAFETY: only for this call, which gives an error if it is not open.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        if fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).is_ok() {
            // SAFETY: it is open, was inherited for this process to have, and is listed once.
            inherited.push((name, unsafe { OwnedFd::from_raw_fd(number) }));
        }
    }
}

/// The descriptor of that name; the first, if there are several.
pub fn take(name: &str) -> Option<OwnedFd> {
    let mut inherited = INHERITED.lock().unwrap_or_else(PoisonError::into_inner);
    let at = inherited.iter().position(|(own, _)| own == name)?;
    Some(inherited.remove(at).1)
}

/// Whether there is a descriptor of that name.
pub fn holds(name: &str) -> bool {
    let inherited = INHERITED.lock().unwrap_or_else(PoisonError::into_inner);
    inherited.iter().any(|(own, _)| own == name)
}

/// A duplicate of the descriptor of that name, which stays where it is.
pub fn find(name: &str) -> Option<std::io::Result<OwnedFd>> {
    let inherited = INHERITED.lock().unwrap_or_else(PoisonError::into_inner);
    let (_, fd) = inherited.iter().find(|(own, _)| own == name)?;
    Some(fd.try_clone())
}

/// Numbers and names of what belongs to the process `own`.
fn listed(owner: &str, count: &str, names: Option<&str>, own: u32) -> Vec<(RawFd, String)> {
    let count = count.parse().ok().filter(|n| (0..=MOST).contains(n));
    let count = count.filter(|_| owner.parse() == Ok(own)).unwrap_or(0);
    let names = names.unwrap_or_default().split(':');
    let names = names.chain(std::iter::repeat(""));
    (FIRST..FIRST + count)
        .zip(names)
        .map(|(number, name)| match name {
            "" => (number, UNNAMED.to_owned()),
            name => (number, name.to_owned()),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_have_names_in_order_and_belong_to_one_process() {
        let names = |all: Vec<(RawFd, String)>| -> Vec<_> {
            all.into_iter()
                .map(|(n, name)| format!("{n}={name}"))
                .collect()
        };
        assert_eq!(
            names(listed("7", "2", Some("qmp:more:"), 7)),
            ["3=qmp", "4=more"]
        );
        assert_eq!(
            names(listed("7", "2", Some("qmp"), 7)),
            ["3=qmp", "4=unknown"]
        );
        assert_eq!(names(listed("7", "1", None, 7)), ["3=unknown"]);
        for (owner, count) in [
            ("8", "1"),
            ("x", "1"),
            ("7", "x"),
            ("7", "-1"),
            ("7", "99999"),
        ] {
            assert!(listed(owner, count, None, 7).is_empty(), "{owner} {count}");
        }
    }
}
