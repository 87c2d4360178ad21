//! What the devices of a process share: one container, and each group once.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use baton_plugin_api::{Error, Result};

use crate::container::{Container, Group};
use crate::errors;
use crate::hardware::Hardware;
use crate::kernel::Kernel;
use crate::linux::Linux;
use crate::properties::HostDevice;

/// VFIO in this process. Each build of the plugin that is loaded has its own.
pub(crate) struct Vfio {
    kernel: Arc<dyn Kernel>,
    groups: Mutex<BTreeMap<u32, Weak<Group>>>,
}

impl Vfio {
    /// That of a kernel, with no group open.
    pub(crate) fn new(kernel: Arc<dyn Kernel>) -> Arc<Self> {
        Arc::new(Self {
            kernel,
            groups: Mutex::default(),
        })
    }

    /// This process's.
    pub(crate) fn shared() -> Arc<Self> {
        static SHARED: OnceLock<Arc<Vfio>> = OnceLock::new();
        Arc::clone(SHARED.get_or_init(|| Self::new(Arc::new(Linux))))
    }

    /// Opens a device, and its group and the container unless another device has.
    pub(crate) fn open(&self, device: &HostDevice) -> Result<Hardware> {
        let number = self.kernel.group_of(&device.folder).map_err(|e| {
            let there = self.kernel.exists(&device.folder);
            errors::no_group_of(device, &e, there)
        })?;
        errors::check_bound(&*self.kernel, device)?;
        let group = self.group(number)?;
        let fd = self.kernel.open_device(group.fd().as_fd(), &device.name);
        let fd = fd.map_err(|e| Error::io(format!("Cannot open device {}", device.name), &e))?;
        Hardware::new(Arc::clone(&self.kernel), fd, group, device)
    }

    fn group(&self, number: u32) -> Result<Arc<Group>> {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        groups.retain(|_, group| group.strong_count() > 0);
        if let Some(group) = groups.get(&number).and_then(Weak::upgrade) {
            return Ok(group);
        }
        let other = groups.values().find_map(Weak::upgrade);
        let group = match other {
            Some(other) => other.container().add(number)?,
            None => Container::open(&self.kernel, number)?,
        };
        let group = Arc::new(group);
        groups.insert(number, Arc::downgrade(&group));
        Ok(group)
    }
}
