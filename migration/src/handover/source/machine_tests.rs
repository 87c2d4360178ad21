use proptest::prelude::*;

use super::*;

const INPUTS: usize = 17;

fn input(index: usize) -> Input {
    let text = || "because".to_owned();
    match index {
        0 => Input::Done,
        1 => Input::Failed(text()),
        2 => Input::HungUp,
        3 => Input::TimedOut,
        4 => Input::Cancelled,
        5 => Input::TargetWasFirst,
        6 => Input::Reclaimed,
        7 => Input::TargetStarted,
        8 => Input::Peer(Reply::Ready),
        9 => Input::Peer(Reply::Attached),
        10 => Input::Peer(Reply::Loaded),
        11 => Input::Peer(Reply::Started),
        12 => Input::Peer(Reply::Failed(text())),
        13 => Input::Peer(Reply::Other("HELLO")),
        14 => Input::Peer(Reply::Other("STATE")),
        15 => Input::Peer(Reply::Other("ABORT")),
        _ => Input::Peer(Reply::Other("COMMIT")),
    }
}

/// The inputs of a handover without mishap and the actions they lead to.
fn straight() -> Vec<(Input, Action)> {
    vec![
        (Input::Done, Action::AwaitReady),
        (Input::Peer(Reply::Ready), Action::Attach),
        (Input::Done, Action::AwaitAttached),
        (Input::Peer(Reply::Attached), Action::StopAndSave),
        (Input::Done, Action::SendState),
        (Input::Done, Action::AwaitLoaded),
        (Input::Peer(Reply::Loaded), Action::Commit),
        (Input::Done, Action::AwaitStarted),
        (Input::Peer(Reply::Started), Action::Reclaim),
        (
            Input::TargetStarted,
            Action::Finish {
                end: End::Completed,
                resume: false,
            },
        ),
    ]
}

/// The machine after `steps` of the straight way.
fn after(steps: usize) -> Machine {
    let (mut machine, first) = Machine::new(false);
    assert_eq!(first, Action::Offer);
    for (input, action) in &straight()[..steps] {
        assert_eq!(machine.step(input.clone()), *action);
    }
    machine
}

/// Steps after which the guest is stopped, and after which the target has its state.
const STOPPED: usize = 4;
const SENT: usize = 6;

#[test]
fn the_straight_way_ends_completed() {
    after(straight().len());
}

#[test]
fn whatever_goes_wrong_at_any_step_the_claim_is_asked_next() {
    for steps in 0..8 {
        for index in 0..INPUTS {
            let mut machine = after(steps);
            if straight()[steps].0 == input(index) {
                continue;
            }
            assert_eq!(
                machine.step(input(index)),
                Action::Reclaim,
                "{steps} {:?}",
                input(index)
            );
        }
    }
}

/// A machine that pauses, once the target is ready.
fn paused() -> Machine {
    let (mut machine, first) = Machine::new(true);
    assert_eq!(first, Action::Offer);
    assert_eq!(machine.step(Input::Done), Action::AwaitReady);
    assert_eq!(machine.step(Input::Peer(Reply::Ready)), Action::Pause);
    machine
}

#[test]
fn after_a_pause_the_straight_way_goes_on() {
    let mut machine = paused();
    assert_eq!(machine.step(Input::Done), Action::Attach);
    for (input, action) in &straight()[2..] {
        assert_eq!(machine.step(input.clone()), *action);
    }
}

#[test]
fn whatever_else_ends_a_pause_leaves_the_guest_running() {
    for index in (0..INPUTS).filter(|index| input(*index) != Input::Done) {
        let mut machine = paused();
        assert_eq!(machine.step(input(index)), Action::Reclaim);
        let finish = machine.step(Input::Reclaimed);
        assert!(
            matches!(finish, Action::Finish { resume: false, .. }),
            "{finish:?}"
        );
    }
}

#[test]
fn after_the_commitment_cancelling_changes_nothing() {
    let mut machine = after(8);
    assert_eq!(machine.step(Input::Cancelled), Action::AwaitStarted);
    assert_eq!(machine.step(Input::Peer(Reply::Started)), Action::Reclaim);
}

#[test]
fn a_reclaimed_guest_is_resumed_if_and_only_if_it_was_stopped() {
    for steps in 0..9 {
        let mut machine = after(steps);
        machine.step(Input::HungUp);
        let Action::Finish { end, resume } = machine.step(Input::Reclaimed) else {
            panic!()
        };
        assert!(matches!(end, End::Failed(_)), "{end:?}");
        assert_eq!(resume, steps >= STOPPED, "after {steps} steps");
    }
}

#[test]
fn a_guest_that_the_target_claimed_is_never_resumed() {
    for steps in 0..9 {
        for index in 0..INPUTS {
            let mut machine = after(steps);
            if machine.step(input(index)) != Action::Reclaim {
                continue;
            }
            let Action::Finish { end, resume } = machine.step(Input::TargetStarted) else {
                panic!()
            };
            assert!(!resume);
            match end {
                End::Failed(_) => assert!(steps < STOPPED),
                End::Completed => assert!(steps >= SENT),
                End::Lost(_) => assert!(steps >= STOPPED),
                End::Cancelled => panic!("cancelled a guest that runs elsewhere"),
            }
        }
    }
}

#[test]
fn a_target_that_claims_and_then_fails_or_dies_is_reported() {
    for input in [
        Input::HungUp,
        Input::Peer(Reply::Failed("no memory".into())),
    ] {
        let mut machine = after(8);
        machine.step(input);
        let Action::Finish {
            end: End::Lost(reason),
            ..
        } = machine.step(Input::TargetStarted)
        else {
            panic!()
        };
        assert!(reason.contains("had claimed the guest"), "{reason}");
    }
}

#[test]
fn a_target_that_claims_but_forgets_to_say_so_has_the_guest() {
    let mut machine = after(8);
    assert_eq!(machine.step(Input::TimedOut), Action::Reclaim);
    let finish = machine.step(Input::TargetStarted);
    assert_eq!(
        finish,
        Action::Finish {
            end: End::Completed,
            resume: false
        }
    );
}

#[test]
fn a_target_that_says_started_without_a_claim_does_not_keep_the_guest() {
    let mut machine = after(9);
    let Action::Finish {
        end: End::Failed(reason),
        resume: true,
    } = machine.step(Input::Reclaimed)
    else {
        panic!()
    };
    assert!(reason.contains("never claimed it"), "{reason}");
}

#[test]
fn a_cancellation_before_the_commitment_keeps_the_guest() {
    for steps in 0..8 {
        let mut machine = after(steps);
        assert_eq!(machine.step(Input::Cancelled), Action::Reclaim);
        let finish = machine.step(Input::Reclaimed);
        assert_eq!(
            finish,
            Action::Finish {
                end: End::Cancelled,
                resume: steps >= STOPPED
            }
        );
    }
}

#[test]
fn the_targets_own_words_are_the_reason() {
    let mut machine = after(6);
    machine.step(Input::Peer(Reply::Failed("Unknown section 'x'".into())));
    let Action::Finish {
        end: End::Failed(reason),
        ..
    } = machine.step(Input::Reclaimed)
    else {
        panic!()
    };
    assert_eq!(reason, "The target failed: Unknown section 'x'");
}

#[test]
fn after_the_end_nothing_is_ever_resumed_again() {
    for index in 0..INPUTS {
        let mut machine = after(straight().len());
        assert!(matches!(
            machine.step(input(index)),
            Action::Finish { resume: false, .. }
        ));
    }
}

proptest! {
    /// Plays any inputs against a claim that answers as the real one does.
    #[test]
    fn in_any_order_of_inputs_the_guest_is_resumed_only_with_the_claim(
        inputs in proptest::collection::vec(0..INPUTS, 0..30),
        target_claims_at in 0usize..30,
        pause in proptest::bool::ANY,
    ) {
        let (mut machine, mut action) = Machine::new(pause);
        let (mut reclaimed, mut stopped, mut commits) = (false, false, 0);
        let mut started = false;
        for (step, index) in inputs.into_iter().enumerate() {
            started |= step == target_claims_at && !reclaimed;
            stopped |= action == Action::StopAndSave;
            commits += usize::from(action == Action::Commit);
            let next = match &action {
                Action::Finish { end, resume } => {
                    if *resume {
                        prop_assert!(reclaimed && stopped);
                    }
                    if matches!(end, End::Completed | End::Lost(_)) {
                        prop_assert!(started && !resume);
                    }
                    break;
                }
                Action::Reclaim if started => Input::TargetStarted,
                Action::Reclaim => {
                    reclaimed = true;
                    Input::Reclaimed
                }
                // The claim's answers come only when it was asked.
                _ => match input(index) {
                    Input::Reclaimed | Input::TargetStarted => Input::Done,
                    other => other,
                },
            };
            action = machine.step(next);
        }
        prop_assert!(commits <= 1);
    }
}
