//! The device as a host drives it, on the host's own clock.

use std::sync::Arc;

use baton_plugin_api::testing::{TestHost, config_of};
use baton_plugin_api::{Device, GuestRam, PlatformDevice, PluginDescriptor, Value, wire};

use crate::clock::now;
use crate::state::{RtcSection, Time};
use crate::{Rtc, SECTION};

const A: u8 = 0x0a;
const B: u8 = 0x0b;
const C: u8 = 0x0c;
const UPDATE: u8 = 0x10;
const PERIODIC: u8 = 0x40;
const REQUEST: u8 = 0x80;

fn device(host: &Arc<TestHost>, said: &[(&str, Value)]) -> Rtc {
    let mut device = Rtc::create(config_of::<Rtc>("rtc", said), host.host()).unwrap();
    device.realize().unwrap();
    device
}

fn started(host: &Arc<TestHost>) -> Rtc {
    let mut device = device(host, &[]);
    device.start(GuestRam::default()).unwrap();
    device
}

fn read(device: &mut Rtc, register: u8) -> u8 {
    device.write(0, 0, &[register]);
    let mut data = [0];
    device.read(0, 1, &mut data);
    data[0]
}

fn write(device: &mut Rtc, register: u8, value: u8) {
    device.write(0, 0, &[register]);
    device.write(0, 1, &[value]);
}

fn state(device: &mut Rtc) -> RtcSection {
    wire::decode("the state", &device.save(SECTION).unwrap()).unwrap()
}

fn load(device: &mut Rtc, state: &RtcSection) -> baton_plugin_api::Result<()> {
    device.load(SECTION, 1, &wire::encode(state).unwrap())
}

#[test]
fn the_descriptor_is_sound() {
    let plugin = PluginDescriptor {
        name: "mc146818rtc".into(),
        version: "1".into(),
        description: String::new(),
        devices: vec![Rtc::device_type()],
    };
    assert_eq!(plugin.check(), Ok(()));
}

#[test]
fn the_host_hears_of_a_time_that_the_guest_sets_and_of_no_other_write() {
    const HOURS: u8 = 4;
    const YEAR: u8 = 9;
    let host = TestHost::new();
    let mut device = device(
        &host,
        &[("base", Value::String("2001-01-01T12:00:00".into()))],
    );
    let before = state(&mut device).offset.seconds;
    write(&mut device, 0x55, 1);
    write(&mut device, HOURS, 0x12);
    write(&mut device, A, 0x26);
    assert_eq!(host.clocks_set(), []);
    write(&mut device, HOURS, 0x13);
    // While it is being set nothing is final.
    write(&mut device, B, 0x82);
    write(&mut device, YEAR, 0x03);
    write(&mut device, HOURS, 0x14);
    write(&mut device, B, 0x02);
    let hour = 3600;
    let two_years = 2 * 365 * 24 * hour;
    let set = host.clocks_set();
    let changes: Vec<_> = set.iter().map(|ahead| ahead - before).collect();
    let expected = [hour, two_years + 2 * hour];
    let near = |(found, expected): (&i64, &i64)| (found - expected).abs() <= 2;
    assert!(
        changes.len() == 2 && changes.iter().zip(&expected).all(near),
        "{changes:?}"
    );
}

#[test]
fn the_guest_has_the_hosts_time_unless_a_date_is_said() {
    let host = TestHost::new();
    assert_eq!(state(&mut device(&host, &[])).offset, Time::new(0));
    let base = |text: &str| [("base", Value::String(text.into()))];
    let mut device = device(&host, &base("2031-02-03T04:05:06"));
    let date = [0x32, 9, 8, 7, 4, 2].map(|register| read(&mut device, register));
    assert_eq!(date, [0x20, 0x31, 0x02, 0x03, 0x04, 0x05]);
    let config = config_of::<Rtc>("rtc", &base("localtime"));
    let error = Rtc::create(config, host.host()).err().unwrap();
    assert!(error.message.contains("'localtime'"), "{}", error.message);
}

#[test]
fn periodic_interrupts_come_as_they_are_acknowledged_and_end_when_disabled() {
    let host = TestHost::new();
    let mut device = started(&host);
    write(&mut device, A, 0x23);
    write(&mut device, B, 0x42);
    for _ in 0..20 {
        assert_eq!(host.wait_for_interrupt(0), 1);
        assert_eq!(
            read(&mut device, C) & (REQUEST | PERIODIC),
            REQUEST | PERIODIC
        );
    }
    write(&mut device, B, 0x02);
    host.interrupts(0);
    device.quiesce().unwrap();
    device.start(GuestRam::default()).unwrap();
    device.quiesce().unwrap();
    assert_eq!(host.interrupts(0), 0);
    assert_eq!(host.failures(), Vec::<String>::new());
}

#[test]
fn an_update_interrupt_comes_at_the_guests_second() {
    let host = TestHost::new();
    let mut device = device(&host, &[]);
    let mut state = state(&mut device);
    state.cmos[usize::from(B)] |= UPDATE;
    state.cmos[usize::from(C)] = 0;
    // Twenty milliseconds are left of this second of the guest's.
    let now = now();
    state.offset = Time::new(980_000_000 - now.rem_euclid(1_000_000_000));
    state.seen = Time::new(now + 980_000_000 - now.rem_euclid(1_000_000_000));
    load(&mut device, &state).unwrap();
    device.start(GuestRam::default()).unwrap();
    assert_eq!(host.wait_for_interrupt(0), 1);
    assert_eq!(read(&mut device, C) & UPDATE, UPDATE);
}

#[test]
fn what_came_due_in_a_handover_interrupts_once_at_the_start() {
    let source_host = TestHost::new();
    let mut source = started(&source_host);
    write(&mut source, A, 0x23);
    write(&mut source, B, 0x42);
    source_host.wait_for_interrupt(0);
    source.quiesce().unwrap();
    let section = source.save(SECTION).unwrap();

    let host = TestHost::new();
    let mut target = device(&host, &[]);
    target.load(SECTION, 1, &section).unwrap();
    assert_eq!(target.save(SECTION).unwrap(), section);
    assert_eq!(host.interrupts(0), 0);
    target.start(GuestRam::default()).unwrap();
    assert_eq!(host.interrupts(0), 1);
    assert_eq!(read(&mut target, C) & REQUEST, REQUEST);
    assert_eq!(host.wait_for_interrupt(0), 1);
}

#[test]
fn a_second_that_passed_in_a_handover_interrupts_at_the_start() {
    let host = TestHost::new();
    let mut device = device(&host, &[]);
    let mut state = state(&mut device);
    state.cmos[usize::from(B)] |= UPDATE;
    state.seen.seconds -= 5;
    load(&mut device, &state).unwrap();
    device.start(GuestRam::default()).unwrap();
    assert_eq!(host.interrupts(0), 1);
}

#[test]
fn a_reset_ends_interrupts() {
    let host = TestHost::new();
    let mut device = started(&host);
    write(&mut device, A, 0x23);
    write(&mut device, B, 0x42);
    host.wait_for_interrupt(0);
    device.quiesce().unwrap();
    device.reset().unwrap();
    assert_eq!(
        (read(&mut device, B), read(&mut device, C) & REQUEST),
        (2, 0)
    );
}

#[test]
fn the_guests_time_and_memory_go_along() {
    let host = TestHost::new();
    let mut source = started(&host);
    write(&mut source, 0x09, 0x31);
    write(&mut source, 0x40, 0x77);
    source.quiesce().unwrap();
    let section = source.save(SECTION).unwrap();
    let mut target = device(&host, &[]);
    target.load(SECTION, 1, &section).unwrap();
    // The index goes along too.
    let mut selected = [0];
    target.read(0, 1, &mut selected);
    assert_eq!(selected, [0x77]);
    assert_eq!(read(&mut target, 0x09), 0x31);
}

#[test]
fn damaged_state_is_refused_and_changes_nothing() {
    let mut target = device(&TestHost::new(), &[]);
    let before = target.save(SECTION).unwrap();
    let good = state(&mut target);
    type Damage = fn(&mut RtcSection);
    let damages: [(&str, Damage); 9] = [
        ("index", |s| s.index = 0x80),
        ("127 bytes", |s| s.cmos.truncate(127)),
        ("register A", |s| s.cmos[0x0a] |= 0x80),
        ("register C", |s| s.cmos[0x0c] = 0x01),
        ("register C", |s| s.cmos[0x0c] = 0x80),
        ("register C", |s| {
            (s.cmos[0x0b], s.cmos[0x0c]) = (0x42, 0x40)
        }),
        ("register D", |s| s.cmos[0x0d] = 0),
        ("offset", |s| s.offset.nanoseconds = 1_000_000_000),
        ("time", |s| s.seen.seconds = i64::MIN),
    ];
    for (what, damage) in damages {
        let mut state = good.clone();
        state.cmos[0x40] = 1;
        damage(&mut state);
        let error = load(&mut target, &state).unwrap_err();
        assert!(error.message.contains(what), "{}", error.message);
        assert_eq!(target.save(SECTION).unwrap(), before);
    }
    assert!(target.load(SECTION, 1, &before[..20]).is_err());
}

#[test]
fn only_the_data_port_is_read() {
    let mut device = device(&TestHost::new(), &[]);
    device.write(0, 0, &[0x40, 0x12]);
    let mut index = [0];
    device.read(0, 0, &mut index);
    assert_eq!((index, read(&mut device, 0x40)), ([0xff], 0x12));
}

#[test]
fn an_alarm_that_is_enabled_is_when_the_guest_wants_to_be_woken() {
    const ALARM: u8 = 0x20;
    let host = TestHost::new();
    let mut device = started(&host);
    // Every second.
    for register in [1, 3, 5] {
        write(&mut device, register, 0xff);
    }
    device.quiesce().unwrap();
    assert_eq!(device.wake_time(), None);
    let before = std::time::SystemTime::now();
    let b = read(&mut device, B);
    write(&mut device, B, b | ALARM);
    let at = device.wake_time().unwrap();
    let second = std::time::Duration::from_secs(1);
    assert!(at > before && at <= before + 2 * second, "{at:?}");
    // One that has passed since the state was saved is told, too: nobody was there to see it.
    let mut state = state(&mut device);
    state.seen = Time::new(now() - 60_000_000_000);
    load(&mut device, &state).unwrap();
    assert!(device.wake_time().unwrap() < before - 50 * second);
    // A wake-up resets the chip.
    device.reset().unwrap();
    assert_eq!(device.wake_time(), None);
}
