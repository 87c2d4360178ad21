//! What every test needs: addresses of its own, trackers, deadlines, and both sides on threads.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::fakes::{FakeSource, FakeTarget, World};
use crate::address::{SocketAddress, TransferChannels};
use crate::blockers::Blockers;
use crate::channel::{Endpoint, Listener};
use crate::handover::{
    HandoverError, SourceHandover, SourceOptions, SourceOutcome, TargetHandover, TargetOptions,
    TargetOutcome, Timeouts,
};
use crate::status::{MigrationStatus, Tracker};
use crate::{HostError, Mode};

/// Long enough never to pass on a busy machine.
pub(super) fn generous() -> Timeouts {
    let time = Duration::from_secs(60);
    Timeouts {
        connect: time,
        message: time,
        ready: Some(time),
        state: time,
        load: time,
        commit: time,
        start: time,
    }
}

/// For peers that do not answer. A test that uses it must hold also if a wait ends too early.
pub(super) fn short() -> Timeouts {
    let time = Duration::from_millis(60);
    Timeouts {
        connect: time,
        message: time,
        ready: Some(time),
        state: time,
        load: time,
        commit: time,
        start: time,
    }
}

pub(super) struct Rig {
    dir: PathBuf,
    pub(super) world: Arc<World>,
    pub(super) source_tracker: Arc<Tracker>,
    pub(super) target_tracker: Arc<Tracker>,
    /// Every status of the source, in order.
    pub(super) statuses: Arc<Mutex<Vec<MigrationStatus>>>,
    pub(super) blockers: Blockers,
    pub(super) timeouts: Timeouts,
    /// Capability `pause-before-switchover` of the source.
    pub(super) pause: bool,
}

impl Rig {
    pub(super) fn new(timeouts: Timeouts) -> Self {
        Self::watched(timeouts, |_| {})
    }

    /// `watch` is told every status of the source, on its thread.
    pub(super) fn watched(
        timeouts: Timeouts,
        watch: impl Fn(MigrationStatus) + Send + Sync + 'static,
    ) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("baton-rig-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();

        let statuses = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&statuses);
        let observer = move |status| {
            seen.lock().unwrap().push(status);
            watch(status);
        };
        Self {
            dir,
            world: World::new(),
            source_tracker: Arc::new(Tracker::new(Box::new(observer)).unwrap()),
            target_tracker: Arc::new(Tracker::new(Box::new(|_| {})).unwrap()),
            statuses,
            blockers: Blockers::new(),
            timeouts,
            pause: false,
        }
    }

    pub(super) fn cpr(&self) -> Endpoint {
        Endpoint::Unix(self.dir.join("cpr"))
    }

    /// A socket beside the usual ones.
    pub(super) fn beside(&self, name: &str) -> Endpoint {
        Endpoint::Unix(self.dir.join(name))
    }

    pub(super) fn main(&self) -> Endpoint {
        Endpoint::Unix(self.dir.join("main"))
    }

    pub(super) fn source(&self) -> FakeSource {
        FakeSource::new(&self.world)
    }

    pub(super) fn target(&self) -> FakeTarget {
        FakeTarget::new(&self.world)
    }

    pub(super) fn begin(&self, host: &mut FakeSource) -> Result<SourceHandover, HandoverError> {
        let main = SocketAddress::Unix {
            path: self.dir.join("main"),
        };
        let no_fd = |name: &str| Err::<OwnedFd, HostError>(format!("no {name}").into());
        self.begin_on(main, &no_fd, Mode::CprTransfer, host)
    }

    pub(super) fn begin_on(
        &self,
        main: SocketAddress,
        resolve_fd: &dyn Fn(&str) -> Result<OwnedFd, HostError>,
        mode: Mode,
        host: &mut FakeSource,
    ) -> Result<SourceHandover, HandoverError> {
        let options = SourceOptions {
            mode,
            channels: TransferChannels {
                cpr: self.dir.join("cpr"),
                main,
            },
            producer: "fake source".into(),
            tracker: Arc::clone(&self.source_tracker),
            blockers: &self.blockers,
            timeouts: self.timeouts,
            pause: self.pause,
            resolve_fd,
        };
        SourceHandover::begin(options, host)
    }

    pub(super) fn run_source(&self, host: &mut FakeSource) -> SourceOutcome {
        match self.begin(host) {
            Ok(handover) => handover.run(host),
            Err(error) => SourceOutcome::Failed {
                reason: crate::error_chain(&error),
            },
        }
    }

    pub(super) fn target_options(&self) -> TargetOptions {
        TargetOptions {
            tracker: Arc::clone(&self.target_tracker),
            timeouts: self.timeouts,
        }
    }

    pub(super) fn run_target(&self, listener: Listener, host: &mut FakeTarget) -> TargetOutcome {
        match TargetHandover::receive(listener, self.target_options(), host) {
            Ok(handover) => handover.run(self.main(), host),
            Err(error) => TargetOutcome::Abandoned {
                reason: crate::error_chain(&error),
            },
        }
    }

    /// A whole handover; `None` for a side that died.
    pub(super) fn handover(
        &self,
        source: &mut FakeSource,
        target: &mut FakeTarget,
    ) -> (Option<SourceOutcome>, Option<TargetOutcome>) {
        let listener = Listener::bind(self.cpr()).unwrap();
        std::thread::scope(|scope| {
            let target = scope.spawn(|| self.run_target(listener, target));
            let source = scope.spawn(|| self.run_source(source));
            (source.join().ok(), target.join().ok())
        })
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
