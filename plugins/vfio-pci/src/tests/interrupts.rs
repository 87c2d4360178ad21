//! MSI-X and MSI: what the device is told, and what the guest gets.

use baton_plugin_api::testing::TestRam;
use nix::errno::Errno;

use super::*;

#[test]
fn all_vectors_are_on_while_msix_is_and_signal_the_guests_interrupts() {
    let mut bench = Bench::new();
    bench.program(3, false);
    assert_eq!(bench.kernel.calls(), Vec::<String>::new());
    bench.enable_msix(true);
    assert_eq!(bench.kernel.calls(), ["set_irqs Msix 5"]);
    assert!(bench.host.vector(3).is_some());
    bench.card(|card| card.interrupt(Irq::Msix, 3));
    let interrupts = [2, 3, 4].map(|vector| bench.host.interrupts(vector));
    assert_eq!(interrupts, [0, 1, 0]);
    // The device's own register is the kernel's business.
    assert_eq!(bench.card(|card| card.config[MSIX as usize + 3]), 0);
    bench.enable_msix(true);
    bench.program(2, false);
    assert_eq!(bench.kernel.calls(), Vec::<String>::new());
    bench.enable_msix(false);
    assert_eq!(bench.kernel.calls(), ["set_irqs Msix 0"]);
    assert_eq!(bench.host.vector(3), None);
}

#[test]
fn a_masked_vector_has_no_route_and_its_interrupt_waits() {
    let mut bench = Bench::new();
    bench.enable_msix(true);
    bench.program(1, true);
    assert_eq!(bench.host.vector(1), None);
    bench.card(|card| card.interrupt(Irq::Msix, 1));
    assert_eq!(bench.read(0, PENDING, 8), 1 << 1);
    bench.program(1, false);
    assert!(bench.host.vector(1).is_some());
    assert_eq!(bench.host.interrupts(1), 1);
    // All of them at once.
    bench.set(MSIX + 2, &[0, 0xc0]);
    assert_eq!(bench.host.vector(1), None);
    assert_eq!(bench.card(|card| card.told(Irq::Msix)), 5);
}

#[test]
fn msi_has_as_many_vectors_as_the_guest_uses() {
    let mut bench = Bench::new();
    bench.set(MSI + 4, &0xfee0_0000u64.to_le_bytes());
    bench.set(MSI + 12, &0x60u16.to_le_bytes());
    bench.set(MSI + 2, &[0x11, 0x00]);
    assert_eq!(bench.kernel.calls(), ["set_irqs Msi 2"]);
    bench.card(|card| card.interrupt(Irq::Msi, 1));
    assert_eq!(bench.host.interrupts(1), 1);
    let data = bench.host.vector(1).map(|message| message.data);
    assert_eq!((data, bench.host.vector(2)), (Some(0x61), None));
    // Masked, it is pending.
    bench.set(MSI + 0x10, &[0x02]);
    bench.card(|card| card.interrupt(Irq::Msi, 1));
    assert_eq!(bench.host.vector(1), None);
    assert_eq!(bench.config(MSI + 0x14), 2);
    bench.set(MSI + 2, &[0x21, 0x00]);
    assert_eq!(bench.kernel.calls(), ["set_irqs Msi 0", "set_irqs Msi 4"]);
    // From one kind to the other: the first is off before.
    bench.enable_msix(true);
    assert_eq!(bench.kernel.calls(), ["set_irqs Msi 0", "set_irqs Msix 5"]);
    assert_eq!(bench.host.failures(), Vec::<String>::new());
}

#[test]
fn a_host_with_fewer_interrupts_gives_what_it_has() {
    let mut bench = Bench::new();
    bench.card(|card| card.possible = 3);
    bench.enable_msix(true);
    assert_eq!(bench.kernel.calls(), ["set_irqs Msix 5", "set_irqs Msix 3"]);
    assert_eq!(bench.host.failures(), Vec::<String>::new());
    bench.enable_msix(false);
    assert_eq!(bench.card(|card| card.told(Irq::Msix)), 0);
}

#[test]
fn a_device_whose_interrupts_cannot_be_set_up_has_failed() {
    let mut bench = Bench::new();
    let failing = ("set_irqs", Errno::ENOSPC);
    bench.kernel.state().failing.extend([failing]);
    bench.enable_msix(true);
    let failures = bench.host.failures();
    assert!(failures[0].contains("Cannot set up the device's interrupts"));
}

#[test]
fn capabilities_without_interrupts_behind_them_are_not_listed() {
    let mut card = card();
    card.irqs.clear();
    let mut bench = Bench::with(card, &[]);
    assert_eq!(bench.config(POWER) >> 8 & 0xff, EXPRESS as u32);
    assert_eq!(bench.device.pci().msix_vectors, 0);
    bench.device.start(TestRam::new(0x1000).memory()).unwrap();
    bench.device.quiesce().unwrap();
}

#[test]
fn a_table_outside_of_its_bar_is_refused() {
    for (at, place) in [(4, 0x7fc8u32), (4, 1), (8, 0x8000), (8, 7)] {
        let mut card = card();
        card.put(MSIX as usize + at, &place.to_le_bytes());
        let kernel = Fake::new([(NAME, card)]);
        let vfio = Vfio::new(Arc::clone(&kernel) as _);
        let refused = device(&vfio, &TestHost::new(), &[]).realize();
        let error = refused.unwrap_err();
        assert!(error.message.contains("MSI-X"), "{error}");
        assert_eq!(kernel.open(), []);
    }
}
