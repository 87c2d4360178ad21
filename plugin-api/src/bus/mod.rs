//! The three bus classes: what a device implements beside [`Device`](crate::Device), and the data
//! it describes itself with.

mod chain;
mod pci;
mod platform;
mod virtio;

pub use chain::Chain;
pub use pci::{CONFIG_REGION, PciAdapter, PciDevice, PciInfo};
pub use platform::{AcpiDevice, PlatformAdapter, PlatformDevice, PlatformInfo, Region, RegionKind};
pub use virtio::{
    QueueProgress, QueueSetup, VirtQueue, VirtioAdapter, VirtioDevice, VirtioInfo, VirtioRun,
    config_bytes,
};
