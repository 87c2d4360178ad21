//! What the devices of a process share: one container, and each group once.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use baton_plugin_api::{Error, Result};

use crate::container::{Container, Group};
use crate::errors;
use crate::handover::HandedOver;
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
        let number = self.number(device)?;
        errors::check_bound(&*self.kernel, device)?;
        let group = self.group(number, |other| match other {
            Some(container) => container.add(number),
            None => Container::open(&self.kernel, number),
        })?;
        let fd = self.kernel.open_device(group.fd().as_fd(), &device.name);
        let fd = fd.map_err(|e| Error::io(format!("Cannot open device {}", device.name), &e))?;
        Hardware::new(Arc::clone(&self.kernel), fd, group, device)
    }

    /// Takes over a device that is open and at work. Each has come with its group and its container, of
    /// which the first of a process are kept: they are the same. The device is asked what it is, and
    /// nothing else happens to it.
    pub(crate) fn adopt(&self, device: &HostDevice, handed: HandedOver) -> Result<Hardware> {
        let number = self.number(device)?;
        let HandedOver {
            container,
            group,
            device: fd,
        } = handed;
        if let Some(theirs) = self.kernel.number_of(group.as_fd())
            && theirs != number
        {
            return Err(Error::invalid(format!(
                "The guest's device is in IOMMU group {theirs}, and {} in group {number}; name the same \
                 device as the source",
                device.name
            )));
        }
        let group = self.group(number, |other| {
            let container = other.unwrap_or_else(|| Container::adopt(&self.kernel, container));
            Ok(Group::adopt(group, container))
        })?;
        Hardware::new(Arc::clone(&self.kernel), fd, group, device)
    }

    fn number(&self, device: &HostDevice) -> Result<u32> {
        self.kernel.group_of(&device.folder).map_err(|e| {
            let there = self.kernel.exists(&device.folder);
            errors::no_group_of(device, &e, there)
        })
    }

    /// A group that is known, or the one that `new` makes in the container that is known.
    fn group(
        &self,
        number: u32,
        new: impl FnOnce(Option<Arc<Container>>) -> Result<Group>,
    ) -> Result<Arc<Group>> {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        groups.retain(|_, group| group.strong_count() > 0);
        if let Some(group) = groups.get(&number).and_then(Weak::upgrade) {
            return Ok(group);
        }
        let other = groups.values().find_map(Weak::upgrade);
        let group = Arc::new(new(other.map(|other| Arc::clone(other.container())))?);
        groups.insert(number, Arc::downgrade(&group));
        Ok(group)
    }
}
