//! What is asked of the kernel: include/uapi/linux/vfio.h and sysfs, with the unsafe parts taken out.
//! Tests have a kernel of their own.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

/// An extension of a container: VFIO_CHECK_EXTENSION.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extension {
    /// The IOMMU model for x86, in its second version: what was mapped is unmapped whole.
    Type1v2,
    /// DMA is coherent with the CPUs' caches, whatever the device asks for.
    CacheCoherent,
    /// Memory that is mapped can be told to be elsewhere in a process, or in another one.
    UpdateAddress,
    /// Everything can be unmapped at once, or told to be nowhere.
    UnmapAll,
}

/// A piece of memory for DMA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DmaRange {
    /// Where the device finds it, which is where the guest does.
    pub(crate) iova: u64,
    /// Bytes.
    pub(crate) size: u64,
    /// Where it is in this process.
    pub(crate) address: u64,
}

/// What a device is: VFIO_DEVICE_GET_INFO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeviceInfo {
    /// On PCI.
    pub(crate) pci: bool,
    /// VFIO_DEVICE_RESET works.
    pub(crate) resets: bool,
}

/// A region of a device: VFIO_DEVICE_GET_REGION_INFO.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Region {
    /// Bytes; 0 if there is none.
    pub(crate) size: u64,
    /// Where it is in the device's descriptor.
    pub(crate) offset: u64,
    /// What of it can be mapped, to be read and written, as (offset, bytes).
    pub(crate) mappable: Vec<(u64, u64)>,
}

/// Kinds of interrupts of a PCI device, as VFIO numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Irq {
    Msi = 1,
    Msix = 2,
    /// The device has an error that it cannot recover from.
    Error = 3,
    /// The host wants the device back.
    Request = 4,
}

/// The kernel.
pub(crate) trait Kernel: Send + Sync {
    /// Whether a folder is there.
    fn exists(&self, folder: &Path) -> bool;

    /// The group of a device: the link `iommu_group` in its folder.
    fn group_of(&self, folder: &Path) -> io::Result<u32>;

    /// The driver that has a device: the link `driver` in its folder.
    fn driver_of(&self, folder: &Path) -> Option<String>;

    /// Folders of the devices of a group.
    fn members(&self, group: u32) -> Vec<PathBuf>;

    /// Opens `/dev/vfio/vfio`.
    fn open_container(&self) -> io::Result<OwnedFd>;

    /// Opens `/dev/vfio/N`.
    fn open_group(&self, group: u32) -> io::Result<OwnedFd>;

    /// The number of a group that is open, if that can be told.
    fn number_of(&self, group: BorrowedFd<'_>) -> Option<u32>;

    /// Whether it speaks this version of the API: VFIO_GET_API_VERSION.
    fn is_known_version(&self, container: BorrowedFd<'_>) -> io::Result<bool>;

    fn has(&self, container: BorrowedFd<'_>, extension: Extension) -> bool;

    /// VFIO_SET_IOMMU, to type 1 version 2: once a group is in the container.
    fn set_iommu(&self, container: BorrowedFd<'_>) -> io::Result<()>;

    /// VFIO_GROUP_GET_STATUS: whether all of its devices are VFIO's, or nobody's.
    fn is_viable(&self, group: BorrowedFd<'_>) -> io::Result<bool>;

    /// VFIO_GROUP_SET_CONTAINER.
    fn set_container(&self, group: BorrowedFd<'_>, container: BorrowedFd<'_>) -> io::Result<()>;

    /// VFIO_GROUP_GET_DEVICE_FD. The first descriptor of a device resets it.
    fn open_device(&self, group: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd>;

    /// VFIO_IOMMU_MAP_DMA, for reads and writes: pins the memory.
    fn map(&self, container: BorrowedFd<'_>, range: DmaRange) -> io::Result<()>;

    /// VFIO_IOMMU_UNMAP_DMA of all addresses in the process, and of nothing else: devices go on to use
    /// the memory, which stays pinned, and whoever has it gives the addresses anew.
    fn take_addresses(&self, container: BorrowedFd<'_>) -> io::Result<()>;

    /// VFIO_IOMMU_MAP_DMA of an address that was taken; the memory must be the same.
    fn give_address(&self, container: BorrowedFd<'_>, range: DmaRange) -> io::Result<()>;

    fn device_info(&self, device: BorrowedFd<'_>) -> io::Result<DeviceInfo>;

    fn region(&self, device: BorrowedFd<'_>, index: u32) -> io::Result<Region>;

    /// How many interrupts of a kind there are that an eventfd can be told of:
    /// VFIO_DEVICE_GET_IRQ_INFO.
    fn irqs(&self, device: BorrowedFd<'_>, kind: Irq) -> io::Result<u32>;

    /// VFIO_DEVICE_SET_IRQS: each interrupt from the first on is told to an eventfd; with none the kind
    /// is switched off. What it gives is 0, or how many would be possible.
    fn set_irqs(&self, device: BorrowedFd<'_>, kind: Irq, events: &[RawFd]) -> io::Result<u32>;

    /// VFIO_DEVICE_RESET.
    fn reset(&self, device: BorrowedFd<'_>) -> io::Result<()>;

    /// Reads all of `data` at `offset` of the device's descriptor.
    fn read(&self, device: BorrowedFd<'_>, offset: u64, data: &mut [u8]) -> io::Result<()>;

    /// Writes all of `data`.
    fn write(&self, device: BorrowedFd<'_>, offset: u64, data: &[u8]) -> io::Result<()>;
}
