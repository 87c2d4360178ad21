//! The state of the one migration a process has at a time, shared by its threads.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{IllegalTransition, MigrationInfo, MigrationStats, MigrationStatus};
use crate::claim::Blackout;

/// Told every change of status, in order, on the thread that makes it. It must not change the
/// status itself.
pub type Observer = Box<dyn Fn(MigrationStatus) + Send + Sync>;

/// Told the number of each round in which RAM is copied.
pub type PassObserver = Box<dyn Fn(u64) + Send + Sync>;

/// A migration is under way already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("There's a migration process in progress")]
pub struct MigrationInProgress;

/// Status, times and cancellation of a process's migrations. Any thread may use it.
pub struct Tracker {
    inner: Mutex<Inner>,
    observer: Observer,
    on_pass: PassObserver,
    /// Whether a cancellation is wanted.
    cancelled: AtomicBool,
    /// Whether a pause before the switchover has been ended.
    proceed: AtomicBool,
    /// Readable when either of the two is news.
    cancel: EventFd,
}

/// `migrate-continue` was said where there is nothing to go on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Migration not in expected state: {0}")]
pub struct NotPaused(pub MigrationStatus);

#[derive(Debug)]
struct Inner {
    status: MigrationStatus,
    began: Instant,
    setup: Option<Duration>,
    total: Option<Duration>,
    blackout: Option<Blackout>,
    error: Option<String>,
    ram: Option<MigrationStats>,
    expected_downtime: Option<Duration>,
}

impl Inner {
    fn new(status: MigrationStatus) -> Self {
        Self {
            status,
            began: Instant::now(),
            setup: None,
            total: None,
            blackout: None,
            error: None,
            ram: None,
            expected_downtime: None,
        }
    }
}

impl Tracker {
    /// Nothing has happened yet; fails only if the kernel has no descriptor left.
    pub fn new(observer: Observer) -> io::Result<Self> {
        let cancel = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self {
            inner: Mutex::new(Inner::new(MigrationStatus::None)),
            observer,
            on_pass: Box::new(|_| {}),
            cancelled: AtomicBool::new(false),
            proceed: AtomicBool::new(false),
            cancel,
        })
    }

    /// The same, with somebody who is told of each round in which RAM is copied.
    #[must_use]
    pub fn on_pass(self, on_pass: PassObserver) -> Self {
        Self { on_pass, ..self }
    }

    /// Where the migration is.
    pub fn status(&self) -> MigrationStatus {
        self.lock().status
    }

    /// What `query-migrate` returns, without the blocked reasons.
    pub fn info(&self) -> MigrationInfo {
        let inner = self.lock();
        if inner.status == MigrationStatus::None {
            return MigrationInfo::default();
        }
        let ms = |time: Duration| time.as_millis() as u64;
        MigrationInfo {
            status: Some(inner.status),
            total_time: Some(ms(inner.total.unwrap_or_else(|| inner.began.elapsed()))),
            downtime: inner.blackout.map(|blackout| blackout.downtime_ms()),
            expected_downtime: inner.expected_downtime.map(ms),
            ram: inner.ram.clone(),
            setup_time: inner.setup.map(ms),
            blackout: inner.blackout,
            error_desc: inner.error.clone(),
            blocked_reasons: Vec::new(),
        }
    }

    /// Asks the migration under way to stop; without one it does nothing, as QEMU's
    /// `migrate_cancel`. Once the source has let go of the guest it is too late and has no effect.
    pub fn cancel(&self) {
        let inner = self.lock();
        if inner.status.in_progress() {
            self.cancelled.store(true, Ordering::SeqCst);
            // A full counter, the only possible error, is readable as well.
            let _ = self.cancel.write(1);
        }
    }

    /// Ends the pause of a migration in status `pre-switchover`, as `migrate-continue` does.
    pub fn proceed(&self) -> Result<(), NotPaused> {
        let inner = self.lock();
        if inner.status != MigrationStatus::PreSwitchover {
            return Err(NotPaused(inner.status));
        }
        // Said twice it is the same.
        if !self.proceed.swap(true, Ordering::SeqCst) {
            // As in `cancel`.
            let _ = self.cancel.write(1);
        }
        Ok(())
    }

    /// Goes on with a migration that another program has begun in this process before it executed
    /// this one, in status `device`. It had the events up to there. Times as `query-migrate` gave
    /// them there, in milliseconds.
    pub fn inherit(&self, total_time: u64, setup_time: u64) {
        let now = Instant::now();
        let mut inner = self.lock();
        *inner = Inner {
            began: now
                .checked_sub(Duration::from_millis(total_time))
                .unwrap_or(now),
            setup: Some(Duration::from_millis(setup_time)),
            ..Inner::new(MigrationStatus::Device)
        };
    }

    /// Begins to take what was inherited and has waited for an operator: goes through `setup` to
    /// `active`.
    pub fn take_inherited(&self) -> Result<(), crate::HostError> {
        self.begin()?;
        Ok(self.advance(MigrationStatus::Active)?)
    }

    /// Ends what was inherited: the guest runs, after this blackout, or it runs in the old program
    /// again, for this reason.
    pub fn end_inherited(&self, outcome: Result<Option<Blackout>, &str>) {
        let status = match outcome {
            Ok(blackout) => {
                self.note_blackout(blackout);
                MigrationStatus::Completed
            }
            Err(reason) => {
                self.note_error(reason);
                MigrationStatus::Failed
            }
        };
        if let Err(e) = self.advance(status) {
            tracing::error!("{e}");
        }
    }

    /// Begins a migration in status `setup`.
    pub(crate) fn begin(&self) -> Result<(), MigrationInProgress> {
        {
            let mut inner = self.lock();
            if inner.status.in_progress() {
                return Err(MigrationInProgress);
            }
            // Forgets a cancellation of the previous one; an empty counter is the only error.
            let _ = self.cancel.read();
            self.cancelled.store(false, Ordering::SeqCst);
            self.proceed.store(false, Ordering::SeqCst);
            *inner = Inner::new(MigrationStatus::Setup);
        }
        (self.observer)(MigrationStatus::Setup);
        Ok(())
    }

    /// Goes on to `next`.
    pub(crate) fn advance(&self, next: MigrationStatus) -> Result<(), IllegalTransition> {
        {
            let mut inner = self.lock();
            if !inner.status.may_become(next) {
                return Err(IllegalTransition {
                    from: inner.status,
                    to: next,
                });
            }
            let elapsed = inner.began.elapsed();
            if inner.status == MigrationStatus::Setup {
                inner.setup = Some(elapsed);
            }
            if !next.in_progress() {
                inner.total = Some(elapsed);
            }
            inner.status = next;
        }
        (self.observer)(next);
        Ok(())
    }

    /// Notes why it fails or was cancelled; before the status says so.
    pub(crate) fn note_error(&self, reason: &str) {
        self.lock().error = Some(reason.to_owned());
    }

    /// Notes how long the guest stood still; before the status says `completed`.
    pub(crate) fn note_blackout(&self, blackout: Option<Blackout>) {
        self.lock().blackout = blackout;
    }

    /// Notes how far the copying of RAM has come.
    pub(crate) fn note_ram(&self, ram: &MigrationStats) {
        self.lock().ram = Some(ram.clone());
    }

    /// Notes how long the guest would stand still; nothing once it is known.
    pub(crate) fn note_expected_downtime(&self, time: Option<Duration>) {
        self.lock().expected_downtime = time;
    }

    /// Tells that a round begins, which is the one of this number.
    pub(crate) fn pass(&self, number: u64) {
        (self.on_pass)(number);
    }

    /// Whether the pause was ended, which is news no more.
    pub(crate) fn may_proceed(&self) -> bool {
        // The lock keeps a cancellation from being said between the two and forgotten here.
        let _inner = self.lock();
        let proceed = self.proceed.load(Ordering::SeqCst);
        if proceed && !self.cancelled() {
            // An empty counter is the only error.
            let _ = self.cancel.read();
        }
        proceed
    }

    /// Whether a cancellation is wanted.
    pub(crate) fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }

    /// Readable while a cancellation is wanted, and when a pause was ended until
    /// [`Self::may_proceed`] was asked.
    pub fn cancel_fd(&self) -> BorrowedFd<'_> {
        self.cancel.as_fd()
    }

    /// All fields change together, so they stay whole even if a thread panicked here.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Tracker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tracker")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}
