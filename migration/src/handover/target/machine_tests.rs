use proptest::prelude::*;

use super::*;

const INPUTS: usize = 19;

fn input(index: usize) -> Input {
    let text = || "because".to_owned();
    match index {
        0 => Input::Done,
        1 => Input::Failed(text()),
        2 => Input::HungUp,
        3 => Input::TimedOut,
        4 => Input::Started,
        5 => Input::Reclaimed,
        6 => Input::StartedAndFailed(text()),
        7 => Input::Peer(Request::Hello(0)),
        8 => Input::Peer(Request::Hello(2)),
        9 => Input::Peer(Request::Fds(1)),
        10 => Input::Peer(Request::Fds(0)),
        11 => Input::Peer(Request::Fds(3)),
        12 => Input::Peer(Request::Preview),
        13 => Input::Peer(Request::Attach),
        14 => Input::Peer(Request::State),
        15 => Input::Peer(Request::Commit),
        16 => Input::Peer(Request::Abort(text())),
        17 => Input::Peer(Request::Other("READY")),
        _ => Input::Peer(Request::Other("STARTED")),
    }
}

/// The inputs of a handover without mishap and the actions they lead to.
fn straight() -> Vec<(Input, Action)> {
    vec![
        (Input::Peer(Request::Hello(2)), Action::AwaitFds),
        (Input::Peer(Request::Fds(1)), Action::AwaitFds),
        (Input::Peer(Request::Fds(1)), Action::AwaitPreview),
        (Input::Peer(Request::Preview), Action::Prepare),
        (Input::Done, Action::OpenMain),
        (Input::Done, Action::AwaitAttach),
        (Input::Peer(Request::Attach), Action::WelcomeSource),
        (Input::Done, Action::AwaitState),
        (Input::Peer(Request::State), Action::Load),
        (Input::Done, Action::ReportLoaded),
        (Input::Done, Action::AwaitCommit),
        (Input::Peer(Request::Commit), Action::Start),
        (Input::Started, Action::ReportStarted),
        (
            Input::Done,
            Action::Finish {
                end: End::Running,
                tell: false,
            },
        ),
    ]
}

/// Steps after which the state is loaded, and after which the guest is being claimed.
const LOADED: usize = 10;
const CLAIMING: usize = 12;

fn after(steps: usize) -> Machine {
    let (mut machine, first) = Machine::new();
    assert_eq!(first, Action::AwaitHello);
    for (input, action) in &straight()[..steps] {
        assert_eq!(machine.step(input.clone()), *action);
    }
    machine
}

#[test]
fn the_straight_way_ends_running() {
    after(straight().len());
}

#[test]
fn whatever_goes_wrong_before_the_state_is_loaded_ends_the_target() {
    for steps in 0..LOADED {
        for index in 0..INPUTS {
            let input = input(index);
            let fine = straight()[steps].0 == input
                || (steps == 0 && input == Input::Peer(Request::Hello(0)));
            if fine {
                continue;
            }
            let action = after(steps).step(input.clone());
            let Action::Finish {
                end: End::Abandoned(reason),
                ..
            } = action
            else {
                panic!("{steps} {input:?}: {action:?}")
            };
            assert!(!reason.is_empty());
        }
    }
}

#[test]
fn the_source_is_told_of_every_failure_but_not_of_its_own_wish_or_death() {
    for steps in 0..LOADED {
        for (input, told) in [
            (Input::Failed("because".into()), true),
            (Input::TimedOut, true),
            (Input::Peer(Request::Other("READY")), true),
            (Input::HungUp, false),
            (Input::Peer(Request::Abort("cancelled".into())), false),
        ] {
            let Action::Finish { tell, .. } = after(steps).step(input) else {
                panic!()
            };
            assert_eq!(tell, told);
        }
    }
}

#[test]
fn a_source_that_is_gone_after_the_state_was_loaded_leaves_the_guest_to_the_claim() {
    for steps in [LOADED, LOADED + 1] {
        for input in [Input::HungUp, Input::TimedOut] {
            assert_eq!(after(steps).step(input), Action::Start);
        }
    }
}

#[test]
fn a_source_that_takes_the_guest_back_after_it_was_loaded_keeps_it() {
    for steps in [LOADED, LOADED + 1] {
        let action = after(steps).step(Input::Peer(Request::Abort("time-out".into())));
        let Action::Finish {
            end: End::Abandoned(reason),
            tell: false,
        } = action
        else {
            panic!()
        };
        assert!(reason.contains("time-out"), "{reason}");
    }
}

#[test]
fn a_lost_claim_ends_the_target_quietly() {
    let action = after(CLAIMING).step(Input::Reclaimed);
    assert!(matches!(
        action,
        Action::Finish {
            end: End::Abandoned(_),
            tell: false
        }
    ));
}

#[test]
fn a_start_that_fails_before_the_claim_gives_the_guest_back_and_after_it_is_reported() {
    let action = after(CLAIMING).step(Input::Failed("no".into()));
    assert!(matches!(
        action,
        Action::Finish {
            end: End::Abandoned(_),
            tell: true
        }
    ));
    let action = after(CLAIMING).step(Input::StartedAndFailed("no".into()));
    assert!(matches!(
        action,
        Action::Finish {
            end: End::Lost(_),
            tell: true
        }
    ));
}

#[test]
fn once_started_the_guest_runs_whether_or_not_the_source_hears_of_it() {
    for index in 0..INPUTS {
        let action = after(CLAIMING + 1).step(input(index));
        assert_eq!(
            action,
            Action::Finish {
                end: End::Running,
                tell: false
            }
        );
    }
}

#[test]
fn more_descriptors_than_announced_are_refused() {
    let mut machine = after(2);
    assert!(matches!(
        machine.step(Input::Peer(Request::Fds(2))),
        Action::Finish {
            end: End::Abandoned(_),
            tell: true
        }
    ));
}

proptest! {
    #[test]
    fn in_any_order_of_inputs_the_guest_is_started_only_when_it_was_loaded(
        inputs in proptest::collection::vec(0..INPUTS, 0..40),
        skip in 0usize..14,
    ) {
        let mut machine = after(skip);
        let mut loaded = skip >= LOADED;
        let mut action = if skip == 0 { Action::AwaitHello } else { straight()[skip - 1].1.clone() };
        let mut starts = 0;
        for index in inputs {
            loaded |= action == Action::ReportLoaded;
            if action == Action::Start {
                prop_assert!(loaded);
                starts += 1;
            }
            if let Action::Finish { .. } = action {
                break;
            }
            action = machine.step(input(index));
        }
        prop_assert!(starts <= 1);
    }
}
