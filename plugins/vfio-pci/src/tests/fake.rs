//! A kernel with devices that are not there.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use baton_plugin_api::testing::TestHost;
use nix::errno::Errno;
use nix::unistd;

use crate::kernel::{DeviceInfo, DmaRange, Extension, Irq, Kernel, Region};
use crate::properties::DEVICES;

pub(super) const COMMAND: usize = 0x04;
/// Where a region is in a device's descriptor, as in the kernel.
const SHIFT: u64 = 40;
const CONFIG: u64 = 7;

pub(super) const EXTENSIONS: [Extension; 4] = [
    Extension::Type1v2,
    Extension::CacheCoherent,
    Extension::UpdateAddress,
    Extension::UnmapAll,
];

/// What a descriptor is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    Container,
    Group(u32),
    Device(String),
}

/// A descriptor that was given away.
struct Given {
    what: What,
    inode: u64,
    /// Its other end.
    peer: UnixStream,
}

/// A device.
pub(super) struct FakeDevice {
    pub(super) group: u32,
    pub(super) driver: Option<&'static str>,
    pub(super) resets: bool,
    pub(super) config: Vec<u8>,
    pub(super) config_writable: Vec<u8>,
    pub(super) regions: [Region; 6],
    pub(super) bars: [Vec<u8>; 6],
    pub(super) irqs: BTreeMap<Irq, u32>,
    /// The most interrupts that the host has for it.
    pub(super) possible: u32,
    triggers: BTreeMap<Irq, Vec<OwnedFd>>,
}

pub(super) struct State {
    pub(super) devices: BTreeMap<String, FakeDevice>,
    pub(super) extensions: Vec<Extension>,
    pub(super) viable: bool,
    /// What fails, and how.
    pub(super) failing: BTreeMap<&'static str, Errno>,
    given: Vec<Given>,
    pub(super) mapped: Vec<DmaRange>,
    /// Which of those have no address.
    pub(super) nowhere: Vec<u64>,
    /// What was asked for that changes something.
    pub(super) calls: Vec<String>,
    /// Is asked for BAR 0 at every write to the command register.
    pub(super) host: Option<Arc<TestHost>>,
}

pub(super) struct Fake(Mutex<State>);

impl FakeDevice {
    /// A device in group 7 whose registers are zero, with these BARs in bytes.
    pub(super) fn new(sizes: [u64; 6]) -> Self {
        let region = |bar: usize| Region {
            size: sizes[bar],
            offset: (bar as u64) << SHIFT,
            mappable: vec![(0, sizes[bar])],
        };
        let mut writable = vec![0; 4096];
        writable[COMMAND..COMMAND + 2].copy_from_slice(&0x0547u16.to_le_bytes());
        Self {
            group: 7,
            driver: Some("vfio-pci"),
            resets: true,
            config: vec![0; 4096],
            config_writable: writable,
            regions: std::array::from_fn(region),
            bars: std::array::from_fn(|bar| vec![0; sizes[bar] as usize]),
            irqs: BTreeMap::new(),
            possible: u32::MAX,
            triggers: BTreeMap::new(),
        }
    }

    pub(super) fn put(&mut self, at: usize, bytes: &[u8]) {
        self.config[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub(super) fn command(&self) -> u16 {
        u16::from_le_bytes([self.config[COMMAND], self.config[COMMAND + 1]])
    }

    /// How many interrupts of a kind are told to somebody.
    pub(super) fn told(&self, kind: Irq) -> usize {
        self.triggers.get(&kind).map_or(0, Vec::len)
    }

    /// The device interrupts.
    pub(super) fn interrupt(&self, kind: Irq, vector: usize) {
        let trigger = &self.triggers[&kind][vector];
        unistd::write(trigger, &1u64.to_ne_bytes()).unwrap();
    }
}

impl Fake {
    pub(super) fn new(devices: impl IntoIterator<Item = (&'static str, FakeDevice)>) -> Arc<Self> {
        let devices = devices.into_iter().map(|(n, d)| (n.to_owned(), d));
        Arc::new(Self(Mutex::new(State {
            devices: devices.collect(),
            extensions: EXTENSIONS.to_vec(),
            viable: true,
            failing: BTreeMap::new(),
            given: Vec::new(),
            mapped: Vec::new(),
            nowhere: Vec::new(),
            calls: Vec::new(),
            host: None,
        })))
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// What was asked for since the last question.
    pub(super) fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.state().calls)
    }

    /// The descriptors that are still open somewhere.
    pub(super) fn open(&self) -> Vec<What> {
        let mut state = self.state();
        // The end is read once nobody has the other one.
        state
            .given
            .retain_mut(|given| given.peer.read(&mut [0]).is_err());
        state.given.iter().map(|given| given.what.clone()).collect()
    }

    fn give(&self, what: What) -> OwnedFd {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let theirs = OwnedFd::from(theirs);
        self.state().given.push(Given {
            what,
            inode: inode(theirs.as_fd()),
            peer: ours,
        });
        theirs
    }

    fn what(&self, fd: BorrowedFd<'_>) -> What {
        let inode = inode(fd);
        let state = self.state();
        let mut given = state.given.iter();
        let found = given.find(|given| given.inode == inode);
        found.expect("it is none of VFIO's").what.clone()
    }

    fn device<T>(&self, fd: BorrowedFd<'_>, f: impl FnOnce(&mut FakeDevice) -> T) -> T {
        let What::Device(name) = self.what(fd) else {
            panic!("it is no device");
        };
        f(self.state().devices.get_mut(&name).unwrap())
    }

    fn call(&self, name: &'static str, said: &str) -> io::Result<()> {
        let mut state = self.state();
        state.calls.push(format!("{name} {said}").trim().to_owned());
        match state.failing.get(name) {
            Some(errno) => Err((*errno).into()),
            None => Ok(()),
        }
    }
}

fn inode(fd: BorrowedFd<'_>) -> u64 {
    let file = File::from(fd.try_clone_to_owned().unwrap());
    file.metadata().unwrap().ino()
}

fn name(folder: &Path) -> &str {
    folder.file_name().unwrap().to_str().unwrap()
}

impl Kernel for Fake {
    fn exists(&self, folder: &Path) -> bool {
        self.state().devices.contains_key(name(folder))
    }

    fn group_of(&self, folder: &Path) -> io::Result<u32> {
        let state = self.state();
        if let Some(errno) = state.failing.get("group_of") {
            return Err((*errno).into());
        }
        let device = state.devices.get(name(folder));
        device.map(|it| it.group).ok_or(Errno::ENOENT.into())
    }

    fn driver_of(&self, folder: &Path) -> Option<String> {
        let state = self.state();
        state.devices.get(name(folder))?.driver.map(str::to_owned)
    }

    fn members(&self, group: u32) -> Vec<PathBuf> {
        let state = self.state();
        let members = state.devices.iter().filter(|(_, it)| it.group == group);
        members
            .map(|(name, _)| Path::new(DEVICES).join(name))
            .collect()
    }

    fn open_container(&self) -> io::Result<OwnedFd> {
        self.call("open_container", "")?;
        // There is one at a time.
        self.state().mapped.clear();
        self.state().nowhere.clear();
        Ok(self.give(What::Container))
    }

    fn open_group(&self, group: u32) -> io::Result<OwnedFd> {
        self.call("open_group", &group.to_string())?;
        Ok(self.give(What::Group(group)))
    }

    fn number_of(&self, group: BorrowedFd<'_>) -> Option<u32> {
        match self.what(group) {
            What::Group(number) => Some(number),
            _ => None,
        }
    }

    fn is_known_version(&self, container: BorrowedFd<'_>) -> io::Result<bool> {
        Ok(self.what(container) == What::Container)
    }

    fn has(&self, _container: BorrowedFd<'_>, extension: Extension) -> bool {
        self.state().extensions.contains(&extension)
    }

    fn set_iommu(&self, container: BorrowedFd<'_>) -> io::Result<()> {
        assert_eq!(self.what(container), What::Container);
        self.call("set_iommu", "")
    }

    fn is_viable(&self, _group: BorrowedFd<'_>) -> io::Result<bool> {
        Ok(self.state().viable)
    }

    fn set_container(&self, group: BorrowedFd<'_>, container: BorrowedFd<'_>) -> io::Result<()> {
        assert_eq!(self.what(container), What::Container);
        let What::Group(number) = self.what(group) else {
            panic!("it is no group");
        };
        self.call("set_container", &number.to_string())?;
        match self.state().nowhere.is_empty() {
            true => Ok(()),
            false => Err(Errno::EBUSY.into()),
        }
    }

    fn open_device(&self, group: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
        assert!(matches!(self.what(group), What::Group(_)));
        self.call("open_device", name)?;
        Ok(self.give(What::Device(name.to_owned())))
    }

    fn map(&self, container: BorrowedFd<'_>, range: DmaRange) -> io::Result<()> {
        assert_eq!(self.what(container), What::Container);
        self.call("map", &format!("{:#x} {:#x}", range.iova, range.size))?;
        let mut state = self.state();
        if state.mapped.iter().any(|known| known.iova == range.iova) {
            return Err(Errno::EEXIST.into());
        }
        state.mapped.push(range);
        Ok(())
    }

    fn take_addresses(&self, container: BorrowedFd<'_>) -> io::Result<()> {
        assert_eq!(self.what(container), What::Container);
        self.call("take_addresses", "")?;
        let mut state = self.state();
        if !state.nowhere.is_empty() {
            return Err(Errno::EINVAL.into());
        }
        state.nowhere = state.mapped.iter().map(|range| range.iova).collect();
        Ok(())
    }

    fn give_address(&self, container: BorrowedFd<'_>, range: DmaRange) -> io::Result<()> {
        assert_eq!(self.what(container), What::Container);
        self.call("give_address", &format!("{:#x}", range.iova))?;
        let mut state = self.state();
        let State {
            mapped, nowhere, ..
        } = &mut *state;
        let known = mapped.iter_mut().find(|known| known.iova == range.iova);
        let known = known.ok_or(Errno::ENOENT)?;
        if known.size != range.size || !nowhere.contains(&range.iova) {
            return Err(Errno::EINVAL.into());
        }
        nowhere.retain(|iova| *iova != range.iova);
        *known = range;
        Ok(())
    }

    fn device_info(&self, device: BorrowedFd<'_>) -> io::Result<DeviceInfo> {
        self.device(device, |it| {
            Ok(DeviceInfo {
                pci: true,
                resets: it.resets,
            })
        })
    }

    fn region(&self, device: BorrowedFd<'_>, index: u32) -> io::Result<Region> {
        let config = Region {
            size: 4096,
            offset: CONFIG << SHIFT,
            mappable: Vec::new(),
        };
        self.device(device, |it| {
            let region = it.regions.get(index as usize).cloned();
            Ok(region.unwrap_or(config))
        })
    }

    fn irqs(&self, device: BorrowedFd<'_>, kind: Irq) -> io::Result<u32> {
        self.device(device, |it| Ok(it.irqs.get(&kind).copied().unwrap_or(0)))
    }

    fn set_irqs(&self, device: BorrowedFd<'_>, kind: Irq, events: &[RawFd]) -> io::Result<u32> {
        self.call("set_irqs", &format!("{kind:?} {}", events.len()))?;
        self.device(device, |it| {
            if events.is_empty() {
                // What is not on cannot be switched off.
                let off = it.triggers.remove(&kind);
                return off.map(|_| 0).ok_or(Errno::EINVAL.into());
            }
            if events.len() as u32 > it.possible {
                return Ok(it.possible);
            }
            // The two kinds exclude each other.
            let other = match kind {
                Irq::Msi => it.triggers.contains_key(&Irq::Msix),
                Irq::Msix => it.triggers.contains_key(&Irq::Msi),
                _ => false,
            };
            if other {
                return Err(Errno::EINVAL.into());
            }
            let own = |fd: &RawFd| baton_plugin_api::fd::duplicate(*fd).unwrap();
            it.triggers.insert(kind, events.iter().map(own).collect());
            Ok(0)
        })
    }

    fn reset(&self, device: BorrowedFd<'_>) -> io::Result<()> {
        self.call("reset", "")?;
        self.device(device, |it| it.bars.iter_mut().for_each(|bar| bar.fill(0)));
        Ok(())
    }

    fn read(&self, device: BorrowedFd<'_>, offset: u64, data: &mut [u8]) -> io::Result<()> {
        if let Some(errno) = self.state().failing.get("read") {
            return Err((*errno).into());
        }
        let at = (offset & ((1 << SHIFT) - 1)) as usize;
        self.device(device, |it| {
            let from = match offset >> SHIFT {
                CONFIG => &it.config,
                bar => &it.bars[bar as usize],
            };
            data.copy_from_slice(&from[at..at + data.len()]);
        });
        Ok(())
    }

    fn write(&self, device: BorrowedFd<'_>, offset: u64, data: &[u8]) -> io::Result<()> {
        let at = (offset & ((1 << SHIFT) - 1)) as usize;
        let bar = (offset >> SHIFT) as usize;
        if bar as u64 != CONFIG {
            self.device(device, |it| {
                it.bars[bar][at..at + data.len()].copy_from_slice(data);
            });
            return Ok(());
        }
        let host = self.state().host.clone();
        let decodes = at == COMMAND && host.is_some_and(|host| host.bar(0).is_some());
        let told = if decodes { " while BAR 0 decodes" } else { "" };
        self.call("config", &format!("{at:#x} {data:02x?}{told}"))?;
        self.device(device, |it| {
            for (at, new) in (at..).zip(data) {
                let mask = it.config_writable[at];
                it.config[at] = it.config[at] & !mask | new & mask;
            }
        });
        Ok(())
    }
}
