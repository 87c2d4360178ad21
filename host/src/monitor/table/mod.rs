//! The commands and events, each said once: how arguments are checked, `query-commands`,
//! `query-qmp-schema` and the tables of `docs/qmp.md` follow from here.
//!
//! # Adding a command
//!
//! 1. Its [`Spec`] in the file here that it belongs to: name, sentence, arguments, result, all as QEMU's
//!    `qapi/*.json` has them. A new file is listed in [`TABLES`].
//!
//!    ```ignore
//!    Spec::new("getfd", "Gives a descriptor that comes with this command a name")
//!        .takes(&[Member::required("fdname", Type::Str, "the name")]),
//!    Spec::new("query-name", "The guest's name").returns(Type::Object(&NAME_INFO)),
//!    ```
//!
//! 2. A variant of [`Command`](super::Command) with the arguments as fields; `serde` knows it by the
//!    command's name. What [`Spec`] says is checked before, so that only what goes beyond it (such as a
//!    number's range) is left to a field's own `Deserialize`.
//! 3. An arm of the `match` in `host/src/control.rs`, which carries it out. In debug builds what it
//!    returns is checked against the spec.
//! 4. `BATON_UPDATE_DOCS=1 cargo test -p baton --lib docs` writes `docs/qmp.md`.
//!
//! An event needs a row of [`events::EVENTS`], and step 4.

mod block;
mod chardev;
mod control;
mod device;
#[cfg(test)]
mod docs;
mod events;
mod fds;
mod machine;
mod migration;
mod monitor;
mod pci;
mod qom;
mod query;
mod update;

use serde_json::{Map, Value};

use super::error::QmpError;
use super::qapi::{EMPTY, Member, Object, Type, check, check_members};

/// A command.
#[derive(Debug)]
pub struct Spec {
    /// Its name.
    pub name: &'static str,
    /// What it does, in one sentence.
    pub doc: &'static str,
    /// Its arguments.
    pub arguments: Object,
    /// What it returns; [`EMPTY`] if that it was done is all there is to say.
    pub result: Type,
    /// Whether it may be said with `exec-oob`: it never waits for anything.
    pub oob: bool,
    /// `deprecated`, `unstable`.
    pub features: &'static [&'static str],
}

impl Spec {
    /// A command without arguments that returns nothing.
    pub const fn new(name: &'static str, doc: &'static str) -> Self {
        Self {
            name,
            doc,
            arguments: Object::new("", &[]),
            result: Type::Object(&EMPTY),
            oob: false,
            features: &[],
        }
    }

    /// The same with arguments.
    #[must_use]
    pub const fn takes(self, members: &'static [Member]) -> Self {
        self.takes_all(&Object::new("", members))
    }

    /// The same with the members of a struct as arguments.
    #[must_use]
    pub const fn takes_all(self, of: &Object) -> Self {
        let arguments = Object::new(of.name, of.members);
        Self { arguments, ..self }
    }

    /// The same with any other arguments, which the command itself checks: QAPI's `'gen': false`.
    #[must_use]
    pub const fn takes_more(self) -> Self {
        let Object {
            name,
            members,
            variants,
            ..
        } = self.arguments;
        let arguments = Object {
            name,
            members,
            variants,
            open: true,
        };
        Self { arguments, ..self }
    }

    /// The same with a result.
    #[must_use]
    pub const fn returns(self, result: Type) -> Self {
        Self { result, ..self }
    }

    /// The same, allowed out of band.
    #[must_use]
    pub const fn oob(self) -> Self {
        Self { oob: true, ..self }
    }

    /// The same with QAPI features.
    #[must_use]
    pub const fn with(self, features: &'static [&'static str]) -> Self {
        Self { features, ..self }
    }
}

/// An event.
#[derive(Debug)]
pub struct Event {
    /// Its name.
    pub name: &'static str,
    /// When it is sent, in one sentence.
    pub doc: &'static str,
    /// Its data.
    pub data: Object,
    /// If it is sent once a second at most: the member of its data that tells what it is about, each of
    /// which has its own second.
    pub limited_by: Option<&'static str>,
}

impl Event {
    /// An event without data.
    pub(super) const fn new(name: &'static str, doc: &'static str) -> Self {
        Self {
            name,
            doc,
            data: Object::new("", &[]),
            limited_by: None,
        }
    }

    /// The same, sent once a second at most for each value of the member `name`.
    pub(super) const fn limited_by(self, name: &'static str) -> Self {
        Self {
            limited_by: Some(name),
            ..self
        }
    }

    /// The same with data.
    pub(super) const fn has(self, members: &'static [Member]) -> Self {
        Self {
            data: Object::new("", members),
            ..self
        }
    }
}

/// The commands, by what they are about.
static TABLES: &[(&str, &[Spec])] = &[
    ("The monitor", monitor::COMMANDS),
    ("Descriptors", fds::COMMANDS),
    ("The VM", query::COMMANDS),
    ("The machine", machine::COMMANDS),
    ("PCI", pci::COMMANDS),
    ("Disks", block::COMMANDS),
    ("Objects", qom::COMMANDS),
    ("The guest's run", control::COMMANDS),
    ("Devices that come and go", device::COMMANDS),
    ("Character devices", chardev::COMMANDS),
    ("Migration", migration::COMMANDS),
    ("Live updates", update::COMMANDS),
];

/// All commands.
pub fn commands() -> impl Iterator<Item = &'static Spec> {
    TABLES.iter().flat_map(|(_, commands)| commands.iter())
}

/// The command of this name.
pub fn command(name: &str) -> Option<&'static Spec> {
    commands().find(|spec| spec.name == name)
}

/// All events.
pub fn events() -> impl Iterator<Item = &'static Event> {
    events::EVENTS.iter()
}

/// The event of this name.
pub fn event(name: &str) -> Option<&'static Event> {
    events().find(|event| event.name == name)
}

/// Whether a result is what the table says the command returns.
pub fn fits_result(name: &str, result: &Result<Value, QmpError>) -> bool {
    let (Some(spec), Ok(result)) = (command(name), result) else {
        return true;
    };
    check(&spec.result, result, "result").is_ok()
}

/// What an event counts as if it is sent once a second at most.
pub fn limit(name: &str, data: Option<&Value>) -> Option<String> {
    let about = event(name)?.limited_by?;
    Some(format!("{name} {}", data?.get(about)?))
}

/// Whether an event is what the table says it is.
pub fn fits(name: &str, data: Option<&Value>) -> bool {
    let none = Value::Object(Map::new());
    let data = data.unwrap_or(&none);
    event(name).is_some_and(|event| {
        let members = data.as_object();
        members.is_some_and(|members| check_members(&event.data, members, "").is_ok())
    })
}
