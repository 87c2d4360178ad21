//! Keeping the state: the order of events.

use std::sync::Arc;
use std::time::Instant;

use nix::poll::PollFlags;

use super::{Cancel, CheckpointError, CheckpointHost, Keeper};
use crate::blockers::{Blockers, Frozen};
use crate::channel::{Deadline, wait};
use crate::claim::{Blackout, Reclaimed};
use crate::fingerprint::MachineFingerprint;
use crate::handover::{advance, tell};
use crate::status::{MigrationInProgress, MigrationStatus, Tracker};
use crate::stream::{Header, SectionWriter};
use crate::{HostError, MigrationEvent, Mode, caught, error_chain, fault};

/// What `migrate` was asked to do, and with what.
pub struct CheckpointOptions<'a> {
    /// The mode that is set.
    pub mode: Mode,
    /// This program and its version, for people; at most 255 bytes.
    pub producer: String,
    /// Status and cancellation.
    pub tracker: Arc<Tracker>,
    /// What the machine itself knows to block; it takes no additions meanwhile.
    pub blockers: &'a Blockers,
    /// Whether the operator says when the guest is stopped, once all is prepared.
    pub pause: bool,
}

/// How it ended. The host was told already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckpointOutcome {
    /// The kept state is the guest.
    Completed,
    /// The guest goes on here, as an operator wanted.
    Cancelled,
    /// The guest goes on here.
    Failed {
        /// Why.
        reason: String,
    },
}

/// A checkpoint that has begun: its place is open, nothing was written, the guest runs.
#[must_use = "the migration stays in status `setup` until `run` has ended"]
pub struct Checkpoint {
    producer: String,
    fingerprint: MachineFingerprint,
    tracker: Arc<Tracker>,
    pause: bool,
    _frozen: Frozen,
}

/// Why the guest goes on here.
enum Stop {
    Cancelled,
    Failed(String),
}

impl From<HostError> for Stop {
    fn from(error: HostError) -> Self {
        Self::Failed(error_chain(&*error))
    }
}

impl Checkpoint {
    /// The part of `migrate` whose errors are the command's: checks, tells the devices, opens the
    /// place. The guest runs meanwhile, and goes on running after an error.
    pub fn begin(
        options: CheckpointOptions<'_>,
        host: &mut (impl CheckpointHost + ?Sized),
        keeper: &mut (impl Keeper + ?Sized),
    ) -> Result<Self, CheckpointError> {
        let CheckpointOptions {
            mode,
            producer,
            tracker,
            blockers,
            pause,
        } = options;
        if tracker.status().in_progress() {
            return Err(MigrationInProgress.into());
        }
        let frozen = blockers.freeze();
        blockers.check(mode, host.device_blockers(mode))?;
        tracker.begin()?;
        let opened = host
            .notify(MigrationEvent::Setup)
            .map_err(CheckpointError::Setup)
            .and_then(|()| keeper.open().map_err(CheckpointError::Open));
        match opened {
            Ok(()) => Ok(Self {
                producer,
                fingerprint: host.fingerprint(),
                tracker,
                pause,
                _frozen: frozen,
            }),
            Err(error) => {
                keeper.discard();
                tell(host, MigrationEvent::Failed);
                tracker.note_error(&error_chain(&error));
                advance(&tracker, MigrationStatus::Failed);
                Err(error)
            }
        }
    }

    /// Keeps the guest, or goes on with it. Takes as long as its RAM takes to be written; call it on
    /// a thread that may wait, from which all calls of `host` and `keeper` come.
    pub fn run(
        self,
        host: &mut (impl CheckpointHost + ?Sized),
        keeper: &mut (impl Keeper + ?Sized),
    ) -> CheckpointOutcome {
        let mut stopped = false;
        // The guest must go on even after a mistake of ours.
        let kept = caught(|| Ok(self.keep(&mut *host, &mut *keeper, &mut stopped)));
        let kept = kept.unwrap_or_else(|mistake| Err(mistake.into()));
        match kept {
            Ok(blackout) => {
                // An error here is too late to be one.
                let _ = fault::point("checkpoint-kept");
                self.tracker.note_blackout(Some(blackout));
                tell(host, MigrationEvent::Done);
                host.postmigrate();
                advance(&self.tracker, MigrationStatus::Completed);
                CheckpointOutcome::Completed
            }
            Err(stop) => self.go_on(host, keeper, stopped, stop),
        }
    }

    fn keep(
        &self,
        host: &mut (impl CheckpointHost + ?Sized),
        keeper: &mut (impl Keeper + ?Sized),
        stopped: &mut bool,
    ) -> Result<Blackout, Stop> {
        fault::point("checkpoint-prepare")?;
        host.prepare()?;
        self.go_ahead()?;
        advance(&self.tracker, MigrationStatus::Active);
        if self.pause {
            self.await_operator()?;
        }
        let header = Header {
            producer: self.producer.clone(),
            fingerprint: self.fingerprint.clone(),
        };
        host.settle();
        let began = Instant::now();
        // An error may leave the machine half stopped.
        *stopped = true;
        fault::point("checkpoint-stop")?;
        host.stop_and_quiesce()?;
        let quiesced = Instant::now();
        self.go_ahead()?;
        fault::point("checkpoint-save")?;
        let mut state = Vec::new();
        let mut writer = SectionWriter::new(&mut state, &header).map_err(HostError::from)?;
        host.save(&mut writer)?;
        writer.finish().map_err(HostError::from)?;
        let saved = Instant::now();
        advance(&self.tracker, MigrationStatus::Device);
        self.go_ahead()?;
        // RAM is let go of before the host is told to drop it.
        let ram = host.ram()?;
        let cancel = Cancel::of(&self.tracker);
        fault::point("checkpoint-write")?;
        keeper.write(&state, ram.as_deref(), cancel)?;
        drop(ram);
        self.go_ahead()?;
        fault::point("checkpoint-finish")?;
        keeper.finish(cancel)?;
        let us = |from: Instant, to: Instant| {
            u64::try_from(to.duration_since(from).as_micros()).unwrap_or(u64::MAX)
        };
        let kept = Instant::now();
        Ok(Blackout {
            total_us: us(began, kept),
            quiesce_us: us(began, quiesced),
            save_us: us(quiesced, saved),
            transfer_us: us(saved, kept),
            ..Blackout::default()
        })
    }

    /// Waits for the word to go on, or to stop.
    fn await_operator(&self) -> Result<(), Stop> {
        advance(&self.tracker, MigrationStatus::PreSwitchover);
        loop {
            self.go_ahead()?;
            if self.tracker.may_proceed() {
                return Ok(());
            }
            let said = [Some((self.tracker.cancel_fd(), PollFlags::POLLIN))];
            wait(said, Deadline::never()).map_err(HostError::from)?;
        }
    }

    /// Stops if an operator wants it.
    fn go_ahead(&self) -> Result<(), Stop> {
        match self.tracker.cancelled() {
            true => Err(Stop::Cancelled),
            false => Ok(()),
        }
    }

    /// What was kept goes first: no state of a guest that runs may look whole.
    fn go_on(
        &self,
        host: &mut (impl CheckpointHost + ?Sized),
        keeper: &mut (impl Keeper + ?Sized),
        stopped: bool,
        stop: Stop,
    ) -> CheckpointOutcome {
        keeper.discard();
        if stopped {
            host.resume(Reclaimed::never_let_go());
        }
        // Whatever a cancellation has interrupted fails in its own way.
        let stop = match stop {
            Stop::Failed(reason) if self.tracker.cancelled() => {
                tracing::debug!("while the migration was cancelled: {reason}");
                Stop::Cancelled
            }
            stop => stop,
        };
        match stop {
            Stop::Cancelled => {
                advance(&self.tracker, MigrationStatus::Cancelling);
                tell(host, MigrationEvent::Cancelled);
                advance(&self.tracker, MigrationStatus::Cancelled);
                CheckpointOutcome::Cancelled
            }
            Stop::Failed(reason) => {
                tracing::warn!("migration failed: {reason}");
                tell(host, MigrationEvent::Failed);
                self.tracker.note_error(&reason);
                advance(&self.tracker, MigrationStatus::Failed);
                CheckpointOutcome::Failed { reason }
            }
        }
    }
}
