//! Config space and BARs, as the guest meets them.

use baton_plugin_api::testing::TestRam;
use nix::errno::Errno;

use super::*;

#[test]
fn the_guest_finds_the_device_without_what_it_must_not_see() {
    let mut bench = Bench::new();
    assert_eq!(bench.config(0x00), 0x1521_8086);
    assert_eq!(bench.config(0x08), 0x0200_0001);
    assert_eq!(bench.config(0x2c), 0x0002_8086);
    // One function, no ROM, no INTx: neither pin nor pending.
    assert_eq!(bench.config(0x0c), 0x0000_0010);
    assert_eq!(bench.config(0x30), 0);
    assert_eq!(bench.config(0x3c), 0);
    assert_eq!(bench.config(0x04) >> 16, 0x0010);
    let info = bench.device.pci();
    assert_eq!(info.bar_sizes, [0x8000, 0, 0x20, 0, 0x1000, 0]);
    assert_eq!((info.port_bars, info.msix_vectors), (vec![2], 5));
    // Behind the end there is nothing.
    assert_eq!(bench.read(CONFIG_REGION, 4094, 4), 0xffff_ffff);
    bench.set(u64::MAX, &[0; 4]);
}

#[test]
fn bars_have_the_devices_sizes_and_are_the_guests_to_place() {
    let mut bench = Bench::new();
    for (at, sizing) in [
        (0x10, 0xffff_800c),
        (0x14, 0xffff_ffff),
        (0x18, 0xffff_ffe1),
        (0x1c, 0),
        (0x20, 0xffff_f000),
        (0x24, 0),
        (0x30, 0),
    ] {
        bench.set(at, &[0xff; 4]);
        assert_eq!(bench.config(at), sizing, "{at:#x}");
    }
    bench.place(0x8_0000_0000);
    assert_eq!(bench.host.bar(0), Some(0x8_0000_0000));
    // The device has its own place, which it keeps.
    assert_eq!(bench.kernel.calls(), ["config 0x4 [06, 04]"]);
}

#[test]
fn the_device_decodes_before_the_guest_sees_it_and_until_it_does_not() {
    let mut bench = Bench::new();
    bench.kernel.state().host = Some(Arc::clone(&bench.host));
    bench.place(0xd000_0000);
    assert_eq!(bench.kernel.calls(), ["config 0x4 [06, 04]"]);
    assert_eq!(bench.host.bar(0), Some(0xd000_0000));
    bench.set(0x04, &[0x01, 0x04]);
    assert_eq!(
        bench.kernel.calls(),
        ["config 0x4 [03, 04] while BAR 0 decodes", "config 0x4 [01]"]
    );
    let command = bench.card(|card| card.command());
    assert_eq!((command, bench.host.bar(0)), (0x0401, None));
    assert_eq!(bench.config(0x04) as u16, 0x0401);
}

#[test]
fn lists_of_capabilities_have_all_but_the_hidden_ones() {
    let mut bench = Bench::new();
    let mut list = Vec::new();
    let mut at = u64::from(bench.config(0x34) as u8);
    while at != 0 {
        let header = bench.config(at);
        list.push((at, header as u8));
        at = u64::from((header >> 8) as u8);
    }
    assert_eq!(list, [(POWER, 1), (MSI, 5), (MSIX, 0x11), (EXPRESS, 0x10)]);
    // Alternative routing ids are first, so that they stay as nothing; SR-IOV is gone.
    assert_eq!(bench.config(0x100), 0x1400_0000);
    assert_eq!(bench.config(0x140), 0x1a02_0001);
    assert_eq!(bench.config(0x1a0), 0x0001_0003);
}

#[test]
fn an_endpoint_is_part_of_the_root_complex_and_has_no_link() {
    let mut bench = Bench::new();
    assert_eq!(bench.config(EXPRESS), 0x0092_0010);
    assert_eq!(bench.config(EXPRESS + 0x0c), 0);
    assert_eq!(bench.config(EXPRESS + 0x10), 0);
    // Device Control is the device's.
    bench.set(EXPRESS + 8, &[0x10, 0x28]);
    assert_eq!(bench.card(|card| card.config[EXPRESS as usize + 9]), 0x28);
    assert_eq!(bench.config(EXPRESS + 8), 0x2810);
}

#[test]
fn a_device_that_sleeps_decodes_nothing() {
    let mut bench = Bench::new();
    let state = |bench: &Bench| bench.card(|card| card.config[POWER as usize + 4] & 3);
    bench.place(0xd000_0000);
    bench.set(POWER + 4, &[0x0b, 0x00]);
    assert_eq!((state(&bench), bench.host.bar(0)), (3, None));
    bench.set(POWER + 4, &[0x08]);
    assert_eq!((state(&bench), bench.host.bar(0)), (0, Some(0xd000_0000)));
    // A device that does not know the state stays where it is.
    bench.card(|card| card.config_writable[POWER as usize + 4] = 0);
    bench.set(POWER + 4, &[0x0b, 0x00]);
    assert_eq!(bench.host.bar(0), Some(0xd000_0000));
}

#[test]
fn accesses_to_bars_are_the_devices_except_for_msix() {
    let mut bench = Bench::new();
    bench.device.write(0, 0x100, &[1, 2, 3, 4]);
    let there = bench.card(|card| card.bars[0][0x100..0x104].to_vec());
    assert_eq!(there, [1, 2, 3, 4]);
    assert_eq!(bench.read(0, 0x100, 4), 0x0403_0201);
    bench.program(1, true);
    assert_eq!(bench.read(0, TABLE + 24, 8), 0x1_0000_0041);
    bench.device.write(0, PENDING, &[0xff; 8]);
    assert_eq!(bench.read(0, PENDING, 8), 0);
    let untouched = bench.card(|card| card.bars[0][0x2000..0x3008].iter().all(|b| *b == 0));
    assert!(untouched);
    bench.device.write(2, 0x1c, &[9; 4]);
    assert_eq!(bench.read(2, 0x1c, 4), 0x0909_0909);
    // Where nothing is, and where nothing answers.
    for (region, offset) in [(0, 0x7fff), (0, u64::MAX), (1, 0), (6, 0)] {
        bench.device.write(region, offset, &[0; 4]);
        assert_eq!(bench.read(region, offset, 4), 0xffff_ffff);
    }
    bench.kernel.state().failing.insert("read", Errno::EIO);
    assert_eq!(bench.read(0, 0x100, 4), 0xffff_ffff);
}

#[test]
fn what_is_not_emulated_is_memory_of_the_guest_from_the_first_start_on() {
    let ram = TestRam::new(0x4000);
    let mut bench = Bench::new();
    assert_eq!(bench.host.mapped(), []);
    bench.device.start(ram.memory()).unwrap();
    // The table and the pending bits of 5 vectors have a page each; 32 ports are none.
    let parts = [(0, 0, 0x2000), (0, 0x4000, 0x4000), (4, 0, 0x1000)];
    assert_eq!(bench.host.mapped(), parts);

    let off = [("x-no-mmap", Value::Bool(true))];
    let mut bench = Bench::with(card(), &off);
    bench.device.start(ram.memory()).unwrap();
    assert_eq!(bench.host.mapped(), []);

    let mut bench = Bench::new();
    bench.host.forget_maps();
    bench.device.start(ram.memory()).unwrap();
    assert_eq!(bench.host.mapped(), []);
    assert_eq!(bench.host.logged(), []);
}
