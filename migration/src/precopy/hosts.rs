//! What a migration in mode normal asks of the two machines.
//!
//! All calls of one migration come from one thread, one at a time.

use std::ops::Range;
use std::sync::Arc;

use super::{Limits, PageSet};
use crate::HostError;
use crate::checkpoint::RamSink;
use crate::fingerprint::MachineFingerprint;
use crate::handover::SourceHost;
use crate::stream::StateImage;

/// The machine whose guest is to move.
///
/// Of [`SourceHost`] it uses blockers, fingerprint, events, settle, stop, save, resume and
/// postmigrate.
pub trait PrecopyHost: SourceHost {
    /// What the operator allows now; asked again and again.
    fn limits(&mut self) -> Limits;

    /// What tells the file behind RAM from all others, if another process could open the same. The
    /// target must not use that file: source and target have RAM of their own.
    fn ram_file(&mut self) -> Option<String>;

    /// Does ahead of the blackout what would be slow in it, such as writing back disks. The guest
    /// runs.
    fn prepare(&mut self) -> Result<(), HostError>;

    /// From here on every page that is written is noted, by whomever. After an error some may be
    /// noted; [`Self::forget`] follows.
    fn track(&mut self) -> Result<Arc<dyn LiveRam>, HostError>;

    /// Adds to `pages` those written since [`Self::track`] or since this was called last, which are
    /// not noted any more.
    fn written(&mut self, pages: &mut PageSet) -> Result<(), HostError>;

    /// The guest stays: nothing needs to be noted any more. It comes before
    /// [`SourceHost::resume`].
    fn forget(&mut self);
}

/// The RAM of a guest that runs: it may change while it is read.
pub trait LiveRam: Send + Sync {
    /// All of it in bytes, holes too; a multiple of the page size.
    fn size(&self) -> u64;

    /// Where there may be something else than zeros: whole pages, in ascending order. Offsets count
    /// without the gaps in the guest's address space.
    fn filled(&self) -> Result<Vec<Range<u64>>, HostError>;

    /// Reads whole pages. Of one that is written meanwhile some bytes are old and some new: it was
    /// noted as written then.
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), HostError>;
}

/// Why a target did not start.
#[derive(Debug, thiserror::Error)]
#[error("The guest cannot be started")]
pub struct StartFailure {
    /// Whether the guest may have run, if only for a moment. If not, it can go on in the source.
    pub ran: bool,
    /// Why.
    #[source]
    pub error: HostError,
}

/// The machine the guest moves to.
pub trait IncomingHost {
    /// The machine as the command line asks for it, for the guest of `source`; compared with that
    /// before [`Self::build`].
    fn fingerprint(&mut self, source: &MachineFingerprint)
    -> Result<MachineFingerprint, HostError>;

    /// Builds the machine for the guest of `source`, with RAM that is all zero, while the guest runs in the source. What both
    /// use, such as disks, may be opened and must not be touched; `ram_file` is what
    /// [`PrecopyHost::ram_file`] said, and its contents are the source's alone.
    fn build(
        &mut self,
        source: &MachineFingerprint,
        ram_file: Option<&str>,
    ) -> Result<Arc<dyn RamSink + Send>, HostError>;

    /// Takes every section out of `state` and loads it; one left over is an error. The source's
    /// guest is stopped.
    fn load(&mut self, state: &mut StateImage) -> Result<(), HostError>;

    /// Lets the guest run if it ran in the source. It is this process's from here on, unless the
    /// error says that it never ran.
    fn start(&mut self) -> Result<(), StartFailure>;

    /// The guest does not run here and never will: lets go of everything.
    fn abandon(&mut self, reason: &str);
}
