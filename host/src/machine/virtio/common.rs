//! The common configuration structure: VIRTIO 1.3 section 4.1.4.3.

use super::queue::{NO_VECTOR, Queue, QueueRegisters};

/// Bits of the device status: VIRTIO 1.3 section 2.1.
pub(super) mod status {
    pub(in super::super) const FEATURES_OK: u8 = 8;
    pub(in super::super) const DRIVER_OK: u8 = 4;
    pub(in super::super) const NEEDS_RESET: u8 = 64;
    /// All bits a driver may set.
    pub(in super::super) const DRIVER: u8 = 1 | 2 | DRIVER_OK | FEATURES_OK | 128;
}

/// VIRTIO 1.3 section 6: without it a driver speaks the legacy interface, which is not here.
pub(super) const VIRTIO_F_VERSION_1: u64 = 1 << 32;

const LEN: usize = 64;

/// The registers that belong to no queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CommonRegisters {
    pub(super) device_feature_select: u32,
    pub(super) driver_feature_select: u32,
    pub(super) driver_features: u64,
    pub(super) config_vector: u16,
    pub(super) status: u8,
    pub(super) queue_select: u16,
}

impl CommonRegisters {
    pub(super) fn reset() -> Self {
        Self {
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            config_vector: NO_VECTOR,
            status: 0,
            queue_select: 0,
        }
    }
}

/// What a write asks of the transport beside the registers it has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    None,
    /// The driver writes the device status.
    Status(u8),
    /// A vector was assigned.
    Vectors,
}

/// Reads `data` at `offset`.
pub(super) fn read(
    registers: &CommonRegisters,
    queues: &[Queue],
    features: u64,
    generation: u8,
    offset: u64,
    data: &mut [u8],
) {
    let mut image = [0; LEN];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    let half = |features: u64, select: u32| match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    };
    put(0, &registers.device_feature_select.to_le_bytes());
    put(
        4,
        &half(features, registers.device_feature_select).to_le_bytes(),
    );
    put(8, &registers.driver_feature_select.to_le_bytes());
    put(
        12,
        &half(registers.driver_features, registers.driver_feature_select).to_le_bytes(),
    );
    put(16, &registers.config_vector.to_le_bytes());
    put(18, &(queues.len() as u16).to_le_bytes());
    put(20, &[registers.status, generation]);
    put(22, &registers.queue_select.to_le_bytes());
    if let Some(queue) = queues.get(usize::from(registers.queue_select)) {
        let r = &queue.registers;
        put(24, &r.size.to_le_bytes());
        put(26, &r.vector.to_le_bytes());
        put(28, &u16::from(r.enabled).to_le_bytes());
        put(30, &registers.queue_select.to_le_bytes());
        put(32, &r.desc_table.to_le_bytes());
        put(40, &r.avail_ring.to_le_bytes());
        put(48, &r.used_ring.to_le_bytes());
    }
    baton_plugin_api::config_bytes(&image, offset, data);
}

/// Writes `data` at `offset`. A write that the driver may not make now changes nothing.
pub(super) fn write(
    registers: &mut CommonRegisters,
    queues: &mut [Queue],
    vectors: u16,
    offset: u64,
    data: &[u8],
) -> Effect {
    let value = data
        .iter()
        .rev()
        .fold(0u64, |value, &byte| (value << 8) | u64::from(byte));
    let valid_vector = |v: u16| if v < vectors { v } else { NO_VECTOR };
    let negotiating = registers.status & status::FEATURES_OK == 0;
    match (offset, data.len()) {
        (0, 4) => registers.device_feature_select = value as u32,
        (8, 4) => registers.driver_feature_select = value as u32,
        (12, 4) if negotiating => match registers.driver_feature_select {
            0 => set_half(&mut registers.driver_features, 0, value),
            1 => set_half(&mut registers.driver_features, 32, value),
            _ => {}
        },
        (16, 2) => {
            registers.config_vector = valid_vector(value as u16);
            return Effect::Vectors;
        }
        (20, 1) => return Effect::Status(value as u8),
        (22, 2) => registers.queue_select = value as u16,
        (24..56, _) => {
            let Some(queue) = queues.get_mut(usize::from(registers.queue_select)) else {
                return Effect::None;
            };
            if (offset, data.len()) == (26, 2) {
                queue.registers.vector = valid_vector(value as u16);
                return Effect::Vectors;
            }
            if !queue.registers.enabled {
                write_queue(
                    &mut queue.registers,
                    queue.max_size,
                    offset,
                    data.len(),
                    value,
                );
            }
        }
        _ => {}
    }
    Effect::None
}

fn write_queue(r: &mut QueueRegisters, max_size: u16, offset: u64, len: usize, value: u64) {
    match (offset, len) {
        (24, 2) if (value as u16).is_power_of_two() && value as u16 <= max_size => {
            r.size = value as u16;
        }
        // A queue is disabled by a reset of the device alone.
        (28, 2) if value == 1 => r.enabled = true,
        (32, 8) => r.desc_table = value,
        (32 | 36, 4) => set_half(&mut r.desc_table, (offset - 32) * 8, value),
        (40, 8) => r.avail_ring = value,
        (40 | 44, 4) => set_half(&mut r.avail_ring, (offset - 40) * 8, value),
        (48, 8) => r.used_ring = value,
        (48 | 52, 4) => set_half(&mut r.used_ring, (offset - 48) * 8, value),
        _ => {}
    }
}

fn set_half(word: &mut u64, shift: u64, value: u64) {
    *word = (*word & !(0xffff_ffff << shift)) | ((value & 0xffff_ffff) << shift);
}
