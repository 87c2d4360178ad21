//! The section, and what others may have made of it.

use std::fs;
use std::path::Path;

use baton_migration::fingerprint::MachineFingerprint;
use baton_migration::stream::{Header, SectionWriter, StateImage};
use baton_plugin_api::wire;

use super::*;
use crate::device::SECTION;
use crate::state::VfioSection;

/// A device that a guest has set up.
fn used() -> Bench {
    let mut bench = Bench::new();
    bench.place(0xd000_0000);
    bench.set(0x3c, &[0x0a]);
    bench.set(MSI + 12, &0x60u16.to_le_bytes());
    bench.program(0, false);
    bench.program(1, true);
    bench.enable_msix(true);
    bench.card(|card| card.interrupt(Irq::Msix, 1));
    bench
}

#[test]
fn what_is_saved_right_after_a_load_is_what_was_loaded() {
    let state = used().device.save(SECTION).unwrap();
    let mut target = Bench::new();
    assert_ne!(target.device.save(SECTION).unwrap(), state);
    target.device.load(SECTION, 1, &state).unwrap();
    assert_eq!(target.device.save(SECTION).unwrap(), state);
    assert_eq!(target.host.bar(0), Some(0xd000_0000));
    assert!(target.host.vector(0).is_some());
    assert_eq!(target.host.interrupts(1), 1);
}

#[test]
fn damaged_state_is_refused_and_changes_nothing() {
    let mut bench = Bench::new();
    let before = bench.device.save(SECTION).unwrap();
    let state = used().device.save(SECTION).unwrap();
    let good: VfioSection = wire::decode("the state", &state).unwrap();
    type Damage = fn(&mut VfioSection);
    let damages: [Damage; 16] = [
        |s| s.vendor ^= 1,
        |s| s.device ^= 1,
        |s| s.subsystem_vendor ^= 1,
        |s| s.subsystem ^= 1,
        |s| s.class ^= 1,
        |s| s.bars[0] *= 2,
        |s| s.bars.truncate(5),
        |s| s.function.config.bytes[0x08] ^= 1,
        |s| s.function.config.bytes.truncate(0x40),
        // The place of the MSI-X table, a capability's id, and a bit that cannot be written.
        |s| s.function.config.bytes[0x75] ^= 8,
        |s| s.function.config.bytes[0x70] ^= 1,
        |s| s.function.config.bytes[0x05] ^= 0x80,
        |s| s.function.msix = None,
        |s| s.function.msix.as_mut().unwrap().entries.truncate(4),
        |s| s.function.msix.as_mut().unwrap().entries[0].2 = 2,
        |s| s.function.pending.push(5),
    ];
    for (nth, damage) in damages.into_iter().enumerate() {
        let mut state = good.clone();
        damage(&mut state);
        let data = wire::encode(&state).unwrap();
        let error = bench.device.load(SECTION, 1, &data).unwrap_err();
        assert!(!error.message.contains('\n'), "{error}");
        let after = bench.device.save(SECTION).unwrap();
        assert_eq!(after, before, "{nth}: {error}");
        assert_eq!(bench.host.bar(0), None);
    }
    assert!(bench.device.load(SECTION, 1, b"x").is_err());
    assert!(bench.device.load("other", 1, &before).is_err());
    bench.device.load(SECTION, 1, &state).unwrap();
}

#[test]
fn a_device_of_another_kind_is_named_with_the_one_that_is_here() {
    let state = used().device.save(SECTION).unwrap();
    let mut other = card();
    other.put(0x02, &[0x33, 0x15]);
    let mut other = Bench::with(other, &[]);
    let error = other.device.load(SECTION, 1, &state).unwrap_err();
    let both = ["8086:1533", "8086:1521"];
    assert!(both.iter().all(|id| error.message.contains(id)), "{error}");
}

/// `tests/golden/README.md` says how these files come about. Where there is no such hardware, which is
/// nearly everywhere, only this test can load them.
#[test]
fn every_golden_file_loads_and_is_saved_again_as_it_was() {
    let version = VfioPci::device_type().sections[0].version;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/vfio-pci");
    let newest = folder.join(format!("{SECTION}.{version}.state"));
    if std::env::var_os("BATON_UPDATE_GOLDEN").is_some() && !newest.exists() {
        fs::create_dir_all(&folder).unwrap();
        fs::write(
            &newest,
            alone(version, &used().device.save(SECTION).unwrap()),
        )
        .unwrap();
    }
    assert!(newest.exists(), "there is no {}", newest.display());
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let image = StateImage::read(&fs::read(&path).unwrap()[..]).unwrap();
        let section = image.sections().next().unwrap();
        let mut bench = Bench::new();
        bench
            .device
            .load(SECTION, section.version, &section.payload)
            .unwrap();
        if section.version == version {
            let saved = bench.device.save(SECTION).unwrap();
            assert!(
                saved == section.payload,
                "{}: the layout has changed, so the version must",
                path.display()
            );
        }
    }
}

/// A stream with the section alone.
fn alone(version: u32, payload: &[u8]) -> Vec<u8> {
    let mut stream = Vec::new();
    let header = Header {
        producer: format!("baton {}", env!("CARGO_PKG_VERSION")),
        fingerprint: MachineFingerprint::default(),
    };
    let mut writer = SectionWriter::new(&mut stream, &header).unwrap();
    writer
        .put_raw(&format!("{SECTION}/{SECTION}"), 0, version, payload)
        .unwrap();
    writer.finish().unwrap();
    stream
}
