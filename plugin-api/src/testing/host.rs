//! A host that keeps what a device says to it.

use std::collections::BTreeMap;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::abi::{HostHandle, HostRef, HostServices};
use crate::config::Config;
use crate::descriptor::Value;
use crate::device::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::fd::borrow;
use crate::host::{Chardev, Host};
use crate::protocol::{HostReply, HostRequest, MsiMessage};

/// How long a test waits for what must happen before it fails.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// A host for one device.
#[derive(Default)]
pub struct TestHost {
    state: Mutex<State>,
    /// There is one failure more.
    failed: Condvar,
}

#[derive(Default)]
struct State {
    irqfds: BTreeMap<u32, EventFd>,
    levels: BTreeMap<u32, bool>,
    chardevs: BTreeMap<String, Chardev>,
    preserved: BTreeMap<(String, u32), OwnedFd>,
    bars: BTreeMap<u32, u64>,
    maps: BTreeMap<(u32, u64), u64>,
    without_maps: bool,
    vectors: BTreeMap<u32, MsiMessage>,
    config_changes: u32,
    vfio_files: u32,
    without_vfio: bool,
    clocks: Vec<i64>,
    opened: Vec<(String, bool)>,
    failures: Vec<String>,
    log: Vec<(u32, String)>,
}

impl TestHost {
    /// A host with nothing in it.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// What a device is created with.
    pub fn host(self: &Arc<Self>) -> Host {
        Host::new(HostRef::new(HostHandle::new(self.clone())))
    }

    /// Adds a character device. The device under test gets duplicates.
    pub fn add_chardev(&self, id: &str, chardev: Chardev) {
        self.state().chardevs.insert(id.to_owned(), chardev);
    }

    /// How far the clock was ahead of the host's, in seconds, each time that the guest has set it.
    pub fn clocks_set(&self) -> Vec<i64> {
        self.state().clocks.clone()
    }

    /// Each time that the guest has begun or ceased to use a child of the device.
    pub fn guest_opened(&self) -> Vec<(String, bool)> {
        self.state().opened.clone()
    }

    /// Adds a descriptor that the device handed over elsewhere.
    pub fn preserve(&self, name: &str, instance: u32, fd: OwnedFd) {
        self.state()
            .preserved
            .insert((name.to_owned(), instance), fd);
    }

    /// The descriptors of [`Self::preserve`] that nobody has claimed.
    pub fn unclaimed(&self) -> Vec<(String, u32)> {
        self.state().preserved.keys().cloned().collect()
    }

    /// How often an edge-triggered line, or an MSI-X vector, was raised since the last question.
    pub fn interrupts(&self, line: u32) -> u64 {
        self.irqfd(line).map_or(0, |fd| fd.read().unwrap_or(0))
    }

    /// The same, once there is one; panics after [`DEADLINE`].
    pub fn wait_for_interrupt(&self, line: u32) -> u64 {
        let end = Instant::now() + DEADLINE;
        let fd = self.irqfd(line).expect("the device has asked for the line");
        loop {
            if let Ok(count) = fd.read() {
                return count;
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no interrupt on line {line}");
            let mut fds = [PollFd::new(borrow(&fd), PollFlags::POLLIN)];
            let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap();
            let _ = poll(&mut fds, timeout);
        }
    }

    /// The state of a level-triggered line.
    pub fn level(&self, line: u32) -> bool {
        self.state().levels.get(&line).copied().unwrap_or(false)
    }

    /// Where a PCI function's BAR decodes.
    pub fn bar(&self, bar: u32) -> Option<u64> {
        self.state().bars.get(&bar).copied()
    }

    /// The parts of BARs that are memory of a descriptor: the BAR, where in it, and how many bytes.
    pub fn mapped(&self) -> Vec<(u32, u64, u64)> {
        let maps = self.state().maps.clone().into_iter();
        maps.map(|((bar, offset), size)| (bar, offset, size))
            .collect()
    }

    /// How often the device has said that it is one of the host's.
    pub fn vfio_files(&self) -> u32 {
        self.state().vfio_files
    }

    /// From here on it is a host that does not know [`HostRequest::VfioFile`].
    pub fn forget_vfio(&self) {
        self.state().without_vfio = true;
    }

    /// From here on it is a host that does not know [`HostRequest::PciMap`].
    pub fn forget_maps(&self) {
        self.state().without_maps = true;
    }

    /// What an MSI-X vector sends.
    pub fn vector(&self, vector: u32) -> Option<MsiMessage> {
        self.state().vectors.get(&vector).copied()
    }

    /// How often the device has said that its config space changed.
    pub fn config_changes(&self) -> u32 {
        self.state().config_changes
    }

    /// Why the device said it is broken, each time.
    pub fn failures(&self) -> Vec<String> {
        self.state().failures.clone()
    }

    /// The same, once there is one; panics after [`DEADLINE`].
    pub fn wait_for_failure(&self) -> Vec<String> {
        let (state, timeout) = self
            .failed
            .wait_timeout_while(self.state(), DEADLINE, |state| state.failures.is_empty())
            .unwrap();
        assert!(!timeout.timed_out(), "the device has not failed");
        state.failures.clone()
    }

    /// The lines of the log, with their level.
    pub fn logged(&self) -> Vec<(u32, String)> {
        self.state().log.clone()
    }

    fn irqfd(&self, line: u32) -> Option<EventFd> {
        let state = self.state();
        state.irqfds.get(&line).map(|fd| fd.try_clone().unwrap())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl HostServices for TestHost {
    fn call(&self, request: HostRequest) -> Result<HostReply> {
        let mut state = self.state();
        Ok(match request {
            HostRequest::PreservedFd { name, instance } => {
                match state.preserved.remove(&(name, instance)) {
                    Some(fd) => HostReply::Fd(fd.into_raw_fd()),
                    None => HostReply::NoFd,
                }
            }
            HostRequest::PassedFile { .. } => HostReply::NoFd,
            HostRequest::Irqfd { line } => {
                let fd = state
                    .irqfds
                    .entry(line)
                    .or_insert_with(|| EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).unwrap());
                HostReply::Fd(fd.try_clone().unwrap().into_raw_fd())
            }
            HostRequest::Chardev { id } => {
                let chardev = state
                    .chardevs
                    .get(&id)
                    .ok_or_else(|| Error::invalid(format!("There is no chardev '{id}'")))?;
                let give = |fd: &Option<OwnedFd>| {
                    fd.as_ref().map(|fd| fd.try_clone().unwrap().into_raw_fd())
                };
                HostReply::Chardev {
                    input: give(&chardev.input),
                    output: give(&chardev.output),
                }
            }
            HostRequest::IoEventFd { .. } => HostReply::Done,
            HostRequest::ConfigChanged => {
                state.config_changes += 1;
                HostReply::Done
            }
            HostRequest::ClockSet { ahead } => {
                state.clocks.push(ahead);
                HostReply::Done
            }
            HostRequest::GuestOpened { child, open } => {
                state.opened.push((child, open));
                HostReply::Done
            }
            HostRequest::PciBar { bar, address } => {
                let taken = |(other, at): (&u32, &u64)| *other != bar && Some(*at) == address;
                if state.bars.iter().any(taken) {
                    return Err(Error::invalid(format!(
                        "BAR {bar} is told to be at another's"
                    )));
                }
                match address {
                    Some(address) => state.bars.insert(bar, address),
                    None => state.bars.remove(&bar),
                };
                HostReply::Done
            }
            HostRequest::PciMap { .. } if state.without_maps => {
                return Err(Error::new(ErrorKind::Unsupported, "What is that?"));
            }
            HostRequest::PciMap {
                bar, offset, size, ..
            } => {
                state.maps.insert((bar, offset), size);
                HostReply::Done
            }
            HostRequest::VfioFile { .. } if state.without_vfio => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    "It does not know VfioFile",
                ));
            }
            HostRequest::VfioFile { .. } => {
                state.vfio_files += 1;
                HostReply::Done
            }
            HostRequest::MsixVector { vector, message } => {
                match message {
                    Some(message) => state.vectors.insert(vector, message),
                    None => state.vectors.remove(&vector),
                };
                HostReply::Done
            }
            HostRequest::Failed { reason } => {
                state.failures.push(reason);
                self.failed.notify_all();
                HostReply::Done
            }
        })
    }

    fn set_irq(&self, line: u32, level: bool) {
        self.state().levels.insert(line, level);
    }

    fn log(&self, level: u32, _target: &str, message: &str) {
        self.state().log.push((level, message.to_owned()));
    }

    fn log_level(&self) -> u32 {
        5
    }
}

/// The config of a device of type `D` with these properties said, and the defaults of the others.
pub fn config_of<D: Device>(id: &str, said: &[(&str, Value)]) -> Config {
    let defaults = D::device_type()
        .properties
        .into_iter()
        .filter_map(|p| Some((p.name, p.default?)));
    let said = said.iter().map(|(k, v)| ((*k).to_owned(), v.clone()));
    Config {
        id: id.to_owned(),
        properties: defaults.chain(said).collect(),
        ..Config::default()
    }
}
