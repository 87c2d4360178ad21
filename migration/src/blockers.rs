//! Who objects to a migration, per mode.
//!
//! Blockers come from two places: those the VMM knows of, which stay here until they are removed,
//! and those the devices answer when they are asked, which the caller gives as an iterator.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{Blocker, Mode};

/// A blocker and who set it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedBlocker {
    /// The device's id; empty for the machine itself.
    pub owner: String,
    /// What blocks, and what helps.
    pub blocker: Blocker,
}

impl fmt::Display for OwnedBlocker {
    /// One line: reason and remedy. A blocker of the machine itself begins with its reason, since
    /// management software matches QEMU's texts.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.owner.is_empty() {
            write!(f, "device '{}': ", self.owner)?;
        }
        f.write_str(&self.blocker.reason)?;
        if !self.blocker.remedy.is_empty() {
            write!(f, " ({})", self.blocker.remedy.trim_end_matches('.'))?;
        }
        Ok(())
    }
}

/// Why a migration cannot begin: every reason at once.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", blocked_text(.mode, .reasons))]
pub struct Blocked {
    /// The mode that was asked for.
    pub mode: Mode,
    /// At least one reason.
    pub reasons: Vec<OwnedBlocker>,
}

fn blocked_text(mode: &Mode, reasons: &[OwnedBlocker]) -> String {
    match reasons {
        [only] => only.to_string(),
        _ => {
            let list = reasons
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("; ");
            format!("{} reasons block {mode}: {list}", reasons.len())
        }
    }
}

/// A blocker cannot be added while a migration is under way (QEMU's EBUSY and its text).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "disallowing migration blocker (migration/snapshot in progress) for: {0}; wait for the \
     migration to end or cancel it"
)]
pub struct BlockerBusy(pub Box<OwnedBlocker>);

#[derive(Debug, Default)]
struct Inner {
    blockers: Vec<OwnedBlocker>,
    /// Migrations under way: 0 or 1.
    frozen: usize,
}

/// The blockers the VMM itself keeps. Clones share them; any thread may use one.
#[derive(Debug, Clone, Default)]
pub struct Blockers {
    inner: Arc<Mutex<Inner>>,
}

impl Blockers {
    /// No blockers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a blocker, or replaces the one of the same owner and id.
    pub fn add(&self, owner: &str, blocker: Blocker) -> Result<(), BlockerBusy> {
        let added = OwnedBlocker {
            owner: owner.to_owned(),
            blocker,
        };
        let mut inner = self.lock();
        if inner.frozen > 0 {
            return Err(BlockerBusy(Box::new(added)));
        }
        inner
            .blockers
            .retain(|b| b.owner != owner || b.blocker.id != added.blocker.id);
        inner.blockers.push(added);
        Ok(())
    }

    /// Removes a blocker; one that is not there is no error.
    pub fn remove(&self, owner: &str, id: &str) {
        self.lock()
            .blockers
            .retain(|b| b.owner != owner || b.blocker.id != id);
    }

    /// What blocks `mode` now: the blockers kept here, then those of `devices`.
    pub fn collect(
        &self,
        mode: Mode,
        devices: impl IntoIterator<Item = OwnedBlocker>,
    ) -> Vec<OwnedBlocker> {
        let kept = self.lock().blockers.clone();
        kept.into_iter()
            .chain(devices)
            .filter(|b| b.blocker.modes.contains(&mode))
            .collect()
    }

    /// The texts for `blocked-reasons` of `query-migrate`.
    pub fn reasons(
        &self,
        mode: Mode,
        devices: impl IntoIterator<Item = OwnedBlocker>,
    ) -> Vec<String> {
        self.collect(mode, devices)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    /// Refuses a migration in `mode` that something blocks.
    pub fn check(
        &self,
        mode: Mode,
        devices: impl IntoIterator<Item = OwnedBlocker>,
    ) -> Result<(), Blocked> {
        let reasons = self.collect(mode, devices);
        if reasons.is_empty() {
            Ok(())
        } else {
            Err(Blocked { mode, reasons })
        }
    }

    /// Refuses additions until the guard is dropped: what was checked must stay true.
    pub fn freeze(&self) -> Frozen {
        self.lock().frozen += 1;
        Frozen {
            blockers: self.clone(),
        }
    }

    /// The list stays whole even if a thread panicked while it held the lock.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// While it lives, [`Blockers::add`] refuses.
#[derive(Debug)]
#[must_use = "additions are allowed again when it is dropped"]
pub struct Frozen {
    blockers: Blockers,
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.blockers.lock().frozen -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocker(id: &str, modes: &[Mode]) -> Blocker {
        Blocker {
            id: id.into(),
            reason: format!("{id} cannot be moved"),
            remedy: format!("Remove {id}."),
            modes: modes.to_vec(),
            unless_suspended: false,
        }
    }

    #[test]
    fn a_blocker_blocks_only_its_modes() {
        let blockers = Blockers::new();
        blockers.add("", blocker("tpm", &[Mode::Normal])).unwrap();
        blockers.check(Mode::CprTransfer, []).unwrap();
        blockers.check(Mode::Normal, []).unwrap_err();
    }

    #[test]
    fn one_reason_is_told_as_it_is_so_that_texts_of_qemu_match() {
        let blockers = Blockers::new();
        blockers
            .add(
                "",
                Blocker {
                    remedy: String::new(),
                    ..blocker("a", &Mode::ALL)
                },
            )
            .unwrap();
        let text = blockers.check(Mode::CprExec, []).unwrap_err().to_string();
        assert_eq!(text, "a cannot be moved");
    }

    #[test]
    fn all_reasons_are_told_at_once_with_owner_and_remedy() {
        let blockers = Blockers::new();
        blockers.add("", blocker("a", &Mode::ALL)).unwrap();
        let device = OwnedBlocker {
            owner: "disk0".into(),
            blocker: blocker("b", &Mode::ALL),
        };
        let text = blockers
            .check(Mode::CprTransfer, [device.clone()])
            .unwrap_err()
            .to_string();
        assert_eq!(
            text,
            "2 reasons block cpr-transfer: a cannot be moved (Remove a); \
             device 'disk0': b cannot be moved (Remove b)"
        );
        assert_eq!(blockers.reasons(Mode::CprTransfer, [device]).len(), 2);
    }

    #[test]
    fn the_same_id_of_the_same_owner_replaces() {
        let blockers = Blockers::new();
        blockers.add("x", blocker("a", &[Mode::Normal])).unwrap();
        blockers.add("x", blocker("a", &[Mode::CprExec])).unwrap();
        blockers.check(Mode::Normal, []).unwrap();
        assert_eq!(blockers.collect(Mode::CprExec, []).len(), 1);
        blockers.remove("x", "a");
        blockers.check(Mode::CprExec, []).unwrap();
    }

    #[test]
    fn no_blocker_is_added_while_a_migration_is_under_way() {
        let blockers = Blockers::new();
        let frozen = blockers.freeze();
        let error = blockers
            .add("x", blocker("a", &Mode::ALL))
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with(
                "disallowing migration blocker (migration/snapshot in progress) for: device 'x': a"
            ),
            "{error}"
        );
        drop(frozen);
        blockers.add("x", blocker("a", &Mode::ALL)).unwrap();
    }
}
