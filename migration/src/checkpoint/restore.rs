//! Loading a kept guest: the order of events.

use std::time::Instant;

use super::{Cancel, Kept, Place, RamLayout, RestoreHost};
use crate::claim::Blackout;
use crate::fingerprint::MachineFingerprint;
use crate::handover::advance;
use crate::status::{MigrationInProgress, MigrationStatus, Tracker};
use crate::{HostError, caught, error_chain, fault};

/// How it ended. The host was told already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RestoreOutcome {
    /// The guest is here.
    Restored,
    /// It is not, as an operator wanted. It can be loaded again.
    Cancelled,
    /// It is not. What was kept is as it was.
    Failed {
        /// Why.
        reason: String,
    },
}

/// Loads the guest that is kept in `place`. Call it on a thread that may wait.
pub fn restore(
    place: Place,
    tracker: &Tracker,
    host: &mut (impl RestoreHost + ?Sized),
) -> Result<RestoreOutcome, MigrationInProgress> {
    tracker.begin()?;
    let restored = caught(|| load(place, tracker, &mut *host));
    Ok(match restored {
        Ok(blackout) => {
            tracker.note_blackout(Some(blackout));
            advance(tracker, MigrationStatus::Completed);
            RestoreOutcome::Restored
        }
        Err(error) => {
            host.abandon();
            if tracker.cancelled() {
                advance(tracker, MigrationStatus::Cancelling);
                advance(tracker, MigrationStatus::Cancelled);
                return Ok(RestoreOutcome::Cancelled);
            }
            let reason = error_chain(&*error);
            tracker.note_error(&reason);
            advance(tracker, MigrationStatus::Failed);
            RestoreOutcome::Failed { reason }
        }
    })
}

/// The times are those of this process: when the guest stopped is not known here.
fn load(
    place: Place,
    tracker: &Tracker,
    host: &mut (impl RestoreHost + ?Sized),
) -> Result<Blackout, HostError> {
    let cancel = Cancel::of(tracker);
    let began = Instant::now();
    let mut kept = Kept::open(place, cancel)?;
    let mut state = kept.state(cancel)?;
    let fingerprint = host.fingerprint(&state.header().fingerprint)?;
    check(&kept, &fingerprint, &state.header().fingerprint)?;
    let in_place = kept.header().ram == RamLayout::InPlace && host.goes_on_in_place();
    if in_place {
        kept.untaken()?;
    }
    fault::point("restore-build")?;
    host.build(&mut kept, cancel)?;
    kept.finish(cancel)?;
    let received = Instant::now();
    advance(tracker, MigrationStatus::Active);
    fault::point("restore-load")?;
    host.load(&mut state)?;
    let loaded = Instant::now();
    if cancel.requested() {
        return Err("it was cancelled".into());
    }
    fault::point("restore-start")?;
    if in_place {
        kept.take()?;
    }
    fault::point("restore-taken")?;
    host.start()?;
    let started = Instant::now();
    let us = |from: Instant, to: Instant| {
        u64::try_from(to.duration_since(from).as_micros()).unwrap_or(u64::MAX)
    };
    Ok(Blackout {
        total_us: us(began, started),
        transfer_us: us(began, received),
        load_us: us(received, loaded),
        start_us: us(loaded, started),
        ..Blackout::default()
    })
}

/// Refuses the guest of another machine.
fn check(
    kept: &Kept,
    ours: &MachineFingerprint,
    theirs: &MachineFingerprint,
) -> Result<(), HostError> {
    let mismatches = ours.compare(theirs);
    if !mismatches.is_empty() {
        let list: Vec<String> = mismatches.iter().map(ToString::to_string).collect();
        let name = kept.name();
        let list = list.join("; ");
        return Err(format!("The machine here is not the one kept in '{name}': {list}").into());
    }
    let ram: u64 = theirs.ram.iter().map(|region| region.size).sum();
    match kept.header().ram {
        RamLayout::Fixed { size, .. } | RamLayout::Chunks { size } if size != ram => Err(format!(
            "'{}' has {size} bytes of RAM for a machine of {ram}; it is damaged",
            kept.name()
        )
        .into()),
        _ => Ok(()),
    }
}
