//! The state files in `tests/golden`: there is one of every section that is written, and every one
//! still loads. See `tests/golden/README.md`.

use anyhow::{Context, Result, bail, ensure};
use baton_migration::fingerprint::MachineFingerprint;
use baton_migration::stream::{Header, SectionData, SectionWriter, StateImage};
use baton_plugin_api::abi::{PluginDevice, root_module};
use baton_plugin_api::protocol::{Reply, Request};
use baton_plugin_api::testing::TestHost;
use baton_plugin_api::{
    Chardev, Child, Config, DeviceType, Drive, Mode, PropertyKind, Value, wire,
};
use baton_testkit::guest::workspace;
use baton_testkit::scratch::Scratch;
use baton_testkit::{Setup, Vmm, needs_kvm};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::capture::captured;
use crate::tools::{check, description};

/// Set to anything, it writes the files that are missing.
const UPDATE: &str = "BATON_UPDATE_GOLDEN";
/// The folder of the transport, which the devices of several types have.
const TRANSPORT: &str = "virtio-pci";
/// Devices of hardware that need not be here. Their plugins load their files, and write those that are
/// missing, in tests of their own, when these run with [`UPDATE`] set: `cargo test -p vfio-pci golden`.
const PASSED_THROUGH: [&str; 1] = ["vfio-pci"];
/// Of the guest that the files were taken from, and of the disks here.
const DISK: u64 = 4 << 20;
const CHARDEV: &str = "con";

/// A section of a version: its folder, its name within the device, the version.
type Key = (String, String, u32);

fn folder() -> PathBuf {
    workspace().join("tests/golden")
}

/// Every section that this build writes.
fn written() -> Result<Vec<Key>> {
    let (_, build) = description(&Scratch::new()?, &[])?;
    let mut keys = Vec::new();
    let mut add = |owner: &str, sections: &serde_json::Value| {
        for section in sections.as_array().into_iter().flatten() {
            let version = |of: &serde_json::Value| of["version"].as_u64().unwrap_or(0) as u32;
            let name = section["name"].as_str().unwrap_or_default();
            let owner = if name == TRANSPORT { TRANSPORT } else { owner };
            keys.push((owner.to_owned(), name.to_owned(), version(section)));
            for sub in section["subsections"].as_array().into_iter().flatten() {
                let name = format!("{name}/{}", sub["name"].as_str().unwrap_or_default());
                keys.push((owner.to_owned(), name, version(sub)));
            }
        }
    };
    add("machine", &build["machine"]["sections"]);
    for device in build["devices"].as_array().into_iter().flatten() {
        add(
            device["type"].as_str().unwrap_or_default(),
            &device["sections"],
        );
    }
    keys.sort();
    keys.dedup();
    Ok(keys)
}

/// Every file with a section, by what it has.
fn kept() -> Result<Vec<(Key, PathBuf, SectionData)>> {
    let mut kept = Vec::new();
    for owner in folders(&folder())? {
        for path in files(&owner)? {
            let image = StateImage::read(&fs::read(&path)?[..])
                .with_context(|| path.display().to_string())?;
            let sections: Vec<_> = image.sections().cloned().collect();
            let [section] = &sections[..] else {
                bail!("{} has {} sections", path.display(), sections.len());
            };
            let (_, name) = section.name.split_once('/').context("It has no device")?;
            let owner = owner.file_name().unwrap_or_default().to_string_lossy();
            let key = (owner.into_owned(), name.to_owned(), section.version);
            kept.push((key, path, section.clone()));
        }
    }
    Ok(kept)
}

fn folders(within: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(within).with_context(|| within.display().to_string())?;
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()?;
    paths.retain(|path| path.is_dir());
    paths.sort();
    Ok(paths)
}

fn files(within: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(within)? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "state")
        {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

#[test]
fn every_section_has_a_golden_file_of_the_version_that_is_written() -> Result<()> {
    let missing = || -> Result<Vec<Key>> {
        let kept = kept()?;
        let has = |key: &Key| kept.iter().any(|(other, ..)| other == key);
        Ok(written()?.into_iter().filter(|key| !has(key)).collect())
    };
    let mut lacking = missing()?;
    if std::env::var_os(UPDATE).is_some() && !lacking.is_empty() {
        needs_kvm!();
        add(&lacking)?;
        lacking = missing()?;
    }
    ensure!(
        lacking.is_empty(),
        "There is no state file of {lacking:?}; a section that changes gets a new version, and \
         then run {UPDATE}=1 cargo test -p baton-testkit --test state golden"
    );
    Ok(())
}

/// Writes files of sections that have none, and one of the guest they were taken from. What is
/// there already stays as it is.
fn add(keys: &[Key]) -> Result<()> {
    let mut guest = Setup::new(Vmm::Baton)?.append("pace=0").boot()?;
    // Its disk, entropy device and serial line are at work.
    guest.wait_progress()?;
    let whole = captured(guest)?;
    let image = StateImage::read(&whole[..])?;
    let find = |name: &str| {
        let of =
            |section: &&SectionData| section.name.split_once('/').is_some_and(|(_, n)| n == name);
        image.sections().find(of)
    };
    if keys.iter().any(|(_, name, _)| find(name).is_some()) {
        let number = files(&folder())?.len() + 1;
        put(&folder().join(format!("guest.{number}.state")), &whole)?;
    }
    let passed_through = |owner: &str| PASSED_THROUGH.contains(&owner);
    for (owner, name, version) in keys.iter().filter(|(owner, ..)| !passed_through(owner)) {
        let file = format!("{}.{version}", name.replace('/', "."));
        let path = |file: &str| folder().join(owner).join(format!("{file}.state"));
        let found = find(name);
        let by_hand = by_hand(name, *version)?;
        let payload = match (found, &by_hand) {
            (Some(section), _) => section.payload.clone(),
            (None, Some((_, payload))) => payload.clone(),
            (None, None) => save(&mut device(owner)?, name)?,
        };
        let device = found.and_then(|section| section.name.split('/').next());
        let device = device.unwrap_or(owner);
        let stream = |payload: &[u8]| alone(device, name, *version, payload);
        put(&path(&file), &stream(&payload)?)?;
        if let (Some(_), Some((what, payload))) = (found, by_hand) {
            put(&path(&format!("{file}.{what}")), &stream(&payload)?)?;
        }
    }
    Ok(())
}

/// What a guest at work hardly ever has at the moment: what it is, and the state.
fn by_hand(name: &str, version: u32) -> Result<Option<(&'static str, Vec<u8>)>> {
    #[derive(Serialize)]
    struct Unsent<'a> {
        #[serde(with = "serde_bytes")]
        bytes: &'a [u8],
    }
    #[derive(Serialize)]
    struct Clocks {
        boot: &'static str,
        realtime: u64,
        monotonic: u64,
        tsc: u64,
    }
    #[derive(Serialize)]
    struct Sleep {
        asleep: bool,
        status: u16,
        enable: u16,
    }
    #[derive(Serialize)]
    struct Image {
        owner: &'static str,
        path: &'static str,
        device: u64,
        inode: u64,
        modified: i64,
    }
    #[derive(Serialize)]
    struct Images {
        images: Vec<Image>,
    }
    #[derive(Serialize)]
    struct Request {
        queue: u16,
        head: u16,
    }
    #[derive(Serialize)]
    struct Disk {
        sectors: u64,
        write_cache: bool,
        in_flight: Vec<Request>,
    }
    #[derive(Serialize)]
    struct Port {
        id: &'static str,
        number: u32,
        name: &'static str,
        console: bool,
        open: bool,
        sent: u32,
    }
    #[derive(Serialize)]
    struct Message {
        port: u32,
        event: u16,
        value: u16,
    }
    #[derive(Serialize)]
    struct Ports {
        max_ports: u32,
        driver_ready: bool,
        ports: Vec<Port>,
        pending: Vec<Message>,
    }
    #[derive(Serialize)]
    struct Item {
        id: &'static str,
        driver: &'static str,
        place: &'static str,
    }
    #[derive(Serialize)]
    struct Devices {
        devices: Vec<Item>,
    }
    #[derive(Serialize)]
    struct Hotplug {
        status: u16,
        enable: u16,
        up: u32,
        down: u32,
        requested: u32,
        ejected: u32,
    }
    Ok(match (name, version) {
        ("globalstate/devices", 1) => {
            let item = |id, driver, place| Item { id, driver, place };
            let devices = vec![
                item("mc146818rtc.0", "mc146818rtc", "platform"),
                item("disk1", "virtio-blk-pci", "0000:00:05.0"),
            ];
            Some(("", wire::encode(&Devices { devices })?))
        }
        ("acpi-pm/pci-hotplug", 1) => Some((
            "",
            wire::encode(&Hotplug {
                status: 2,
                enable: 2,
                up: 1 << 7,
                down: 1 << 5,
                requested: 1 << 5 | 1 << 6,
                ejected: 1 << 9,
            })?,
        )),
        ("serial/unsent", 1) => Some((
            "",
            wire::encode(&Unsent {
                bytes: b"not yet sent",
            })?,
        )),
        ("globalstate/host-time", 1) => Some((
            "",
            wire::encode(&Clocks {
                boot: "2b7a2d5c-6f0e-4a5b-9d57-6a1a0c1d2e3f",
                realtime: 1_795_000_000_000_000_000,
                monotonic: 7_000_000_000_000,
                tsc: 20_000_000_000_000,
            })?,
        )),
        ("acpi-pm/sleep", 1) => Some((
            "",
            wire::encode(&Sleep {
                asleep: true,
                status: 0x8000,
                enable: 0x400,
            })?,
        )),
        ("globalstate/images", 1) => Some((
            "",
            wire::encode(&Images {
                images: vec![Image {
                    owner: "disk0",
                    path: "/srv/disk.img",
                    device: 2049,
                    inode: 1234,
                    modified: 1_795_000_000_000_000_000,
                }],
            })?,
        )),
        ("virtio-console", 1) => {
            let port = |id, number, console, open, sent| Port {
                id,
                number,
                name: "",
                console,
                open,
                sent,
            };
            let message = |port, event| Message {
                port,
                event,
                value: 1,
            };
            let ports = Ports {
                max_ports: 31,
                driver_ready: true,
                ports: vec![
                    port("virtconsole", 0, true, false, 0),
                    port("virtserialport", 1, false, true, 7),
                ],
                pending: vec![message(0, 4), message(0, 6)],
            };
            Some(("", wire::encode(&ports)?))
        }
        ("virtio-blk", 1) => {
            let disk = Disk {
                sectors: DISK / 512,
                write_cache: false,
                in_flight: [0, 5, 255].map(|head| Request { queue: 0, head }).into(),
            };
            Some(("in-flight", wire::encode(&disk)?))
        }
        _ => None,
    })
}

/// A stream with one section.
fn alone(device: &str, name: &str, version: u32, payload: &[u8]) -> Result<Vec<u8>> {
    let mut stream = Vec::new();
    let header = Header {
        producer: format!("baton {}", env!("CARGO_PKG_VERSION")),
        fingerprint: MachineFingerprint::default(),
    };
    let mut writer = SectionWriter::new(&mut stream, &header)?;
    writer.put_raw(&format!("{device}/{name}"), 0, version, payload)?;
    writer.finish()?;
    Ok(stream)
}

/// Writes a new file; one that is there is an error.
fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::create_dir_all(path.parent().context("It has no folder")?)?;
    let file = OpenOptions::new().write(true).create_new(true).open(path);
    file.and_then(|mut file| file.write_all(bytes))
        .with_context(|| path.display().to_string())
}

/// A device of a type with little more said than must be, realized; and its disk's folder.
struct Realized {
    device: PluginDevice,
    _scratch: Scratch,
}

fn device(kind: &str) -> Result<Realized> {
    let plugins = Vmm::Baton.programs()?.plugins.context("No plugins")?;
    let scratch = Scratch::new()?;
    for entry in fs::read_dir(plugins)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "so") {
            continue;
        }
        let Ok(root) = root_module(&path) else {
            continue;
        };
        let types = root.descriptor()?.devices;
        let Some(device_type) = types.iter().find(|device_type| device_type.name == kind) else {
            continue;
        };
        let config = config(device_type, &scratch)?;
        let host = TestHost::new();
        host.add_chardev(
            CHARDEV,
            Chardev {
                output: Some(OpenOptions::new().write(true).open("/dev/null")?.into()),
                input: None,
            },
        );
        let mut device = root.create(kind, &config, host)?;
        device.call(&Request::Realize)?;
        return Ok(Realized {
            device,
            _scratch: scratch,
        });
    }
    bail!("No plugin has a device '{kind}'; build it")
}

fn config(device_type: &DeviceType, scratch: &Scratch) -> Result<Config> {
    let mut config = Config {
        id: "golden".into(),
        restoring: Some(Mode::CprReboot),
        ..Config::default()
    };
    // One of each that may sit on it, with as little said as possible.
    config.children = device_type
        .children()
        .iter()
        .map(|kind| Child {
            device_type: kind.name.clone(),
            config: Config {
                id: kind.name.clone(),
                ..Config::default()
            },
        })
        .collect();
    for property in &device_type.properties {
        let name = property.name.clone();
        if property.kind == PropertyKind::Drive {
            let file = scratch.join("disk.img");
            File::create(&file)?.set_len(DISK)?;
            let drive = Drive {
                id: "d0".into(),
                file: file.display().to_string(),
                format: "raw".into(),
                ..Drive::default()
            };
            config.drives.insert(name.clone(), drive);
            config.properties.insert(name, Value::String("d0".into()));
        } else if property.kind == PropertyKind::Chardev {
            let id = Value::String(CHARDEV.into());
            config.properties.insert(name, id);
        } else if let Some(default) = &property.default {
            config.properties.insert(name, default.clone());
        }
    }
    Ok(config)
}

fn save(device: &mut Realized, section: &str) -> Result<Vec<u8>> {
    let section = section.to_owned();
    match device.device.call(&Request::Save { section })? {
        Reply::Saved { data } => Ok(data),
        other => bail!("{other:?} is no answer to Save"),
    }
}

#[test]
fn every_golden_file_of_a_plugin_loads_and_is_saved_again_as_it_was() -> Result<()> {
    let current: Vec<_> = written()?;
    let mut loaded = BTreeMap::<String, u32>::new();
    for ((owner, name, version), path, data) in kept()? {
        if ["machine", TRANSPORT].contains(&owner.as_str())
            || PASSED_THROUGH.contains(&owner.as_str())
        {
            continue;
        }
        let what = || path.display().to_string();
        let mut device = device(&owner).with_context(what)?;
        let section = name.clone();
        let request = Request::Load {
            section,
            version,
            data: data.payload.clone(),
        };
        device.device.call(&request).with_context(what)?;
        if current.contains(&(owner.clone(), name.clone(), version)) {
            ensure!(
                save(&mut device, &name)? == data.payload,
                "{} is saved as something else: the layout has changed, so the version must",
                path.display()
            );
        }
        *loaded.entry(owner).or_default() += 1;
    }
    ensure!(loaded.len() >= 4, "Only these were loaded: {loaded:?}");
    Ok(())
}

#[test]
fn this_build_loads_what_every_golden_guest_has() -> Result<()> {
    let scratch = Scratch::new()?;
    let options = "-drive if=none,id=d0,file=none -device virtio-blk-pci,drive=d0 \
                   -device virtio-rng-pci -serial null";
    let (machine, _) = description(&scratch, &options.split(' ').collect::<Vec<_>>())?;
    let other = Scratch::new()?;
    let (build, _) = description(&other, &[])?;
    let guests = files(&folder())?;
    ensure!(!guests.is_empty(), "There is none");
    for guest in guests {
        for new in [&machine, &build] {
            let checked = check(&guest, new, &[])?;
            let said = String::from_utf8_lossy(&checked.stdout).into_owned();
            ensure!(
                checked.status.code() == Some(0),
                "{}: {said}",
                guest.display()
            );
        }
    }
    Ok(())
}
