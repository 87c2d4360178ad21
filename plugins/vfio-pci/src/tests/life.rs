//! Start, quiesce, reset, and what the host says meanwhile.

use std::time::Instant;

use baton_plugin_api::Mode;
use baton_plugin_api::testing::{DEADLINE, TestRam};

use super::fake::EXTENSIONS;
use super::*;
use crate::device::SECTION;
use crate::kernel::Extension;

#[test]
fn realizing_and_loading_leave_the_device_alone() {
    let mut bench = Bench::new();
    bench.place(0xd000_0000);
    bench.enable_msix(true);
    let state = bench.device.save(SECTION).unwrap();
    bench.kernel.calls();
    let host = TestHost::new();
    let mut target = device(&bench.vfio, &host, &[]);
    target.realize().unwrap();
    target.load(SECTION, 1, &state).unwrap();
    assert_eq!(bench.kernel.calls(), [format!("open_device {NAME}")]);
}

#[test]
fn the_device_gets_the_guests_command_and_interrupts_at_the_start_after_a_load() {
    let mut bench = Bench::new();
    bench.place(0xd000_0000);
    bench.program(3, false);
    bench.enable_msix(true);
    let state = bench.device.save(SECTION).unwrap();
    let ram = TestRam::new(0x1000);
    let mut next = Bench::new();
    next.device.load(SECTION, 1, &state).unwrap();
    next.device.start(ram.memory()).unwrap();
    let now = next.card(|card| (card.command(), card.told(Irq::Msix)));
    assert_eq!(now, (0x0406, 5));
    assert_eq!([0, 3].map(|vector| next.host.interrupts(vector)), [1, 1]);
    // Only once.
    next.device.quiesce().unwrap();
    next.kernel.calls();
    next.device.start(ram.memory()).unwrap();
    assert_eq!(next.host.interrupts(3), 0);
    let calls = next.kernel.calls();
    assert!(!calls.contains(&"set_irqs Msix 5".to_owned()), "{calls:?}");
}

#[test]
fn a_reset_stops_the_device_before_it_is_reset_and_leaves_it_as_new() {
    let mut bench = Bench::new();
    let new = bench.device.save(SECTION).unwrap();
    bench.place(0xd000_0000);
    bench.program(0, true);
    bench.enable_msix(true);
    bench.card(|card| card.interrupt(Irq::Msix, 0));
    bench.kernel.calls();
    bench.device.reset().unwrap();
    assert_eq!(
        bench.kernel.calls(),
        ["set_irqs Msix 0", "config 0x4 [00, 00]", "reset"]
    );
    assert_eq!(bench.host.bar(0), None);
    assert_eq!(bench.host.interrupts(0), 0);
    assert_eq!(bench.device.save(SECTION).unwrap(), new);
    assert_eq!(bench.host.logged(), []);
}

#[test]
fn a_device_without_a_reset_is_kept_from_memory_and_says_so_once() {
    let mut card = card();
    card.resets = false;
    let mut bench = Bench::with(card, &[]);
    bench.set(0x04, &[0x07, 0x00]);
    bench.kernel.calls();
    for _ in 0..2 {
        bench.device.reset().unwrap();
        assert_eq!(bench.kernel.calls(), ["config 0x4 [00, 00]"]);
    }
    assert_eq!(bench.card(|card| card.command()), 0);
    let logged = bench.host.logged();
    assert_eq!(logged.len(), 1);
    assert!(logged[0].1.contains("no way to be reset"), "{logged:?}");
}

#[test]
fn an_error_of_the_hardware_makes_the_device_a_failed_one() {
    let mut bench = Bench::new();
    bench.device.start(TestRam::new(0x1000).memory()).unwrap();
    bench.card(|card| card.interrupt(Irq::Error, 0));
    let failures = bench.host.wait_for_failure();
    assert!(failures[0].contains(NAME), "{failures:?}");
    bench.device.quiesce().unwrap();
}

#[test]
fn that_the_host_wants_it_back_is_said_with_what_to_do() {
    let mut bench = Bench::new();
    bench.device.start(TestRam::new(0x1000).memory()).unwrap();
    bench.card(|card| card.interrupt(Irq::Request, 0));
    let end = Instant::now() + DEADLINE;
    while bench.host.logged().is_empty() {
        assert!(Instant::now() < end, "nothing was said");
        std::thread::yield_now();
    }
    assert!(bench.host.logged()[0].1.contains("device_del vfio0"));
    bench.device.quiesce().unwrap();
    assert_eq!(bench.host.failures(), Vec::<String>::new());
}

#[test]
fn each_mode_has_its_blocker() {
    let mut bench = Bench::new();
    let declared = VfioPci::device_type().blockers;
    let of = |mode: Mode, device: &mut VfioPci| {
        let all = declared.iter().cloned().chain(device.blockers(mode));
        let mine: Vec<_> = all.filter(|it| it.modes.contains(&mode)).collect();
        assert!(mine.iter().all(|it| !it.remedy.is_empty()));
        let said = mine.iter();
        said.map(|it| (it.reason.clone(), it.unless_suspended))
            .collect::<Vec<_>>()
    };
    let only_suspended = "VFIO device only supports cpr-reboot for runstate suspended";
    for (mode, reason, unless) in [
        (
            Mode::Normal,
            "VFIO migration is not supported in kernel",
            false,
        ),
        (Mode::CprReboot, only_suspended, true),
    ] {
        let blocked = of(mode, &mut bench.device);
        assert_eq!(blocked, [(reason.to_owned(), unless)]);
    }
    for mode in [Mode::CprTransfer, Mode::CprExec] {
        assert_eq!(of(mode, &mut bench.device), []);
    }
    for (lacking, name) in [
        (Extension::UpdateAddress, "VFIO_UPDATE_VADDR"),
        (Extension::UnmapAll, "VFIO_UNMAP_ALL"),
    ] {
        let with = EXTENSIONS.into_iter().filter(|it| *it != lacking);
        bench.kernel.state().extensions = with.collect();
        for mode in [Mode::CprTransfer, Mode::CprExec] {
            let reason = format!("VFIO container does not support {name}");
            assert_eq!(of(mode, &mut bench.device), [(reason, false)]);
        }
    }
}
