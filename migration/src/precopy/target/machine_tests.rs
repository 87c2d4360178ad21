use proptest::prelude::*;

use super::*;

const INPUTS: usize = 11;

fn input(index: usize) -> Input {
    let text = || "because".to_owned();
    match index {
        0 => Input::Done,
        1 => Input::Failed(text()),
        2 => Input::HungUp,
        3 => Input::TimedOut,
        4 => Input::RanAndFailed(text()),
        5 => Input::Peer(Request::Hello),
        6 => Input::Peer(Request::State),
        7 => Input::Peer(Request::Commit),
        8 => Input::Peer(Request::Abort(text())),
        9 => Input::Peer(Request::Other("READY")),
        _ => Input::Peer(Request::Other("PAGES")),
    }
}

/// The inputs of a migration without mishap and the actions they lead to.
fn straight() -> Vec<(Input, Action)> {
    vec![
        (Input::Peer(Request::Hello), Action::Build),
        (Input::Done, Action::ReportReady),
        (Input::Done, Action::Receive),
        (Input::Peer(Request::State), Action::Load),
        (Input::Done, Action::ReportLoaded),
        (Input::Done, Action::AwaitCommit),
        (Input::Peer(Request::Commit), Action::Start),
        (Input::Done, Action::ReportStarted),
        (
            Input::Done,
            Action::Finish {
                end: End::Running,
                tell: false,
            },
        ),
    ]
}

const STARTING: usize = 7;
const STARTED: usize = 8;

fn after(steps: usize) -> Machine {
    let (mut machine, first) = Machine::new();
    assert_eq!(first, Action::AwaitHello);
    for (input, action) in &straight()[..steps] {
        assert_eq!(machine.step(input.clone()), *action);
    }
    machine
}

#[test]
fn the_straight_way_ends_with_the_guest_running() {
    after(straight().len());
}

#[test]
fn whatever_goes_wrong_before_the_start_leaves_the_guest_to_the_source() {
    for steps in 0..STARTED {
        for index in 0..INPUTS {
            if straight()[steps].0 == input(index) {
                continue;
            }
            let action = after(steps).step(input(index));
            let Action::Finish { end, tell } = action else {
                panic!("{steps} {index}: {action:?}");
            };
            let ran = steps == STARTING && matches!(input(index), Input::RanAndFailed(_));
            match end {
                End::Lost(_) => assert!(ran && tell),
                End::Abandoned(_) => assert!(!ran),
                End::Running => panic!("{steps} {index}"),
            }
            // Nobody is told who knows or is gone.
            let silent = matches!(input(index), Input::HungUp | Input::Peer(Request::Abort(_)));
            assert_eq!(tell, !silent, "{steps} {index}");
        }
    }
}

#[test]
fn once_the_guest_runs_nothing_ends_it() {
    for index in 0..INPUTS {
        assert_eq!(after(STARTED).step(input(index)), straight()[STARTED].1);
    }
}

proptest! {
    #[test]
    fn in_no_order_of_inputs_does_a_guest_start_without_commit(
        inputs in prop::collection::vec(0..INPUTS, 0..40),
        lead in 0..straight().len(),
    ) {
        let (mut machine, mut action) = Machine::new();
        let lead = straight().into_iter().take(lead).map(|(input, _)| input);
        for next in lead.chain(inputs.into_iter().map(input)) {
            let commit = next == Input::Peer(Request::Commit);
            let awaited = action == Action::AwaitCommit;
            action = machine.step(next);
            prop_assert!(action != Action::Start || (commit && awaited));
            if matches!(action, Action::Finish { .. }) {
                break;
            }
        }
    }
}
