//! Every command, once.

use super::run::{Context, Done};
use super::{commands, info, machine, migration};
use crate::monitor::error::QmpError;

/// A command, or a topic of `info`.
pub(super) struct Entry {
    /// Its names, with a bar between them, as QEMU writes them.
    pub(super) names: &'static str,
    pub(super) arguments: &'static [Argument],
    /// What it does, in a few words.
    pub(super) help: &'static str,
    pub(super) run: Run,
}

/// How a command is carried out.
pub(super) enum Run {
    /// By this function.
    Command(fn(&Context<'_>) -> Result<Done, QmpError>),
    /// What is shown is the text of a query.
    Text(fn(&Context<'_>) -> Result<String, QmpError>),
    /// By an entry of another table, which the next word names.
    Group(&'static [Entry]),
}

/// An argument.
pub(super) struct Argument {
    /// Its name, as help shows it.
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// What Tab offers for it.
    pub(super) values: Values,
}

/// How an argument is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `-x`, before all other arguments.
    Flag(char),
    /// A word, which may be quoted.
    Word,
    /// A word that may be left out.
    OptionalWord,
    /// The rest of the line as it is.
    Rest,
    /// The rest of the line, which may be empty.
    OptionalRest,
    /// `on` or `off`.
    Switch,
}

/// What an argument may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Values {
    /// Anything.
    Any,
    /// One of these.
    Words(&'static [&'static str]),
    /// A command, and for `info` a topic.
    Commands,
    /// The id of a device.
    Devices,
    /// A type of devices.
    Drivers,
    /// The id of a drive.
    Drives,
    /// A migration capability.
    Capabilities,
    /// A migration parameter.
    Parameters,
    /// What the migration parameter may be that was said before.
    OfParameter,
}

const fn argument(name: &'static str, kind: Kind, values: Values) -> Argument {
    Argument { name, kind, values }
}

const fn command(
    names: &'static str,
    arguments: &'static [Argument],
    help: &'static str,
    run: fn(&Context<'_>) -> Result<Done, QmpError>,
) -> Entry {
    let run = Run::Command(run);
    Entry {
        names,
        arguments,
        help,
        run,
    }
}

const fn topic(
    names: &'static str,
    help: &'static str,
    run: fn(&Context<'_>) -> Result<String, QmpError>,
) -> Entry {
    let run = Run::Text(run);
    Entry {
        names,
        arguments: &[],
        help,
        run,
    }
}

/// The commands, sorted by name.
pub(super) static COMMANDS: &[Entry] = &[
    command("cont|c", &[], "resume emulation", |c| c.done("cont")),
    command(
        "device_add",
        &[argument(commands::DEVICE, Kind::Word, Values::Drivers)],
        "add device, like -device on the command line",
        commands::device_add,
    ),
    command(
        "device_del",
        &[argument("device", Kind::Word, Values::Devices)],
        "remove device, once the guest lets go of it",
        commands::device_del,
    ),
    command(
        "help|?",
        &[argument("cmd", Kind::OptionalRest, Values::Commands)],
        "show the help",
        commands::help,
    ),
    Entry {
        names: "info",
        arguments: &[argument("subcommand", Kind::OptionalRest, Values::Any)],
        help: "show various information about the system state",
        run: Run::Group(INFO),
    },
    command(
        "migrate",
        &[
            argument("detach", Kind::Flag('d'), Values::Any),
            argument("resume", Kind::Flag('r'), Values::Any),
            argument("uri", Kind::OptionalWord, Values::Any),
        ],
        "migrate to URI, which mode cpr-exec does not need (-d: do not wait for completion; -r: \
         resume a paused postcopy migration, which is refused)",
        migration::migrate,
    ),
    command(
        "migrate_cancel",
        &[],
        "cancel the current VM migration",
        |c| c.done("migrate_cancel"),
    ),
    command(
        "migrate_continue",
        &[argument(
            "state",
            Kind::Word,
            Values::Words(&["pre-switchover"]),
        )],
        "continue migration from the given paused state",
        migration::go_on,
    ),
    command(
        "migrate_incoming",
        &[argument("uri", Kind::Word, Values::Any)],
        "continue an incoming migration from an -incoming defer",
        migration::incoming,
    ),
    command(
        "migrate_set_capability",
        &[
            argument("capability", Kind::Word, Values::Capabilities),
            argument("state", Kind::Switch, Values::Words(&["on", "off"])),
        ],
        "enable or disable a capability for migration",
        migration::set_capability,
    ),
    command(
        "migrate_set_parameter",
        &[
            argument("parameter", Kind::Word, Values::Parameters),
            argument("value", Kind::Rest, Values::OfParameter),
        ],
        "set a parameter for migration; cpr-exec-command is a line as a shell reads it",
        migration::set_parameter,
    ),
    command(
        "object_add",
        &[argument(commands::OBJECT, Kind::Word, Values::Any)],
        "add an object that a device can name, like -object on the command line",
        commands::object_add,
    ),
    command(
        "object_del",
        &[argument("id", Kind::Word, Values::Any)],
        "remove an object that was added",
        commands::object_del,
    ),
    command("quit|q", &[], "quit the emulator", commands::quit),
    command("stop|s", &[], "stop emulation", |c| c.done("stop")),
    command("system_powerdown", &[], "press the power button", |c| {
        c.done("system_powerdown")
    }),
    command("system_reset", &[], "reset the system", |c| {
        c.done("system_reset")
    }),
    command("system_wakeup", &[], "wake up guest from suspend", |c| {
        c.done("system_wakeup")
    }),
];

/// The topics of `info`, sorted by name.
static INFO: &[Entry] = &[
    Entry {
        names: "block",
        arguments: &[argument("device", Kind::OptionalWord, Values::Drives)],
        help: "show info of one block device or all block devices",
        run: Run::Text(machine::block),
    },
    topic("chardev", "show the character devices", info::chardev),
    topic("cpus", "show infos for each CPU", machine::cpus),
    topic("kvm", "show KVM information", info::kvm),
    Entry {
        names: "migrate",
        arguments: &[argument("all", Kind::Flag('a'), Values::Any)],
        help: "show migration status (-a: all, with where the downtime went)",
        run: Run::Text(migration::info),
    },
    topic(
        "migrate_capabilities",
        "show current migration capabilities",
        migration::capabilities,
    ),
    topic(
        "migrate_parameters",
        "show current migration parameters",
        migration::parameters,
    ),
    topic("mtree", "show memory tree", info::mtree),
    topic("name", "show the current VM name", info::name),
    topic("pci", "show PCI info", machine::pci),
    topic("plugins", "show the plugins that are loaded", info::plugins),
    topic("qtree", "show device tree", info::qtree),
    topic(
        "status",
        "show the current VM status (running|paused)",
        info::status,
    ),
    topic("uuid", "show the current VM UUID", machine::uuid),
    topic(
        "version",
        "show the version of QEMU and of Baton",
        info::version,
    ),
];

impl Entry {
    /// Each of its names.
    pub(super) fn each_name(&self) -> impl Iterator<Item = &'static str> {
        self.names.split('|')
    }

    /// The entries of its own, if it has any.
    pub(super) fn group(&self) -> &'static [Entry] {
        match self.run {
            Run::Group(entries) => entries,
            _ => &[],
        }
    }

    /// Its arguments as help shows them.
    pub(super) fn parameters(&self) -> String {
        let shown = |argument: &Argument| match argument.kind {
            Kind::Flag(letter) => format!("[-{letter}]"),
            Kind::Word | Kind::Rest | Kind::Switch => argument.name.to_owned(),
            Kind::OptionalWord | Kind::OptionalRest => format!("[{}]", argument.name),
        };
        self.arguments
            .iter()
            .map(shown)
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// Its line of help.
    pub(super) fn help_line(&self, prefix: &str) -> String {
        format!(
            "{prefix}{} {} -- {}\n",
            self.names,
            self.parameters(),
            self.help
        )
    }
}

/// The entry of this name. There are no abbreviations.
pub(super) fn find(entries: &'static [Entry], name: &str) -> Option<&'static Entry> {
    entries
        .iter()
        .find(|entry| entry.each_name().any(|own| own == name))
}
