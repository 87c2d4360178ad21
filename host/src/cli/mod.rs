//! The command line, in QEMU's spelling.
//!
//! [`parse`] turns arguments into an [`Invocation`] whose values need no more checks, except for the
//! properties of devices: their types are known once plugins are loaded, and [`Backends`] checks
//! them then. Nothing that is said is passed over: what Baton does not do is refused.

mod add_fd;
mod arguments;
mod backends;
pub(crate) mod blockdev;
mod build;
pub(crate) mod chardev;
pub(crate) mod children;
mod completions;
mod config_file;
mod cpu;
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
mod mon;
mod nearest;
mod netdev;
pub(crate) mod number;
pub(crate) mod object;
mod options;
mod pairs;
mod process;
mod qmp;
mod said;
mod serial;
mod subcommand;
mod table;
#[cfg(test)]
mod tests;
mod update;
mod user;

use std::ffi::OsString;

use said::Said;

pub use add_fd::AddFd;
pub use backends::Backends;
pub use cpu::CpuOption;
pub use device::DeviceOption;
pub use error::CliError;
pub use id::Id;
pub use machine::{MAX_CPUS, Machine, MachineType};
pub(crate) use nearest::hint;
pub use nearest::nearest;
pub use object::{BackendKind, HugePages, IMPLICIT_RAM_ID, MemoryBackend};
pub use options::{Invocation, Kernel, Options};
pub use user::RunAs;

/// What a file of `-readconfig` with this text asks for.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn parse_config(text: &str) -> Result<Invocation, CliError> {
    build::invocation(&Said::new(config_file::parse("fuzz", text)?))
}

/// The options of the command line, by name.
pub fn option_names() -> impl Iterator<Item = &'static str> {
    definition::options().map(|option| option.name)
}

/// The keys of an option's value, as far as they are always the same.
pub fn option_parameters(option: &str) -> Vec<&'static str> {
    let mut keys = Vec::new();
    let value = definition::option(option)
        .and_then(|option| option.value)
        .unwrap_or_default();
    for (end, _) in value.match_indices('=') {
        let key = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
        let start = value[..end].rfind(|c| !key(c)).map_or(0, |at| at + 1);
        let name = &value[start..end];
        if !name.is_empty() && !keys.contains(&name) {
            keys.push(name);
        }
    }
    keys
}

/// The properties of a type of `-object`, each with what it means.
pub fn object_properties(name: &str) -> &'static [(&'static str, &'static str)] {
    let found = object::KINDS.iter().find(|(kind, _)| *kind == name);
    found.map_or(&[], |(_, properties)| *properties)
}

/// The options that `arguments` say, each by its own name with its value.
pub fn split(arguments: &[String]) -> Result<Vec<(String, Option<String>)>, CliError> {
    let words = arguments::read(arguments.iter().map(OsString::from))?;
    let split = |word: said::Word| {
        let takes = definition::option(word.option).is_some_and(|option| option.value.is_some());
        (word.option.to_owned(), takes.then_some(word.value))
    };
    Ok(words.into_iter().map(split).collect())
}

/// The id in a value of `-device`, if it has one.
pub fn device_id(value: &str) -> Option<String> {
    let device = DeviceOption::parse(value).ok()?;
    device.id.map(|id| id.to_string())
}

/// What the arguments, without the program's name, ask for.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Invocation, CliError> {
    let mut arguments = arguments.into_iter().peekable();
    match arguments.peek().and_then(|first| subcommand::usage(first)) {
        Some(subcommand) => subcommand::parse(subcommand, arguments),
        None => build::invocation(&Said::new(arguments::read(arguments)?)),
    }
}
