//! The device as a host drives it.

use std::sync::Arc;
use std::time::Instant;

use baton_plugin_api::bus::CONFIG_REGION;
use baton_plugin_api::testing::{DEADLINE, TestHost, TestRam, config_of};
use baton_plugin_api::{Device, GuestRam, PciDevice, wire};

use crate::state::EduSection;
use crate::{Edu, SECTION};

const MSIX_CONTROL: u64 = 0x42;

fn device(host: &Arc<TestHost>) -> Edu {
    let mut device = Edu::create(config_of::<Edu>("edu", &[]), host.host()).unwrap();
    device.realize().unwrap();
    device
}

fn started(host: &Arc<TestHost>, memory: GuestRam) -> Edu {
    let mut device = device(host);
    device.write(CONFIG_REGION, MSIX_CONTROL, &0x8000u16.to_le_bytes());
    device.start(memory).unwrap();
    device
}

fn read(device: &mut Edu, offset: u64) -> u32 {
    let mut data = [0; 4];
    device.read(0, offset, &mut data);
    u32::from_le_bytes(data)
}

fn write(device: &mut Edu, offset: u64, value: u32) {
    device.write(0, offset, &value.to_le_bytes());
}

fn until_zero(device: &mut Edu, offset: u64, bit: u32) {
    let end = Instant::now() + DEADLINE;
    while read(device, offset) & bit != 0 {
        assert!(Instant::now() < end, "the work does not end");
        std::thread::yield_now();
    }
}

fn transfer(device: &mut Edu, source: u64, destination: u64, count: u64, command: u64) {
    for (offset, value) in [
        (0x80, source),
        (0x88, destination),
        (0x90, count),
        (0x98, command),
    ] {
        device.write(0, offset, &u64::to_le_bytes(value));
    }
}

#[test]
fn the_driver_finds_the_device_by_its_numbers() {
    let mut device = device(&TestHost::new());
    let mut id = [0; 4];
    device.read(CONFIG_REGION, 0, &mut id);
    assert_eq!(u32::from_le_bytes(id), 0x11e8_1234);
    assert_eq!(read(&mut device, 0x00), 0x0100_00ed);
    assert_eq!(device.pci().bar_sizes, [1 << 20, 1 << 12, 0, 0, 0, 0]);
    assert_eq!(device.pci().msix_vectors, 1);
}

#[test]
fn a_live_device_inverts_what_it_is_given() {
    let mut device = device(&TestHost::new());
    write(&mut device, 0x04, 0x1234_5678);
    assert_eq!(read(&mut device, 0x04), !0x1234_5678);
}

#[test]
fn accesses_of_another_size_read_as_ones_and_write_nothing() {
    let mut device = device(&TestHost::new());
    let mut data = [0; 8];
    device.read(0, 0x00, &mut data);
    assert_eq!(data, [0xff; 8]);
    device.write(0, 0x04, &[0; 8]);
    device.write(0, 0x04, &[0; 2]);
    assert_eq!(read(&mut device, 0x04), 0);
}

#[test]
fn a_factorial_is_computed_and_interrupts_if_asked_to() {
    let host = TestHost::new();
    let mut device = started(&host, GuestRam::default());
    write(&mut device, 0x08, 5);
    until_zero(&mut device, 0x20, 1);
    assert_eq!((read(&mut device, 0x08), host.interrupts(0)), (120, 0));
    write(&mut device, 0x20, 0x80);
    for (n, factorial) in [(0, 1), (10, 3_628_800), (33, 1 << 31), (u32::MAX, 0)] {
        write(&mut device, 0x08, n);
        assert_eq!(host.wait_for_interrupt(0), 1);
        assert_eq!(
            (read(&mut device, 0x08), read(&mut device, 0x24)),
            (factorial, 1)
        );
        write(&mut device, 0x64, 1);
        assert_eq!(read(&mut device, 0x24), 0);
    }
}

#[test]
fn the_driver_can_interrupt_itself() {
    let host = TestHost::new();
    let mut device = started(&host, GuestRam::default());
    write(&mut device, 0x60, 0x30);
    assert_eq!((host.interrupts(0), read(&mut device, 0x24)), (1, 0x30));
    write(&mut device, 0x64, 0x10);
    assert_eq!(read(&mut device, 0x24), 0x20);
}

#[test]
fn memory_is_copied_into_the_buffer_and_out_of_it() {
    let (host, ram) = (TestHost::new(), TestRam::new(0x4000));
    let mut device = started(&host, ram.memory());
    ram.write(0x1000, b"hello");
    transfer(&mut device, 0x1000, 0x4_0010, 5, 1);
    until_zero(&mut device, 0x98, 1);
    transfer(&mut device, 0x4_0010, 0x2000, 5, 7);
    host.wait_for_interrupt(0);
    assert_eq!(
        (read(&mut device, 0x24), ram.read(0x2000, 5)),
        (0x100, b"hello".to_vec())
    );
    device.quiesce().unwrap();
}

#[test]
fn a_transfer_outside_the_buffer_does_nothing() {
    let (host, ram) = (TestHost::new(), TestRam::new(0x4000));
    let mut device = started(&host, ram.memory());
    let bad = [
        (0x4_0000, 4097),
        (0x3_ffff, 1),
        (0x4_0fff, 2),
        (u64::MAX, 1),
        (0x4_0000, u64::MAX),
    ];
    for (inside, count) in bad {
        transfer(&mut device, 0x1000, inside, count, 1);
        until_zero(&mut device, 0x98, 1);
    }
    write(&mut device, 0x08, 3);
    until_zero(&mut device, 0x20, 1);
    device.quiesce().unwrap();
    assert_eq!(host.failures(), Vec::<String>::new());
}

#[test]
fn work_that_was_ordered_is_done_where_the_state_is_loaded() {
    let mut source = device(&TestHost::new());
    source.write(CONFIG_REGION, MSIX_CONTROL, &0x8000u16.to_le_bytes());
    write(&mut source, 0x20, 0x80);
    // The source has no thread yet, so the work stays.
    write(&mut source, 0x08, 6);
    let section = source.save(SECTION).unwrap();

    let host = TestHost::new();
    let mut target = device(&host);
    target.load(SECTION, 1, &section).unwrap();
    assert_eq!(target.save(SECTION).unwrap(), section);
    target.start(GuestRam::default()).unwrap();
    host.wait_for_interrupt(0);
    assert_eq!(read(&mut target, 0x08), 720);
    target.quiesce().unwrap();
    let section = target.save(SECTION).unwrap();

    let host = TestHost::new();
    let mut next = device(&host);
    next.load(SECTION, 1, &section).unwrap();
    assert_eq!(host.interrupts(0), 0);
    next.start(GuestRam::default()).unwrap();
    assert_eq!(host.interrupts(0), 1);
}

#[test]
fn damaged_state_is_refused_and_changes_nothing() {
    let mut device = device(&TestHost::new());
    let before = device.save(SECTION).unwrap();
    let good: EduSection = wire::decode("the state", &before).unwrap();
    type Damage = fn(&mut EduSection);
    let damages: [Damage; 4] = [
        |s| s.status = 2,
        |s| s.dma_command = 8,
        |s| s.dma_buffer.truncate(1),
        |s| s.function.pending.push(1),
    ];
    for damage in damages {
        let mut state = good.clone();
        state.liveness = 1;
        damage(&mut state);
        let data = wire::encode(&state).unwrap();
        assert!(device.load(SECTION, 1, &data).is_err());
        assert_eq!(device.save(SECTION).unwrap(), before);
    }
}

#[test]
fn a_reset_clears_the_registers() {
    let host = TestHost::new();
    let mut device = started(&host, GuestRam::default());
    write(&mut device, 0x04, 1);
    device.quiesce().unwrap();
    device.reset().unwrap();
    assert_eq!(read(&mut device, 0x04), 0);
}
