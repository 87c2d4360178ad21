//! The port as a guest's bus driver meets it.

use baton_plugin_api::bus::CONFIG_REGION;
use baton_plugin_api::testing::TestHost;
use baton_plugin_api::{Config, Value};

use super::*;

fn port(number: u64) -> RootPort {
    let host = TestHost::new();
    let mut config = Config {
        id: "rp0".into(),
        ..Config::default()
    };
    config.properties.insert("port".into(), Value::Uint(number));
    let mut port = RootPort::create(config, host.host()).unwrap();
    port.realize().unwrap();
    port
}

fn read(port: &mut RootPort, offset: u64) -> u32 {
    let mut data = [0; 4];
    port.read(CONFIG_REGION, offset, &mut data);
    u32::from_le_bytes(data)
}

fn write(port: &mut RootPort, offset: u64, value: u32) {
    port.write(CONFIG_REGION, offset, &value.to_le_bytes());
}

#[test]
fn it_is_a_bridge_and_a_root_port() {
    let mut port = port(7);
    assert_eq!(read(&mut port, 0x00), 0x000c_1b36);
    assert_eq!(read(&mut port, 0x08) >> 8, 0x06_0400);
    assert_eq!(read(&mut port, 0x0c) >> 16 & 0x7f, 1);
    let mut at = u64::from(read(&mut port, 0x34) as u8);
    while read(&mut port, at) as u8 != 0x10 {
        at = u64::from((read(&mut port, at) >> 8) as u8);
        assert_ne!(at, 0, "there is no PCI Express capability");
    }
    // Version 2, a root port, no slot.
    assert_eq!(read(&mut port, at) >> 16, 0x42);
    assert_eq!(read(&mut port, at + 0x0c) >> 24, 7);
}

#[test]
fn buses_and_windows_can_be_set_and_nothing_else() {
    let mut port = port(0);
    for (offset, kept) in [
        (0x18, 0x00ff_ffff),
        (0x1c, 0x0000_f0f0),
        (0x20, 0xfff0_fff0),
        (0x24, 0xfff1_fff1),
        (0x28, 0xffff_ffff),
        (0x2c, 0xffff_ffff),
        (0x30, 0),
    ] {
        write(&mut port, offset, u32::MAX);
        assert_eq!(read(&mut port, offset), kept, "{offset:#x}");
    }
    port.reset().unwrap();
    assert_eq!(read(&mut port, 0x18), 0);
    assert_eq!(read(&mut port, 0x24), 0x0001_0001);
}

#[test]
fn what_the_guest_has_set_goes_along_and_another_port_refuses_it() {
    let mut source = port(3);
    write(&mut source, 0x18, 0x0005_0500);
    let state = source.save(SECTION).unwrap();
    let mut target = port(3);
    target.load(SECTION, 1, &state).unwrap();
    assert_eq!(read(&mut target, 0x18), 0x0005_0500);
    assert!(port(4).load(SECTION, 1, &state).is_err());
    assert!(target.load(SECTION, 1, b"x").is_err());
    assert_eq!(read(&mut target, 0x18), 0x0005_0500);
}
