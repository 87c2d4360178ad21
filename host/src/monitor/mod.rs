//! The QMP monitor: QEMU's docs/interop/qmp-spec.rst, so that its clients connect unchanged.

pub mod about;
mod client;
mod command;
mod description;
mod error;
mod events;
mod framing;
mod json;
mod keep;
mod listener;
mod outgoing;
pub mod qapi;
mod server;
mod session;
mod stream;
pub mod table;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_description;
#[cfg(test)]
mod tests_keep;

pub use command::{CapabilityStatus, Command, CprMode};
pub use description::{KeptDescription, KeptError};
pub use error::{ErrorClass, QmpError};
pub use events::Events;
pub use keep::Kept;
pub use listener::{MonitorAddress, MonitorError};
pub(crate) use listener::{OwnPath, bind_tcp, bind_unix};
pub use server::{AttachError, Control, Monitor};
