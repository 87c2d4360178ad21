//! A container: one IOMMU address space, in which are the groups of all devices of a process.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use baton_plugin_api::{Error, Result};

use crate::errors;
use crate::kernel::{DmaRange, Extension, Kernel};

/// A container with its IOMMU. It ends with the last group in it, and what is mapped with it.
pub(crate) struct Container {
    kernel: Arc<dyn Kernel>,
    fd: OwnedFd,
    mapped: Mutex<Vec<DmaRange>>,
}

/// A group in a container.
pub(crate) struct Group {
    fd: OwnedFd,
    container: Arc<Container>,
}

impl Container {
    /// A new one with its first group.
    pub(crate) fn open(kernel: &Arc<dyn Kernel>, number: u32) -> Result<Group> {
        let fd = kernel
            .open_container()
            .map_err(|e| errors::no_container(&e))?;
        let known = kernel.is_known_version(fd.as_fd());
        if !known.map_err(|e| errors::no_container(&e))?
            || !kernel.has(fd.as_fd(), Extension::Type1v2)
        {
            return Err(Error::invalid(
                "VFIO of this host has no IOMMU of type 1 version 2; load it: modprobe vfio_iommu_type1",
            ));
        }
        let container = Arc::new(Self {
            kernel: Arc::clone(kernel),
            fd,
            mapped: Mutex::default(),
        });
        let group = Self::put(&container, number)?;
        kernel
            .set_iommu(container.fd.as_fd())
            .map_err(|e| errors::no_iommu(number, &e))?;
        container.check()?;
        Ok(group)
    }

    /// Puts one group more into it.
    pub(crate) fn add(self: &Arc<Self>, number: u32) -> Result<Group> {
        let group = Self::put(self, number)?;
        self.check()?;
        Ok(group)
    }

    fn put(container: &Arc<Self>, number: u32) -> Result<Group> {
        let kernel = &container.kernel;
        let fd = kernel
            .open_group(number)
            .map_err(|e| errors::no_group(number, &e))?;
        let viable = kernel.is_viable(fd.as_fd());
        if !viable.map_err(|e| errors::no_group(number, &e))? {
            return Err(errors::not_viable(&**kernel, number));
        }
        kernel
            .set_container(fd.as_fd(), container.fd.as_fd())
            .map_err(|e| errors::no_iommu(number, &e))?;
        Ok(Group {
            fd,
            container: Arc::clone(container),
        })
    }

    /// Without this the guest's caches would have to be flushed for the device, which KVM does only when
    /// it knows of the group.
    fn check(&self) -> Result<()> {
        if self.kernel.has(self.fd.as_fd(), Extension::CacheCoherent) {
            return Ok(());
        }
        Err(Error::invalid(
            "The host's IOMMU does not keep this device's DMA coherent with the caches \
             (VFIO_DMA_CC_IOMMU), which is not supported; put the device behind another IOMMU",
        ))
    }

    /// Maps what is not mapped yet. It stays so until the container ends.
    pub(crate) fn map(&self, ranges: &[DmaRange]) -> Result<()> {
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        for range in ranges {
            if mapped.contains(range) {
                continue;
            }
            self.kernel
                .map(self.fd.as_fd(), *range)
                .map_err(|e| errors::not_mapped(range.iova, range.size, &e))?;
            mapped.push(*range);
        }
        Ok(())
    }
}

impl Group {
    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    pub(crate) fn container(&self) -> &Arc<Container> {
        &self.container
    }
}
