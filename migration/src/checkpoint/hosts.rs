//! What a checkpoint asks of the machine and of the place it is kept in.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::Kept;
use crate::HostError;
use crate::fingerprint::MachineFingerprint;
use crate::handover::SourceHost;
use crate::status::Tracker;
use crate::stream::StateImage;

/// The machine whose state is to be kept.
///
/// Of [`SourceHost`] it uses blockers, fingerprint, events, stop, save, resume and postmigrate.
pub trait CheckpointHost: SourceHost {
    /// Does ahead of the blackout what would be slow in it, such as writing back disks. The guest
    /// runs.
    fn prepare(&mut self) -> Result<(), HostError>;

    /// The RAM of the stopped guest, if it is to be kept with the state; nothing if it stays where
    /// it is.
    fn ram(&mut self) -> Result<Option<Arc<dyn RamSource>>, HostError>;
}

/// The RAM of a stopped guest. Nobody writes to it while somebody looks at it.
pub trait RamSource: Send + Sync {
    /// All of it in bytes, holes too; a multiple of the page size.
    fn size(&self) -> u64;

    /// The parts that may hold something else than zeros: whole pages, in ascending order.
    fn parts(&self) -> Result<Vec<RamPart<'_>>, HostError>;
}

/// A part of a guest's RAM.
#[derive(Debug, Clone, Copy)]
pub struct RamPart<'a> {
    /// Where it begins in RAM, which is counted without the gaps in the guest's address space.
    pub offset: u64,
    /// What it holds.
    pub bytes: &'a [u8],
}

/// The RAM of a guest that is being restored; all zero at first. Several threads may write to
/// different parts of it.
pub trait RamSink: Sync {
    /// Puts whole pages at an offset, which is counted as that of a [`RamPart`].
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), HostError>;
}

/// The machine a kept guest is restored into. All calls come from one thread, in the order of the
/// methods here.
pub trait RestoreHost {
    /// The machine as the command line asks for it, for the kept guest of `source`; compared with
    /// that.
    fn fingerprint(&mut self, source: &MachineFingerprint)
    -> Result<MachineFingerprint, HostError>;

    /// Whether a guest whose RAM was left in place goes on in that very RAM here.
    fn goes_on_in_place(&self) -> bool;

    /// Builds the machine, with the RAM of `kept`. Nothing runs yet.
    fn build(&mut self, kept: &mut Kept, cancel: Cancel<'_>) -> Result<(), HostError>;

    /// Takes every section out of `state` and loads it; one left over is an error.
    fn load(&mut self, state: &mut StateImage) -> Result<(), HostError>;

    /// Lets the guest run if it ran when it was kept.
    fn start(&mut self) -> Result<(), HostError>;

    /// The guest does not come: lets go of everything.
    fn abandon(&mut self);
}

/// Where the state is kept.
///
/// All calls come from one thread at a time: `open`, `write`, `finish`, each once, and `discard`
/// after the first of them that fails or is not reached.
pub trait Keeper {
    /// Opens or makes the place and checks that it can keep anything. The guest runs; an error is
    /// that of the command.
    fn open(&mut self) -> Result<(), HostError>;

    /// Writes `state` and `ram` so that they outlast what the mode promises them to outlast, and
    /// nobody takes them for whole yet. The guest stands still. An error if `cancel` is asked for
    /// in the midst of it is as good as any.
    fn write(
        &mut self,
        state: &[u8],
        ram: Option<&dyn RamSource>,
        cancel: Cancel<'_>,
    ) -> Result<(), HostError>;

    /// The last step: from its success on the kept state is the guest. It need not heed `cancel`
    /// unless it might wait for ever.
    fn finish(&mut self, cancel: Cancel<'_>) -> Result<(), HostError>;

    /// The guest goes on here: nothing that looks whole may be left.
    fn discard(&mut self);
}

/// Whether an operator has asked to cancel.
#[derive(Debug, Clone, Copy)]
pub struct Cancel<'a>(&'a Tracker);

impl<'a> Cancel<'a> {
    pub(super) fn of(tracker: &'a Tracker) -> Self {
        Self(tracker)
    }

    /// Whether it was asked for.
    pub fn requested(self) -> bool {
        self.0.cancelled()
    }

    /// Readable once it was asked for.
    pub fn fd(self) -> BorrowedFd<'a> {
        self.0.cancel_fd()
    }
}
