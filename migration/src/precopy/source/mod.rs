//! The source's side.

mod driver;
mod machine;
mod rounds;

use std::sync::Arc;
use std::time::Instant;

use super::link::Link;
use super::protocol;
use super::{BeginError, PrecopyHost};
use crate::blockers::{Blockers, Frozen};
use crate::channel::{Deadline, Endpoint};
use crate::fingerprint::MachineFingerprint;
use crate::handover::{Timeouts, advance, tell};
use crate::status::{MigrationInProgress, MigrationStatus, Tracker};
use crate::{MigrationEvent, Mode, error_chain};
use rounds::Rounds;

/// What `migrate` was asked to do, and with what.
pub struct PrecopyOptions<'a> {
    /// The mode that is set.
    pub mode: Mode,
    /// Where to.
    pub target: Endpoint,
    /// This program and its version, for people; at most 255 bytes.
    pub producer: String,
    /// Status and cancellation.
    pub tracker: Arc<Tracker>,
    /// What the machine itself knows to block; it takes no additions meanwhile.
    pub blockers: &'a Blockers,
    /// How long to wait.
    pub timeouts: Timeouts,
    /// Whether to wait for [`Tracker::proceed`] before the guest is stopped (capability
    /// `pause-before-switchover`).
    pub pause: bool,
    /// Whether pages of zeros are looked for, and their bytes not sent.
    pub find_zeros: bool,
}

/// How it ended. The host was told already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrecopyOutcome {
    /// The guest is the target's.
    Completed,
    /// The guest goes on here, as an operator wanted.
    Cancelled,
    /// The guest goes on here.
    Failed {
        /// Why.
        reason: String,
    },
    /// The guest was given to the target, which did not say that it has it: it is not resumed here.
    Lost {
        /// What is known.
        reason: String,
    },
}

/// A migration that has begun: the target is connected, nothing was sent, the guest runs.
#[must_use = "the migration stays in status `setup` until `run` has ended"]
pub struct Precopy {
    link: Link,
    producer: String,
    fingerprint: MachineFingerprint,
    tracker: Arc<Tracker>,
    timeouts: Timeouts,
    pause: bool,
    find_zeros: bool,
    /// Once RAM is copied.
    rounds: Option<Rounds>,
    /// The state, between its saving and its sending.
    state: Vec<u8>,
    times: Times,
    _frozen: Frozen,
}

/// When the parts of the blackout ended, on this side's clock.
#[derive(Debug, Default)]
struct Times {
    stop: Option<Instant>,
    quiesced: Option<Instant>,
    saved: Option<Instant>,
    loaded: Option<Instant>,
    /// How long the target took to load, as it says.
    load_us: u64,
}

impl Precopy {
    /// The part of `migrate` whose errors are the command's: checks, tells the devices, connects. The
    /// guest runs meanwhile, and goes on running after an error.
    pub fn begin(
        options: PrecopyOptions<'_>,
        host: &mut (impl PrecopyHost + ?Sized),
    ) -> Result<Self, BeginError> {
        let PrecopyOptions {
            mode,
            target,
            producer,
            tracker,
            blockers,
            timeouts,
            pause,
            find_zeros,
        } = options;
        if mode != Mode::Normal {
            return Err(BeginError::Mode(mode));
        }
        if tracker.status().in_progress() {
            return Err(MigrationInProgress.into());
        }
        let frozen = blockers.freeze();
        blockers.check(mode, host.device_blockers(mode))?;
        tracker.begin()?;
        let connected = host
            .notify(MigrationEvent::Setup)
            .map_err(BeginError::Setup)
            .and_then(|()| {
                let deadline = Deadline::after(timeouts.connect);
                Ok(target.connect("main", protocol::bounds, deadline)?)
            });
        match connected {
            Ok(channel) => Ok(Self {
                link: Link::new(channel),
                producer,
                fingerprint: host.fingerprint(),
                tracker,
                timeouts,
                pause,
                find_zeros,
                rounds: None,
                state: Vec::new(),
                times: Times::default(),
                _frozen: frozen,
            }),
            Err(error) => {
                tell(host, MigrationEvent::Failed);
                tracker.note_error(&error_chain(&error));
                advance(&tracker, MigrationStatus::Failed);
                Err(error)
            }
        }
    }
}
