//! Every option, once. The parser, `-help`, the man page and the completions are made from this
//! table; `-readconfig` finds its groups here.

/// An option.
#[derive(Debug, Clone, Copy)]
pub(super) struct Opt {
    /// Its name, after one dash or two.
    pub(super) name: &'static str,
    /// Other names.
    pub(super) aliases: &'static [&'static str],
    /// How its value is written, if it takes one.
    pub(super) value: Option<&'static str>,
    /// What is meant if the value is left out, where it may be.
    pub(super) bare: Option<&'static str>,
    /// What its sections are called in a file of `-readconfig`: then its value is a list of
    /// properties.
    pub(super) section: Option<&'static str>,
    /// What its value can be completed to.
    pub(super) completes: Completion,
    /// What it does.
    pub(super) help: &'static str,
}

/// What a shell can complete an option's value to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Completion {
    /// Nothing that is known.
    Nothing,
    /// A file.
    File,
    /// One of these words.
    Words(&'static [&'static str]),
    /// A device type, which the plugins know.
    Device,
}

impl Opt {
    const fn also(self, aliases: &'static [&'static str]) -> Self {
        Self { aliases, ..self }
    }

    const fn or_bare(self, bare: &'static str) -> Self {
        Self {
            bare: Some(bare),
            ..self
        }
    }

    const fn section(self, section: &'static str) -> Self {
        Self {
            section: Some(section),
            ..self
        }
    }

    const fn completes(self, completes: Completion) -> Self {
        Self { completes, ..self }
    }
}

/// An option that takes a value. It may be repeated.
const fn takes(name: &'static str, value: &'static str, help: &'static str) -> Opt {
    Opt {
        name,
        aliases: &[],
        value: Some(value),
        bare: None,
        section: None,
        completes: Completion::Nothing,
        help,
    }
}

/// An option without a value.
const fn flag(name: &'static str, help: &'static str) -> Opt {
    Opt {
        value: None,
        ..takes(name, "", help)
    }
}

/// All options, in QEMU's groups.
pub(super) const GROUPS: [(&str, &[Opt]); 9] = [
    ("Standard options", STANDARD),
    ("Memory backends and other objects", OBJECTS),
    ("Block device options", BLOCK),
    ("Network options", NETWORK),
    ("Character device options", CHARACTER),
    ("Display options", DISPLAY),
    ("Linux boot specific", BOOT),
    ("Migration options", MIGRATION),
    ("Process and expert options", EXPERT),
];

const STANDARD: &[Opt] = &[
    flag("help", "Print this text.").also(&["h"]),
    flag("version", "Print the version."),
    takes(
        "machine",
        "[type=]NAME[,PROPERTY=VALUE...]",
        "The machine type, baton or baton-1.0, and its properties: memory-backend=ID names the \
         -object that is the guest's RAM; aux-ram-share=on|off (older name: memfd-alloc) says \
         whether RAM that no object describes can be handed over to a successor, which is on by \
         default; accel=kvm. See -machine help.",
    )
    .also(&["M"])
    .section("machine")
    .completes(Completion::Words(&["baton", "baton-1.0", "help"])),
    takes(
        "cpu",
        "host|max[,+FEATURE][,-FEATURE][,FEATURE=on|off]",
        "The CPU model: the host's is what there is. A feature is a bit of CPUID: - takes it away \
         from the guest, + is an error where the host does not have it. See -cpu help. A successor \
         needs the same.",
    )
    .completes(Completion::Words(&["host", "max", "help"])),
    takes("accel", "kvm", "The accelerator: KVM is what there is.")
        .section("accel")
        .completes(Completion::Words(&["kvm", "help"])),
    flag("enable-kvm", "Use KVM, which is what there is."),
    takes(
        "smp",
        "[cpus=]N[,maxcpus=N,sockets=1,cores=N,threads=1]",
        "The number of virtual CPUs, up to 255: one socket of N cores; 1 by default.",
    )
    .section("smp-opts"),
    takes(
        "m",
        "[size=]SIZE",
        "The size of the guest's RAM, in MiB or with a suffix K, M, G or T; 128 MiB by default.",
    )
    .section("memory"),
    takes(
        "name",
        "[guest=]NAME[,debug-threads=on]",
        "The name of the guest, which query-name tells. Threads always have names.",
    )
    .section("name"),
    takes(
        "device",
        "NAME[,id=ID][,addr=SLOT[.FUNCTION]][,PROPERTY=VALUE...]",
        "A device of a plugin, as a list of properties or as JSON. -device help lists the device \
         types, -device NAME,help the properties of one. addr is its place on bus pcie.0, \
         hexadecimal.",
    )
    .section("device")
    .completes(Completion::Device),
    takes(
        "plugin",
        "PATH",
        "A plugin, or a folder of plugins, to load beside those of the usual places.",
    )
    .completes(Completion::File),
    takes(
        "add-fd",
        "fd=N,set=N[,opaque=TEXT]",
        "Put an inherited descriptor into a set, which the path /dev/fdset/N stands for wherever a \
         file is named: a -drive, a memory backend, a migration. See the QMP command add-fd.",
    )
    .section("add-fd"),
    takes(
        "global",
        "migration.PROPERTY=VALUE | driver=migration,property=PROPERTY,value=VALUE",
        "Set a migration parameter, or switch a migration capability on or off, before there is a \
         monitor: mode=cpr-transfer, x-events=on. A property is a name of \
         query-migrate-parameters or query-migrate-capabilities, with or without x- before it.",
    )
    .section("global"),
    takes(
        "rtc",
        "[base=utc|DATETIME][,clock=host][,driftfix=none]",
        "The time of the clock (mc146818rtc) when the guest starts; UTC by default.",
    )
    .section("rtc"),
    takes(
        "boot",
        "[strict=on|off][,menu=off]",
        "There is no firmware that could boot anything but the kernel of -kernel.",
    )
    .section("boot-opts"),
    takes(
        "overcommit",
        "[mem-lock=off][,cpu-pm=off]",
        "Guest RAM is not locked in memory, and idle virtual CPUs give their host CPU up.",
    )
    .section("overcommit"),
    flag(
        "nodefaults",
        "No serial line unless -serial or -device says so. The clock (mc146818rtc) stays.",
    ),
    flag(
        "no-user-config",
        "There are no configuration files that are read unasked.",
    ),
];

const OBJECTS: &[Opt] = &[takes(
    "object",
    "TYPE,id=ID[,PROPERTY=VALUE...]",
    "A memory backend: memory-backend-file, memory-backend-memfd, memory-backend-ram or \
     memory-backend-shm; as a list of properties or as JSON. See -object help, and -object \
     TYPE,help.",
)
.section("object")
.completes(Completion::Words(&[
    "memory-backend-file",
    "memory-backend-memfd",
    "memory-backend-ram",
    "memory-backend-shm",
    "help",
]))];

const BLOCK: &[Opt] = &[
    takes(
        "drive",
        "file=PATH[,if=none|virtio][,id=ID][,PROPERTY=VALUE...]",
        "A disk image. With if=none a -device names it by its id; with if=virtio, the default, a \
         virtio-blk-pci is made for it. Properties: format=raw, readonly=on|off, \
         cache=writeback|none|unsafe, cache.direct=on|off, cache.no-flush=on|off, \
         aio=threads|io_uring, discard=unmap|ignore, file.locking=on|off|auto. See -drive help.",
    )
    .section("drive"),
    takes(
        "blockdev",
        "[driver=]raw|file|host_device,node-name=NAME[,PROPERTY=VALUE...]",
        "A block node, as a list of properties or as JSON: file and host_device are what filename= \
         names on the host, raw shows the node of file=NODE, or one that is described by \
         file.driver=, file.filename=, ... A -device names it by its name: drive=NAME. See \
         -blockdev help.",
    )
    .completes(Completion::Words(&["raw", "file", "host_device", "help"])),
];

const NETWORK: &[Opt] = &[
    takes(
        "netdev",
        "TYPE,id=ID[,PROPERTY=VALUE...]",
        "The host's end of a network device, which a -device of a plugin names: netdev=ID. As a \
         list of properties or as JSON. See -netdev help, and -netdev TYPE,help. One that no \
         device names is an error as long as no plugin that is loaded has a network device, and a \
         warning otherwise.",
    )
    .section("netdev")
    .completes(Completion::Words(&[
        "user", "tap", "bridge", "socket", "stream", "dgram", "help",
    ])),
    takes(
        "nic",
        "none",
        "There is no network card unless a -device is one.",
    )
    .completes(Completion::Words(&["none"])),
    takes("net", "none", "As -nic none.").completes(Completion::Words(&["none"])),
];

const CHARACTER: &[Opt] = &[
    takes(
        "chardev",
        "KIND,id=ID[,mux=on|off][,PROPERTY=VALUE...]",
        "A character device for a -device or a -serial, as a list of properties or as JSON. Kinds \
         and their properties: null; stdio (signal=on|off); file (path=PATH, append=on|off, \
         input-path=PATH); pipe (path=PATH); pty (path=LINK); ringbuf (size=SIZE); socket \
         (path=PATH, abstract=on|off, tight=on|off or host=HOST, port=PORT, nodelay=on|off; \
         server=on|off, wait=on|off, reconnect-ms=N or reconnect=SECONDS). With mux=on up to four \
         can use it, and Ctrl-A c switches between them.",
    )
    .section("chardev")
    .completes(Completion::Words(&[
        "file", "null", "pipe", "pty", "ringbuf", "socket", "stdio", "help",
    ])),
    takes(
        "serial",
        "stdio|pty|null|none|file:PATH|pipe:PATH|unix:PATH|tcp:HOST:PORT|chardev:ID",
        "A serial line (an isa-serial device) and where it leads, with mon: before it together with a \
         monitor for people: pty may be followed by :LINK, unix \
         and tcp by the options of a -chardev socket, as in unix:PATH,server=on,wait=off. Without this option and without \
         -nodefaults there is one on stdio, or to nowhere when something else uses stdio.",
    ),
    takes(
        "mon",
        "[chardev=]ID[,mode=readline|control]",
        "A monitor on a character device: one for people, which is the default, or a QMP monitor with \
         mode=control.",
    )
    .section("mon"),
    takes("parallel", "none", "There is no parallel port.").completes(Completion::Words(&["none"])),
    takes(
        "qmp",
        "unix:PATH|tcp:HOST:PORT|fd:NAME,server=on,wait=on|off | stdio",
        "A QMP monitor. With wait=on, the default, the guest starts when a client has connected. \
         fd:NAME is a listening socket that the service manager has opened under this name, or an \
         inherited descriptor's number.",
    ),
    takes(
        "monitor",
        "unix:PATH,server=on,wait=on|off | tcp:HOST:PORT,server=on,wait=on|off | stdio | none",
        "A monitor for people (HMP), with line editing if stdio is a terminal. Its command help lists \
         the commands.",
    )
    .completes(Completion::Words(&["stdio", "none"])),
];

const DISPLAY: &[Opt] = &[
    takes("display", "none", "There is no display.").completes(Completion::Words(&["none"])),
    takes("vga", "none", "There is no graphics card.").completes(Completion::Words(&["none"])),
    flag(
        "nographic",
        "No display, which is how it is anyway. Without -serial, -monitor, -qmp and -mon the serial \
         line and a monitor for people share stdio: as -serial mon:stdio.",
    ),
    takes("audio", "none", "There is no sound card.").completes(Completion::Words(&["none"])),
];

const BOOT: &[Opt] = &[
    takes(
        "kernel",
        "FILE",
        "The kernel: a bzImage, or an ELF file with a PVH entry point.",
    )
    .completes(Completion::File),
    takes("initrd", "FILE", "The initial RAM disk of the kernel.").completes(Completion::File),
    takes("append", "TEXT", "The command line of the kernel."),
];

const MIGRATION: &[Opt] = &[
    takes(
        "incoming",
        "URI|defer|CHANNEL",
        "Take over a guest instead of starting one. A URI is the main channel; defer leaves it to \
         the QMP command migrate-incoming. A guest that was kept, by cpr-reboot or in mode normal, \
         comes from file:PATH[,offset=N], exec:COMMAND (its standard output) or fd:N. A guest that \
         is copied in mode normal comes over unix:PATH, tcp:HOST:PORT or fd:N of a socket; so does \
         one of cpr-transfer, which needs another -incoming for the channel of type cpr. A channel is JSON, or dotted keys such as \
         cpr,addr.transport=socket,addr.type=unix,addr.path=PATH.",
    ),
    takes(
        "only-migratable",
        "[MODE[,MODE...]]",
        "Do not start a machine that something keeps from being migrated in one of these modes: \
         normal, which is meant if none is said, cpr-reboot, cpr-transfer, cpr-exec. What suspending \
         the guest lifts does not count.",
    )
    .or_bare("normal")
    .completes(Completion::Words(&[
        "normal",
        "cpr-reboot",
        "cpr-transfer",
        "cpr-exec",
    ])),
    takes(
        "dump-vmstate",
        "FILE",
        "Write what the machine saves and loads into FILE, as JSON, and end: sections and their \
         versions. Without -device, -drive and -serial it is what every device type there is does. \
         See baton state check.",
    )
    .completes(Completion::File),
];

const EXPERT: &[Opt] = &[
    flag("S", "Do not start the guest; the QMP command cont does."),
    takes(
        "action",
        "[reboot=reset|shutdown][,shutdown=poweroff|pause]",
        "What happens when the guest resets: it boots again, or that is a shutdown; and when it \
         switches itself off: Baton ends, or stays with the guest stopped.",
    )
    .section("action"),
    flag("no-reboot", "As -action reboot=shutdown."),
    flag("no-shutdown", "As -action shutdown=pause."),
    takes(
        "readconfig",
        "FILE",
        "Read options from FILE: sections such as [machine] or [device \"ID\"], and lines such as \
         driver = \"virtio-rng-pci\". What is said later counts.",
    )
    .completes(Completion::File),
    flag(
        "daemonize",
        "Go on in the background: the command ends with status 0 when the VM is set up, monitors \
         included (with an -incoming, when that is listened on), and with an error and status 1 if \
         that fails. Standard streams lead nowhere from then on, but for standard error with -d \
         and without -D. The working directory stays. A program that cpr-exec executes stays where \
         it is.",
    ),
    takes(
        "pidfile",
        "FILE",
        "Write the process's number into FILE, once the VM is set up; it is locked, and removed at \
         the end. A successor with the same FILE takes it over with the guest.",
    )
    .completes(Completion::File),
    takes(
        "run-with",
        "[user=USER|UID:GID][,async-teardown=off]",
        "Give up the rights of root just before the guest runs; of a guest that comes in, just \
         after. Its files and /dev/kvm are open by then; what is opened later is opened by USER: \
         for cpr-exec USER must be allowed /dev/kvm.",
    )
    .section("run-with"),
    takes("runas", "USER", "As -run-with user=USER."),
    takes(
        "d",
        "ITEM[,ITEM...]",
        "Log all that parts of Baton have to say; -d help lists the items. Without it warnings \
         and errors are logged, or what the environment variable BATON_LOG says.",
    )
    .completes(Completion::Words(&[
        "all",
        "migration",
        "machine",
        "memory",
        "vcpu",
        "device",
        "plugin",
        "monitor",
        "chardev",
        "help",
    ])),
    takes(
        "D",
        "FILE",
        "Append the log to FILE, and not to standard error. %d is the process's number.",
    )
    .completes(Completion::File),
    takes(
        "msg",
        "timestamp=on|off",
        "Whether an error that ends Baton comes with the time.",
    )
    .section("msg"),
    takes(
        "sandbox",
        "off",
        "System calls are not filtered: plugins make their own.",
    )
    .section("sandbox")
    .completes(Completion::Words(&["off"])),
];

/// Options of QEMU's that Baton refuses, and what to do instead. What is not here either is a name
/// that was mistyped, or one that nobody is likely to miss.
pub(super) const REFUSED: &[(&str, &str)] = &[
    ("bios", "there is no firmware: -kernel FILE is booted"),
    ("pflash", "there is no firmware: -kernel FILE is booted"),
    (
        "L",
        "there is no firmware: nothing is looked for; leave it out",
    ),
    ("fda", USE_DRIVE),
    ("fdb", USE_DRIVE),
    ("hda", USE_DRIVE),
    ("hdb", USE_DRIVE),
    ("hdc", USE_DRIVE),
    ("hdd", USE_DRIVE),
    ("sd", USE_DRIVE),
    (
        "cdrom",
        "there are no CD-ROM drives: say -drive file=PATH,if=virtio,readonly=on",
    ),
    (
        "snapshot",
        "images are raw files: copy the image, or put an overlay of the host's below it",
    ),
    (
        "loadvm",
        "there are no snapshots: keep a guest with migrate to file:PATH, and say -incoming file:PATH",
    ),
    (
        "mem-path",
        "say -object memory-backend-file,id=ram0,size=SIZE,mem-path=PATH,share=on -machine memory-backend=ram0",
    ),
    (
        "mem-prealloc",
        "say -object memory-backend-memfd,id=ram0,size=SIZE,prealloc=on -machine memory-backend=ram0",
    ),
    (
        "chroot",
        "a successor would not find its files there: start Baton in a mount namespace of its own",
    ),
    ("usb", "there is no USB; leave it out"),
    ("usbdevice", "there is no USB; leave it out"),
    ("vnc", "there is no display: use the serial line"),
    ("spice", "there is no display: use the serial line"),
    ("full-screen", "there is no display; leave it out"),
    ("sdl", "there is no display; leave it out"),
    ("gtk", "there is no display; leave it out"),
    ("audiodev", "there is no sound card; leave it out"),
    ("k", "there is no keyboard; leave it out"),
    ("virtfs", "no device shares folders; use a disk"),
    ("fsdev", "no device shares folders; use a disk"),
    ("tpmdev", "there is no TPM; leave it out"),
    ("fw_cfg", "there is no firmware to read it; leave it out"),
    ("smbios", "there are no SMBIOS tables; leave it out"),
    (
        "acpitable",
        "the ACPI tables are the machine's own; leave it out",
    ),
    ("option-rom", "there is no firmware to run it; leave it out"),
    ("gdb", "there is no debug stub; leave it out"),
    ("s", "there is no debug stub; leave it out"),
    (
        "icount",
        "KVM runs the guest: it counts no instructions; leave it out",
    ),
    (
        "tb-size",
        "KVM runs the guest: nothing is translated; leave it out",
    ),
    ("semihosting", "that is for other processors; leave it out"),
    (
        "preconfig",
        "say everything on the command line; with -S the guest waits for cont",
    ),
    ("watchdog", "there is no watchdog device; leave it out"),
    (
        "watchdog-action",
        "there is no watchdog device; leave it out",
    ),
    ("numa", "there is one memory node; leave it out"),
    ("set", "say the property where the object is described"),
    (
        "writeconfig",
        "keep the command line, or a file for -readconfig",
    ),
    ("trace", "say -d ITEM for messages of a part of Baton"),
    ("xen-domid", "KVM runs the guest; leave it out"),
    ("xen-attach", "KVM runs the guest; leave it out"),
];
const USE_DRIVE: &str = "there is no IDE: say -drive file=PATH,if=virtio";
