//! Hardware and guests that keep to nothing.

use baton_plugin_api::testing::{Random, TestRam};

use super::*;

/// The card with some bytes changed: in its header, its capabilities, its extended capabilities.
fn damaged(random: &mut Random) -> FakeDevice {
    let mut card = card();
    for _ in 0..random.below(6) {
        let at = match random.below(3) {
            0 => random.below(0x40),
            1 => 0x40 + random.below(0x80),
            _ => 0x100 + random.below(0xb0),
        };
        card.config[at] = random.next() as u8;
    }
    card
}

#[test]
fn neither_a_devices_config_space_nor_its_guest_makes_it_panic() {
    let mut random = Random::new();
    let ram = TestRam::new(0x1000);
    let mut opened = 0;
    for _ in 0..400 {
        let kernel = Fake::new([(NAME, damaged(&mut random))]);
        let vfio = Vfio::new(Arc::clone(&kernel) as _);
        let host = TestHost::new();
        let mut device = device(&vfio, &host, &[]);
        if device.realize().is_err() {
            continue;
        }
        opened += 1;
        let fresh = device.save(crate::device::SECTION).unwrap();
        for _ in 0..60 {
            let region = match random.below(4) {
                0 => random.below(8) as u32,
                _ => CONFIG_REGION,
            };
            let offset = match random.below(3) {
                0 => random.next() >> random.below(64),
                1 => random.below(0x40) as u64,
                _ => random.below(0x1100) as u64,
            };
            let data = random.next().to_le_bytes();
            let len = 1 << random.below(4);
            device.write(region, offset, &data[..len]);
            device.read(region, offset, &mut [0; 8][..len]);
        }
        device.start(ram.memory()).unwrap();
        device.quiesce().unwrap();
        let used = device.save(crate::device::SECTION).unwrap();
        device.reset().unwrap();
        assert_eq!(device.save(crate::device::SECTION).unwrap(), fresh);
        device.load(crate::device::SECTION, 1, &used).unwrap();
        assert_eq!(device.save(crate::device::SECTION).unwrap(), used);
    }
    assert!(opened > 100, "only {opened} of them were opened");
}
