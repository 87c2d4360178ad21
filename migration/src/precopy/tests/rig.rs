//! What every test needs: sockets, trackers, deadlines, both sides on threads, and a peer by hand.

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::poll::PollFlags;

use super::fakes::{FakeSource, FakeTarget, Plan, STATE, World, fingerprint};
use crate::Mode;
use crate::blockers::Blockers;
use crate::channel::{Channel, ChannelError, Deadline, Endpoint, Frame, Listener, wait};
use crate::handover::Timeouts;
use crate::precopy::protocol::{self, Hello, kind};
use crate::precopy::{
    BeginError, Incoming, IncomingOptions, IncomingOutcome, Precopy, PrecopyOptions, PrecopyOutcome,
};
use crate::status::{MigrationStatus, Tracker};
use crate::stream::{Header, SectionWriter};
use std::os::fd::AsFd;

/// All waits of this length.
pub(super) fn timeouts(time: Duration) -> Timeouts {
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

/// Long enough never to pass on a busy machine.
pub(super) const GENEROUS: Duration = Duration::from_secs(60);
/// For peers that do not answer. A test that uses it must hold also if a wait ends too early.
pub(super) const SHORT: Duration = Duration::from_millis(60);

pub(super) struct Rig {
    pub(super) world: Arc<World>,
    pub(super) tracker: Arc<Tracker>,
    /// Every status of the source, and every pass.
    pub(super) statuses: Arc<Mutex<Vec<MigrationStatus>>>,
    pub(super) passes: Arc<Mutex<Vec<u64>>>,
    pub(super) blockers: Blockers,
    pub(super) time: Duration,
    pub(super) pause: bool,
}

impl Rig {
    pub(super) fn new() -> Self {
        let statuses = Arc::new(Mutex::new(Vec::new()));
        let passes = Arc::new(Mutex::new(Vec::new()));
        let (seen, passed) = (Arc::clone(&statuses), Arc::clone(&passes));
        let tracker = Tracker::new(Box::new(move |status| seen.lock().unwrap().push(status)));
        let tracker = tracker.unwrap().on_pass(Box::new(move |pass| {
            passed.lock().unwrap().push(pass);
        }));
        Self {
            world: World::new(),
            tracker: Arc::new(tracker),
            statuses,
            passes,
            blockers: Blockers::new(),
            time: GENEROUS,
            pause: false,
        }
    }

    pub(super) fn source(&self, plan: Plan) -> FakeSource {
        FakeSource::new(&self.world, plan)
    }

    pub(super) fn begin(
        &self,
        host: &mut FakeSource,
        end: UnixStream,
    ) -> Result<Precopy, BeginError> {
        let options = PrecopyOptions {
            mode: Mode::Normal,
            target: Endpoint::Fd(end.into()),
            producer: "test".into(),
            tracker: Arc::clone(&self.tracker),
            blockers: &self.blockers,
            timeouts: timeouts(self.time),
            pause: self.pause,
            find_zeros: true,
        };
        Precopy::begin(options, host)
    }

    /// A target on a thread: what it says in the end, and its host.
    pub(super) fn target(
        &self,
        mut host: FakeTarget,
        end: UnixStream,
    ) -> JoinHandle<(IncomingOutcome, FakeTarget)> {
        let options = IncomingOptions {
            tracker: Arc::new(Tracker::new(Box::new(|_| {})).unwrap()),
            timeouts: timeouts(self.time),
        };
        thread::spawn(move || {
            let listener = Listener::bind(Endpoint::Fd(end.into())).unwrap();
            let outcome = Incoming::new(listener, options).run(&mut host);
            (outcome, host)
        })
    }

    /// A source on a thread.
    pub(super) fn spawn_source(
        &self,
        mut host: FakeSource,
        end: UnixStream,
    ) -> JoinHandle<(PrecopyOutcome, FakeSource)> {
        let begun = self.begin(&mut host, end).unwrap();
        thread::spawn(move || {
            let outcome = begun.run(&mut host);
            (outcome, host)
        })
    }

    pub(super) fn statuses(&self) -> Vec<MigrationStatus> {
        self.statuses.lock().unwrap().clone()
    }

    /// Waits until the source has this status.
    pub(super) fn await_status(&self, wanted: MigrationStatus) {
        let deadline = Deadline::after(GENEROUS);
        while !self.statuses().contains(&wanted) {
            assert!(!deadline.passed(), "{wanted} does not come");
            thread::yield_now();
        }
    }
}

/// A hand-driven end of the channel; dropping it is its death.
pub(super) struct Peer(pub(super) Channel);

impl Peer {
    pub(super) fn new(end: UnixStream) -> Self {
        Self(Channel::new(end.into(), "main", protocol::bounds).unwrap())
    }

    /// Sends, if the other side still listens.
    pub(super) fn send(&mut self, kind: u8, payload: &[u8]) {
        let _ = self
            .0
            .send(kind, payload, &[], None, Deadline::after(GENEROUS));
    }

    /// The next frame; `None` when the other side has hung up.
    pub(super) fn receive(&mut self) -> Option<Frame> {
        loop {
            match self.0.try_receive() {
                Ok(Some(frame)) => return Some(frame),
                Ok(None) => {}
                Err(ChannelError::HungUp { .. }) => return None,
                Err(error) => panic!("{error}"),
            }
            let own = [Some((self.0.as_fd(), PollFlags::POLLIN))];
            let ready = wait(own, Deadline::after(GENEROUS)).unwrap();
            assert_eq!(ready, [true], "the other side neither speaks nor hangs up");
        }
    }

    /// The next frame that is not of PAGES.
    pub(super) fn after_pages(&mut self) -> Option<Frame> {
        loop {
            match self.receive() {
                Some(frame) if frame.kind == kind::PAGES => {}
                other => return other,
            }
        }
    }

    /// Reads and says nothing until the other side hangs up.
    pub(super) fn silent(&mut self) {
        while self.receive().is_some() {}
    }
}

pub(super) fn hello() -> Vec<u8> {
    let hello = Hello {
        mode: Mode::Normal,
        producer: "test".into(),
        fingerprint: fingerprint(),
        ram_file: None,
    };
    protocol::encode_hello(&hello).unwrap()
}

/// A state that the target takes.
pub(super) fn state() -> Vec<u8> {
    let header = Header {
        producer: "test".into(),
        fingerprint: fingerprint(),
    };
    let mut bytes = Vec::new();
    let mut writer = SectionWriter::new(&mut bytes, &header).unwrap();
    writer.put("cpu", 0, 1, STATE).unwrap();
    writer.finish().unwrap();
    bytes
}
