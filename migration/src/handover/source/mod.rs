//! The source's side of a handover.

mod driver;
mod machine;
mod offer;

pub(crate) use driver::tell;

use std::path::PathBuf;
use std::sync::Arc;

use super::link::Link;
use super::protocol::{self, Token};
use super::{HandoverError, SourceHost, Timeouts, advance};
use crate::address::TransferChannels;
use crate::blockers::{Blockers, Frozen};
use crate::channel::{Deadline, Endpoint, ResolveFd};
use crate::claim::{Reclaimed, SourceClaim};
use crate::fingerprint::MachineFingerprint;
use crate::status::{MigrationInProgress, MigrationStatus, Tracker};
use crate::{MigrationEvent, Mode, error_chain};

/// What `migrate` was asked to do, and with what.
pub struct SourceOptions<'a> {
    /// The mode that is set.
    pub mode: Mode,
    /// Where to.
    pub channels: TransferChannels,
    /// This program and its version, for people; at most 255 bytes.
    pub producer: String,
    /// Status and cancellation.
    pub tracker: Arc<Tracker>,
    /// What the machine itself knows to block; it takes no additions during the handover.
    pub blockers: &'a Blockers,
    /// How long to wait.
    pub timeouts: Timeouts,
    /// Whether to wait for [`Tracker::proceed`] before the guest is stopped (capability
    /// `pause-before-switchover`).
    pub pause: bool,
    /// Resolves an `fd` address of the main channel.
    pub resolve_fd: ResolveFd<'a>,
}

/// How an outgoing handover ended. The host was told already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceOutcome {
    /// The guest is the target's.
    Completed,
    /// The guest goes on here, as an operator wanted.
    Cancelled,
    /// The guest goes on here.
    Failed {
        /// Why.
        reason: String,
    },
    /// The target claimed the guest and then failed or hung up: it is not resumed here.
    Lost {
        /// What is known.
        reason: String,
    },
}

/// A handover that has begun: the target is connected, nothing was sent, the guest runs.
#[must_use = "the migration stays in status `setup` until `run` has ended"]
pub struct SourceHandover {
    link: Link,
    claim: SourceClaim,
    /// Taken when it is connected.
    main: Option<Endpoint>,
    token: Token,
    producer: String,
    fingerprint: MachineFingerprint,
    tracker: Arc<Tracker>,
    timeouts: Timeouts,
    pause: bool,
    /// The state, assembled before it is sent.
    state: Vec<u8>,
    /// The right to resume the guest, once it was taken back.
    reclaimed: Option<Reclaimed>,
    _frozen: Frozen,
}

impl SourceHandover {
    /// The part of `migrate` whose errors are the command's: checks, tells the devices, connects the
    /// cpr channel. The guest runs meanwhile, and goes on running after an error.
    pub fn begin(
        options: SourceOptions<'_>,
        host: &mut (impl SourceHost + ?Sized),
    ) -> Result<Self, HandoverError> {
        let SourceOptions {
            mode,
            channels,
            producer,
            tracker,
            blockers,
            timeouts,
            pause,
            resolve_fd,
        } = options;
        if mode != Mode::CprTransfer {
            return Err(HandoverError::Mode(mode));
        }
        if tracker.status().in_progress() {
            return Err(MigrationInProgress.into());
        }
        let frozen = blockers.freeze();
        blockers.check(mode, host.device_blockers(mode))?;
        let main = Endpoint::resolve(&channels.main, resolve_fd)?;
        tracker.begin()?;

        match connect(host, channels.cpr, timeouts) {
            Ok((link, claim, token)) => Ok(Self {
                link,
                claim,
                main: Some(main),
                token,
                producer,
                fingerprint: host.fingerprint(),
                tracker,
                timeouts,
                pause,
                state: Vec::new(),
                reclaimed: None,
                _frozen: frozen,
            }),
            Err(error) => {
                driver::tell(host, MigrationEvent::Failed);
                tracker.note_error(&error_chain(&error));
                advance(&tracker, MigrationStatus::Failed);
                Err(error)
            }
        }
    }
}

fn connect(
    host: &mut (impl SourceHost + ?Sized),
    path: PathBuf,
    timeouts: Timeouts,
) -> Result<(Link, SourceClaim, Token), HandoverError> {
    host.notify(MigrationEvent::Setup)
        .map_err(HandoverError::Setup)?;
    let claim = SourceClaim::create()?;
    let token = offer::random_token().map_err(|error| HandoverError::Setup(error.into()))?;
    let deadline = Deadline::after(timeouts.connect);
    let cpr = Endpoint::Unix(path).connect("cpr", protocol::bounds, deadline)?;
    Ok((Link::new(cpr), claim, token))
}
