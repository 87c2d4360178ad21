//! The monitors: QMP for programs, as QEMU's docs/interop/qmp-spec.rst has it, so that its clients
//! connect unchanged, and HMP for people ([`hmp`]).

pub mod about;
mod client;
mod command;
mod description;
mod error;
mod events;
mod fds;
mod framing;
#[cfg(any(test, feature = "fuzzing"))]
mod fuzz;
pub(crate) mod hmp;
mod json;
mod keep;
mod listener;
mod outgoing;
pub mod qapi;
mod served;
mod server;
mod session;
mod stream;
pub mod table;
mod terminal;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_description;
#[cfg(test)]
mod tests_fds;
#[cfg(test)]
mod tests_given;
#[cfg(test)]
mod tests_keep;
#[cfg(test)]
mod tests_people;

pub use command::{CapabilityStatus, Command, CprMode, YankInstance};
pub use description::{KeptDescription, KeptError};
pub use error::{ErrorClass, QmpError};
pub use events::Events;
pub use fds::{Caller, NamedFds, query_fdsets, remove_fd};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use fuzz::fuzz;
pub use keep::Kept;
pub use listener::{MonitorAddress, MonitorError, MonitorMode, MonitorOption};
pub(crate) use listener::{OwnPath, bind_tcp, bind_unix};
pub use server::{AttachError, Control, Monitor};
