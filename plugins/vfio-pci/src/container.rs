//! A container: one IOMMU address space, in which are the groups of all devices of a process.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use baton_plugin_api::{Error, Result};
use nix::errno::Errno;

use crate::errors;
use crate::kernel::{DmaRange, Extension, Kernel};

/// A container with its IOMMU. It ends with the last group in it, and what is mapped with it.
pub(crate) struct Container {
    kernel: Arc<dyn Kernel>,
    fd: OwnedFd,
    memory: Mutex<Memory>,
}

/// What is mapped.
struct Memory {
    ranges: Vec<DmaRange>,
    addresses: Addresses,
}

/// Whose addresses in a process the container has. Devices reach the memory whatever they are, since it
/// is pinned; the kernel needs them to map more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Addresses {
    /// This process's.
    Ours,
    /// None: they were this process's, and have been taken for a handover.
    Taken,
    /// None, or those of the instance that handed the container over.
    Others,
}

/// A group in a container.
pub(crate) struct Group {
    fd: OwnedFd,
    container: Arc<Container>,
}

impl Container {
    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

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
            memory: Mutex::new(Memory {
                ranges: Vec::new(),
                addresses: Addresses::Ours,
            }),
        });
        let group = Self::put(&container, number)?;
        kernel
            .set_iommu(container.fd.as_fd())
            .map_err(|e| errors::no_iommu(number, &e))?;
        Ok(group)
    }

    /// One that was handed over, with its IOMMU and what is mapped.
    pub(crate) fn adopt(kernel: &Arc<dyn Kernel>, fd: OwnedFd) -> Arc<Self> {
        Arc::new(Self {
            kernel: Arc::clone(kernel),
            fd,
            memory: Mutex::new(Memory {
                ranges: Vec::new(),
                addresses: Addresses::Others,
            }),
        })
    }

    /// What it lacks to be handed over, by the kernel's name.
    pub(crate) fn lacks(&self) -> Option<&'static str> {
        let wanted = [
            (Extension::UpdateAddress, "VFIO_UPDATE_VADDR"),
            (Extension::UnmapAll, "VFIO_UNMAP_ALL"),
        ];
        let lacking = wanted
            .into_iter()
            .find(|(extension, _)| !self.kernel.has(self.fd.as_fd(), *extension));
        lacking.map(|(_, name)| name)
    }

    /// Puts one group more into it.
    pub(crate) fn add(self: &Arc<Self>, number: u32) -> Result<Group> {
        // The kernel takes no group while it does not know where the memory is.
        self.give_back(&mut self.memory())?;
        Self::put(self, number)
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

    /// Whether DMA keeps to the caches whatever the device asks for. Otherwise the guest's flushes must
    /// have an effect, for which KVM has to know of the group.
    pub(crate) fn is_coherent(&self) -> bool {
        self.kernel.has(self.fd.as_fd(), Extension::CacheCoherent)
    }

    /// Maps what is not mapped yet, and says where in this process it is if that is not known. It stays
    /// so until the container ends.
    pub(crate) fn map(&self, ranges: &[DmaRange]) -> Result<()> {
        let mut memory = self.memory();
        match memory.addresses {
            Addresses::Ours | Addresses::Taken => self.give_back(&mut memory)?,
            Addresses::Others => {
                memory.ranges = self.take_over(ranges)?;
                memory.addresses = Addresses::Ours;
            }
        }
        for range in ranges {
            if memory.ranges.contains(range) {
                continue;
            }
            self.kernel
                .map(self.fd.as_fd(), *range)
                .map_err(|e| errors::not_mapped(range.iova, range.size, &e))?;
            memory.ranges.push(*range);
        }
        Ok(())
    }

    /// Another process, or another program in this one, says next where the memory is.
    pub(crate) fn take_addresses(&self) -> Result<()> {
        let mut memory = self.memory();
        if memory.addresses == Addresses::Ours {
            self.kernel
                .take_addresses(self.fd.as_fd())
                .map_err(|e| errors::not_given(&e))?;
            memory.addresses = Addresses::Taken;
        }
        Ok(())
    }

    /// Undoes [`Self::take_addresses`].
    fn give_back(&self, memory: &mut Memory) -> Result<()> {
        if memory.addresses == Addresses::Taken {
            for range in &memory.ranges {
                self.give(*range).map_err(|e| errors::not_given(&e))?;
            }
            memory.addresses = Addresses::Ours;
        }
        Ok(())
    }

    /// Gives the addresses of what whoever handed it over has mapped; which of `ranges` that is.
    fn take_over(&self, ranges: &[DmaRange]) -> Result<Vec<DmaRange>> {
        let mut there = self.give_all(ranges);
        if matches!(&there, Err(e) if e.raw_os_error() == Some(Errno::EINVAL as i32)) {
            // They were not taken: it is an instance in this process that hands over. If they were, the
            // memory is another, and this fails.
            there = self
                .kernel
                .take_addresses(self.fd.as_fd())
                .and_then(|()| self.give_all(ranges));
        }
        there.map_err(|e| errors::not_given(&e))
    }

    /// Gives the addresses of what is mapped of `ranges`, and which that is.
    fn give_all(&self, ranges: &[DmaRange]) -> std::io::Result<Vec<DmaRange>> {
        let mut there = Vec::new();
        for range in ranges {
            match self.give(*range) {
                Ok(()) => there.push(*range),
                Err(e) if e.raw_os_error() == Some(Errno::ENOENT as i32) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(there)
    }

    fn give(&self, range: DmaRange) -> std::io::Result<()> {
        self.kernel.give_address(self.fd.as_fd(), range)
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Group {
    /// One that was handed over, and is in `container`.
    pub(crate) fn adopt(fd: OwnedFd, container: Arc<Container>) -> Self {
        Self { fd, container }
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    pub(crate) fn container(&self) -> &Arc<Container> {
        &self.container
    }
}
