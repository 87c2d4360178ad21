//! A real target against a source that hangs up, says nothing, takes back or lies at every step.

use std::os::fd::{AsFd, AsRawFd};

use super::fakes::fingerprint;
use super::peer::{Lie, Peer, TOKEN, hello, lies, soon, stream};
use super::rig::{Rig, generous, short};
use crate::Mode;
use crate::address::ChannelType::{Cpr, Main};
use crate::channel::Listener;
use crate::claim::{ClaimState, SourceClaim};
use crate::fds::FdKey;
use crate::handover::protocol::{self, Hello, kind};
use crate::handover::{TargetHandover, TargetOutcome};
use crate::status::MigrationStatus;

/// How far the source goes along before it goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Until {
    Connected,
    Introduced,
    SentFds,
    Offered,
    TargetReady,
    MainConnected,
    Attaching,
    Attached,
    HalfSent,
    Sent,
    TargetLoaded,
    CommittedQuietly,
    Committed,
    TargetStarted,
}

impl Until {
    const ALL: [Until; 14] = [
        Until::Connected,
        Until::Introduced,
        Until::SentFds,
        Until::Offered,
        Until::TargetReady,
        Until::MainConnected,
        Until::Attaching,
        Until::Attached,
        Until::HalfSent,
        Until::Sent,
        Until::TargetLoaded,
        Until::CommittedQuietly,
        Until::Committed,
        Until::TargetStarted,
    ];
}

/// What the source does then.
#[derive(Clone, Copy)]
enum Then<'a> {
    HangUp,
    Silent,
    /// As a source that gives up does: takes the guest back, says so, hangs up.
    Abort,
    /// Takes the guest back and hangs up without a word.
    ReclaimAndHangUp,
    Lie(&'a Lie),
}

/// Plays the source. Returns the claim, and whether it took the guest back.
fn play(rig: &Rig, until: Until, then: Then<'_>) -> (SourceClaim, bool) {
    let claim = SourceClaim::create().unwrap();
    let mut peer = Peer::connect(rig);
    let mut along = || -> Option<()> {
        let upto = |step: Until| if step == until { None } else { Some(()) };
        upto(Until::Connected)?;
        let bytes = protocol::encode_hello(&hello(1)).unwrap();
        peer.send(Cpr, kind::HELLO, &bytes, &[claim.fd()]);
        upto(Until::Introduced)?;
        let null = std::fs::File::open("/dev/null").unwrap();
        let key = FdKey::new("disk0", "image", 0);
        let keys = protocol::encode_fds(&[&key]).unwrap();
        peer.send(Cpr, kind::FDS, &keys, &[null.as_fd()]);
        upto(Until::SentFds)?;
        peer.send(Cpr, kind::PREVIEW, &stream(), &[]);
        upto(Until::Offered)?;
        if peer.receive(Cpr)?.kind != kind::READY {
            return None;
        }
        upto(Until::TargetReady)?;
        peer.main = Some(rig.main().connect("main", protocol::bounds, soon()).ok()?);
        upto(Until::MainConnected)?;
        peer.send(Main, kind::ATTACH, &TOKEN, &[]);
        upto(Until::Attaching)?;
        if peer.receive(Main)?.kind != kind::ATTACHED {
            return None;
        }
        upto(Until::Attached)?;
        if until == Until::HalfSent {
            let state = stream();
            let mut frame = (state.len() as u32).to_le_bytes().to_vec();
            frame.push(kind::STATE);
            frame.extend_from_slice(&state[..state.len() / 2]);
            peer.send_raw(Main, &frame);
            return None;
        }
        peer.send(Main, kind::STATE, &stream(), &[]);
        upto(Until::Sent)?;
        if peer.receive(Main)?.kind != kind::LOADED {
            return None;
        }
        upto(Until::TargetLoaded)?;
        claim.commit().ok()?;
        upto(Until::CommittedQuietly)?;
        peer.send(Main, kind::COMMIT, &[], &[]);
        upto(Until::Committed)?;
        peer.receive(Main).map(|_| ())
    };
    along();
    let mut took_back = false;
    match then {
        Then::HangUp => {}
        Then::Silent => peer.silent(),
        Then::Abort | Then::ReclaimAndHangUp => {
            took_back = claim.reclaim().is_ok();
            if matches!(then, Then::Abort) {
                let abort = protocol::encode_abort("the operator wants it", true).unwrap();
                peer.send(Cpr, kind::ABORT, &abort, &[]);
            }
        }
        Then::Lie(lie) => {
            peer.lie(lie);
            peer.silent();
        }
    }
    (claim, took_back)
}

/// Runs it and checks that what the target does is what the claim says.
fn target_against(rig: &Rig, until: Until, then: Then<'_>) -> TargetOutcome {
    let mut target = rig.target();
    target.wants = vec![FdKey::new("disk0", "image", 0)];
    // Nobody else claims that the guest runs.
    rig.world
        .source
        .store(false, std::sync::atomic::Ordering::SeqCst);
    let cpr = Listener::bind(rig.cpr()).unwrap();
    let (outcome, (claim, took_back)) = std::thread::scope(|scope| {
        let source = scope.spawn(|| {
            let result = play(rig, until, then);
            // A target that still waits for its first source would wait for ever.
            let _ = rig
                .cpr()
                .connect("cpr", protocol::bounds, soon())
                .map(|mut second| second.send(kind::READY, &[], &[], None, soon()));
            result
        });
        let outcome = rig.run_target(cpr, &mut target);
        (outcome, source.join().unwrap())
    });
    let here = rig.world.runs().1;
    assert_eq!(
        here,
        outcome == TargetOutcome::Running,
        "{until:?}: {outcome:?}"
    );
    assert_eq!(
        here,
        claim.state() == ClaimState::Started,
        "{until:?}: {outcome:?}"
    );
    assert!(!(here && took_back), "{until:?}: runs twice");
    assert!(
        // A lie may be the state, sent without waiting for its turn.
        !here || until >= Until::Attaching,
        "{until:?}: runs without a state"
    );
    assert_eq!(here, target.abandoned.is_none(), "{until:?}");
    let expected = if here {
        MigrationStatus::Completed
    } else {
        MigrationStatus::Failed
    };
    assert_eq!(rig.target_tracker.status(), expected);
    outcome
}

#[test]
fn a_source_that_dies_at_any_step_loses_the_guest_only_if_it_had_not_sent_it() {
    for until in Until::ALL {
        let outcome = target_against(&Rig::new(generous()), until, Then::HangUp);
        assert_eq!(
            outcome == TargetOutcome::Running,
            until >= Until::Sent,
            "{until:?} {outcome:?}"
        );
    }
}

#[test]
fn a_source_that_stops_answering_at_any_step_leaves_the_guest_to_the_claim() {
    for until in Until::ALL {
        let outcome = target_against(&Rig::new(short()), until, Then::Silent);
        if until < Until::Sent {
            assert!(
                matches!(outcome, TargetOutcome::Abandoned { .. }),
                "{until:?} {outcome:?}"
            );
        }
    }
}

#[test]
fn a_source_that_gives_up_at_any_step_keeps_the_guest_unless_it_was_started() {
    for until in Until::ALL {
        for then in [Then::Abort, Then::ReclaimAndHangUp] {
            let outcome = target_against(&Rig::new(generous()), until, then);
            if until < Until::CommittedQuietly && until != Until::Sent {
                assert!(
                    matches!(outcome, TargetOutcome::Abandoned { .. }),
                    "{until:?} {outcome:?}"
                );
            }
            if until == Until::TargetStarted {
                assert_eq!(outcome, TargetOutcome::Running);
            }
        }
    }
}

#[test]
fn a_source_that_gives_up_is_quoted() {
    let outcome = target_against(&Rig::new(generous()), Until::Attached, Then::Abort);
    let TargetOutcome::Abandoned { reason } = outcome else {
        panic!()
    };
    assert_eq!(
        reason,
        "The source goes on with the guest: the operator wants it"
    );
}

#[test]
fn a_source_that_lies_at_any_step_gets_nothing_but_what_the_claim_gives() {
    // Most of the time is waiting for deadlines, which may as well be done at the same time.
    std::thread::scope(|scope| {
        for lie in lies() {
            scope.spawn(move || {
                for until in Until::ALL {
                    target_against(&Rig::new(short()), until, Then::Lie(&lie));
                }
            });
        }
    });
}

/// What a target says to an offer made by hand.
fn offered(offer: impl FnOnce(&mut Peer)) -> String {
    let rig = Rig::new(generous());
    let mut target = rig.target();
    let cpr = Listener::bind(rig.cpr()).unwrap();
    std::thread::scope(|scope| {
        let outcome = scope.spawn(|| rig.run_target(cpr, &mut target));
        let mut peer = Peer::connect(&rig);
        offer(&mut peer);
        let told = peer
            .receive(Cpr)
            .map(|frame| protocol::Message::decode(Cpr, frame).unwrap());
        let TargetOutcome::Abandoned { reason } = outcome.join().unwrap() else {
            panic!()
        };
        match told {
            Some(protocol::Message::Failed(told)) => assert_eq!(told, reason),
            other => panic!("{other:?}"),
        }
        reason
    })
}

fn introduced(hello: &Hello, claim: bool) -> String {
    let page = SourceClaim::create().unwrap();
    let bytes = protocol::encode_hello(hello).unwrap();
    offered(|peer| {
        let fds = [page.fd()];
        peer.send(Cpr, kind::HELLO, &bytes, if claim { &fds } else { &[] });
    })
}

#[test]
fn a_source_that_does_not_fit_is_told_why() {
    let text = introduced(
        &Hello {
            mode: Mode::CprExec,
            ..hello(0)
        },
        true,
    );
    assert!(text.contains("in mode cpr-exec"), "{text}");
    let text = introduced(&hello(0), false);
    assert!(text.contains("no claim page"), "{text}");
    let text = introduced(&hello(u32::MAX), true);
    assert!(text.contains("16384 are allowed"), "{text}");
    let other = crate::fingerprint::MachineFingerprint {
        vcpus: 3,
        ..fingerprint()
    };
    let text = introduced(
        &Hello {
            fingerprint: other,
            ..hello(0)
        },
        true,
    );
    assert!(
        text.contains("machine has 2 vCPUs here, 3 in the source"),
        "{text}"
    );
}

#[test]
fn a_peer_of_another_protocol_or_version_is_told_so() {
    let mut newer = protocol::encode_hello(&hello(0)).unwrap();
    newer[8] = 9;
    newer.truncate(12);
    let text = offered(|peer| peer.send(Cpr, kind::HELLO, &newer, &[]));
    assert!(
        text.contains("speaks version 9 of the handover protocol"),
        "{text}"
    );
    let text = offered(|peer| peer.send(Cpr, kind::HELLO, b"QCPR", &[]));
    assert!(
        text.contains("does not speak Baton's handover protocol"),
        "{text}"
    );
}

#[test]
fn a_descriptor_that_is_no_claim_page_is_refused() {
    let bytes = protocol::encode_hello(&hello(0)).unwrap();
    let null = std::fs::File::open("/dev/null").unwrap();
    let text = offered(|peer| peer.send(Cpr, kind::HELLO, &bytes, &[null.as_fd()]));
    assert!(text.contains("came as the claim page"), "{text}");
}

#[test]
fn descriptors_that_do_not_match_their_names_are_refused() {
    let page = SourceClaim::create().unwrap();
    let bytes = protocol::encode_hello(&hello(2)).unwrap();
    let key = FdKey::new("disk0", "image", 0);
    let null = std::fs::File::open("/dev/null").unwrap();
    for (keys, fds, text) in [
        (
            vec![&key, &key],
            vec![null.as_fd()],
            "names 2 descriptors and carries 1",
        ),
        (
            vec![&key, &key],
            vec![null.as_fd(); 2],
            "was handed over twice",
        ),
    ] {
        let keys = protocol::encode_fds(&keys).unwrap();
        let told = offered(|peer| {
            peer.send(Cpr, kind::HELLO, &bytes, &[page.fd()]);
            peer.send(Cpr, kind::FDS, &keys, &fds);
        });
        assert!(told.contains(text), "{told}");
    }
}

#[test]
fn a_state_of_another_machine_is_refused() {
    let page = SourceClaim::create().unwrap();
    let bytes = protocol::encode_hello(&hello(0)).unwrap();
    let mut other = Vec::new();
    let header = crate::stream::Header {
        producer: "x".into(),
        fingerprint: crate::fingerprint::MachineFingerprint {
            vcpus: 3,
            ..fingerprint()
        },
    };
    crate::stream::SectionWriter::new(&mut other, &header)
        .unwrap()
        .finish()
        .unwrap();
    let told = offered(|peer| {
        peer.send(Cpr, kind::HELLO, &bytes, &[page.fd()]);
        peer.send(Cpr, kind::PREVIEW, &other, &[]);
    });
    assert!(told.contains("of another machine"), "{told}");
}

#[test]
fn strangers_on_the_main_channel_are_turned_away() {
    let rig = Rig::new(generous());
    let (mut source, mut target) = (rig.source(), rig.target());
    let cpr = Listener::bind(rig.cpr()).unwrap();
    std::thread::scope(|scope| {
        let (ready, wait_ready) = std::sync::mpsc::channel();
        let target = scope.spawn({
            let (rig, target) = (&rig, &mut target);
            move || {
                let handover = TargetHandover::receive(cpr, rig.target_options(), target).unwrap();
                // They connect first: the listener is theirs until the handover is run on it.
                let main = rig.main();
                let crate::channel::Endpoint::Unix(path) = &main else {
                    panic!()
                };
                let listener = std::os::unix::net::UnixListener::bind(path).unwrap();
                ready.send(()).unwrap();
                let fd = crate::channel::Endpoint::Fd(listener.into());
                wait_strangers(rig);
                handover.run(fd, target)
            }
        });
        let source = scope.spawn(|| rig.run_source(&mut source));
        wait_ready.recv().unwrap();
        assert_eq!(
            source.join().unwrap(),
            crate::handover::SourceOutcome::Completed
        );
        assert_eq!(target.join().unwrap(), TargetOutcome::Running);
    });

    /// One hangs up at once, one has a wrong token, one talks nonsense; all connect first.
    fn wait_strangers(rig: &Rig) {
        let connect = || {
            rig.main()
                .connect("main", protocol::bounds, soon())
                .unwrap()
        };
        drop(connect());
        for (kind, payload) in [(kind::ATTACH, &[0; 16][..]), (kind::COMMIT, &[])] {
            let mut stranger = connect();
            stranger.send(kind, payload, &[], None, soon()).unwrap();
            // Stays connected, so that only its message gives it away.
            std::mem::forget(stranger);
        }
    }
}

#[test]
fn a_target_that_waits_for_migrate_incoming_notices_that_the_source_gave_up() {
    for (then, text) in [
        (Then::HangUp, "The source hung up"),
        (
            Then::Abort,
            "The source goes on with the guest: the operator wants it",
        ),
    ] {
        let rig = Rig::new(generous());
        let mut target = rig.target();
        target.wants = vec![FdKey::new("disk0", "image", 0)];
        let cpr = Listener::bind(rig.cpr()).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| play(&rig, Until::Offered, then));
            let mut handover =
                TargetHandover::receive(cpr, rig.target_options(), &mut target).unwrap();
            let reason = loop {
                if let Some(reason) = handover.gave_up() {
                    break reason;
                }
                let fd = handover
                    .watch_fd()
                    .map(|fd| (fd, nix::poll::PollFlags::POLLIN));
                assert!(fd.unwrap().0.as_raw_fd() >= 0);
                assert_eq!(crate::channel::wait([fd], soon()).unwrap(), [true]);
            };
            assert_eq!(reason, text);
            let outcome = handover.abandon(&reason, &mut target);
            assert_eq!(outcome, TargetOutcome::Abandoned { reason });
        });
        assert_eq!(target.abandoned.as_deref(), Some(text));
        assert!(!rig.world.runs().1);
    }
}
