use std::sync::{Arc, Mutex};

use super::*;
use crate::claim::Blackout;

fn tracker() -> (Tracker, Arc<Mutex<Vec<MigrationStatus>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&seen);
    (
        Tracker::new(Box::new(move |status| sink.lock().unwrap().push(status))).unwrap(),
        seen,
    )
}

fn wants_cancel(tracker: &Tracker) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut fds = [PollFd::new(tracker.cancel_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
}

#[test]
fn every_status_is_spelled_as_in_qapi() {
    for status in MigrationStatus::ALL {
        assert_eq!(serde_json::to_value(status).unwrap(), status.as_str());
    }
    assert_eq!(
        MigrationStatus::PostcopyRecoverSetup.to_string(),
        "postcopy-recover-setup"
    );
}

#[test]
fn query_migrate_is_empty_when_nothing_ever_happened() {
    let (tracker, _) = tracker();
    assert_eq!(serde_json::to_string(&tracker.info()).unwrap(), "{}");
}

#[test]
fn a_migration_is_observed_in_order_and_reported_with_its_blackout() {
    use MigrationStatus::*;
    let (tracker, seen) = tracker();
    tracker.begin().unwrap();
    tracker.advance(Active).unwrap();
    tracker.advance(Device).unwrap();
    tracker.note_blackout(Some(Blackout {
        total_us: 1500,
        save_us: 300,
        ..Blackout::default()
    }));
    tracker.advance(Completed).unwrap();
    assert_eq!(*seen.lock().unwrap(), [Setup, Active, Device, Completed]);

    let json = serde_json::to_value(tracker.info()).unwrap();
    assert_eq!(json["status"], "completed");
    assert_eq!(json["downtime"], 2);
    assert_eq!(json["blackout"]["total-us"], 1500);
    assert_eq!(json["blackout"]["save-us"], 300);
    assert!(json["setup-time"].is_u64() && json["total-time"].is_u64());
    assert!(json.get("error-desc").is_none() && json.get("blocked-reasons").is_none());
}

#[test]
fn a_second_migration_is_refused_while_one_is_under_way() {
    let (tracker, _) = tracker();
    tracker.begin().unwrap();
    assert_eq!(
        tracker.begin().unwrap_err().to_string(),
        "There's a migration process in progress"
    );
    tracker.note_error("no");
    tracker.advance(MigrationStatus::Failed).unwrap();
    assert_eq!(tracker.info().error_desc.as_deref(), Some("no"));
    tracker.begin().unwrap();
    assert_eq!(tracker.info().error_desc, None);
}

#[test]
fn an_inherited_migration_goes_on_without_the_events_it_had() {
    let (tracker, seen) = tracker();
    tracker.inherit(40, 30);
    assert_eq!(tracker.status(), MigrationStatus::Device);
    tracker.end_inherited(Err("it did not work"));
    assert_eq!(*seen.lock().unwrap(), [MigrationStatus::Failed]);
    let info = tracker.info();
    assert_eq!(info.error_desc.as_deref(), Some("it did not work"));
    assert_eq!(info.setup_time, Some(30));
    assert!(info.total_time >= Some(40));
}

#[test]
fn an_illegal_transition_names_both_states_and_changes_nothing() {
    let (tracker, seen) = tracker();
    let error = tracker.advance(MigrationStatus::Completed).unwrap_err();
    assert_eq!(
        error.to_string(),
        "A migration cannot go from 'none' to 'completed'"
    );
    assert_eq!(tracker.status(), MigrationStatus::None);
    assert!(seen.lock().unwrap().is_empty());
}

#[test]
fn cancelling_nothing_does_nothing_and_is_not_remembered() {
    let (tracker, _) = tracker();
    tracker.cancel();
    assert!(!wants_cancel(&tracker));
    tracker.begin().unwrap();
    assert!(!wants_cancel(&tracker));
    tracker.cancel();
    assert!(wants_cancel(&tracker));
    tracker.advance(MigrationStatus::Failed).unwrap();
    tracker.begin().unwrap();
    assert!(!wants_cancel(&tracker));
}

#[test]
fn the_end_of_a_pause_is_news_once_and_hides_no_cancellation() {
    use MigrationStatus::*;
    for cancelled in [false, true] {
        let (tracker, _) = tracker();
        tracker.begin().unwrap();
        tracker.advance(Active).unwrap();
        assert_eq!(tracker.proceed(), Err(NotPaused(Active)));
        tracker.advance(PreSwitchover).unwrap();
        assert!(!wants_cancel(&tracker) && !tracker.may_proceed());
        tracker.proceed().unwrap();
        assert!(wants_cancel(&tracker) && !tracker.cancelled());
        if cancelled {
            tracker.cancel();
        }
        assert!(tracker.may_proceed());
        assert_eq!(wants_cancel(&tracker), cancelled);
        // Said late, it does not end anything else.
        tracker.proceed().unwrap();
        assert_eq!(wants_cancel(&tracker), cancelled);
        // Nor does it end the next pause.
        tracker.advance(Failed).unwrap();
        tracker.begin().unwrap();
        assert!(!tracker.may_proceed() && !wants_cancel(&tracker));
    }
}
