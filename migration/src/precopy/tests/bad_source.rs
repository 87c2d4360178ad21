//! A target whose source stops, dies or lies at every step.

use std::os::unix::net::UnixStream;

use super::fakes::{FakeTarget, RAM};
use super::rig::{GENEROUS, Peer, Rig, SHORT, hello, state};
use crate::handover::protocol::encode_abort;
use crate::precopy::IncomingOutcome;
use crate::precopy::pages::Payload;
use crate::precopy::protocol::kind;

/// How far the source plays along before it goes wrong.
const STEPS: usize = 5;

fn pages() -> Vec<u8> {
    let mut payload = Payload::new();
    payload.data(0x5000, &[6; 4096]);
    payload.zeros(0x8000, 4096);
    payload.finish().to_vec()
}

fn play(peer: &mut Peer, steps: usize) -> Option<()> {
    for step in 0..steps {
        match step {
            0 => peer.send(kind::HELLO, &hello()),
            1 => assert_eq!(peer.receive()?.kind, kind::READY),
            2 => peer.send(kind::PAGES, &pages()),
            _ => {
                peer.send(kind::STATE, &state());
                assert_eq!(peer.receive()?.kind, kind::LOADED);
            }
        }
    }
    Some(())
}

#[derive(Debug, Clone)]
enum Wrong {
    HangsUp,
    Silent,
    Aborts,
    Says(u8, Vec<u8>),
}

fn wrongs() -> Vec<Wrong> {
    let mut outside = Payload::new();
    outside.data(RAM, &[1; 4096]);
    let mut damaged = pages();
    damaged[20] ^= 1;
    let mut other = hello();
    other[8] = 99;
    let mut all = vec![
        Wrong::HangsUp,
        Wrong::Silent,
        Wrong::Aborts,
        Wrong::Says(kind::PAGES, outside.finish().to_vec()),
        Wrong::Says(kind::PAGES, damaged),
        Wrong::Says(kind::PAGES, Vec::new()),
        Wrong::Says(kind::HELLO, other),
        Wrong::Says(kind::HELLO, b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        Wrong::Says(kind::STATE, b"nothing of the kind".to_vec()),
        Wrong::Says(kind::STATE, state()[..40].to_vec()),
    ];
    for kind in [kind::READY, kind::STARTED, kind::LOADED, kind::FAILED] {
        all.push(Wrong::Says(kind, Vec::new()));
    }
    all
}

#[test]
fn no_guest_starts_that_was_not_given() {
    for step in 0..STEPS {
        for wrong in wrongs() {
            // While memory comes there is no hurry.
            if matches!(wrong, Wrong::Silent) && (1..4).contains(&step) {
                continue;
            }
            let mut rig = Rig::new();
            rig.time = match wrong {
                Wrong::Silent => SHORT,
                _ => GENEROUS,
            };
            let (here, there) = UnixStream::pair().unwrap();
            let target = rig.target(FakeTarget::new(&rig.world, None), there);
            let mut peer = Peer::new(here);
            let _ = play(&mut peer, step);
            match &wrong {
                Wrong::HangsUp => {}
                Wrong::Silent => peer.silent(),
                Wrong::Aborts => {
                    peer.send(kind::ABORT, &encode_abort("no", true).unwrap());
                    peer.silent();
                }
                Wrong::Says(kind, payload) => {
                    peer.send(*kind, payload);
                    peer.silent();
                }
            }
            drop(peer);
            let (outcome, host) = target.join().unwrap();
            let what = format!("{step} {wrong:?}: {outcome:?}");
            assert!(
                matches!(outcome, IncomingOutcome::Abandoned { .. }),
                "{what}"
            );
            assert!(host.abandoned.is_some(), "{what}");
            assert!(!rig.world.runs().1, "{what}");
        }
    }
}

#[test]
fn a_source_that_dies_right_after_commit_has_given_the_guest_away() {
    let rig = Rig::new();
    let (here, there) = UnixStream::pair().unwrap();
    let target = rig.target(FakeTarget::new(&rig.world, None), there);
    let mut peer = Peer::new(here);
    play(&mut peer, STEPS - 1).unwrap();
    // As `FakeSource::stop_and_quiesce` would.
    rig.world.stop_source();
    peer.send(kind::COMMIT, &[]);
    drop(peer);
    let (outcome, host) = target.join().unwrap();
    assert_eq!(outcome, IncomingOutcome::Running);
    assert_eq!(rig.world.runs(), (false, true));
    assert_eq!(
        host.memory.pages().into_iter().collect::<Vec<_>>(),
        [(5, 6)]
    );
}

#[test]
fn half_a_commit_is_none() {
    use nix::sys::socket::{MsgFlags, send};
    use std::os::fd::{AsFd, AsRawFd};
    let rig = Rig::new();
    let (here, there) = UnixStream::pair().unwrap();
    let target = rig.target(FakeTarget::new(&rig.world, None), there);
    let mut peer = Peer::new(here);
    play(&mut peer, STEPS - 1).unwrap();
    let bytes = [0, 0, 0, 0];
    send(peer.0.as_fd().as_raw_fd(), &bytes, MsgFlags::empty()).unwrap();
    drop(peer);
    let (outcome, _) = target.join().unwrap();
    assert!(matches!(outcome, IncomingOutcome::Abandoned { .. }));
    assert_eq!(rig.world.runs(), (true, false));
}
