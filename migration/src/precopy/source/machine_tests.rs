use proptest::prelude::*;

use super::*;

const INPUTS: usize = 14;

fn input(index: usize) -> Input {
    let text = || "because".to_owned();
    match index {
        0 => Input::Done,
        1 => Input::Again,
        2 => Input::Failed(text()),
        3 => Input::HungUp,
        4 => Input::TimedOut,
        5 => Input::Cancelled,
        6 => Input::Peer(Reply::Ready),
        7 => Input::Peer(Reply::Loaded),
        8 => Input::Peer(Reply::Started),
        9 => Input::Peer(Reply::Other("HELLO")),
        10 => Input::Peer(Reply::Other("COMMIT")),
        11 => Input::Peer(Reply::Failed {
            reason: text(),
            ran: false,
        }),
        12 => Input::Broken(text()),
        _ => Input::Peer(Reply::Failed {
            reason: text(),
            ran: true,
        }),
    }
}

/// The inputs of a migration without mishap and the actions they lead to.
fn straight() -> Vec<(Input, Action)> {
    vec![
        (Input::Done, Action::AwaitReady),
        (Input::Peer(Reply::Ready), Action::Copy),
        (Input::Again, Action::Copy),
        (Input::Done, Action::StopAndSave),
        (Input::Done, Action::SendState),
        (Input::Done, Action::AwaitLoaded),
        (Input::Peer(Reply::Loaded), Action::Commit),
        (Input::Done, Action::AwaitStarted),
        (
            Input::Peer(Reply::Started),
            Action::Finish {
                end: End::Completed,
                resume: false,
            },
        ),
    ]
}

/// Steps after which the guest is stopped, the target may have the state, COMMIT is being sent, and
/// was sent.
const STOPPED: usize = 4;
const SENT: usize = 5;
const COMMITTING: usize = 7;
const COMMITTED: usize = 8;

fn after(steps: usize) -> Machine {
    let (mut machine, first) = Machine::new(false);
    assert_eq!(first, Action::Offer);
    for (input, action) in &straight()[..steps] {
        assert_eq!(machine.step(input.clone()), *action);
    }
    machine
}

#[test]
fn the_straight_way_ends_completed() {
    after(straight().len());
}

#[test]
fn whatever_goes_wrong_before_commit_leaves_the_guest_here() {
    for steps in 0..COMMITTED {
        for index in 0..INPUTS {
            let copying = matches!(steps, 2 | 3) && index < 2;
            if straight()[steps].0 == input(index) || copying {
                continue;
            }
            let claimed = matches!(
                input(index),
                Input::Peer(Reply::Started | Reply::Failed { ran: true, .. })
            );
            let action = after(steps).step(input(index));
            let Action::Finish { end, resume } = action else {
                panic!("{steps} {index}: {action:?}");
            };
            let unclear = steps == COMMITTING && matches!(input(index), Input::Broken(_));
            if (claimed && steps >= SENT) || unclear {
                assert!(matches!(end, End::Lost(_)), "{steps} {index}: {end:?}");
                assert!(!resume);
            } else {
                assert_eq!(resume, steps >= STOPPED, "{steps} {index}");
                let cancelled = input(index) == Input::Cancelled;
                assert_eq!(end == End::Cancelled, cancelled, "{steps} {index}");
            }
        }
    }
}

#[test]
fn after_commit_only_the_target_can_give_the_guest_back() {
    for index in 0..INPUTS {
        let action = after(COMMITTED).step(input(index));
        match input(index) {
            Input::Cancelled => assert_eq!(action, Action::AwaitStarted),
            Input::Peer(Reply::Started) => assert_eq!(action, straight()[COMMITTED].1),
            Input::Peer(Reply::Failed { ran: false, .. }) => {
                let Action::Finish { end, resume } = action else {
                    panic!("{action:?}");
                };
                assert!(matches!(end, End::Failed(_)) && resume);
            }
            other => {
                let Action::Finish { end, resume } = action else {
                    panic!("{other:?}: {action:?}");
                };
                assert!(matches!(end, End::Lost(_)) && !resume, "{other:?}");
            }
        }
    }
}

#[test]
fn after_a_pause_what_was_written_is_copied_first() {
    let (mut machine, _) = Machine::new(true);
    for (input, action) in &straight()[..3] {
        assert_eq!(machine.step(input.clone()), *action);
    }
    assert_eq!(machine.step(Input::Done), Action::Pause);
    assert_eq!(machine.step(Input::Done), Action::Copy);
    assert_eq!(machine.step(Input::Again), Action::Copy);
    assert_eq!(machine.step(Input::Done), Action::StopAndSave);
}

#[test]
fn whatever_else_ends_a_pause_leaves_the_guest_running() {
    for index in 1..INPUTS {
        let (mut machine, _) = Machine::new(true);
        machine.step(Input::Done);
        machine.step(Input::Peer(Reply::Ready));
        assert_eq!(machine.step(Input::Done), Action::Pause);
        let action = machine.step(input(index));
        assert!(
            matches!(action, Action::Finish { resume: false, .. }),
            "{action:?}"
        );
    }
}

proptest! {
    #[test]
    fn in_no_order_of_inputs_is_a_guest_resumed_that_was_given_away(
        pause: bool,
        inputs in prop::collection::vec(0..INPUTS, 0..40),
        lead in 0..straight().len(),
    ) {
        let (mut machine, mut action) = Machine::new(pause);
        let mut stopped = false;
        let lead = straight().into_iter().take(lead).map(|(input, _)| input);
        for next in lead.chain(inputs.into_iter().map(input)) {
            stopped |= action == Action::StopAndSave;
            let committed = action == Action::AwaitStarted;
            let gives_back = matches!(next, Input::Peer(Reply::Failed { ran: false, .. }));
            let completes = committed && next == Input::Peer(Reply::Started);
            action = machine.step(next);
            if let Action::Finish { end, resume } = &action {
                prop_assert!(!resume || stopped);
                prop_assert!(!resume || !committed || gives_back);
                prop_assert!(!committed || *resume || !matches!(end, End::Failed(_)));
                prop_assert_eq!(*end == End::Completed, completes);
                break;
            }
        }
    }
}
