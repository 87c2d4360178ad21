//! Descriptors that a client has passed: QEMU's `monitor/fds.c`.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use super::error::QmpError;
use crate::fdset::SETS;

/// The most descriptors that a client can have given names to.
pub(super) const NAMES_MAX: usize = 64;

/// The descriptors that one client has given names to, with `getfd`. They are closed when it leaves.
#[derive(Debug, Clone, Default)]
pub struct NamedFds(Arc<Mutex<BTreeMap<String, OwnedFd>>>);

impl NamedFds {
    /// Gives a descriptor a name. One that had it is closed.
    pub fn insert(&self, name: String, fd: OwnedFd) -> Result<(), String> {
        if name.starts_with(|c: char| c.is_ascii_digit()) {
            return Err("Parameter 'fdname' expects a name not starting with a digit".into());
        }
        let mut all = self.lock();
        let full = all.len() >= NAMES_MAX;
        match all.entry(name) {
            Entry::Occupied(mut known) => drop(known.insert(fd)),
            Entry::Vacant(_) if full => {
                return Err(format!(
                    "A client has at most {NAMES_MAX} named file descriptors; close one with closefd"
                ));
            }
            Entry::Vacant(free) => {
                free.insert(fd);
            }
        }
        Ok(())
    }

    /// Takes the descriptor of this name, which nobody has from then on.
    pub fn take(&self, name: &str) -> Option<OwnedFd> {
        self.lock().remove(name)
    }

    /// All of them, for another program.
    pub(super) fn take_all(&self) -> BTreeMap<String, OwnedFd> {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, OwnedFd>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<BTreeMap<String, OwnedFd>> for NamedFds {
    fn from(all: BTreeMap<String, OwnedFd>) -> Self {
        Self(Arc::new(Mutex::new(all)))
    }
}

/// Who says a command: what it may name beside what every client may. Somebody who is no client of
/// QMP has nothing.
#[derive(Debug, Default)]
pub struct Caller {
    /// What it has given names to.
    pub named: NamedFds,
    /// The descriptor that came with the command.
    pub passed: Mutex<Option<OwnedFd>>,
}

impl Caller {
    /// `getfd`
    pub fn name_fd(&self, name: String) -> Result<Value, QmpError> {
        let fd = self.passed()?;
        self.named.insert(name, fd).map_err(QmpError::generic)?;
        Ok(json!({}))
    }

    /// `closefd`
    pub fn close_fd(&self, name: &str) -> Result<Value, QmpError> {
        match self.named.take(name) {
            Some(_) => Ok(json!({})),
            None => Err(QmpError::generic(format!(
                "File descriptor named '{name}' not found"
            ))),
        }
    }

    /// `add-fd`
    pub fn add_fd(&self, set: Option<i64>, opaque: Option<String>) -> Result<Value, QmpError> {
        let fd = self.passed()?;
        let set = set.map(set_number).transpose()?;
        let (set, fd) = SETS.add(fd, set, opaque).map_err(QmpError::generic)?;
        Ok(json!({ "fdset-id": set, "fd": fd }))
    }

    /// The descriptor that came with the command, in QEMU's words if there is none.
    fn passed(&self) -> Result<OwnedFd, QmpError> {
        let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        passed
            .take()
            .ok_or_else(|| QmpError::generic("No file descriptor supplied via SCM_RIGHTS"))
    }
}

/// `remove-fd`
pub fn remove_fd(set: i64, fd: Option<i64>) -> Result<Value, QmpError> {
    let missing = || QmpError::generic(format!("File descriptor named 'fdset-id:{set}' not found"));
    let number = u32::try_from(set).map_err(|_| missing())?;
    // No descriptor has a number that does not fit.
    let fd = fd.map(|fd| RawFd::try_from(fd).unwrap_or(-1));
    SETS.remove(number, fd).map_err(QmpError::generic)?;
    Ok(json!({}))
}

/// `query-fdsets`
pub fn query_fdsets() -> Value {
    let row = |(fd, opaque): (RawFd, Option<String>)| match opaque {
        Some(opaque) => json!({ "fd": fd, "opaque": opaque }),
        None => json!({ "fd": fd }),
    };
    let sets = SETS.list().into_iter().map(|(set, fds)| {
        let fds: Vec<Value> = fds.into_iter().map(row).collect();
        json!({ "fdset-id": set, "fds": fds })
    });
    sets.collect()
}

fn set_number(set: i64) -> Result<u32, QmpError> {
    u32::try_from(set).map_err(|_| {
        QmpError::generic(match set {
            ..0 => "Parameter 'fdset-id' expects a non-negative value".to_owned(),
            _ => format!("Parameter 'fdset-id' expects a value up to {}", u32::MAX),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn null() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn names_are_bounded_and_the_same_name_replaces() {
        let named = NamedFds::default();
        for at in 0..NAMES_MAX {
            named.insert(format!("n{at}"), null()).unwrap();
        }
        assert!(named.insert("more".into(), null()).is_err());
        named.insert("n0".into(), null()).unwrap();
        assert!(named.take("n0").is_some());
        assert!(named.take("n0").is_none());
        named.insert("more".into(), null()).unwrap();
        let digit = named.insert("1st".into(), null()).unwrap_err();
        assert_eq!(
            digit,
            "Parameter 'fdname' expects a name not starting with a digit"
        );
    }
}
