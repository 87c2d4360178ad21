//! Puts the options of a command line together and checks what they mean to each other.

use baton_plugin_api::Object;
use std::collections::BTreeSet;
use std::path::PathBuf;

use baton_migration::Mode;
use baton_migration::address::{Incoming, IncomingChannels};
use baton_migration::settings::Settings;

use super::add_fd::AddFd;
use super::blockdev;
use super::chardev;
use super::cpu::CpuOption;
use super::definition;
use super::device::DeviceOption;
use super::drive::{self, Interface};
use super::error::CliError;
use super::global::Globals;
use super::help;
use super::machine::{self, MachineOption};
use super::mon;
use super::netdev;
use super::object::{MemoryBackend, ObjectOption};
use super::options::{Invocation, Kernel, Options};
use super::pairs::Pairs;
use super::process::{self, Actions};
use super::said::Said;
use super::serial::Serial;
use super::table::Opt;
use crate::chardev::{Chardev, ChardevBackend};
use crate::monitor::{MonitorAddress, MonitorMode, MonitorOption};

/// RAM if nothing is said of it, as in QEMU.
const DEFAULT_RAM: u64 = 128 << 20;
/// The device type of a serial line.
const SERIAL: &str = "isa-serial";
/// The device type of the clock, which every machine has.
const CLOCK: &str = "mc146818rtc";
/// The device type of a drive with `if=virtio`.
const DISK: &str = "virtio-blk-pci";

/// What the command line asks for.
pub(super) fn invocation(said: &Said) -> Result<Invocation, CliError> {
    if let Some(text) = only_text(said) {
        return Ok(text);
    }
    let options = Box::new(options(said)?);
    Ok(match said.last("dump-vmstate") {
        None => Invocation::Run(options),
        Some(file) => Invocation::DumpVmstate {
            file: file.into(),
            options,
            all: ["device", "drive", "serial"]
                .iter()
                .all(|option| said.last(option).is_none()),
        },
    })
}

/// `-device`, each of which remembers where it was said.
fn devices(said: &Said) -> Result<Vec<DeviceOption>, CliError> {
    said.words("device")
        .map(|word| {
            let device = DeviceOption::parse(&word.value).map_err(|reason| word.error(reason))?;
            Ok(DeviceOption {
                origin: word.origin.clone(),
                ..device
            })
        })
        .collect()
}

/// The clock that every machine has, unless a `-device` is it.
fn clock(said: &Said, devices: &[DeviceOption]) -> Result<Option<DeviceOption>, CliError> {
    let base = said
        .each("rtc", process::rtc)?
        .into_iter()
        .flatten()
        .next_back();
    let own = devices.iter().any(|device| device.driver == CLOCK);
    Ok(match (own, base) {
        (true, Some(base)) => {
            let reason = format!("there is a -device {CLOCK}; say base={base} of it");
            return Err(said.error("rtc", reason));
        }
        (true, None) => None,
        (false, None) => Some(DeviceOption::implied(
            CLOCK,
            &[],
            format!("-device {CLOCK}"),
        )),
        (false, Some(base)) => Some(DeviceOption::implied(
            CLOCK,
            &[("base", &base)],
            format!("-rtc base={base}"),
        )),
    })
}

/// The last `-cpu`; every one is checked.
fn cpu(said: &Said) -> Result<CpuOption, CliError> {
    let cpu = said.each("cpu", CpuOption::parse)?.pop();
    let origin = said.words("cpu").next_back();
    Ok(CpuOption {
        origin: origin.map(|word| word.origin.clone()).unwrap_or_default(),
        ..cpu.unwrap_or_default()
    })
}

/// With `-daemonize` there will be no terminal.
fn nothing_on_a_terminal(
    said: &Said,
    chardevs: &[Chardev],
    monitors: &[MonitorOption],
) -> Result<(), CliError> {
    // QEMU's texts.
    if said.flag("nographic") {
        let reason = "-nographic cannot be used with -daemonize; leave one out";
        return Err(CliError::new("-nographic", reason));
    }
    match stdio_users(chardevs, monitors).next() {
        None => Ok(()),
        Some(user) => Err(CliError::new(
            "-daemonize",
            format!("cannot use stdio with -daemonize; connect {user} to something else"),
        )),
    }
}

/// The options that only print something; they are told before anything is checked.
fn only_text(said: &Said) -> Option<Invocation> {
    if said.flag("help") {
        return Some(Invocation::Help);
    }
    if said.flag("version") {
        return Some(Invocation::Version);
    }
    let of = |option: &Opt| {
        let subjects = said.all(option.name).filter_map(help::subject);
        let mut texts = subjects.filter_map(|subject| help::option(option, subject));
        texts.next().map(Invocation::OptionHelp)
    };
    if let Some(help) = definition::options().find_map(of) {
        return Some(help);
    }
    let device = said
        .all("device")
        .find(|value| help::subject(value).is_some())?;
    Some(Invocation::DeviceHelp {
        device: device.split_once(',').map(|(name, _)| name.to_owned()),
        plugins: said.all("plugin").map(PathBuf::from).collect(),
    })
}

fn options(said: &Said) -> Result<Options, CliError> {
    said.each("overcommit", process::overcommit)?;
    said.each("boot", process::boot)?;
    said.each("sandbox", process::sandbox)?;
    said.each("accel", machine::accelerator)?;
    said.each("display", display)?;
    for option in ["vga", "nic", "net", "parallel", "audio"] {
        said.each(option, |text| none(option, text))?;
    }
    let mut machine = MachineOption::default();
    said.each("machine", |text| machine.add(text))?;
    let (memory, objects) = memory(said, &machine)?;

    let mut chardevs = said.each("chardev", chardev::parse)?;
    let (mut monitors, placed) = mon::monitors(said, &mut chardevs)?;
    let mut devices = devices(said)?;
    let mut serial = serial_lines(said, &mut chardevs, &monitors, &devices)?;
    unique(
        "chardev",
        chardevs.iter().map(|chardev| chardev.id.as_str()),
    )?;
    for (mon, origin) in placed {
        mon.place(&origin, &mut chardevs, &mut monitors)?;
    }
    one_user_of_stdio(&chardevs, &monitors)?;
    if said.flag("daemonize") {
        nothing_on_a_terminal(said, &chardevs, &monitors)?;
    }

    let mut drives = Vec::new();
    let disks = drives_and_disks(said, &mut drives)?;
    let nodes = blockdev::drives(said)?;
    drives.extend(nodes.into_iter().map(|(drive, _)| drive));
    unique("drive", drives.iter().map(|drive| drive.id.as_str()))?;

    let netdevs = said.each("netdev", netdev::parse)?;
    unique("netdev", netdevs.iter().map(|netdev| netdev.id.as_str()))?;

    // The machine's own devices come first, so that they have the lowest places.
    if let Some(clock) = clock(said, &devices)? {
        serial.insert(0, clock);
    }
    devices.splice(0..0, serial);
    devices.extend(disks);
    unique(
        "device",
        devices
            .iter()
            .filter_map(|device| Some(device.id.as_ref()?.as_str())),
    )?;

    let incoming = incoming(said)?;
    let Actions {
        no_reboot,
        no_shutdown,
    } = Actions::read(said)?;
    Ok(Options {
        name: said.each("name", name)?.pop(),
        machine: machine.machine,
        cpu: cpu(said)?,
        cpus: said.each("smp", machine::cpus)?.pop().unwrap_or(1),
        memory,
        kernel: kernel(
            said,
            incoming.is_some() || said.last("dump-vmstate").is_some(),
        )?,
        devices,
        drives,
        netdevs,
        objects,
        chardevs,
        plugins: said.all("plugin").map(PathBuf::from).collect(),
        monitors,
        passed: said.each("add-fd", AddFd::parse)?,
        incoming,
        settings: settings(said)?,
        only_migratable: only_migratable(said)?,
        paused: said.flag("S"),
        no_reboot,
        no_shutdown,
        daemonize: said.flag("daemonize"),
        pidfile: said.each("pidfile", process::pidfile)?.pop(),
        run_as: process::run_as(said)?,
        log: process::log(said)?,
        timestamps: said.each("msg", process::msg)?.pop().unwrap_or(false),
    })
}

fn display(text: &str) -> Result<(), String> {
    match text {
        "none" => Ok(()),
        other => Err(format!("Display '{other}' is not supported; use none")),
    }
}

/// The value of an option for something that there is not.
fn none(option: &str, text: &str) -> Result<(), String> {
    let why = || definition::option(option).map_or("", |option| option.help);
    match text {
        "none" => Ok(()),
        _ => Err(format!("not supported: {} Use none", why())),
    }
}

fn name(text: &str) -> Result<String, String> {
    let mut pairs = Pairs::parse(text, Some("guest"))?;
    let name = pairs.require("guest")?;
    if pairs.switch("debug-threads")? == Some(false) {
        return Err("Parameter 'debug-threads' must be on: threads always have names".to_owned());
    }
    pairs.finish("name.")?;
    Ok(name)
}

/// The guest's RAM, from `-m`, `-object` and `-machine memory-backend=`, and the other objects.
fn memory(said: &Said, machine: &MachineOption) -> Result<(MemoryBackend, Vec<Object>), CliError> {
    let size = said.each("m", machine::memory_size)?.pop();
    let said_objects = said.each("object", ObjectOption::parse)?;
    unique("object", said_objects.iter().map(ObjectOption::id))?;
    let (mut backends, mut objects) = (Vec::new(), Vec::new());
    for object in said_objects {
        match object {
            ObjectOption::Memory(memory) => backends.push(memory),
            ObjectOption::ForDevices(object) => objects.push(object),
        }
    }
    let memory = main_memory(said, machine, size, backends)?;
    Ok((memory, objects))
}

fn main_memory(
    said: &Said,
    machine: &MachineOption,
    size: Option<u64>,
    mut objects: Vec<MemoryBackend>,
) -> Result<MemoryBackend, CliError> {
    let Some(id) = &machine.memory_backend else {
        if let Some(unused) = objects.first() {
            return Err(unused_object(unused));
        }
        let bytes = size.unwrap_or(DEFAULT_RAM);
        return MemoryBackend::implicit(bytes, machine.machine.aux_ram_share)
            .map_err(|reason| said.error("m", reason));
    };
    let at = objects
        .iter()
        .position(|object| object.id.as_str() == id)
        .ok_or_else(|| {
            let reason = format!("Memory backend '{id}' not found; add an -object with that id");
            CliError::new(format!("-machine memory-backend={id}"), reason)
        })?;
    let memory = objects.remove(at);
    if let Some(unused) = objects.first() {
        return Err(unused_object(unused));
    }
    match size {
        Some(size) if size != memory.size => Err(said.error(
            "m",
            format!(
                "Machine memory size does not match the size of the memory backend: {size} and {} \
                 bytes",
                memory.size
            ),
        )),
        _ => Ok(memory),
    }
}

fn unused_object(object: &MemoryBackend) -> CliError {
    let id = &object.id;
    CliError::new(
        format!("-object id={id}"),
        format!("Nothing uses memory backend '{id}'; say -machine memory-backend={id}"),
    )
}

/// The devices of `-serial`, or the default one, and their character devices.
fn serial_lines(
    said: &Said,
    chardevs: &mut Vec<Chardev>,
    monitors: &[MonitorOption],
    devices: &[DeviceOption],
) -> Result<Vec<DeviceOption>, CliError> {
    let mut lines: Vec<(Serial, String)> = said
        .each("serial", Serial::parse)?
        .into_iter()
        .zip(said.words("serial").map(|word| word.origin.clone()))
        .collect();
    if lines.len() > 1 && lines.iter().any(|(line, _)| *line == Serial::None) {
        return Err(CliError::new(
            "-serial none",
            "there is another -serial; leave one of them out",
        ));
    }
    let own = devices.iter().any(|device| device.driver == SERIAL);
    let nothing = |option| said.words(option).next().is_none();
    let no_monitor = ["monitor", "qmp", "mon"].into_iter().all(nothing);
    if lines.is_empty() && !said.flag("nodefaults") && !own {
        let taken = stdio_users(chardevs, monitors).next().is_some();
        lines.push(match taken || said.flag("daemonize") {
            true => (Serial::Backend(ChardevBackend::Null), "-serial null".into()),
            // As QEMU, which has a monitor of its own then.
            false if said.flag("nographic") && no_monitor => {
                (Serial::MON_STDIO, "-serial mon:stdio".into())
            }
            false => (
                Serial::Backend(ChardevBackend::Stdio { signal: true }),
                "-serial stdio".into(),
            ),
        });
    }
    let mut made = Vec::new();
    for (number, (line, origin)) in lines.into_iter().enumerate() {
        let id = match line {
            Serial::None => continue,
            Serial::Existing(id) => id,
            line @ (Serial::Backend(_) | Serial::WithMonitor(_)) => {
                let (backend, monitors) = match line {
                    Serial::WithMonitor(backend) => (backend, vec![MonitorMode::Readline]),
                    Serial::Backend(backend) => (backend, Vec::new()),
                    _ => continue,
                };
                // QEMU's names.
                let id: super::Id = format!("serial{number}")
                    .parse()
                    .map_err(|reason: String| CliError::new(origin.as_str(), reason))?;
                chardevs.push(Chardev {
                    id: id.clone(),
                    backend,
                    mux: !monitors.is_empty(),
                    monitors,
                });
                id
            }
        };
        let index = number.to_string();
        let mut properties = vec![("chardev", id.as_str())];
        if number > 0 {
            // The first is what it is anyway.
            properties.push(("index", &index));
        }
        made.push(DeviceOption::implied(SERIAL, &properties, origin));
    }
    Ok(made)
}

fn stdio_users<'a>(
    chardevs: &'a [Chardev],
    monitors: &'a [MonitorOption],
) -> impl Iterator<Item = String> + 'a {
    let chardevs = chardevs
        .iter()
        .filter(|chardev| chardev.backend.is_stdio())
        .map(|chardev| format!("character device '{}'", chardev.id));
    let monitors = monitors
        .iter()
        .filter(|monitor| monitor.address == MonitorAddress::Stdio)
        .map(ToString::to_string);
    chardevs.chain(monitors)
}

fn one_user_of_stdio(chardevs: &[Chardev], monitors: &[MonitorOption]) -> Result<(), CliError> {
    let users: Vec<_> = stdio_users(chardevs, monitors).collect();
    match &users[..] {
        [] | [_] => Ok(()),
        [first, .., last] => Err(CliError::new(
            "stdio",
            format!("{first} and {last} cannot both use it; connect one to something else"),
        )),
    }
}

/// Reads `-drive`; returns the devices of those with `if=virtio`.
fn drives_and_disks(
    said: &Said,
    drives: &mut Vec<baton_plugin_api::Drive>,
) -> Result<Vec<DeviceOption>, CliError> {
    let mut disks = Vec::new();
    for word in said.words("drive") {
        let (interface, drive) =
            drive::parse(&word.value, drives.len()).map_err(|reason| word.error(reason))?;
        if interface == Interface::Virtio {
            let properties = [("drive", drive.id.as_str())];
            disks.push(DeviceOption::implied(
                DISK,
                &properties,
                word.origin.clone(),
            ));
        }
        drives.push(drive);
    }
    Ok(disks)
}

fn incoming(said: &Said) -> Result<Option<IncomingChannels>, CliError> {
    let mut channels = IncomingChannels::default();
    let values = said.each("incoming", |text| {
        let value: Incoming = text.parse().map_err(|error| format!("{error}"))?;
        channels.add(value).map_err(|error| error.to_string())
    })?;
    if values.is_empty() {
        return Ok(None);
    }
    channels
        .validate()
        .map_err(|error| said.error("incoming", error.to_string()))?;
    Ok(Some(channels))
}

/// What `-global` sets for migrations.
fn settings(said: &Said) -> Result<Settings, CliError> {
    let mut globals = Globals::default();
    said.each("global", |text| globals.add(text))?;
    globals
        .settings()
        .map_err(|reason| said.error("global", reason))
}

/// Every mode that one of the `-only-migratable` names, in QAPI's order.
fn only_migratable(said: &Said) -> Result<Vec<Mode>, CliError> {
    let lists = said.each("only-migratable", |text| {
        text.split(',')
            .map(str::parse)
            .collect::<Result<Vec<Mode>, _>>()
    })?;
    let modes: BTreeSet<Mode> = lists.into_iter().flatten().collect();
    Ok(modes.into_iter().collect())
}

/// What the guest boots. It may be absent with a target, which gets the guest with its kernel, and
/// where no guest runs.
fn kernel(said: &Said, optional: bool) -> Result<Option<Kernel>, CliError> {
    let Some(path) = said.last("kernel") else {
        for option in ["initrd", "append"] {
            if said.last(option).is_some() {
                return Err(said.error(option, "only allowed with -kernel"));
            }
        }
        return match optional {
            true => Ok(None),
            false => Err(CliError::new(
                "-kernel",
                "nothing to boot; there is no firmware, so say -kernel FILE",
            )),
        };
    };
    Ok(Some(Kernel {
        path: path.into(),
        initrd: said.last("initrd").map(PathBuf::from),
        append: said.last("append").unwrap_or_default().to_owned(),
    }))
}

fn unique<'a>(what: &str, ids: impl Iterator<Item = &'a str>) -> Result<(), CliError> {
    let mut seen = BTreeSet::new();
    for id in ids {
        if !seen.insert(id) {
            // QEMU's text.
            let reason = format!("Duplicate ID '{id}' for {what}; give each one its own");
            return Err(CliError::new(format!("-{what} id={id}"), reason));
        }
    }
    Ok(())
}
