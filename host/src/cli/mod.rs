//! The command line, in QEMU's spelling.
//!
//! [`parse`] turns arguments into an [`Invocation`] whose values need no more checks, except for the
//! properties of devices: their types are known once plugins are loaded, and [`Backends`] checks
//! them then. Nothing that is said is passed over: what Baton does not do is refused.

mod arguments;
mod backends;
mod build;
pub(crate) mod chardev;
mod completions;
mod definition;
mod device;
mod drive;
mod error;
mod global;
pub mod help;
mod id;
mod machine;
#[cfg(test)]
mod man;
mod nearest;
pub(crate) mod number;
mod object;
mod options;
mod pairs;
mod qmp;
mod said;
mod serial;
mod subcommand;
mod table;
#[cfg(test)]
mod tests;

use std::ffi::OsString;

use said::Said;

pub use backends::Backends;
pub use device::DeviceOption;
pub use error::CliError;
pub use id::Id;
pub use machine::{MAX_CPUS, Machine, MachineType};
pub use nearest::nearest;
pub use object::{BackendKind, HugePages, IMPLICIT_RAM_ID, MemoryBackend};
pub use options::{Invocation, Kernel, Options};

/// What the arguments, without the program's name, ask for.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Invocation, CliError> {
    let mut arguments = arguments.into_iter().peekable();
    match arguments.peek().and_then(|first| subcommand::usage(first)) {
        Some(subcommand) => subcommand::parse(subcommand, arguments),
        None => build::invocation(&Said::new(arguments::read(arguments)?)),
    }
}
