//! The descriptors a target received from its source: each is taken by its owner, once.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

/// Longest owner or name of a handed-over descriptor, in bytes.
pub const MAX_FD_NAME: usize = 255;

/// Whose descriptor it is and which.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FdKey {
    /// The device's path or id; the VMM's own parts use their own names, such as `memory`.
    pub owner: String,
    /// The name the owner declared.
    pub name: String,
    /// Tells several of one name apart.
    pub instance: u32,
}

impl FdKey {
    /// The key of `name`/`instance` of `owner`.
    pub fn new(owner: &str, name: &str, instance: u32) -> Self {
        Self {
            owner: owner.to_owned(),
            name: name.to_owned(),
            instance,
        }
    }
}

impl fmt::Display for FdKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}' {} of '{}'", self.name, self.instance, self.owner)
    }
}

/// What can go wrong with a descriptor table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FdError {
    /// The same key came twice.
    #[error("Descriptor {0} was handed over twice; the source must give each its own instance")]
    Duplicate(FdKey),
    /// An owner or name is empty or too long.
    #[error("Descriptor {0} needs an owner and a name of 1 to {MAX_FD_NAME} bytes")]
    BadName(FdKey),
    /// The source did not hand it over.
    #[error(
        "cannot find saved value for fd {0}; give the target the same devices and options as the \
         source"
    )]
    NotFound(FdKey),
    /// It was taken before.
    #[error("Descriptor {0} was taken already; two devices of the target have the same id")]
    AlreadyTaken(FdKey),
    /// Some were never taken.
    #[error(
        "Nobody took these descriptors of the source: {}; give the target the same devices and \
         options as the source",
        list(.0)
    )]
    Unclaimed(Vec<FdKey>),
}

fn list(keys: &[FdKey]) -> String {
    keys.iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

/// Descriptors by owner, name and instance.
///
/// Any thread may use it; devices take theirs while they are realized. What is left is closed when
/// the table is dropped.
#[derive(Debug, Default)]
pub struct FdTable {
    /// A taken descriptor leaves `None`, so that taking it twice can be told from never having it.
    entries: Mutex<BTreeMap<FdKey, Option<OwnedFd>>>,
}

impl FdTable {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a descriptor; a key that was ever there is refused and `fd` closed.
    pub fn insert(&self, key: FdKey, fd: OwnedFd) -> Result<(), FdError> {
        if !valid(&key.owner) || !valid(&key.name) {
            return Err(FdError::BadName(key));
        }
        let mut entries = self.entries();
        if entries.contains_key(&key) {
            return Err(FdError::Duplicate(key));
        }
        entries.insert(key, Some(fd));
        Ok(())
    }

    /// Takes a descriptor out, at most once.
    pub fn take(&self, owner: &str, name: &str, instance: u32) -> Result<OwnedFd, FdError> {
        let key = FdKey::new(owner, name, instance);
        match self.entries().get_mut(&key) {
            None => Err(FdError::NotFound(key)),
            Some(slot) => slot.take().ok_or(FdError::AlreadyTaken(key)),
        }
    }

    /// Whether a descriptor came and is still there, for owners whose descriptor is optional.
    pub fn has(&self, owner: &str, name: &str, instance: u32) -> bool {
        matches!(
            self.entries().get(&FdKey::new(owner, name, instance)),
            Some(Some(_))
        )
    }

    /// The descriptors still there, in order.
    pub fn unclaimed(&self) -> Vec<FdKey> {
        let entries = self.entries();
        entries
            .iter()
            .filter(|(_, fd)| fd.is_some())
            .map(|(key, _)| key.clone())
            .collect()
    }

    /// An error that names every descriptor still there, if any is.
    pub fn all_claimed(&self) -> Result<(), FdError> {
        let left = self.unclaimed();
        if left.is_empty() {
            Ok(())
        } else {
            Err(FdError::Unclaimed(left))
        }
    }

    /// How many are still there.
    pub fn len(&self) -> usize {
        self.entries().values().flatten().count()
    }

    /// Whether none is left.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The map stays whole even if a thread panicked while it held the lock.
    fn entries(&self) -> MutexGuard<'_, BTreeMap<FdKey, Option<OwnedFd>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a text can be an owner or a name.
pub(crate) fn valid(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_FD_NAME
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn fd() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn a_descriptor_is_taken_at_most_once() {
        let table = FdTable::new();
        table.insert(FdKey::new("disk0", "image", 0), fd()).unwrap();
        assert!(table.has("disk0", "image", 0));
        table.take("disk0", "image", 0).unwrap();
        assert!(!table.has("disk0", "image", 0));
        assert_eq!(
            table.take("disk0", "image", 0).unwrap_err(),
            FdError::AlreadyTaken(FdKey::new("disk0", "image", 0))
        );
    }

    #[test]
    fn a_descriptor_that_never_came_is_named() {
        let text = FdTable::new()
            .take("net0", "tap", 3)
            .unwrap_err()
            .to_string();
        assert!(
            text.starts_with("cannot find saved value for fd 'tap' 3 of 'net0'"),
            "{text}"
        );
    }

    #[test]
    fn a_duplicate_is_refused_even_after_it_was_taken() {
        let table = FdTable::new();
        let key = FdKey::new("disk0", "image", 0);
        table.insert(key.clone(), fd()).unwrap();
        assert_eq!(
            table.insert(key.clone(), fd()),
            Err(FdError::Duplicate(key.clone()))
        );
        table.take("disk0", "image", 0).unwrap();
        assert_eq!(
            table.insert(key.clone(), fd()),
            Err(FdError::Duplicate(key))
        );
    }

    #[test]
    fn instances_and_owners_do_not_mix() {
        let table = FdTable::new();
        for (owner, instance) in [("a", 0), ("a", 1), ("b", 0)] {
            table
                .insert(FdKey::new(owner, "fd", instance), fd())
                .unwrap();
        }
        table.take("a", "fd", 1).unwrap();
        assert_eq!(
            table.unclaimed(),
            [FdKey::new("a", "fd", 0), FdKey::new("b", "fd", 0)]
        );
        assert_eq!(table.len(), 2);
    }

    #[test]
    fn what_nobody_took_is_named_in_the_error() {
        let table = FdTable::new();
        table.all_claimed().unwrap();
        table.insert(FdKey::new("disk0", "image", 0), fd()).unwrap();
        let text = table.all_claimed().unwrap_err().to_string();
        assert!(text.contains("'image' 0 of 'disk0'"), "{text}");
    }

    #[test]
    fn a_name_that_is_empty_or_too_long_is_refused() {
        let table = FdTable::new();
        let long = "x".repeat(MAX_FD_NAME + 1);
        for key in [
            FdKey::new("", "a", 0),
            FdKey::new("a", "", 0),
            FdKey::new(&long, "a", 0),
        ] {
            assert_eq!(table.insert(key.clone(), fd()), Err(FdError::BadName(key)));
        }
        assert!(table.is_empty());
    }
}
