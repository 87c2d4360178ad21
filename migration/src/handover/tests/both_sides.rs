//! Two fakes hand over to each other; one of them may fail or die at any step.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::panic::resume_unwind;

use super::fakes::{FakeSource, SECTIONS, Step, Trouble};
use super::rig::{Rig, generous};
use crate::address::{InetAddress, SocketAddress};
use crate::blockers::OwnedBlocker;
use crate::channel::{Endpoint, Listener};
use crate::fds::FdKey;
use crate::handover::{SourceOutcome, TargetHandover, TargetOutcome};
use crate::status::MigrationStatus;
use crate::{Blocker, MigrationEvent, Mode};

fn failed(reason: &SourceOutcome) -> &str {
    match reason {
        SourceOutcome::Failed { reason } => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_guest_is_handed_over_and_its_blackout_reported() {
    use MigrationStatus::{Active, Completed, Device, Setup};
    let rig = Rig::new(generous());
    let (mut source, mut target) = (rig.source(), rig.target());
    let outcome = rig.handover(&mut source, &mut target);
    assert_eq!(
        outcome,
        (Some(SourceOutcome::Completed), Some(TargetOutcome::Running))
    );
    assert_eq!(rig.world.runs(), (false, true));
    assert!(source.postmigrate);
    assert_eq!(source.events, [MigrationEvent::Setup, MigrationEvent::Done]);
    assert_eq!(
        *rig.statuses.lock().unwrap(),
        [Setup, Active, Device, Completed]
    );
    assert_eq!(rig.target_tracker.status(), Completed);

    let info = rig.source_tracker.info();
    let blackout = info.blackout.unwrap();
    assert_eq!(info.downtime, Some(blackout.downtime_ms()));
    assert!(blackout.total_us >= blackout.load_us + blackout.transfer_us);
    assert_eq!(rig.target_tracker.info().blackout, Some(blackout));
}

#[test]
fn a_large_state_is_handed_over() {
    let rig = Rig::new(generous());
    let (mut source, mut target) = (rig.source(), rig.target());
    source.ballast = 24 << 20;
    let outcome = rig.handover(&mut source, &mut target);
    assert_eq!(
        outcome,
        (Some(SourceOutcome::Completed), Some(TargetOutcome::Running))
    );
}

#[test]
fn hundreds_of_descriptors_go_to_their_owners() {
    let rig = Rig::new(generous());
    let (mut source, mut target) = (rig.source(), rig.target());
    let mut readers = Vec::new();
    for instance in 0..600 {
        // Every hundredth is a pipe of its own, to see that the right one arrives.
        let key = FdKey::new(&format!("device{}", instance % 3), "pipe", instance);
        if instance % 100 == 0 {
            let (reader, writer) = std::io::pipe().unwrap();
            readers.push((instance, reader));
            source.fds.push((key.clone(), writer.into()));
        } else {
            source
                .fds
                .push((key.clone(), File::open("/dev/null").unwrap().into()));
        }
        target.wants.push(key);
    }
    let outcome = rig.handover(&mut source, &mut target);
    assert_eq!(
        outcome,
        (Some(SourceOutcome::Completed), Some(TargetOutcome::Running))
    );
    source.fds.clear();
    for (instance, fd) in target.got.into_iter().enumerate() {
        if instance % 100 == 0 {
            File::from(fd)
                .write_all(instance.to_string().as_bytes())
                .unwrap();
        }
    }
    for (instance, mut reader) in readers {
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, instance.to_string());
    }
}

#[test]
fn wherever_one_side_fails_or_dies_the_guest_runs_on_the_right_one() {
    for step in Step::ALL {
        for trouble in [Trouble::Fail, Trouble::Die, Trouble::Panic] {
            let rig = Rig::new(generous());
            let (mut source, mut target) = (rig.source(), rig.target());
            (source.plan, target.plan) = (Some((step, trouble)), Some((step, trouble)));
            // A target that never heard a word of a source goes on waiting for one.
            if step == Step::SourceSetup || (step, trouble) == (Step::SourceFds, Trouble::Die) {
                continue;
            }
            let (ours, theirs) = rig.handover(&mut source, &mut target);
            let runs = rig.world.runs();
            let what = format!("{step:?} {trouble:?}: {ours:?} {theirs:?}");
            match (step, trouble) {
                // The source dies while it, and nobody else, has the guest.
                (step, Trouble::Die) if step.of_source() && before_state_is_sent(step) => {
                    assert_eq!((runs, &ours), ((false, false), &None), "{what}");
                    assert!(
                        matches!(theirs, Some(TargetOutcome::Abandoned { .. })),
                        "{what}"
                    );
                }
                // The target dies or fails while it, and nobody else, has the guest: all that can
                // be done is to say so.
                (Step::TargetClaimed, _) => {
                    assert_eq!(runs, (false, false), "{what}");
                    let Some(SourceOutcome::Lost { reason }) = &ours else {
                        panic!("{what}")
                    };
                    assert!(reason.contains("had claimed the guest"), "{what}");
                    assert!(source.postmigrate, "{what}");
                    assert_eq!(rig.source_tracker.status(), MigrationStatus::Failed);
                    let lost = matches!(theirs, Some(TargetOutcome::Lost { .. }));
                    assert_eq!(lost, trouble != Trouble::Die, "{what}");
                }
                // Nothing that happens on the source after the target has the guest matters.
                (Step::SourceDone | Step::SourcePostmigrate, _) => {
                    assert_eq!(runs, (false, true), "{what}");
                    assert_eq!(theirs, Some(TargetOutcome::Running), "{what}");
                }
                // Everything else leaves the guest where it was.
                _ => {
                    assert_eq!(runs, (true, false), "{what}");
                    let reason = failed(ours.as_ref().unwrap());
                    if trouble == Trouble::Fail {
                        assert!(reason.contains(&format!("{step:?} went wrong")), "{what}");
                        assert!(target.abandoned.is_some(), "{what}");
                    }
                    // At the first message there is no handover yet whose mistake it could be.
                    if trouble == Trouble::Panic && step != Step::TargetFingerprint {
                        assert!(reason.contains("a mistake in Baton"), "{what}");
                    }
                    assert!(!source.postmigrate, "{what}");
                    assert_eq!(
                        source.events.last(),
                        Some(&MigrationEvent::Failed),
                        "{what}"
                    );
                    let info = rig.source_tracker.info();
                    assert_eq!(info.status, Some(MigrationStatus::Failed));
                    assert_eq!(info.error_desc.as_deref(), Some(reason));
                }
            }
        }
    }
}

fn before_state_is_sent(step: Step) -> bool {
    !matches!(step, Step::SourceDone | Step::SourcePostmigrate)
}

#[test]
fn a_source_that_dies_right_after_it_sent_the_state_loses_nothing() {
    let rig = Rig::watched(generous(), |status| {
        // The first thing after the state has gone.
        if status == MigrationStatus::Device {
            resume_unwind(Box::new(crate::Died));
        }
    });
    let (mut source, mut target) = (rig.source(), rig.target());
    let (ours, theirs) = rig.handover(&mut source, &mut target);
    assert_eq!((ours, theirs), (None, Some(TargetOutcome::Running)));
    assert_eq!(rig.world.runs(), (false, true));
}

#[test]
fn a_handover_that_failed_can_be_tried_again() {
    let rig = Rig::new(generous());
    let mut source = rig.source();
    for plan in [
        (Step::TargetLoad, Trouble::Fail),
        (Step::TargetPrepare, Trouble::Fail),
    ] {
        let mut target = rig.target();
        target.plan = Some(plan);
        let (ours, _) = rig.handover(&mut source, &mut target);
        failed(&ours.unwrap());
        assert_eq!(rig.world.runs(), (true, false));
    }
    let outcome = rig.handover(&mut source, &mut rig.target());
    assert_eq!(
        outcome,
        (Some(SourceOutcome::Completed), Some(TargetOutcome::Running))
    );
    assert_eq!(rig.world.runs(), (false, true));
}

#[test]
fn a_machine_that_differs_is_refused_before_anything_is_built() {
    let rig = Rig::new(generous());
    let (mut source, mut target) = (rig.source(), rig.target());
    target.fingerprint.vcpus = 4;
    let (ours, _) = rig.handover(&mut source, &mut target);
    let reason = failed(ours.as_ref().unwrap()).to_owned();
    assert!(
        reason.contains("machine has 4 vCPUs here, 2 in the source"),
        "{reason}"
    );
    assert_eq!(rig.world.runs(), (true, false));
}

#[test]
fn a_section_nobody_took_is_refused_in_the_words_of_qemu() {
    let rig = Rig::new(generous());
    let (mut source, mut target) = (rig.source(), rig.target());
    target.ignores = vec![SECTIONS[2].0];
    let (ours, _) = rig.handover(&mut source, &mut target);
    let reason = failed(ours.as_ref().unwrap()).to_owned();
    let expected = format!("Unknown section or instance '{}' 0", SECTIONS[2].0);
    assert!(reason.contains(&expected), "{reason}");
    assert_eq!(rig.world.runs(), (true, false));
}

#[test]
fn a_descriptor_nobody_took_or_nobody_sent_is_named() {
    let null = || File::open("/dev/null").unwrap().into();
    for (sent, wanted, text) in [
        (
            Some(FdKey::new("disk0", "image", 0)),
            None,
            "'image' 0 of 'disk0'",
        ),
        (
            None,
            Some(FdKey::new("net0", "tap", 1)),
            "cannot find saved value for fd 'tap' 1",
        ),
        (
            Some(FdKey::new("", "image", 0)),
            None,
            "needs an owner and a name",
        ),
    ] {
        let rig = Rig::new(generous());
        let (mut source, mut target) = (rig.source(), rig.target());
        source.fds.extend(sent.map(|key| (key, null())));
        target.wants.extend(wanted);
        let (ours, _) = rig.handover(&mut source, &mut target);
        let reason = failed(ours.as_ref().unwrap()).to_owned();
        assert!(reason.contains(text), "{reason}");
        assert_eq!(rig.world.runs(), (true, false));
    }
}

fn refused(rig: &Rig, source: &mut FakeSource) -> String {
    rig.begin(source).map(|_| ()).unwrap_err().to_string()
}

#[test]
fn what_blocks_it_is_told_before_anything_happens() {
    let rig = Rig::new(generous());
    let mut source = rig.source();
    source.blockers = vec![OwnedBlocker {
        owner: "gpu0".into(),
        blocker: Blocker {
            id: "x".into(),
            reason: "it has state elsewhere".into(),
            remedy: "Unplug it.".into(),
            modes: vec![Mode::CprTransfer],
            unless_suspended: false,
        },
    }];
    let text = refused(&rig, &mut source);
    assert_eq!(text, "device 'gpu0': it has state elsewhere (Unplug it)");
    assert_eq!(rig.source_tracker.status(), MigrationStatus::None);
    assert!(source.events.is_empty());
    // Blockers may be added again.
    rig.blockers
        .add("", source.blockers.remove(0).blocker)
        .unwrap();
}

#[test]
fn another_mode_is_refused_by_name() {
    let rig = Rig::new(generous());
    let main = SocketAddress::Unix {
        path: "main".into(),
    };
    let fd = |_: &str| Err("no".into());
    for mode in [Mode::Normal, Mode::CprReboot, Mode::CprExec] {
        let result = rig.begin_on(main.clone(), &fd, mode, &mut rig.source());
        let text = result.map(|_| ()).unwrap_err().to_string();
        assert_eq!(
            text,
            format!("Migration mode {mode} is not supported; set mode cpr-transfer")
        );
    }
}

#[test]
fn a_target_that_is_not_there_is_an_error_of_the_command() {
    let rig = Rig::new(generous());
    let mut source = rig.source();
    let text = refused(&rig, &mut source);
    assert!(text.contains("start the target first"), "{text}");
    assert_eq!(
        source.events,
        [MigrationEvent::Setup, MigrationEvent::Failed]
    );
    assert_eq!(rig.source_tracker.status(), MigrationStatus::Failed);
    assert_eq!(rig.world.runs(), (true, false));
}

#[test]
fn a_device_that_refuses_setup_is_an_error_of_the_command() {
    let rig = Rig::new(generous());
    let mut source = rig.source();
    source.plan = Some((Step::SourceSetup, Trouble::Fail));
    let error = rig.begin(&mut source).map(|_| ()).unwrap_err();
    assert!(crate::error_chain(&error).contains("SourceSetup went wrong"));
}

#[test]
fn a_second_migration_and_new_blockers_are_refused_while_one_is_under_way() {
    let rig = Rig::new(generous());
    let mut source = rig.source();
    let _listener = Listener::bind(rig.cpr()).unwrap();
    let handover = rig.begin(&mut source).unwrap();
    assert_eq!(
        refused(&rig, &mut source),
        "There's a migration process in progress"
    );
    let blocker = Blocker {
        id: "x".into(),
        reason: "r".into(),
        remedy: String::new(),
        modes: vec![],
        unless_suspended: false,
    };
    rig.blockers.add("", blocker.clone()).unwrap_err();
    drop(handover);
    rig.blockers.add("", blocker).unwrap();
}

#[test]
fn the_main_channel_may_be_tcp() {
    let rig = Rig::new(generous());
    let (mut source, mut target) = (rig.source(), rig.target());
    let listening = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listening.local_addr().unwrap().port().to_string();
    let cpr = Listener::bind(rig.cpr()).unwrap();
    std::thread::scope(|scope| {
        let target = scope.spawn(|| {
            TargetHandover::receive(cpr, rig.target_options(), &mut target)
                .unwrap()
                .run(Endpoint::Fd(listening.into()), &mut target)
        });
        let main = SocketAddress::Inet(InetAddress {
            host: "0".into(),
            port,
        });
        let handover = rig
            .begin_on(main, &|_| Err("no".into()), Mode::CprTransfer, &mut source)
            .unwrap();
        assert_eq!(handover.run(&mut source), SourceOutcome::Completed);
        assert_eq!(target.join().unwrap(), TargetOutcome::Running);
    });
}

#[test]
fn the_main_channel_may_be_a_connected_descriptor() {
    let rig = Rig::new(generous());
    let (mut source, mut target) = (rig.source(), rig.target());
    let (ours, theirs) = UnixStream::pair().unwrap();
    let cpr = Listener::bind(rig.cpr()).unwrap();
    std::thread::scope(|scope| {
        let target = scope.spawn(|| {
            TargetHandover::receive(cpr, rig.target_options(), &mut target)
                .unwrap()
                .run(Endpoint::Fd(theirs.into()), &mut target)
        });
        let main = SocketAddress::Fd { str: "main".into() };
        let resolve = |_: &str| Ok(ours.try_clone()?.into());
        let handover = rig
            .begin_on(main, &resolve, Mode::CprTransfer, &mut source)
            .unwrap();
        assert_eq!(handover.run(&mut source), SourceOutcome::Completed);
        assert_eq!(target.join().unwrap(), TargetOutcome::Running);
    });
}

#[test]
fn a_probe_of_the_cpr_channel_is_not_taken_for_a_source() {
    let rig = Rig::new(generous());
    let (mut source, mut target) = (rig.source(), rig.target());
    let listener = Listener::bind(rig.cpr()).unwrap();
    assert!(Listener::bind(rig.cpr()).is_err());
    let outcome = std::thread::scope(|scope| {
        let target = scope.spawn(|| rig.run_target(listener, &mut target));
        (rig.run_source(&mut source), target.join().unwrap())
    });
    assert_eq!(outcome, (SourceOutcome::Completed, TargetOutcome::Running));
}

#[test]
fn a_target_that_cannot_open_its_main_channel_says_so() {
    let rig = Rig::new(generous());
    let (mut source, mut target) = (rig.source(), rig.target());
    let _in_use = Listener::bind(rig.main()).unwrap();
    let (ours, _) = rig.handover(&mut source, &mut target);
    let reason = failed(ours.as_ref().unwrap()).to_owned();
    assert!(reason.contains("another process does"), "{reason}");
}
