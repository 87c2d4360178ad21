//! The command line, in QEMU's spelling.
//!
//! [`parse`] turns arguments into an [`Invocation`] whose values need no more checks, except for the
//! properties of devices: their types are known once plugins are loaded, and [`Backends`] checks
//! them then. Nothing that is said is passed over: what Baton does not do is refused.

mod arguments;
mod backends;
mod build;
mod chardev;
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
mod number;
mod object;
mod options;
mod pairs;
mod qmp;
#[cfg(test)]
mod tests;

use std::ffi::OsString;

pub use backends::Backends;
pub use chardev::{Chardev, ChardevBackend};
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
    let program = OsString::from("baton");
    let subcommand = arguments.next_if(|first| definition::usage(first).is_some());
    let usage = subcommand.as_deref().and_then(definition::usage);
    let matches = match subcommand {
        Some(subcommand) => {
            let all = [program, subcommand].into_iter().chain(arguments);
            definition::command().try_get_matches_from(all)
        }
        None => {
            let options = arguments::normalize(arguments)?
                .into_iter()
                .map(OsString::from);
            definition::command().try_get_matches_from([program].into_iter().chain(options))
        }
    };
    let matches = matches.map_err(|_| {
        // Options were put in order above, so that only a subcommand can be wrong.
        let (name, usage) = usage.unwrap_or_default();
        CliError::new(name, format!("write {usage}"))
    })?;
    build::invocation(&matches)
}
