//! The order of events, whatever goes wrong.

use super::fakes::{FakeHost, FakeKeeper, Stage, Step, Trouble, fingerprint};
use crate::blockers::OwnedBlocker;
use crate::checkpoint::{Checkpoint, CheckpointOutcome};
use crate::status::MigrationStatus::{
    self, Active, Cancelled, Cancelling, Completed, Device, Failed, PreSwitchover, Setup,
};
use crate::{Blocker, Mode};

/// Runs it; the error of `begin` counts as a failure.
fn run(stage: &Stage, host: &mut FakeHost, keeper: &mut FakeKeeper) -> CheckpointOutcome {
    match Checkpoint::begin(stage.options(), host, keeper) {
        Ok(checkpoint) => checkpoint.run(host, keeper),
        Err(error) => CheckpointOutcome::Failed {
            reason: crate::error_chain(&error),
        },
    }
}

fn statuses(stage: &Stage) -> Vec<MigrationStatus> {
    stage.statuses.lock().unwrap().clone()
}

#[test]
fn a_guest_is_kept_step_by_step() {
    let stage = Stage::new(None);
    let (mut host, mut keeper) = (FakeHost::new(&stage), FakeKeeper::new(&stage));
    assert_eq!(
        run(&stage, &mut host, &mut keeper),
        CheckpointOutcome::Completed
    );
    let order = "Setup Open Prepare Stop Save Ram Write Finish notify Done postmigrate";
    assert_eq!(stage.journal().join(" "), order);
    assert_eq!(statuses(&stage), [Setup, Active, Device, Completed]);
    assert!(!host.runs);
    let state = keeper.state.unwrap();
    assert_eq!(state.header().fingerprint, fingerprint());
    assert_eq!((state.len(), keeper.ram), (1, 3 * 4096));
    let info = stage.tracker.info();
    let blackout = info.blackout.unwrap();
    assert!(info.downtime.is_some() && info.error_desc.is_none());
    let parts = blackout.quiesce_us + blackout.save_us + blackout.transfer_us;
    assert!(parts <= blackout.total_us && blackout.total_us - parts <= 3);
}

#[test]
fn whatever_fails_the_guest_goes_on_and_nothing_looks_whole() {
    for step in Step::ALL {
        let stage = Stage::new(Some((step, Trouble::Fail)));
        let (mut host, mut keeper) = (FakeHost::new(&stage), FakeKeeper::new(&stage));
        let outcome = run(&stage, &mut host, &mut keeper);
        let CheckpointOutcome::Failed { reason } = outcome else {
            panic!("{step:?}: {outcome:?}");
        };
        assert!(reason.contains(&format!("{step:?} went wrong")), "{reason}");
        assert!(host.runs, "{step:?}: the guest stands still");
        assert!(keeper.state.is_none(), "{step:?}: a state is left");
        let journal = stage.journal().join(" ");
        let end = match step.in_blackout() {
            true => "discard resume notify Failed",
            false => "discard notify Failed",
        };
        assert!(journal.ends_with(&format!("{step:?} {end}")), "{journal}");
        assert_eq!(statuses(&stage).last(), Some(&Failed), "{step:?}");
        assert_eq!(stage.tracker.info().error_desc, Some(reason), "{step:?}");

        // Blockers can be added again, and the next one succeeds.
        stage.blockers.check(Mode::CprReboot, []).unwrap();
        let again = Stage {
            plan: None,
            ..stage.clone()
        };
        host.stage = again.clone();
        keeper.stage = again.clone();
        assert_eq!(
            run(&again, &mut host, &mut keeper),
            CheckpointOutcome::Completed
        );
    }
}

#[test]
fn it_can_be_cancelled_until_the_last_step() {
    for step in Step::ALL {
        for trouble in [Trouble::Cancel, Trouble::CancelAndFail] {
            let stage = Stage::new(Some((step, trouble)));
            let (mut host, mut keeper) = (FakeHost::new(&stage), FakeKeeper::new(&stage));
            let outcome = run(&stage, &mut host, &mut keeper);
            if step == Step::Finish && trouble == Trouble::Cancel {
                assert_eq!(outcome, CheckpointOutcome::Completed);
                assert!(!host.runs);
                continue;
            }
            assert!(host.runs, "{step:?} {trouble:?}: the guest stands still");
            let journal = stage.journal().join(" ");
            assert!(journal.contains("discard"), "{journal}");
            if step.in_begin() && trouble == Trouble::CancelAndFail {
                // The command tells of the failure.
                assert!(matches!(outcome, CheckpointOutcome::Failed { .. }));
                continue;
            }
            assert_eq!(
                outcome,
                CheckpointOutcome::Cancelled,
                "{step:?} {trouble:?}"
            );
            assert!(journal.ends_with("notify Cancelled"), "{journal}");
            assert!(statuses(&stage).ends_with(&[Cancelling, Cancelled]));
            assert!(keeper.state.is_none());
        }
    }
}

#[test]
fn a_blocker_ends_it_before_anything_is_done() {
    let stage = Stage::new(None);
    let (mut host, mut keeper) = (FakeHost::new(&stage), FakeKeeper::new(&stage));
    host.blockers.push(OwnedBlocker {
        owner: "gpu0".into(),
        blocker: Blocker {
            id: "no".into(),
            reason: "it cannot".into(),
            remedy: "unplug it".into(),
            modes: vec![Mode::CprReboot],
            unless_suspended: false,
        },
    });
    let outcome = run(&stage, &mut host, &mut keeper);
    let reason = "device 'gpu0': it cannot (unplug it)".to_owned();
    assert_eq!(outcome, CheckpointOutcome::Failed { reason });
    assert!(stage.journal().is_empty() && statuses(&stage).is_empty());
}

#[test]
fn no_blocker_is_added_meanwhile() {
    let stage = Stage::new(None);
    let (mut host, mut keeper) = (FakeHost::new(&stage), FakeKeeper::new(&stage));
    let checkpoint = Checkpoint::begin(stage.options(), &mut host, &mut keeper).unwrap();
    let blocker = Blocker {
        id: "late".into(),
        reason: "late".into(),
        remedy: String::new(),
        modes: vec![Mode::CprReboot],
        unless_suspended: false,
    };
    stage.blockers.add("x", blocker.clone()).unwrap_err();
    let second = Checkpoint::begin(stage.options(), &mut host, &mut keeper);
    let text = second.map(|_| ()).unwrap_err().to_string();
    assert_eq!(text, "There's a migration process in progress");
    let _ = checkpoint.run(&mut host, &mut keeper);
    stage.blockers.add("x", blocker).unwrap();
}

#[test]
fn the_guest_goes_on_after_a_mistake_of_ours() {
    for step in Step::ALL {
        if step.in_begin() {
            continue;
        }
        let stage = Stage::new(Some((step, Trouble::Panic)));
        let (mut host, mut keeper) = (FakeHost::new(&stage), FakeKeeper::new(&stage));
        let outcome = run(&stage, &mut host, &mut keeper);
        assert!(matches!(outcome, CheckpointOutcome::Failed { .. }));
        assert!(host.runs, "{step:?}: the guest stands still");
        assert!(stage.journal().contains(&"discard".to_owned()));
    }
}

#[test]
fn the_guest_runs_until_the_operator_says_so() {
    for go in [true, false] {
        let mut stage = Stage::new(None);
        stage.pause = true;
        let (mut host, mut keeper) = (FakeHost::new(&stage), FakeKeeper::new(&stage));
        let outcome = std::thread::scope(|scope| {
            let running = scope.spawn(|| run(&stage, &mut host, &mut keeper));
            while stage.tracker.status() != PreSwitchover {
                std::thread::yield_now();
            }
            assert!(!stage.journal().contains(&"Stop".to_owned()));
            match go {
                true => stage.tracker.proceed().unwrap(),
                false => stage.tracker.cancel(),
            }
            running.join().unwrap()
        });
        let expected = match go {
            true => CheckpointOutcome::Completed,
            false => CheckpointOutcome::Cancelled,
        };
        assert_eq!(outcome, expected);
        assert_eq!(stage.journal().contains(&"Stop".to_owned()), go);
        assert_eq!(host.runs, !go);
    }
}
