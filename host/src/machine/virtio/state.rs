//! The transport's vmstate.

use baton_plugin_api::pci::{ConfigSpace, ConfigSpaceState, Msix, MsixState};
use baton_plugin_api::{Error, Result, Section, wire};
use serde::{Deserialize, Serialize};

use super::common::{CommonRegisters, status};
use super::queue::{NO_VECTOR, QueueRegisters};

/// The section's name and versions.
pub(super) fn section() -> Section {
    Section::new("virtio-pci", 1, 1)
}

/// The transport of one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TransportState {
    pub(super) config: ConfigSpaceState,
    pub(super) msix: MsixState,
    pub(super) device_feature_select: u32,
    pub(super) driver_feature_select: u32,
    pub(super) driver_features: u64,
    pub(super) config_vector: u16,
    pub(super) status: u8,
    pub(super) generation: u8,
    pub(super) queue_select: u16,
    pub(super) queues: Vec<QueueState>,
}

/// One queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct QueueState {
    size: u16,
    vector: u16,
    enabled: bool,
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
    next_avail: u16,
    next_used: u16,
}

impl From<&QueueRegisters> for QueueState {
    fn from(r: &QueueRegisters) -> Self {
        Self {
            size: r.size,
            vector: r.vector,
            enabled: r.enabled,
            desc_table: r.desc_table,
            avail_ring: r.avail_ring,
            used_ring: r.used_ring,
            next_avail: r.next_avail,
            next_used: r.next_used,
        }
    }
}

/// A state that has been checked and can be taken.
pub(super) struct Loaded {
    pub(super) config: ConfigSpace,
    pub(super) msix: Msix,
    pub(super) registers: CommonRegisters,
    pub(super) queues: Vec<QueueRegisters>,
    pub(super) generation: u8,
}

impl TransportState {
    /// Decodes and checks a section's payload against a transport with this config space and
    /// MSI-X, queues of these sizes, and these features.
    pub(super) fn load(
        data: &[u8],
        (config, msix): (&ConfigSpace, &Msix),
        sizes: &[u16],
        features: u64,
    ) -> Result<Loaded> {
        let state: Self = wire::decode("section 'virtio-pci'", data)?;
        let (registers, queues) = state
            .registers(sizes, features, msix.vectors())
            .map_err(|e| Error::state(format!("Section 'virtio-pci': {e}")))?;
        let (mut config, mut msix) = (config.clone(), msix.clone());
        config.load(&state.config)?;
        msix.load(&state.msix)?;
        Ok(Loaded {
            config,
            msix,
            registers,
            queues,
            generation: state.generation,
        })
    }

    /// The registers of this state, if a device with queues of these sizes, these features and
    /// vectors can have them.
    fn registers(
        &self,
        sizes: &[u16],
        features: u64,
        vectors: u16,
    ) -> std::result::Result<(CommonRegisters, Vec<QueueRegisters>), String> {
        if self.queues.len() != sizes.len() {
            return Err(format!(
                "it has {} queues here and {} in the state; start the target with the same device",
                sizes.len(),
                self.queues.len()
            ));
        }
        let negotiated = self.status & status::FEATURES_OK != 0;
        if negotiated && self.driver_features & !features != 0 {
            return Err(format!(
                "the guest uses features {:#x} that this device does not offer; use a plugin at \
                 least as new as the source's",
                self.driver_features & !features
            ));
        }
        if self.status & !(status::DRIVER | status::NEEDS_RESET) != 0 {
            return Err(format!("{:#x} is no device status", self.status));
        }
        let vector = |v: u16| match v {
            NO_VECTOR => Ok(v),
            v if v < vectors => Ok(v),
            v => Err(format!("vector {v} is not one of its {vectors}")),
        };
        let registers = self
            .queues
            .iter()
            .zip(sizes)
            .enumerate()
            .map(|(index, (state, &max_size))| {
                if !state.size.is_power_of_two() || state.size > max_size {
                    return Err(format!(
                        "queue {index} has size {}, it takes powers of two up to {}",
                        state.size, max_size
                    ));
                }
                Ok(QueueRegisters {
                    size: state.size,
                    vector: vector(state.vector)?,
                    enabled: state.enabled,
                    desc_table: state.desc_table,
                    avail_ring: state.avail_ring,
                    used_ring: state.used_ring,
                    next_avail: state.next_avail,
                    next_used: state.next_used,
                })
            })
            .collect::<std::result::Result<_, _>>()?;
        let common = CommonRegisters {
            device_feature_select: self.device_feature_select,
            driver_feature_select: self.driver_feature_select,
            driver_features: self.driver_features,
            config_vector: vector(self.config_vector)?,
            status: self.status,
            queue_select: self.queue_select,
        };
        Ok((common, registers))
    }
}

/// Decodes and checks the payload of a disk's transport, and gives the payload that would be
/// written.
#[cfg(any(test, feature = "fuzzing"))]
pub fn again(payload: &[u8]) -> std::result::Result<Vec<u8>, String> {
    let disk = baton_plugin_api::VirtioInfo {
        device_id: 2,
        features: u64::MAX,
        queue_sizes: vec![256],
        config_len: 60,
        pci_class: 0x01_0000,
    };
    let load = || {
        let shape = super::transport::Shape::of(&disk)?;
        let shape = (&shape.config, &shape.msix);
        let loaded = TransportState::load(payload, shape, &disk.queue_sizes, disk.features)?;
        let state: TransportState = wire::decode("section 'virtio-pci'", payload)?;
        wire::encode(&TransportState {
            config: loaded.config.state(),
            msix: loaded.msix.state(),
            generation: loaded.generation,
            queues: loaded.queues.iter().map(QueueState::from).collect(),
            ..state
        })
    };
    load().map_err(|e: Error| e.to_string())
}
