//! The source pauses before the guest is stopped, until its operator says to go on.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::peer::{Peer, TOKEN, hello, soon, stream};
use super::rig::{Rig, generous};
use crate::MigrationEvent;
use crate::address::ChannelType::{Cpr, Main};
use crate::channel::Listener;
use crate::claim::SourceClaim;
use crate::handover::protocol::{self, Hello, kind};
use crate::handover::{SourceOutcome, TargetOutcome, Timeouts};
use crate::status::MigrationStatus::{
    self, Active, Cancelled, Cancelling, Completed, Device, Failed, PreSwitchover, Setup,
};
use crate::status::{NotPaused, Tracker};

type Slot = Arc<Mutex<Option<Arc<Tracker>>>>;

/// A rig whose source pauses; `then` is done with its tracker once it does.
fn pausing(then: impl Fn(&Tracker) + Send + Sync + 'static) -> (Rig, Slot) {
    let slot: Slot = Arc::default();
    let operator = Arc::clone(&slot);
    let mut rig = Rig::watched(generous(), move |now| {
        if now == PreSwitchover
            && let Some(tracker) = &*operator.lock().unwrap()
        {
            then(tracker);
        }
    });
    rig.pause = true;
    *slot.lock().unwrap() = Some(Arc::clone(&rig.source_tracker));
    (rig, slot)
}

fn statuses(rig: &Rig) -> Vec<MigrationStatus> {
    rig.statuses.lock().unwrap().clone()
}

#[test]
fn the_guest_runs_until_the_operator_says_go_on() {
    let runs: Arc<Mutex<Option<(bool, bool)>>> = Arc::default();
    let world: Arc<Mutex<Option<Arc<super::fakes::World>>>> = Arc::default();
    let (seen, looked_at) = (Arc::clone(&runs), Arc::clone(&world));
    let (rig, slot) = pausing(move |tracker| {
        *seen.lock().unwrap() = looked_at.lock().unwrap().as_ref().map(|world| world.runs());
        // Said twice it is the same.
        assert_eq!(tracker.proceed(), Ok(()));
        assert_eq!(tracker.proceed(), Ok(()));
    });
    *world.lock().unwrap() = Some(Arc::clone(&rig.world));
    assert_eq!(
        rig.source_tracker.proceed(),
        Err(NotPaused(MigrationStatus::None))
    );
    let (mut source, mut target) = (rig.source(), rig.target());
    let outcome = rig.handover(&mut source, &mut target);
    slot.lock().unwrap().take();
    assert_eq!(
        outcome,
        (Some(SourceOutcome::Completed), Some(TargetOutcome::Running))
    );
    assert_eq!(*runs.lock().unwrap(), Some((true, false)));
    let all = [Setup, Active, PreSwitchover, Device, Completed];
    assert_eq!(statuses(&rig), all);
    assert_eq!(
        rig.source_tracker.proceed().unwrap_err().to_string(),
        "Migration not in expected state: completed"
    );
}

#[test]
fn cancelling_a_pause_keeps_the_guest_even_if_it_was_said_to_go_on() {
    for go_on_first in [false, true] {
        let (rig, slot) = pausing(move |tracker| {
            if go_on_first {
                tracker.proceed().unwrap();
            }
            tracker.cancel();
        });
        let (mut source, mut target) = (rig.source(), rig.target());
        let (ours, theirs) = rig.handover(&mut source, &mut target);
        slot.lock().unwrap().take();
        assert_eq!(ours, Some(SourceOutcome::Cancelled));
        assert!(
            matches!(theirs, Some(TargetOutcome::Abandoned { .. })),
            "{theirs:?}"
        );
        assert_eq!(rig.world.runs(), (true, false));
        let all = [Setup, Active, PreSwitchover, Cancelling, Cancelled];
        assert_eq!(statuses(&rig), all);
        assert_eq!(
            source.events,
            [MigrationEvent::Setup, MigrationEvent::Cancelled]
        );
    }
}

#[test]
fn a_target_that_dies_in_the_pause_ends_it() {
    let (paused, wait_paused) = std::sync::mpsc::channel();
    let (rig, slot) = pausing(move |_| paused.send(()).unwrap());
    let mut source = rig.source();
    let cpr = Listener::bind(rig.cpr()).unwrap();
    let outcome = std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut peer = Peer::accept(cpr);
            peer.expect(Cpr, kind::HELLO);
            peer.expect(Cpr, kind::PREVIEW);
            peer.send(Cpr, kind::READY, &[], &[]);
            wait_paused.recv().unwrap();
        });
        rig.run_source(&mut source)
    });
    slot.lock().unwrap().take();
    let SourceOutcome::Failed { reason } = outcome else {
        panic!("{outcome:?}")
    };
    assert!(
        reason.contains("hung up while the operator's word was waited for"),
        "{reason}"
    );
    assert_eq!(rig.world.runs(), (true, false));
    assert_eq!(statuses(&rig), [Setup, Active, PreSwitchover, Failed]);
}

#[test]
fn a_target_waits_for_a_source_that_pauses_as_long_as_it_takes() {
    // No time at all for a source that does not pause.
    let rig = Rig::new(Timeouts {
        state: Duration::ZERO,
        ..generous()
    });
    let mut target = rig.target();
    let cpr = Listener::bind(rig.cpr()).unwrap();
    std::thread::scope(|scope| {
        let source = scope.spawn(|| {
            let claim = SourceClaim::create().unwrap();
            let mut peer = Peer::connect(&rig);
            let hello = Hello {
                pauses: true,
                ..hello(0)
            };
            let bytes = protocol::encode_hello(&hello).unwrap();
            peer.send(Cpr, kind::HELLO, &bytes, &[claim.fd()]);
            peer.send(Cpr, kind::PREVIEW, &stream(), &[]);
            peer.expect(Cpr, kind::READY);
            peer.main = rig.main().connect("main", protocol::bounds, soon()).ok();
            peer.send(Main, kind::ATTACH, &TOKEN, &[]);
            peer.expect(Main, kind::ATTACHED);
        });
        let outcome = rig.run_target(cpr, &mut target);
        let TargetOutcome::Abandoned { reason } = outcome else {
            panic!("{outcome:?}")
        };
        assert!(reason.contains("while the state was received"), "{reason}");
        source.join().unwrap();
    });
}
