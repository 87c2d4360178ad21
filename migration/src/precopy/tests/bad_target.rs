//! A source whose target stops, dies or lies at every step.

use std::os::unix::net::UnixStream;

use super::rig::{GENEROUS, Peer, Rig, SHORT};
use crate::precopy::PrecopyOutcome;
use crate::precopy::protocol::{encode_failed, encode_loaded, kind};

/// How far the target plays along before it goes wrong.
const STEPS: usize = 5;
const COMMITTED: usize = 4;

/// Plays a target up to a step; gives nothing if the source hangs up before.
fn play(peer: &mut Peer, steps: usize) -> Option<()> {
    for step in 0..steps {
        match step {
            0 => assert_eq!(peer.receive()?.kind, kind::HELLO),
            1 => peer.send(kind::READY, &[]),
            2 => assert_eq!(peer.after_pages()?.kind, kind::STATE),
            _ => {
                peer.send(kind::LOADED, &encode_loaded(5).unwrap());
                assert_eq!(peer.receive()?.kind, kind::COMMIT);
            }
        }
    }
    Some(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    HangsUp,
    Silent,
    Says(u8),
    Fails { ran: bool },
    Garbage,
}

fn wrongs() -> Vec<Wrong> {
    let mut all = vec![
        Wrong::HangsUp,
        Wrong::Silent,
        Wrong::Fails { ran: false },
        Wrong::Fails { ran: true },
        Wrong::Garbage,
    ];
    all.extend((0..=10).map(Wrong::Says));
    all
}

/// Whether it is what a target says at this step, so that nothing is wrong.
fn right(step: usize, wrong: Wrong) -> bool {
    matches!(
        (step, wrong),
        (0 | 1, Wrong::Says(kind::READY))
            | (3, Wrong::Says(kind::LOADED))
            | (4, Wrong::Says(kind::STARTED))
    )
}

#[test]
fn the_guest_goes_on_here_unless_it_was_given_away() {
    for step in 0..STEPS {
        for wrong in wrongs().into_iter().filter(|wrong| !right(step, *wrong)) {
            let mut rig = Rig::new();
            rig.time = if wrong == Wrong::Silent {
                SHORT
            } else {
                GENEROUS
            };
            let (here, there) = UnixStream::pair().unwrap();
            let source = rig.spawn_source(rig.source(None), here);
            let mut peer = Peer::new(there);
            // A source that waits too short a time gives up earlier, which must be as good.
            let reached = play(&mut peer, step).is_some();
            match wrong {
                Wrong::HangsUp => {}
                Wrong::Silent => peer.silent(),
                Wrong::Says(kind::LOADED) => peer.send(kind::LOADED, &encode_loaded(1).unwrap()),
                Wrong::Says(kind @ (kind::READY | kind::COMMIT | kind::STARTED)) => {
                    peer.send(kind, &[]);
                    peer.silent();
                }
                Wrong::Says(kind) => {
                    // Not even what the kind may carry.
                    raw(&peer, &[1, 0, 0, 0, kind, 0xc1]);
                    peer.silent();
                }
                Wrong::Fails { ran } => {
                    peer.send(kind::FAILED, &encode_failed("no", ran).unwrap());
                    peer.silent();
                }
                Wrong::Garbage => {
                    raw(&peer, &[0xff; 64]);
                    peer.silent();
                }
            }
            drop(peer);
            let (outcome, host) = source.join().unwrap();
            let runs = rig.world.runs();
            let what = format!("{step} {wrong:?}: {outcome:?}");
            let gives_back = wrong == Wrong::Fails { ran: false };
            // It has the state then, and says that it used it.
            let claims = matches!(
                wrong,
                Wrong::Fails { ran: true } | Wrong::Says(kind::STARTED)
            ) && step == 3;
            let lost = (step == COMMITTED && reached && !gives_back) || claims;
            assert_eq!(
                matches!(outcome, PrecopyOutcome::Lost { .. }),
                lost,
                "{what}"
            );
            assert_eq!(
                matches!(outcome, PrecopyOutcome::Failed { .. }),
                !lost,
                "{what}"
            );
            assert_eq!(runs, (!lost, false), "{what}");
            assert_eq!(host.postmigrate, lost, "{what}");
        }
    }
}

fn raw(peer: &Peer, bytes: &[u8]) {
    use nix::sys::socket::{MsgFlags, send};
    use std::os::fd::{AsFd, AsRawFd};
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    let _ = send(peer.0.as_fd().as_raw_fd(), bytes, flags);
}

#[test]
fn a_target_that_stops_reading_in_the_midst_of_ram_is_given_up() {
    let mut rig = Rig::new();
    rig.time = SHORT;
    let (here, there) = UnixStream::pair().unwrap();
    let mut host = rig.source(None);
    // More than the socket takes.
    host.writes = (0..40)
        .map(|_| (0..1024).map(|page| (page, 3)).collect())
        .collect();
    let source = rig.spawn_source(host, here);
    let mut peer = Peer::new(there);
    if peer.receive().is_some() {
        peer.send(kind::READY, &[]);
    }
    let (outcome, _) = source.join().unwrap();
    assert!(
        matches!(outcome, PrecopyOutcome::Failed { .. }),
        "{outcome:?}"
    );
    assert_eq!(rig.world.runs(), (true, false));
}

#[test]
fn cancelling_waits_for_nobody_and_comes_too_late_after_commit() {
    for step in 0..STEPS {
        let rig = Rig::new();
        let (here, there) = UnixStream::pair().unwrap();
        let source = rig.spawn_source(rig.source(None), here);
        let mut peer = Peer::new(there);
        play(&mut peer, step).unwrap();
        rig.tracker.cancel();
        if step == COMMITTED {
            peer.send(kind::STARTED, &[]);
        }
        let (outcome, _) = source.join().unwrap();
        let wanted = match step {
            COMMITTED => PrecopyOutcome::Completed,
            _ => PrecopyOutcome::Cancelled,
        };
        assert_eq!(outcome, wanted, "{step}");
        assert_eq!(rig.world.runs(), (step != COMMITTED, false));
    }
}
