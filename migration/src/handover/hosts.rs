//! What the handover asks of the two machines: the VMM implements these, and so do the tests' fakes.
//!
//! All calls of one handover come from one thread, one at a time, in the order of the methods here.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::blockers::OwnedBlocker;
use crate::claim::{Reclaimed, SourceReclaimed, Started, TargetClaim};
use crate::fds::{FdKey, FdTable};
use crate::fingerprint::MachineFingerprint;
use crate::stream::{SectionWriter, StateImage};
use crate::{HostError, MigrationEvent, Mode};

/// A descriptor that goes to the target.
#[derive(Debug)]
pub struct OutgoingFd {
    /// Whose it is and which.
    pub key: FdKey,
    /// A duplicate of it, closed here once it is sent.
    pub fd: OwnedFd,
}

/// The machine whose guest is to move.
pub trait SourceHost {
    /// What blocks `mode` now among the devices; what the machine itself knows of is in
    /// [`crate::blockers::Blockers`].
    fn device_blockers(&mut self, mode: Mode) -> Vec<OwnedBlocker>;

    /// The machine as it is.
    fn fingerprint(&mut self) -> MachineFingerprint;

    /// Tells the devices. An error of [`MigrationEvent::Setup`] ends the migration before it
    /// begins; an error of another event is only logged.
    fn notify(&mut self, event: MigrationEvent) -> Result<(), HostError>;

    /// Every descriptor the target needs. The guest runs.
    fn fds(&mut self) -> Result<Vec<OutgoingFd>, HostError>;

    /// Writes sections as they are now, while the guest runs: the target uses them to warm up and
    /// never as the guest's state. None need be written.
    fn preview(&mut self, out: &mut SectionWriter<'_>) -> Result<(), HostError>;

    /// The guest is about to stop, and runs meanwhile: whatever can be brought to rest before is.
    /// [`Self::stop_and_quiesce`] follows at once.
    fn settle(&mut self);

    /// Stops the vCPUs and quiesces the devices: the blackout begins. After an error the machine
    /// may be half stopped; [`Self::resume`] follows.
    fn stop_and_quiesce(&mut self) -> Result<(), HostError>;

    /// Writes the state of the stopped machine, which stays as it is: the guest may still be
    /// resumed from it.
    fn save(&mut self, out: &mut SectionWriter<'_>) -> Result<(), HostError>;

    /// Goes on with the guest as before [`Self::stop_and_quiesce`]; `proof` that no other process
    /// ever will is consumed.
    fn resume(&mut self, proof: Reclaimed);

    /// The guest belongs to the target: enter runstate `postmigrate`, drop RAM, descriptors and
    /// locks, and refuse `cont`. [`MigrationEvent::Done`] was notified before.
    fn postmigrate(&mut self);
}

/// Why a target did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The source has taken the guest back.
    #[error(transparent)]
    Reclaimed(#[from] SourceReclaimed),
    /// The machine cannot start.
    #[error(transparent)]
    Host(HostError),
}

/// The machine the guest moves to.
pub trait TargetHost {
    /// The machine as the command line asks for it, for the guest of `source`; compared with that
    /// before [`Self::prepare`].
    fn fingerprint(&mut self, source: &MachineFingerprint)
    -> Result<MachineFingerprint, HostError>;

    /// Builds the machine on the source's descriptors and warms it up with the `preview`, while the
    /// guest runs in the source: nothing shared may be touched. Each descriptor is taken from `fds`
    /// by its owner; those still there when the main channel opens are an error.
    fn prepare(&mut self, fds: &Arc<FdTable>, preview: StateImage) -> Result<(), HostError>;

    /// Takes every section out of `state` and loads it; one left over is an error. The source's
    /// guest is stopped from before this call.
    fn load(&mut self, state: &mut StateImage) -> Result<(), HostError>;

    /// Does all that must be done before the first vCPU enters the guest, then claims it with
    /// [`TargetClaim::start`], and enters it (or not, if it was paused in the source: it is this
    /// process's guest all the same). The claim comes last: after it the source does not resume.
    fn start(&mut self, claim: TargetClaim) -> Result<Started, StartError>;

    /// The guest does not run here and never will: let go of everything shared. The process is
    /// expected to end with `reason`, which the source was told if it still listens.
    fn abandon(&mut self, reason: &str);
}
