//! Every option, once: the parser, `-help` and the man page are made from this table.

use std::ffi::OsStr;

use clap::{Arg, ArgAction, Command};

/// Options that take a value: name, value, help. All may be repeated.
const VALUES: [(&str, &str, &str); 22] = [
    (
        "machine",
        "[type=]NAME[,PROPERTY=VALUE...]",
        "The machine type, baton or baton-1.0, and its properties: memory-backend=ID names the \
         -object that is the guest's RAM; aux-ram-share=on|off (older name: memfd-alloc) says \
         whether RAM that no object describes can be handed over to a successor, which is on by \
         default; accel=kvm. See -machine help.",
    ),
    (
        "m",
        "[size=]SIZE",
        "The size of the guest's RAM, in MiB or with a suffix K, M, G or T; 128 MiB by default.",
    ),
    (
        "smp",
        "[cpus=]N[,maxcpus=N,sockets=1,cores=N,threads=1]",
        "The number of virtual CPUs, up to 255: one socket of N cores; 1 by default.",
    ),
    ("cpu", "host", "The CPU model: the host's is what there is."),
    ("accel", "kvm", "The accelerator: KVM is what there is."),
    (
        "object",
        "TYPE,id=ID[,PROPERTY=VALUE...]",
        "A memory backend: memory-backend-file, memory-backend-memfd, memory-backend-ram or \
         memory-backend-shm. See -object help.",
    ),
    (
        "device",
        "NAME[,id=ID][,addr=SLOT[.FUNCTION]][,PROPERTY=VALUE...]",
        "A device of a plugin, as a list of properties or as JSON. -device help lists the device \
         types, -device NAME,help the properties of one. addr is its place on bus pcie.0, \
         hexadecimal.",
    ),
    (
        "drive",
        "file=PATH[,if=none|virtio][,id=ID][,PROPERTY=VALUE...]",
        "A disk image. With if=none a -device names it by its id; with if=virtio, the default, a \
         virtio-blk-pci is made for it. Properties: format=raw, readonly=on|off, \
         cache=writeback|none|unsafe, cache.direct=on|off, cache.no-flush=on|off, \
         aio=threads|io_uring, discard=unmap|ignore, file.locking=on|off|auto.",
    ),
    (
        "plugin",
        "PATH",
        "A plugin, or a folder of plugins, to load beside those of the usual places.",
    ),
    (
        "kernel",
        "FILE",
        "The kernel: a bzImage, or an ELF file with a PVH entry point.",
    ),
    ("initrd", "FILE", "The initial RAM disk of the kernel."),
    ("append", "TEXT", "The command line of the kernel."),
    (
        "serial",
        "stdio|null|none|file:PATH|chardev:ID",
        "A serial line (an isa-serial device) and where it leads. Without this option and without \
         -nodefaults there is one on stdio, or to nowhere when something else uses stdio.",
    ),
    (
        "chardev",
        "null|stdio|file,id=ID[,path=PATH][,append=on|off]",
        "A character device for a -device or a -serial.",
    ),
    (
        "qmp",
        "unix:PATH,server=on,wait=on|off | tcp:HOST:PORT,server=on,wait=on|off | stdio",
        "A QMP monitor. With wait=on, the default, the guest starts when a client has connected.",
    ),
    ("monitor", "none", "There is no monitor for people."),
    (
        "incoming",
        "URI|defer|CHANNEL",
        "Take over a guest instead of starting one. A URI is the main channel; defer leaves it to \
         the QMP command migrate-incoming. A guest that was kept, by cpr-reboot or in mode normal, \
         comes from file:PATH[,offset=N], exec:COMMAND (its standard output) or fd:N. A guest that \
         is copied in mode normal comes over unix:PATH, tcp:HOST:PORT or fd:N of a socket; so does \
         one of cpr-transfer, which needs another -incoming for the channel of type cpr. A channel is JSON, or dotted keys such as \
         cpr,addr.transport=socket,addr.type=unix,addr.path=PATH.",
    ),
    (
        "global",
        "migration.PROPERTY=VALUE | driver=migration,property=PROPERTY,value=VALUE",
        "Set a migration parameter, or switch a migration capability on or off, before there is a \
         monitor: mode=cpr-transfer, x-events=on. A property is a name of \
         query-migrate-parameters or query-migrate-capabilities, with or without x- before it.",
    ),
    (
        "only-migratable",
        "[MODE[,MODE...]]",
        "Do not start a machine that something keeps from being migrated in one of these modes: \
         normal, which is meant if none is said, cpr-reboot, cpr-transfer, cpr-exec.",
    ),
    (
        "dump-vmstate",
        "FILE",
        "Write what the machine saves and loads into FILE, as JSON, and end: sections and their \
         versions. Without -device, -drive and -serial it is what every device type there is does. \
         See baton state check.",
    ),
    ("display", "none", "There is no display."),
    (
        "name",
        "[guest=]NAME[,debug-threads=on]",
        "The name of the guest, which query-name tells. Threads always have names.",
    ),
];

/// Options without a value: name, help.
const FLAGS: [(&str, &str); 8] = [
    ("enable-kvm", "Use KVM, which is what there is."),
    ("S", "Do not start the guest; the QMP command cont does."),
    ("no-reboot", "End when the guest resets."),
    (
        "nographic",
        "No display and the serial line on stdio, which is how it is anyway.",
    ),
    (
        "nodefaults",
        "No serial line unless -serial or -device says so. The clock (mc146818rtc) stays.",
    ),
    (
        "no-user-config",
        "There are no configuration files to read.",
    ),
    ("version", "Print the version."),
    ("help", "Print this text."),
];

/// Options whose value may be left out, and what it is then.
const BARE: [(&str, &str); 1] = [("only-migratable", "normal")];

/// Other names of options: name, option.
const ALIASES: [(&str, &str); 2] = [("M", "machine"), ("h", "help")];

/// The command line as clap knows it. Options are `--name=value` here:
/// [`normalize`](super::arguments::normalize) makes them so.
pub(super) fn command() -> Command {
    let values = VALUES.into_iter().map(|(name, value, help)| {
        Arg::new(name)
            .long(name)
            .value_name(value)
            .help(help)
            .action(ArgAction::Append)
    });
    let flags = FLAGS.into_iter().map(|(name, help)| {
        Arg::new(name)
            .long(name)
            .help(help)
            .action(ArgAction::Count)
    });
    let file =
        |name: &'static str, value: &'static str| Arg::new(name).value_name(value).required(true);
    let switch = |name: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue);
    let info = Command::new("info").arg(file("file", "FILE"));
    let show = Command::new("show")
        .arg(file("file", "FILE"))
        .arg(Arg::new("offset").long("offset").value_name("N"))
        .args([switch("full"), switch("json")]);
    let check = Command::new("check")
        .args([file("old", "OLD"), file("new", "NEW")])
        .arg(switch("json"));
    let group = |name| {
        Command::new(name)
            .disable_help_subcommand(true)
            .disable_help_flag(true)
            .subcommand_required(true)
    };
    Command::new("baton")
        .about("A virtual machine monitor for Linux/KVM that can be replaced under a running guest")
        .disable_help_flag(true)
        .disable_version_flag(true)
        .disable_help_subcommand(true)
        .args(values)
        .args(flags)
        .subcommand(group("plugin").subcommand(info))
        .subcommand(group("state").subcommands([show, check]))
}

/// The subcommands, and how they are written.
const USAGES: [(&str, &str); 2] = [
    ("plugin", "baton plugin info FILE"),
    (
        "state",
        "baton state show FILE [--offset N] [--full] or baton state check OLD NEW [--json]",
    ),
];

/// The name of a subcommand and how it is written, if it is one.
pub(super) fn usage(name: &OsStr) -> Option<(&'static str, &'static str)> {
    USAGES.into_iter().find(|(own, _)| name == *own)
}

/// The names of an option beside its own.
pub(super) fn aliases(option: &str) -> impl Iterator<Item = &'static str> + '_ {
    ALIASES
        .into_iter()
        .filter(move |(_, of)| *of == option)
        .map(|(name, _)| name)
}

/// An option's own name and whether it takes a value, from any of its names.
pub(super) fn option(name: &str) -> Option<(&'static str, bool)> {
    let name = ALIASES
        .into_iter()
        .find(|(alias, _)| *alias == name)
        .map_or(name, |(_, option)| option);
    let value = VALUES.iter().map(|(own, ..)| (*own, true));
    let flag = FLAGS.iter().map(|(own, _)| (*own, false));
    value.chain(flag).find(|(own, _)| *own == name)
}

/// The value of an option that is said without one, if it may be.
pub(super) fn bare_value(option: &str) -> Option<&'static str> {
    let bare = BARE.into_iter().find(|(name, _)| *name == option);
    bare.map(|(_, value)| value)
}

/// The names of all options.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    let values = VALUES.into_iter().map(|(name, ..)| name);
    values.chain(FLAGS.into_iter().map(|(name, _)| name))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_table_is_sound() {
        super::command().debug_assert();
    }
}
