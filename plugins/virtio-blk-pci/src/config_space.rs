//! The features the device offers and its config space (VIRTIO 1.3 sections 5.2.3 and 5.2.4).

use baton_plugin_api::virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES,
};
use baton_plugin_api::virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};

use crate::properties::Options;
use crate::request::Limits;

/// Up to and with the fields of write zeroes.
pub(crate) const CONFIG_LEN: u32 = 60;
/// Where the byte is that turns the write cache on and off.
pub(crate) const WRITEBACK: u64 = 32;

const SECTOR_SHIFT: u32 = 9;

/// A feature's bit.
pub(crate) const fn bit(feature: u32) -> u64 {
    1 << feature
}

/// What the device offers.
pub(crate) fn features(options: &Options, limits: &Limits) -> u64 {
    let offered = [
        (VIRTIO_BLK_F_SEG_MAX, true),
        (VIRTIO_BLK_F_BLK_SIZE, true),
        (VIRTIO_BLK_F_TOPOLOGY, true),
        (VIRTIO_RING_F_INDIRECT_DESC, true),
        (VIRTIO_RING_F_EVENT_IDX, true),
        (VIRTIO_BLK_F_RO, limits.read_only),
        // A driver that may turn the cache on needs flushes for it.
        (
            VIRTIO_BLK_F_FLUSH,
            options.write_cache || options.config_wce,
        ),
        (VIRTIO_BLK_F_CONFIG_WCE, options.config_wce),
        (VIRTIO_BLK_F_MQ, options.queues > 1),
        (VIRTIO_BLK_F_DISCARD, limits.discard.is_some()),
        (VIRTIO_BLK_F_WRITE_ZEROES, limits.write_zeroes.is_some()),
    ];
    offered
        .into_iter()
        .filter(|(_, offered)| *offered)
        .fold(0, |bits, (feature, _)| bits | bit(feature))
}

/// The config space as it reads now.
pub(crate) fn bytes(
    options: &Options,
    limits: &Limits,
    write_cache: bool,
) -> [u8; CONFIG_LEN as usize] {
    let mut space = [0; CONFIG_LEN as usize];
    let mut put = |at: usize, value: &[u8]| space[at..at + value.len()].copy_from_slice(value);
    let blocks_exponent = (options.physical_block / options.logical_block).trailing_zeros();
    put(0, &limits.sectors.to_le_bytes());
    put(12, &limits.seg_max().to_le_bytes());
    put(20, &options.logical_block.to_le_bytes());
    put(24, &[blocks_exponent as u8]);
    put(WRITEBACK as usize, &[u8::from(write_cache)]);
    put(34, &options.queues.to_le_bytes());
    if let Some(discard) = &limits.discard {
        put(36, &discard.sectors.to_le_bytes());
        put(40, &discard.segments.to_le_bytes());
        put(44, &(options.logical_block >> SECTOR_SHIFT).to_le_bytes());
    }
    if let Some(zeroes) = &limits.write_zeroes {
        put(48, &zeroes.sectors.to_le_bytes());
        put(52, &zeroes.segments.to_le_bytes());
        // The guest may ask that zeroes free the blocks.
        put(56, &[1]);
    }
    space
}
