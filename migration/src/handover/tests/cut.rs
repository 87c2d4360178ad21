//! Connections that break while both sides live: one side, and one alone, has the guest afterwards.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::poll::PollFlags;

use super::peer::soon;
use super::rig::{Rig, generous};
use crate::channel::{Channel, Deadline, Endpoint, Listener, wait};
use crate::handover::protocol::{self, kind};
use crate::handover::{SourceOutcome, TargetHandover, TargetOutcome};

/// Every message of a handover without descriptors that succeeds.
const MESSAGES: [(&str, u8); 9] = [
    ("HELLO", kind::HELLO),
    ("PREVIEW", kind::PREVIEW),
    ("READY", kind::READY),
    ("ATTACH", kind::ATTACH),
    ("ATTACHED", kind::ATTACHED),
    ("STATE", kind::STATE),
    ("LOADED", kind::LOADED),
    ("COMMIT", kind::COMMIT),
    ("STARTED", kind::STARTED),
];

/// When connections break, and which.
#[derive(Debug, Clone, Copy)]
struct Cut {
    message: u8,
    /// Whether the message gets through.
    after: bool,
    cpr: bool,
    main: bool,
}

/// Both ends of a connection that leads through here.
struct Wire {
    source: Channel,
    target: Channel,
}

impl Wire {
    fn new(source: Channel, to: Endpoint, name: &'static str) -> Option<Self> {
        let target = to.connect(name, protocol::bounds, soon()).ok()?;
        Some(Self { source, target })
    }

    /// Passes on what has come; false when either end has hung up or the cut is due.
    fn pass_on(&mut self, cut: Cut, due: &mut bool) -> bool {
        let Self { source, target } = self;
        pass(source, target, cut, due) && pass(target, source, cut, due)
    }
}

fn pass(from: &mut Channel, to: &mut Channel, cut: Cut, due: &mut bool) -> bool {
    loop {
        let frame = match from.try_receive() {
            Ok(Some(frame)) => frame,
            Ok(None) => return true,
            Err(_) => return false,
        };
        let here = frame.kind == cut.message;
        if here && !cut.after {
            *due = true;
            return true;
        }
        let fds: Vec<_> = frame.fds.iter().map(AsFd::as_fd).collect();
        let sent = to.send(frame.kind, &frame.payload, &fds, None, soon());
        if sent.is_err() {
            return false;
        }
        if here {
            *due = true;
            return true;
        }
    }
}

/// Passes messages on between the usual sockets and those that the target listens on, until `done`.
fn relay(rig: &Rig, mut cpr: Listener, mut main: Listener, cut: Cut, done: &AtomicBool) {
    let accepted = cpr.accept("cpr", protocol::bounds, soon()).unwrap();
    let mut cpr = Wire::new(accepted, rig.beside("target-cpr"), "cpr");
    let mut attached = None;
    let (mut due, mut broken) = (false, false);
    while !done.load(Ordering::SeqCst) {
        if let Some(source) = main.try_accept("main", protocol::bounds).unwrap() {
            attached = Wire::new(source, rig.beside("target-main"), "main");
        }
        for wire in [&mut cpr, &mut attached] {
            if !due
                && wire
                    .as_mut()
                    .is_some_and(|wire| !wire.pass_on(cut, &mut due))
            {
                *wire = None;
            }
        }
        if due && !broken {
            broken = true;
            cpr = cpr.filter(|_| !cut.cpr);
            attached = attached.filter(|_| !cut.main);
        }
        if broken {
            // What is whole goes on.
            let after = Cut { message: 0, ..cut };
            for wire in [&mut cpr, &mut attached] {
                if wire
                    .as_mut()
                    .is_some_and(|wire| !wire.pass_on(after, &mut due))
                {
                    *wire = None;
                }
            }
        }
        let ends = [&cpr, &attached].map(|wire| wire.as_ref().map(|w| (&w.source, &w.target)));
        let mut fds = [None; 5];
        fds[0] = Some((main.as_fd(), PollFlags::POLLIN));
        for (at, (source, target)) in ends.into_iter().flatten().enumerate() {
            fds[1 + 2 * at] = Some((source.as_fd(), PollFlags::POLLIN));
            fds[2 + 2 * at] = Some((target.as_fd(), PollFlags::POLLIN));
        }
        // Looks again soon, since `done` wakes nobody.
        wait(fds, Deadline::after(Duration::from_millis(5))).unwrap();
    }
    assert!(broken, "message {} did not come", cut.message);
}

fn handover(rig: &Rig, cut: Cut) -> (SourceOutcome, TargetOutcome) {
    let (mut source, mut target) = (rig.source(), rig.target());
    let cpr = Listener::bind(rig.cpr()).unwrap();
    let main = Listener::bind(rig.main()).unwrap();
    let listener = Listener::bind(rig.beside("target-cpr")).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| relay(rig, cpr, main, cut, &done));
        let target = scope.spawn(|| {
            match TargetHandover::receive(listener, rig.target_options(), &mut target) {
                Ok(handover) => handover.run(rig.beside("target-main"), &mut target),
                Err(error) => TargetOutcome::Abandoned {
                    reason: crate::error_chain(&error),
                },
            }
        });
        let source = scope.spawn(|| rig.run_source(&mut source));
        let outcomes = (source.join().unwrap(), target.join().unwrap());
        done.store(true, Ordering::SeqCst);
        outcomes
    })
}

#[test]
fn whichever_connection_breaks_at_whichever_message_one_side_has_the_guest() {
    for (name, message) in MESSAGES {
        for after in [false, true] {
            for (cpr, main) in [(true, false), (false, true), (true, true)] {
                // There is no main channel yet, or what is not cut off would lose a message.
                let own = if message <= kind::READY {
                    cpr
                } else {
                    main || after
                };
                // A target that was told nothing takes it for a knock, and waits on.
                if !own || (message == kind::HELLO && !after) {
                    continue;
                }
                let cut = Cut {
                    message,
                    after,
                    cpr,
                    main,
                };
                let rig = Rig::new(generous());
                let (ours, theirs) = handover(&rig, cut);
                let runs = rig.world.runs();
                let what = format!("{name} {cut:?}: {ours:?} {theirs:?}");
                let told = match &ours {
                    SourceOutcome::Failed { reason } => {
                        assert!(!reason.is_empty(), "{what}");
                        (true, false)
                    }
                    // The second: it knows that the guest was started, and not whether it still
                    // runs.
                    SourceOutcome::Completed | SourceOutcome::Lost { .. } => (false, true),
                    SourceOutcome::Cancelled => panic!("{what}"),
                };
                assert_eq!(runs, told, "{what}");
                assert_eq!(theirs == TargetOutcome::Running, runs.1, "{what}");
            }
        }
    }
}
