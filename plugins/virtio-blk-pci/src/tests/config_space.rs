//! Features and config space.

use baton_plugin_api::virtio_bindings::virtio_blk::*;
use baton_plugin_api::virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};

use baton_plugin_api::{Device, PluginDescriptor};

use super::*;

const BASE: [u32; 5] = [
    VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_BLK_SIZE,
    VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_RING_F_INDIRECT_DESC,
    VIRTIO_RING_F_EVENT_IDX,
];

fn bits(features: &[u32]) -> u64 {
    features
        .iter()
        .chain(&BASE)
        .fold(0, |bits, feature| bits | 1 << feature)
}

#[test]
fn the_features_follow_the_properties() {
    let dir = Dir::new();
    let image = dir.image(4096);
    let writable = [VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES];
    let cache = [VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_CONFIG_WCE];
    let off = || Value::Bool(false);
    let offered = |drive, said: &[_]| realize(drive, said).unwrap().info().features;
    assert_eq!(
        offered(drive(&image), &[]),
        bits(&[writable, cache].concat())
    );
    let read_only = Drive {
        read_only: true,
        ..drive(&image)
    };
    assert_eq!(
        offered(read_only, &[("num-queues", uint(2))]),
        bits(&[cache.as_slice(), &[VIRTIO_BLK_F_RO, VIRTIO_BLK_F_MQ]].concat())
    );
    let through = [("write-cache", off())];
    assert_eq!(
        offered(drive(&image), &through),
        bits(&[writable, cache].concat())
    );
    let little = ["discard", "write-zeroes", "config-wce"].map(|name| (name, off()));
    assert_eq!(offered(drive(&image), &little), bits(&[VIRTIO_BLK_F_FLUSH]));
    let least = ["discard", "write-zeroes", "config-wce", "write-cache"].map(|name| (name, off()));
    assert_eq!(offered(drive(&image), &least), bits(&[]));
}

#[test]
fn the_descriptor_is_one_the_host_takes() {
    let plugin = PluginDescriptor {
        name: "virtio-blk-pci".into(),
        version: "1".into(),
        description: String::new(),
        devices: vec![Block::device_type()],
    };
    assert_eq!(plugin.check(), Ok(()));
}

#[test]
fn the_config_space_has_its_fields_where_the_specification_says() {
    let dir = Dir::new();
    let image = dir.image(1 << 20);
    let said = [
        ("logical_block_size", uint(1024)),
        ("physical_block_size", uint(4096)),
        ("num-queues", uint(3)),
        ("queue-size", uint(128)),
    ];
    let mut disk = realize(drive(&image), &said).unwrap();
    assert_eq!(disk.info().device_id, 2);
    assert_eq!(disk.info().pci_class, 0x01_00_00);
    assert_eq!(disk.info().queue_sizes, [128; 3]);
    let len = disk.info().config_len as usize;
    let space = disk.read_config(0, len);
    let number = |at: usize, len: usize| {
        let field = space[at..at + len].iter().rev();
        field.fold(0u64, |value, byte| value << 8 | u64::from(*byte))
    };
    for (name, at, len, value) in [
        ("capacity", 0, 8, 2048),
        ("size_max", 8, 4, 0),
        ("seg_max", 12, 4, 126),
        ("blk_size", 20, 4, 1024),
        ("physical_block_exp", 24, 1, 2),
        ("alignment_offset", 25, 1, 0),
        ("writeback", 32, 1, 1),
        ("num_queues", 34, 2, 3),
        ("max_discard_sectors", 36, 4, 1 << 22),
        ("max_discard_seg", 40, 4, 32),
        ("discard_sector_alignment", 44, 4, 2),
        ("max_write_zeroes_sectors", 48, 4, 1 << 17),
        ("max_write_zeroes_seg", 52, 4, 1),
        ("write_zeroes_may_unmap", 56, 1, 1),
    ] {
        assert_eq!(number(at, len), value, "{name}");
    }
    assert_eq!(disk.read_config(len as u64 - 3, 8), [0; 8]);
    assert_eq!(disk.read_config(u64::MAX, 4), [0; 4]);
}

#[test]
fn the_driver_turns_the_write_cache_on_and_off_if_it_may() {
    let dir = Dir::new();
    let image = dir.image(4096);
    let mut disk = realize(drive(&image), &[]).unwrap();
    for value in [0, 1, 0] {
        disk.write_config(32, &[value]);
        assert_eq!(disk.read_config(32, 1), [value]);
    }
    // The rest is not the driver's to write.
    disk.write_config(0, &[9; 32]);
    assert_eq!(disk.read_config(0, 8), 8u64.to_le_bytes());
    assert_eq!(disk.read_config(32, 1), [0]);
    disk.write_config(u64::MAX, &[1; 64]);
    disk.reset().unwrap();
    assert_eq!(disk.read_config(32, 1), [1]);
    drop(disk);
    let mut disk = realize(drive(&image), &[("config-wce", Value::Bool(false))]).unwrap();
    disk.write_config(32, &[0]);
    assert_eq!(disk.read_config(32, 1), [1]);
}
