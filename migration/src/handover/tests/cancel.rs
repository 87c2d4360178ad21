//! An operator cancels at every step.

use std::sync::{Arc, Mutex};

use super::fakes::FakeTarget;
use super::peer::Peer;
use super::rig::{Rig, generous};
use crate::MigrationEvent;
use crate::address::ChannelType;
use crate::channel::Listener;
use crate::handover::protocol::{Message, kind};
use crate::handover::{SourceOutcome, TargetOutcome};
use crate::status::{MigrationStatus, Tracker};

#[test]
fn cancelling_while_the_target_prepares_keeps_the_guest_and_tells_the_target() {
    let rig = Rig::new(generous());
    let mut source = rig.source();
    let cpr = Listener::bind(rig.cpr()).unwrap();
    std::thread::scope(|scope| {
        let target = scope.spawn(|| {
            let mut peer = Peer::accept(cpr);
            peer.expect(ChannelType::Cpr, kind::HELLO);
            peer.expect(ChannelType::Cpr, kind::PREVIEW);
            rig.source_tracker.cancel();
            let frame = peer.expect(ChannelType::Cpr, kind::ABORT);
            let Ok(Message::Abort(abort)) = Message::decode(ChannelType::Cpr, frame) else {
                panic!()
            };
            assert!(abort.cancelled, "{abort:?}");
        });
        assert_eq!(rig.run_source(&mut source), SourceOutcome::Cancelled);
        target.join().unwrap();
    });
    use MigrationStatus::{Cancelled, Cancelling, Setup};
    assert_eq!(
        *rig.statuses.lock().unwrap(),
        [Setup, Cancelling, Cancelled]
    );
    assert_eq!(
        source.events,
        [MigrationEvent::Setup, MigrationEvent::Cancelled]
    );
    assert_eq!(rig.world.runs(), (true, false));
}

#[test]
fn cancelling_while_the_target_reads_nothing_keeps_the_guest() {
    let rig = Rig::new(generous());
    let mut source = rig.source();
    // More than the sockets hold, so that sending the preview has to wait.
    source.ballast = 32 << 20;
    let cpr = Listener::bind(rig.cpr()).unwrap();
    std::thread::scope(|scope| {
        let (done, wait_done) = std::sync::mpsc::channel();
        let rig = &rig;
        scope.spawn(move || {
            let mut peer = Peer::accept(cpr);
            peer.expect(ChannelType::Cpr, kind::HELLO);
            rig.source_tracker.cancel();
            wait_done.recv().unwrap();
        });
        assert_eq!(rig.run_source(&mut source), SourceOutcome::Cancelled);
        done.send(()).unwrap();
    });
    assert_eq!(rig.world.runs(), (true, false));
}

/// A handover that is cancelled when the source reaches `status`.
fn cancelled_at(status: MigrationStatus) -> (Rig, SourceOutcome, TargetOutcome, FakeTarget) {
    let tracker: Arc<Mutex<Option<Arc<Tracker>>>> = Arc::default();
    let canceller = Arc::clone(&tracker);
    let rig = Rig::watched(generous(), move |now| {
        if now == status
            && let Some(tracker) = &*canceller.lock().unwrap()
        {
            tracker.cancel();
        }
    });
    *tracker.lock().unwrap() = Some(Arc::clone(&rig.source_tracker));
    let (mut source, mut target) = (rig.source(), rig.target());
    let (ours, theirs) = rig.handover(&mut source, &mut target);
    // The tracker must not keep itself alive.
    tracker.lock().unwrap().take();
    (rig, ours.unwrap(), theirs.unwrap(), target)
}

#[test]
fn cancelling_before_the_guest_stops_keeps_it() {
    for status in [MigrationStatus::Setup, MigrationStatus::Active] {
        let (rig, ours, theirs, target) = cancelled_at(status);
        assert_eq!(ours, SourceOutcome::Cancelled, "{status}");
        assert!(
            matches!(theirs, TargetOutcome::Abandoned { .. }),
            "{status} {theirs:?}"
        );
        assert!(target.abandoned.is_some());
        assert_eq!(rig.world.runs(), (true, false));
        assert_eq!(rig.source_tracker.status(), MigrationStatus::Cancelled);
    }
}

#[test]
fn cancelling_while_the_target_loads_brings_the_guest_back() {
    let (rig, ours, theirs, target) = cancelled_at(MigrationStatus::Device);
    assert_eq!(ours, SourceOutcome::Cancelled);
    assert!(
        matches!(theirs, TargetOutcome::Abandoned { .. }),
        "{theirs:?}"
    );
    assert!(target.abandoned.is_some());
    assert_eq!(rig.world.runs(), (true, false));
}

#[test]
fn cancelling_when_it_is_done_changes_nothing() {
    let (rig, ours, theirs, _) = cancelled_at(MigrationStatus::Completed);
    assert_eq!(
        (ours, theirs),
        (SourceOutcome::Completed, TargetOutcome::Running)
    );
    assert_eq!(rig.world.runs(), (false, true));
    rig.source_tracker.cancel();
    assert_eq!(rig.source_tracker.status(), MigrationStatus::Completed);
}
