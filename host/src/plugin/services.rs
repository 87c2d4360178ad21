//! What the host does for a device: its end of the contract's calls.

use std::collections::BTreeMap;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use baton_migration::fds::FdTable;
use baton_plugin_api::abi::HostServices;
use baton_plugin_api::protocol::{HostReply, HostRequest};
use baton_plugin_api::{Error, Result};

use super::clocks::Clocks;
use super::opened::Opened;
use crate::chardev::Chardevs;
use crate::fdset::{self, Access};

/// The part of the host's services that depends on the device's bus class: installed once the
/// device's place in the machine exists.
pub trait DeviceBridge: Send + Sync {
    /// Answers what the common part does not: interrupts, BARs, config changes.
    fn call(&self, request: HostRequest) -> Result<HostReply>;
    /// Sets a level-triggered line.
    fn set_irq(&self, line: u32, level: bool) {
        let _ = (line, level);
    }
}

/// Devices that have failed, by id, with the reason. Shared by all of a machine.
#[derive(Debug, Clone, Default)]
pub struct Failures(Arc<Mutex<BTreeMap<String, String>>>);

impl Failures {
    /// Notes that a device has failed; its first reason stays.
    pub fn add(&self, id: &str, reason: &str) {
        tracing::error!(device = id, "the device has failed: {reason}");
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        failures
            .entry(id.to_owned())
            .or_insert_with(|| reason.to_owned());
    }

    /// The device `id` works again, after a reset.
    pub fn remove(&self, id: &str) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id);
    }

    /// Why the device `id` has failed, if it has.
    pub fn get(&self, id: &str) -> Option<String> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(id)
            .cloned()
    }
}

/// Where the devices of a machine note what they report.
#[derive(Debug, Clone)]
pub struct Reports {
    /// That they are broken.
    pub failures: Failures,
    /// That the guest has set a clock.
    pub clocks: Clocks,
    /// That the guest has begun or ceased to use a child.
    pub opened: Opened,
}

/// The services of one device.
pub struct Bridge {
    id: String,
    reports: Reports,
    /// Gone once the device is: a plugin's log keeps the services of its first device for good, and
    /// must not keep the machine with them.
    live: Mutex<Option<Live>>,
}

#[derive(Clone)]
struct Live {
    preserved: Option<Arc<FdTable>>,
    chardevs: Arc<Chardevs>,
    /// The character devices that the device has.
    used: Vec<String>,
    class: Option<Arc<dyn DeviceBridge>>,
}

impl Bridge {
    /// Services for the device `id`; `preserved` is there when it is restored.
    pub fn new(
        id: &str,
        preserved: Option<Arc<FdTable>>,
        chardevs: Arc<Chardevs>,
        reports: Reports,
    ) -> Arc<Self> {
        let live = Mutex::new(Some(Live {
            preserved,
            chardevs,
            used: Vec::new(),
            class: None,
        }));
        Arc::new(Self {
            id: id.to_owned(),
            reports,
            live,
        })
    }

    /// Installs the part of the bus class.
    pub fn install(&self, class: Arc<dyn DeviceBridge>) {
        if let Some(live) = &mut *self.lock() {
            live.class = Some(class);
        }
    }

    /// Ends all services but the log.
    pub fn close(&self) {
        let Some(live) = self.lock().take() else {
            return;
        };
        for chardev in &live.used {
            live.chardevs.release(chardev, &self.id);
        }
    }

    /// The device has let go of a character device.
    pub fn release(&self, chardev: &str) {
        let mut lock = self.lock();
        let Some(live) = &mut *lock else { return };
        if let Some(at) = live.used.iter().position(|used| used == chardev) {
            live.used.remove(at);
            live.chardevs.release(chardev, &self.id);
        }
    }

    /// A copy, so that no lock is held while a service is at work: it may call back.
    fn live(&self) -> Result<Live> {
        self.lock()
            .clone()
            .ok_or_else(|| Error::state("The device is gone"))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn preserved(&self, name: &str, instance: u32) -> Result<HostReply> {
        match self.live()?.preserved {
            Some(table) if table.has(&self.id, name, instance) => table
                .take(&self.id, name, instance)
                .map(given)
                .map_err(|e| Error::state(e.to_string())),
            _ => Ok(HostReply::NoFd),
        }
    }

    fn chardev(&self, id: &str) -> Result<HostReply> {
        let chardevs = self.live()?.chardevs;
        let (input, output) = chardevs.descriptors(id, &self.id).map_err(Error::invalid)?;
        match &mut *self.lock() {
            Some(live) => live.used.push(id.to_owned()),
            None => chardevs.release(id, &self.id),
        }
        Ok(HostReply::Chardev {
            input: input.map(IntoRawFd::into_raw_fd),
            output: output.map(IntoRawFd::into_raw_fd),
        })
    }

    fn of_class(&self, request: HostRequest) -> Result<HostReply> {
        let failed = matches!(request, HostRequest::Failed { .. });
        match self.live().map(|live| live.class) {
            Ok(Some(class)) => class.call(request),
            _ if failed => Ok(HostReply::Done),
            Ok(None) => Err(Error::state("The device asks for its bus before `realize`")),
            Err(e) => Err(e),
        }
    }
}

/// A file that a client of the monitor has opened, if `path` stands for one.
fn passed(path: &str, write: bool, direct: bool) -> Result<HostReply> {
    let access = Access {
        read: true,
        write,
        direct,
    };
    match fdset::open(path.as_ref(), access) {
        None => Ok(HostReply::NoFd),
        Some(Ok(file)) => Ok(given(file.into())),
        Some(Err(e)) => Err(Error::io(format!("Cannot open '{path}'"), &e)),
    }
}

/// Gives a descriptor away with a reply.
pub(crate) fn given(fd: OwnedFd) -> HostReply {
    HostReply::Fd(fd.into_raw_fd())
}

impl HostServices for Bridge {
    fn call(&self, request: HostRequest) -> Result<HostReply> {
        match request {
            HostRequest::PreservedFd { name, instance } => self.preserved(&name, instance),
            HostRequest::PassedFile {
                path,
                write,
                direct,
            } => passed(&path, write, direct),
            HostRequest::Chardev { id } => self.chardev(&id),
            HostRequest::ClockSet { ahead } => self.live().map(|_| {
                self.reports.clocks.set(&self.id, ahead);
                HostReply::Done
            }),
            HostRequest::GuestOpened { child, open } => self.live().map(|_| {
                self.reports.opened.set(&child, open);
                HostReply::Done
            }),
            other => {
                if let HostRequest::Failed { reason } = &other {
                    self.reports.failures.add(&self.id, reason);
                }
                self.of_class(other)
            }
        }
        .map_err(|e| e.in_device(&self.id))
    }

    fn set_irq(&self, line: u32, level: bool) {
        if let Ok(Live {
            class: Some(class), ..
        }) = self.live()
        {
            class.set_irq(line, level);
        }
    }

    fn log(&self, level: u32, target: &str, message: &str) {
        let id = &self.id;
        match level {
            0 | 1 => tracing::error!(target: "plugin", device = id, from = target, "{message}"),
            2 => tracing::warn!(target: "plugin", device = id, from = target, "{message}"),
            3 => tracing::info!(target: "plugin", device = id, from = target, "{message}"),
            4 => tracing::debug!(target: "plugin", device = id, from = target, "{message}"),
            _ => tracing::trace!(target: "plugin", device = id, from = target, "{message}"),
        }
    }

    fn log_level(&self) -> u32 {
        use tracing::level_filters::LevelFilter;
        match LevelFilter::current() {
            LevelFilter::OFF => 0,
            LevelFilter::ERROR => 1,
            LevelFilter::WARN => 2,
            LevelFilter::INFO => 3,
            LevelFilter::DEBUG => 4,
            _ => 5,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use baton_migration::fds::FdKey;

    fn bridge(id: &str, preserved: Option<&Arc<FdTable>>) -> Arc<Bridge> {
        let chardevs = Arc::new(Chardevs::new().unwrap());
        let tell = std::sync::mpsc::channel().0;
        let reports = Reports {
            failures: Failures::default(),
            clocks: Clocks::new(tell.clone()),
            opened: Opened::new(tell),
        };
        Bridge::new(id, preserved.cloned(), chardevs, reports)
    }

    fn claim(bridge: &Bridge) -> Result<HostReply> {
        bridge.call(HostRequest::PreservedFd {
            name: "image".into(),
            instance: 0,
        })
    }

    #[test]
    fn a_bridge_gives_what_was_handed_over_once_and_to_its_device_alone() {
        let table = Arc::new(FdTable::new());
        let fd = std::fs::File::open("/dev/null").unwrap().into();
        table.insert(FdKey::new("disk0", "image", 0), fd).unwrap();
        assert_eq!(claim(&bridge("disk0", None)), Ok(HostReply::NoFd));
        assert_eq!(claim(&bridge("disk1", Some(&table))), Ok(HostReply::NoFd));
        let disk = bridge("disk0", Some(&table));
        let Ok(HostReply::Fd(fd)) = claim(&disk) else {
            panic!("it is not given")
        };
        drop(baton_plugin_api::fd::duplicate(fd).unwrap());
        assert_eq!(claim(&disk), Ok(HostReply::NoFd));
        assert_eq!(table.unclaimed(), []);
    }

    #[test]
    fn a_device_that_is_gone_has_only_its_log() {
        let bridge = bridge("disk0", None);
        bridge.close();
        let error = claim(&bridge).unwrap_err();
        assert_eq!(error.to_string(), "Device 'disk0': The device is gone");
        bridge.log(3, "test", "a last word");
        bridge.set_irq(0, true);
        assert_eq!(
            bridge.call(HostRequest::Failed {
                reason: "late".into()
            }),
            Ok(HostReply::Done)
        );
    }
}
