//! A whole migration, and one in which something goes wrong in either machine.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::fakes::{FakeTarget, Plan, RAM, Step, Trouble};
use super::rig::Rig;
use crate::MigrationEvent;
use crate::precopy::{BeginError, IncomingOutcome, Limits, PAGE, PrecopyOutcome};
use crate::status::MigrationStatus::{
    Active, Cancelled, Cancelling, Completed, Device, Failed, PreSwitchover, Setup,
};

#[test]
fn a_guest_moves_with_all_it_wrote_meanwhile() {
    let rig = Rig::new();
    let (here, there) = UnixStream::pair().unwrap();
    let target = rig.target(FakeTarget::new(&rig.world, None), there);
    let mut source = rig.source(None);
    source.ram_file = Some("a file".into());
    let (outcome, source) = rig.spawn_source(source, here).join().unwrap();
    assert_eq!(outcome, PrecopyOutcome::Completed);
    let (outcome, target) = target.join().unwrap();
    assert_eq!(outcome, IncomingOutcome::Running);
    assert_eq!(rig.world.runs(), (false, true));
    assert!(source.postmigrate);
    assert_eq!(source.events, [MigrationEvent::Setup, MigrationEvent::Done]);
    assert_eq!(target.ram_file.as_deref(), Some("a file"));

    let memory = target.memory.pages();
    assert_eq!(memory, source.memory.pages());
    // Written at last, and zero again.
    assert_eq!((memory[&2], memory[&200], memory[&1023]), (222, 9, 77));
    assert!(!memory.contains_key(&1));

    assert_eq!(rig.statuses(), [Setup, Active, Device, Completed]);
    assert_eq!(*rig.passes.lock().unwrap(), [1, 2, 3, 4, 5]);
    let info = rig.tracker.info();
    let ram = info.ram.unwrap();
    assert_eq!((ram.total, ram.page_size, ram.remaining), (RAM, PAGE, 0));
    assert_eq!(ram.dirty_sync_count, 5);
    // Six at first, then 0 and 200; 200; 1023; 2.
    assert_eq!((ram.normal, ram.normal_bytes), (11, 11 * PAGE));
    // All others at first, then 1 and 300.
    assert_eq!(ram.duplicate, RAM / PAGE - 6 + 2);
    assert_eq!(ram.transferred, ram.precopy_bytes + ram.downtime_bytes);
    assert!(ram.downtime_bytes >= PAGE && ram.precopy_bytes >= 10 * PAGE);
    assert!(info.downtime.is_some() && info.blackout.is_some());
    assert_eq!(info.expected_downtime, None);
}

#[test]
fn pages_that_go_within_the_downtime_are_left_for_it() {
    let rig = Rig::new();
    let (here, there) = UnixStream::pair().unwrap();
    let target = rig.target(FakeTarget::new(&rig.world, None), there);
    let mut source = rig.source(None);
    source.endless = true;
    source.limits = Limits {
        max_bandwidth: 0,
        downtime: Duration::from_secs(1000),
    };
    let (outcome, source) = rig.spawn_source(source, here).join().unwrap();
    assert_eq!(outcome, PrecopyOutcome::Completed);
    assert_eq!(*rig.passes.lock().unwrap(), [1, 2]);
    let (_, target) = target.join().unwrap();
    assert_eq!(target.memory.pages(), source.memory.pages());
}

/// Runs both sides with something that goes wrong in one of them.
fn with(plan: Plan) -> (Rig, PrecopyOutcome, Option<IncomingOutcome>, bool) {
    let rig = Rig::new();
    let (here, there) = UnixStream::pair().unwrap();
    let target = rig.target(FakeTarget::new(&rig.world, plan), there);
    let (outcome, source) = rig.spawn_source(rig.source(plan), here).join().unwrap();
    let incoming = target.join().ok().map(|(outcome, _)| outcome);
    (rig, outcome, incoming, source.postmigrate)
}

#[test]
fn whatever_goes_wrong_in_the_source_it_goes_on_with_the_guest() {
    for step in Step::SOURCE {
        for trouble in [Trouble::Fail, Trouble::Panic] {
            let (rig, source, target, postmigrate) = with(Some((step, trouble)));
            assert!(
                matches!(source, PrecopyOutcome::Failed { .. }),
                "{step:?} {source:?}"
            );
            assert!(
                matches!(target, Some(IncomingOutcome::Abandoned { .. })),
                "{step:?} {target:?}"
            );
            assert_eq!(rig.world.runs(), (true, false), "{step:?} {trouble:?}");
            assert!(!postmigrate);
            assert_eq!(rig.statuses().last(), Some(&Failed));
        }
    }
}

#[test]
fn whatever_goes_wrong_in_the_target_the_guest_runs_once_or_its_loss_is_told() {
    for step in Step::TARGET {
        for trouble in [Trouble::Fail, Trouble::Panic, Trouble::Die] {
            let (rig, source, target, postmigrate) = with(Some((step, trouble)));
            // A target that dies once COMMIT is sent cannot say that the guest never ran, nor does
            // one know after a mistake.
            let lost = step == Step::Started || (step == Step::Start && trouble != Trouble::Fail);
            match lost {
                true => {
                    assert!(matches!(source, PrecopyOutcome::Lost { .. }), "{source:?}");
                    assert_eq!(rig.world.runs(), (false, false));
                }
                false => {
                    assert!(
                        matches!(source, PrecopyOutcome::Failed { .. }),
                        "{step:?} {source:?}"
                    );
                    assert_eq!(rig.world.runs(), (true, false), "{step:?} {trouble:?}");
                }
            }
            assert_eq!(postmigrate, lost, "{step:?} {trouble:?}");
            assert_eq!(target.is_none(), trouble == Trouble::Die, "{step:?}");
            assert_eq!(rig.statuses().last(), Some(&Failed));
            if trouble == Trouble::Fail {
                let said = rig.tracker.info().error_desc.unwrap();
                assert!(said.contains(&format!("{step:?} went wrong")), "{said}");
            }
        }
    }
}

#[test]
fn a_device_that_is_not_ready_is_an_error_of_the_command() {
    let rig = Rig::new();
    let (here, _there) = UnixStream::pair().unwrap();
    let mut source = rig.source(Some((Step::Setup, Trouble::Fail)));
    let error = rig.begin(&mut source, here).map(|_| ()).unwrap_err();
    assert!(matches!(error, BeginError::Setup(_)), "{error}");
    assert_eq!(rig.statuses(), [Setup, Failed]);
    assert_eq!(rig.world.runs(), (true, false));
}

#[test]
fn another_machine_does_not_take_the_guest() {
    let rig = Rig::new();
    let (here, there) = UnixStream::pair().unwrap();
    let mut other = FakeTarget::new(&rig.world, None);
    other.fingerprint.vcpus = 3;
    let target = rig.target(other, there);
    let (outcome, _) = rig.spawn_source(rig.source(None), here).join().unwrap();
    let PrecopyOutcome::Failed { reason } = outcome else {
        panic!("{outcome:?}");
    };
    assert!(reason.contains("-smp 1"), "{reason}");
    let (_, target) = target.join().unwrap();
    assert_eq!(rig.world.runs(), (true, false));
    assert!(target.abandoned.is_some() && target.memory.pages().is_empty());
}

#[test]
fn a_guest_that_writes_for_ever_is_copied_until_it_is_cancelled() {
    let rig = Rig::new();
    let (here, there) = UnixStream::pair().unwrap();
    let target = rig.target(FakeTarget::new(&rig.world, None), there);
    let mut source = rig.source(None);
    source.endless = true;
    let source = rig.spawn_source(source, here);
    while rig.passes.lock().unwrap().len() < 6 {
        std::thread::yield_now();
    }
    assert!(rig.tracker.info().expected_downtime.is_some());
    rig.tracker.cancel();
    let (outcome, source) = source.join().unwrap();
    assert_eq!(outcome, PrecopyOutcome::Cancelled);
    assert_eq!(rig.statuses(), [Setup, Active, Cancelling, Cancelled]);
    assert_eq!(rig.world.runs(), (true, false));
    assert_eq!(
        source.events,
        [MigrationEvent::Setup, MigrationEvent::Cancelled]
    );
    let (outcome, _) = target.join().unwrap();
    let IncomingOutcome::Abandoned { reason } = outcome else {
        panic!("{outcome:?}");
    };
    assert!(reason.contains("cancelled"), "{reason}");
}

#[test]
fn a_slow_migration_is_cancelled_at_once() {
    let rig = Rig::new();
    let (here, there) = UnixStream::pair().unwrap();
    let target = rig.target(FakeTarget::new(&rig.world, None), there);
    let mut source = rig.source(None);
    // A byte a second: it would wait for hours.
    source.limits.max_bandwidth = 1;
    let source = rig.spawn_source(source, here);
    rig.await_status(Active);
    rig.tracker.cancel();
    let (outcome, _) = source.join().unwrap();
    assert_eq!(outcome, PrecopyOutcome::Cancelled);
    assert_eq!(rig.world.runs(), (true, false));
    target.join().unwrap();
}

#[test]
fn an_operator_who_wants_a_pause_says_when_the_guest_stops() {
    let mut rig = Rig::new();
    rig.pause = true;
    let (here, there) = UnixStream::pair().unwrap();
    let target = rig.target(FakeTarget::new(&rig.world, None), there);
    let source = rig.spawn_source(rig.source(None), here);
    rig.await_status(PreSwitchover);
    assert_eq!(rig.world.runs(), (true, false));
    rig.tracker.proceed().unwrap();
    let (outcome, source) = source.join().unwrap();
    assert_eq!(outcome, PrecopyOutcome::Completed);
    let expected = [Setup, Active, PreSwitchover, Active, Device, Completed];
    assert_eq!(rig.statuses(), expected);
    let (_, target) = target.join().unwrap();
    assert_eq!(target.memory.pages(), source.memory.pages());
    assert_eq!(rig.world.runs(), (false, true));
}

#[test]
fn a_pause_is_cancelled() {
    let mut rig = Rig::new();
    rig.pause = true;
    let (here, there) = UnixStream::pair().unwrap();
    let target = rig.target(FakeTarget::new(&rig.world, None), there);
    let source = rig.spawn_source(rig.source(None), here);
    rig.await_status(PreSwitchover);
    rig.tracker.cancel();
    let (outcome, _) = source.join().unwrap();
    assert_eq!(outcome, PrecopyOutcome::Cancelled);
    assert_eq!(rig.world.runs(), (true, false));
    target.join().unwrap();
}
