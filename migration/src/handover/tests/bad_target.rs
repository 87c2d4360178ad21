//! A real source against a target that hangs up, says nothing, claims or lies at every step.

use super::peer::{Lie, Peer, lies};
use super::rig::{Rig, generous, short};
use crate::address::ChannelType;
use crate::channel::Listener;
use crate::claim::{ClaimState, ClaimWatch, TargetClaim};
use crate::handover::SourceOutcome;
use crate::handover::protocol::{self, Message, kind};

/// How far the target goes along before it goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Until {
    Accepted,
    Introduced,
    Offered,
    Ready,
    Connected,
    Attached,
    Received,
    Loaded,
    Committed,
    Claimed,
    Started,
}

impl Until {
    const ALL: [Until; 11] = [
        Until::Accepted,
        Until::Introduced,
        Until::Offered,
        Until::Ready,
        Until::Connected,
        Until::Attached,
        Until::Received,
        Until::Loaded,
        Until::Committed,
        Until::Claimed,
        Until::Started,
    ];
}

/// What the target does then.
#[derive(Clone, Copy)]
enum Then<'a> {
    HangUp,
    HangUpMain,
    HangUpCpr,
    Silent,
    ClaimAndHangUp,
    ClaimAndSilent,
    Fail,
    Lie(&'a Lie),
}

/// Plays the target; returns what lets the test see the claim.
fn play(rig: &Rig, cpr: Listener, until: Until, then: Then<'_>) -> Option<ClaimWatch> {
    let mut main = Listener::bind(rig.main()).unwrap();
    let mut peer = Peer::accept(cpr);
    let (mut claim, mut watch) = (None, None);
    // Ends early if the source has hung up.
    let mut along = || -> Option<()> {
        if until == Until::Accepted {
            return Some(());
        }
        let hello = peer.receive(ChannelType::Cpr)?;
        let Ok(Message::Hello(hello, Some(fd))) = Message::decode(ChannelType::Cpr, hello) else {
            panic!()
        };
        assert_eq!(hello.fds, 0);
        let (token, seen) = TargetClaim::adopt(&fd).unwrap();
        (claim, watch) = (Some(token), Some(seen));
        if until == Until::Introduced {
            return Some(());
        }
        if peer.receive(ChannelType::Cpr)?.kind != kind::PREVIEW {
            return None;
        }
        if until == Until::Offered {
            return Some(());
        }
        peer.send(ChannelType::Cpr, kind::READY, &[], &[]);
        if until == Until::Ready {
            return Some(());
        }
        peer.accept_main(&mut main)?;
        let attach = peer.receive(ChannelType::Main)?;
        let Ok(Message::Attach(token)) = Message::decode(ChannelType::Main, attach) else {
            panic!()
        };
        assert_eq!(token, hello.token);
        for (step, send, receive) in [
            (Until::Connected, None, None),
            (Until::Attached, Some(kind::ATTACHED), None),
            (Until::Received, None, Some(kind::STATE)),
            (Until::Loaded, Some(kind::LOADED), None),
            (Until::Committed, None, Some(kind::COMMIT)),
            (Until::Claimed, None, None),
            (Until::Started, Some(kind::STARTED), None),
        ] {
            if step == Until::Claimed {
                let _started = claim.take()?.start().ok()?;
            }
            if let Some(kind) = send {
                peer.send(ChannelType::Main, kind, &[], &[]);
            }
            if let Some(kind) = receive
                && peer.receive(ChannelType::Main)?.kind != kind
            {
                return None;
            }
            if until == step {
                break;
            }
        }
        Some(())
    };
    along();
    match then {
        Then::HangUp => {}
        Then::HangUpMain => {
            peer.main = None;
            peer.silent();
        }
        Then::HangUpCpr => {
            let (closed, _) = std::os::unix::net::UnixStream::pair().unwrap();
            peer.cpr =
                crate::channel::Channel::new(closed.into(), "cpr", protocol::bounds).unwrap();
            peer.silent();
        }
        Then::Silent => peer.silent(),
        Then::ClaimAndHangUp | Then::ClaimAndSilent => {
            let _ = claim.map(TargetClaim::start);
            if matches!(then, Then::ClaimAndSilent) {
                peer.silent();
            }
        }
        Then::Fail => {
            let failed = protocol::encode_failed("out of memory").unwrap();
            peer.send(ChannelType::Cpr, kind::FAILED, &failed, &[]);
        }
        Then::Lie(lie) => {
            peer.lie(lie);
            peer.silent();
        }
    }
    watch
}

/// Runs it and checks that what the source does is what the claim says.
fn source_against(rig: &Rig, until: Until, then: Then<'_>) -> (SourceOutcome, Option<ClaimState>) {
    let mut source = rig.source();
    let cpr = Listener::bind(rig.cpr()).unwrap();
    let (outcome, watch) = std::thread::scope(|scope| {
        let target = scope.spawn(|| play(rig, cpr, until, then));
        let outcome = rig.run_source(&mut source);
        (outcome, target.join().unwrap())
    });
    let state = watch.map(|watch| watch.state());
    let here = rig.world.runs().0;
    match (&outcome, state) {
        (SourceOutcome::Completed | SourceOutcome::Lost { .. }, Some(ClaimState::Started)) => {
            assert!(!here, "{until:?}: runs twice");
            assert!(source.postmigrate);
        }
        (SourceOutcome::Failed { reason }, Some(ClaimState::Reclaimed) | None) => {
            assert!(here, "{until:?}: runs nowhere");
            assert!(!reason.is_empty() && !source.postmigrate);
        }
        // Claimed before the guest ever stopped here: a target cannot run what it was not given.
        (SourceOutcome::Failed { reason }, Some(ClaimState::Started)) => {
            assert!(here && until <= Until::Attached, "{until:?}: {reason}");
        }
        other => panic!("{until:?}: {other:?}"),
    }
    (outcome, state)
}

#[test]
fn a_target_that_hangs_up_at_any_step_leaves_the_guest_to_the_claim() {
    for until in Until::ALL {
        let (outcome, _) = source_against(&Rig::new(generous()), until, Then::HangUp);
        match until {
            Until::Claimed => assert!(matches!(outcome, SourceOutcome::Lost { .. }), "{outcome:?}"),
            Until::Started => assert_eq!(outcome, SourceOutcome::Completed),
            _ => assert!(
                matches!(outcome, SourceOutcome::Failed { .. }),
                "{until:?} {outcome:?}"
            ),
        }
    }
}

#[test]
fn a_target_that_hangs_up_only_one_channel_at_any_step_does_not_hang_the_source() {
    for until in Until::ALL {
        for then in [Then::HangUpMain, Then::HangUpCpr] {
            source_against(&Rig::new(short()), until, then);
        }
    }
}

#[test]
fn a_target_that_stops_answering_at_any_step_leaves_the_guest_to_the_claim() {
    for until in Until::ALL {
        let (outcome, state) = source_against(&Rig::new(short()), until, Then::Silent);
        // Silent, but started: the guest is there.
        let started = state == Some(ClaimState::Started);
        assert_eq!(
            outcome == SourceOutcome::Completed,
            started,
            "{until:?} {outcome:?}"
        );
    }
}

#[test]
fn a_target_that_claims_out_of_turn_at_any_step_is_believed_only_with_the_state() {
    for until in Until::ALL {
        for then in [Then::ClaimAndHangUp, Then::ClaimAndSilent] {
            source_against(&Rig::new(short()), until, then);
        }
    }
}

#[test]
fn a_target_that_fails_at_any_step_is_quoted() {
    for until in Until::ALL {
        let (outcome, _) = source_against(&Rig::new(generous()), until, Then::Fail);
        match outcome {
            SourceOutcome::Failed { reason } => {
                assert_eq!(reason, "The target failed: out of memory", "{until:?}");
            }
            SourceOutcome::Lost { reason } => {
                assert_eq!(until, Until::Claimed);
                assert!(
                    reason.starts_with("The target failed: out of memory"),
                    "{reason}"
                );
            }
            // It had said that it started, which counts more.
            other => assert_eq!((until, other), (Until::Started, SourceOutcome::Completed)),
        }
    }
}

#[test]
fn a_target_that_lies_at_any_step_gets_nothing_but_what_the_claim_gives() {
    // Most of the time is waiting for deadlines, which may as well be done at the same time.
    std::thread::scope(|scope| {
        for lie in lies() {
            scope.spawn(move || {
                for until in Until::ALL {
                    source_against(&Rig::new(short()), until, Then::Lie(&lie));
                }
            });
        }
    });
}
