//! What goes wrong before a device is there, and what to do about it.

use std::io;
use std::path::Path;

use baton_plugin_api::{Error, Result};
use nix::errno::Errno;

use crate::kernel::Kernel;
use crate::properties::{DEVICES, HostDevice};

/// The driver that gives a device to user space.
const DRIVER: &str = "vfio-pci";

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}

pub(crate) fn no_container(error: &io::Error) -> Error {
    let todo = if is(error, Errno::EACCES) || is(error, Errno::EPERM) {
        "; give the user of this process access to /dev/vfio/vfio"
    } else if is(error, Errno::ENOENT) || is(error, Errno::ENODEV) {
        "; load VFIO: modprobe vfio-pci"
    } else {
        ""
    };
    Error::invalid(format!("Cannot open /dev/vfio/vfio: {error}{todo}"))
}

pub(crate) fn no_group_of(device: &HostDevice, error: &io::Error, there: bool) -> Error {
    let name = &device.name;
    if !there {
        return Error::invalid(format!(
            "There is no device {name} ({}); lspci -D lists those there are",
            device.folder.display()
        ));
    }
    if is(error, Errno::ENOENT) {
        return Error::invalid(format!(
            "Device {name} has no IOMMU group: switch the IOMMU on in the host's firmware, and start its \
             kernel with intel_iommu=on if it is an Intel host"
        ));
    }
    Error::io(
        format!("Cannot tell the IOMMU group of device {name}"),
        error,
    )
}

/// The device has another driver, or none.
pub(crate) fn not_bound(device: &HostDevice, driver: Option<&str>) -> Error {
    let name = &device.name;
    let (now, unbind) = match driver {
        Some(driver) => (
            format!("its driver is {driver}"),
            format!("echo {name} > {DEVICES}/{name}/driver/unbind; "),
        ),
        None => ("it has no driver".to_owned(), String::new()),
    };
    Error::invalid(format!(
        "Device {name} is not bound to {DRIVER}, {now}; bind it: modprobe {DRIVER}; echo {DRIVER} > \
         {DEVICES}/{name}/driver_override; {unbind}echo {name} > /sys/bus/pci/drivers_probe"
    ))
}

/// Whether the device is VFIO's to give.
pub(crate) fn check_bound(kernel: &dyn Kernel, device: &HostDevice) -> Result<()> {
    let driver = kernel.driver_of(&device.folder);
    // Variants of the driver for one kind of device, such as mlx5-vfio-pci, have its name as a part.
    let bound = driver
        .as_deref()
        .is_some_and(|name| name.replace('_', "-").contains(DRIVER));
    if bound {
        Ok(())
    } else {
        Err(not_bound(device, driver.as_deref()))
    }
}

pub(crate) fn no_group(number: u32, error: &io::Error) -> Error {
    let todo = if is(error, Errno::EACCES) || is(error, Errno::EPERM) {
        format!("; give the user of this process access: chown USER /dev/vfio/{number}")
    } else if is(error, Errno::EBUSY) {
        "; another process has it, and a group is one process's".to_owned()
    } else if is(error, Errno::ENOENT) {
        "; bind the group's devices to vfio-pci".to_owned()
    } else {
        String::new()
    };
    Error::invalid(format!("Cannot open /dev/vfio/{number}: {error}{todo}"))
}

/// Devices of the group are still the host's.
pub(crate) fn not_viable(kernel: &dyn Kernel, number: u32) -> Error {
    let others: Vec<_> = kernel
        .members(number)
        .iter()
        .filter_map(|folder| Some((name(folder)?, kernel.driver_of(folder)?)))
        .filter(|(_, driver)| !["vfio-pci", "pci-stub", "pcieport"].contains(&driver.as_str()))
        .map(|(name, driver)| format!("{name} ({driver})"))
        .collect();
    let others = if others.is_empty() {
        format!("those in /sys/kernel/iommu_groups/{number}/devices")
    } else {
        others.join(", ")
    };
    Error::invalid(format!(
        "Group {number} is not viable: all devices of an IOMMU group must be bound to vfio-pci, or to no \
         driver; unbind {others}"
    ))
}

fn name(folder: &Path) -> Option<String> {
    Some(folder.file_name()?.to_string_lossy().into_owned())
}

/// A group does not get into the container, or the container no IOMMU.
pub(crate) fn no_iommu(number: u32, error: &io::Error) -> Error {
    let todo = if is(error, Errno::EPERM) {
        "; the host has no interrupt remapping, without which a guest can send any interrupt: switch it \
         on in the firmware, or accept that: modprobe vfio_iommu_type1 allow_unsafe_interrupts=1"
    } else if is(error, Errno::ENODEV) {
        "; load the IOMMU's driver: modprobe vfio_iommu_type1"
    } else if is(error, Errno::EBUSY) {
        "; a guest that was handed over has to run here first: cont"
    } else {
        ""
    };
    Error::invalid(format!(
        "Cannot put group {number} behind the IOMMU: {error}{todo}"
    ))
}

/// The addresses of memory do not change hands.
pub(crate) fn not_given(error: &io::Error) -> Error {
    Error::invalid(format!(
        "Cannot tell VFIO where guest memory is now: {error}; its RAM must be the same, shared, as in the \
         process before"
    ))
}

/// Memory is not mapped.
pub(crate) fn not_mapped(iova: u64, size: u64, error: &io::Error) -> Error {
    let todo = if is(error, Errno::ENOMEM) {
        "; a device's guest has all of its memory locked: raise RLIMIT_MEMLOCK to that of the guest and \
         some more (ulimit -l, LimitMEMLOCK= of a systemd unit)"
    } else if is(error, Errno::EOPNOTSUPP) {
        "; this kind of memory cannot be pinned: take a memory-backend-memfd, or a file in tmpfs or \
         hugetlbfs"
    } else {
        ""
    };
    Error::invalid(format!(
        "Cannot map {size:#x} bytes at {iova:#x} for DMA: {error}{todo}"
    ))
}
