//! The QMP monitor: QEMU's docs/interop/qmp-spec.rst, so that its clients connect unchanged.

mod command;
mod error;
mod events;
mod framing;
mod json;
mod keep;
mod listener;
mod server;
mod session;
#[cfg(test)]
mod tests;

pub use command::Command;
pub use error::{ErrorClass, QmpError};
pub use events::Events;
pub use keep::{Kept, KeptDescription};
pub use listener::{MonitorAddress, MonitorError};
pub use server::{Control, Monitor};
