//! Device plugins: finding and loading them, and the devices in them.

mod clocks;
mod device;
mod elf;
mod loader;
mod opened;
mod registry;
mod services;

pub use clocks::Clocks;
pub use device::{DeviceError, PluggedDevice, chardevs};
pub use elf::build_id;
pub use loader::{LoadError, Plugin};
pub use opened::Opened;
pub use registry::{PATH_VARIABLE, Registry, RegistryError};
pub(crate) use services::given;
pub use services::{Bridge, DeviceBridge, Failures, Reports};
