use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::*;

fn both() -> (SourceClaim, TargetClaim, ClaimWatch) {
    let source = SourceClaim::create().unwrap();
    let fd = source.fd().try_clone_to_owned().unwrap();
    let (target, watch) = TargetClaim::adopt(&fd).unwrap();
    (source, target, watch)
}

fn memfd(size: u64, seals: SealFlag) -> OwnedFd {
    let fd = memfd_create("test", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
    File::from(fd.try_clone().unwrap()).set_len(size).unwrap();
    fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).unwrap();
    fd
}

#[test]
fn a_committed_guest_is_started_by_the_target_and_not_resumed() {
    let (source, target, watch) = both();
    assert_eq!(watch.state(), ClaimState::Open);
    source.commit().unwrap();
    assert_eq!(watch.state(), ClaimState::Committed);
    let _started = target.start().unwrap();
    assert_eq!(source.state(), ClaimState::Started);
    assert_eq!(
        source.reclaim().unwrap_err(),
        TargetStarted(ClaimState::Started)
    );
}

#[test]
fn a_reclaimed_guest_is_not_started() {
    for commit in [false, true] {
        let (source, target, _) = both();
        if commit {
            source.commit().unwrap();
        }
        let _proof = source.reclaim().unwrap();
        assert_eq!(
            target.start().unwrap_err(),
            SourceReclaimed(ClaimState::Reclaimed)
        );
        assert_eq!(source.state(), ClaimState::Reclaimed);
    }
}

#[test]
fn a_target_may_start_without_a_commitment() {
    let (source, target, _) = both();
    let _started = target.start().unwrap();
    assert_eq!(source.commit().unwrap_err(), ClaimState::Started);
    source.reclaim().unwrap_err();
}

#[test]
fn reclaiming_twice_is_harmless_and_nothing_is_committed_after_it() {
    let (source, _target, _) = both();
    let _first = source.reclaim().unwrap();
    let _second = source.reclaim().unwrap();
    assert_eq!(source.commit().unwrap_err(), ClaimState::Reclaimed);
}

#[test]
fn a_word_that_nobody_wrote_lets_nobody_run_the_guest() {
    let (source, target, watch) = both();
    nix::sys::uio::pwrite(source.fd(), &7u32.to_ne_bytes(), 8).unwrap();
    assert_eq!(watch.state(), ClaimState::Unknown(7));
    assert_eq!(
        source.reclaim().unwrap_err(),
        TargetStarted(ClaimState::Unknown(7))
    );
    assert_eq!(source.commit().unwrap_err(), ClaimState::Unknown(7));
    target.start().unwrap_err();
}

#[test]
fn of_a_start_and_a_reclaim_at_the_same_time_exactly_one_wins() {
    for round in 0..500 {
        let (source, target, _) = both();
        if round % 2 == 0 {
            source.commit().unwrap();
        }
        let barrier = Barrier::new(2);
        let (started, reclaimed) = std::thread::scope(|scope| {
            let start = scope.spawn(|| {
                barrier.wait();
                target.start().is_ok()
            });
            barrier.wait();
            (source.reclaim().is_ok(), start.join().unwrap())
        });
        assert!(started ^ reclaimed, "round {round}");
    }
}

#[test]
fn of_a_start_and_a_commit_at_the_same_time_the_start_always_wins() {
    for _ in 0..200 {
        let (source, target, watch) = both();
        let barrier = Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                barrier.wait();
                let _started = target.start().unwrap();
            });
            barrier.wait();
            let _ = source.commit();
        });
        assert_eq!(watch.state(), ClaimState::Started);
    }
}

#[test]
fn the_page_cannot_be_resized_or_unsealed() {
    let (source, ..) = both();
    let file = File::from(source.fd().try_clone_to_owned().unwrap());
    file.set_len(0).unwrap_err();
    file.set_len(8192).unwrap_err();
    fcntl(source.fd(), FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)).unwrap_err();
}

#[test]
fn a_descriptor_that_is_no_sealed_page_is_refused_before_it_is_mapped() {
    let all = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    for (fd, reason) in [
        (memfd(4096, SealFlag::F_SEAL_SHRINK), "seals"),
        (memfd(0, all), "it has 0 bytes"),
        (memfd(8192, all), "it has 8192 bytes"),
        (memfd(4096, all), "it begins with"),
        (File::open("/dev/null").unwrap().into(), "no seals"),
    ] {
        let error = TargetClaim::adopt(&fd).map(|_| ()).unwrap_err();
        assert!(matches!(error, ClaimError::NotAClaim(_)), "{error}");
        assert!(error.to_string().contains(reason), "{error}");
    }
}

#[test]
fn a_page_that_cannot_be_written_is_refused() {
    let fd = memfd_create("test", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
    File::from(fd.try_clone().unwrap()).set_len(4096).unwrap();
    let seals = SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_WRITE
        | SealFlag::F_SEAL_SEAL;
    fcntl(fd.as_fd(), FcntlArg::F_ADD_SEALS(seals)).unwrap();
    let error = TargetClaim::adopt(&fd).map(|_| ()).unwrap_err();
    assert!(
        matches!(error, ClaimError::System { what: "map", .. }),
        "{error}"
    );
}

#[test]
fn the_blackout_is_known_once_the_target_has_started_and_its_parts_add_up() {
    let (source, target, watch) = both();
    for moment in [Moment::Stop, Moment::Quiesced, Moment::Saved] {
        source.stamp(moment);
    }
    watch.stamp(Moment::Received);
    watch.stamp(Moment::Loaded);
    assert_eq!(source.blackout(), None);
    let _started = target.start().unwrap();
    let Blackout {
        total_us,
        quiesce_us,
        save_us,
        transfer_us,
        load_us,
        start_us,
    } = source.blackout().unwrap();
    let sum = quiesce_us + save_us + transfer_us + load_us + start_us;
    // Each part is rounded down by less than a microsecond.
    assert!(sum <= total_us && total_us <= sum + 5, "{sum} {total_us}");
    assert_eq!(watch.blackout(), source.blackout());
}

#[test]
fn the_blackout_goes_on_until_the_vcpus_enter_the_guest() {
    let (source, target, watch) = both();
    for moment in [Moment::Stop, Moment::Quiesced, Moment::Saved] {
        source.stamp(moment);
    }
    watch.stamp(Moment::Received);
    watch.stamp(Moment::Loaded);
    let started = target.start().unwrap();
    let claimed = source.blackout().unwrap();
    let later = Instant::now() + Duration::from_millis(2);
    while Instant::now() < later {
        std::hint::spin_loop();
    }
    started.entered();
    let entered = source.blackout().unwrap();
    assert!(
        entered.total_us >= claimed.total_us + 2000,
        "{claimed:?} {entered:?}"
    );
    assert_eq!(entered.load_us, claimed.load_us);
}

#[test]
fn downtime_is_the_blackout_rounded_to_milliseconds() {
    let rounded = |total_us| {
        Blackout {
            total_us,
            ..Blackout::default()
        }
        .downtime_ms()
    };
    assert_eq!(
        (rounded(499), rounded(500), rounded(1499), rounded(1500)),
        (0, 1, 1, 2)
    );
}
