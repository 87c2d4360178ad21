//! The kernel of this host.
// System calls with pointers.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::{ioctl_readwrite_bad, ioctl_write_int_bad, ioctl_write_ptr_bad, request_code_none};
use vfio_bindings::bindings::vfio::*;

use crate::description::region;
use crate::kernel::{DeviceInfo, DmaRange, Extension, Irq, Kernel, Region};

/// The number of an ioctl of VFIO's: `_IO(VFIO_TYPE, VFIO_BASE + n)`.
macro_rules! vfio {
    ($n:literal) => {
        request_code_none!(VFIO_TYPE, VFIO_BASE + $n)
    };
}

ioctl_write_int_bad!(get_api_version, vfio!(0));
ioctl_write_int_bad!(check_extension, vfio!(1));
ioctl_write_int_bad!(set_iommu, vfio!(2));
ioctl_readwrite_bad!(group_get_status, vfio!(3), vfio_group_status);
ioctl_write_ptr_bad!(group_set_container, vfio!(4), RawFd);
ioctl_write_ptr_bad!(group_get_device_fd, vfio!(6), c_char);
ioctl_readwrite_bad!(device_get_info, vfio!(7), vfio_device_info);
ioctl_readwrite_bad!(device_get_region_info, vfio!(8), vfio_region_info);
ioctl_readwrite_bad!(device_get_irq_info, vfio!(9), vfio_irq_info);
ioctl_write_ptr_bad!(device_set_irqs, vfio!(10), vfio_irq_set);
ioctl_write_int_bad!(device_reset, vfio!(11));
ioctl_write_ptr_bad!(iommu_map_dma, vfio!(13), vfio_iommu_type1_dma_map);
ioctl_readwrite_bad!(iommu_unmap_dma, vfio!(14), vfio_iommu_type1_dma_unmap);

/// The kernel that runs this process.
pub(crate) struct Linux;

impl Kernel for Linux {
    fn exists(&self, folder: &Path) -> bool {
        folder.exists()
    }

    fn group_of(&self, folder: &Path) -> io::Result<u32> {
        let group = fs::read_link(folder.join("iommu_group"))?;
        let number = group.file_name().and_then(|name| name.to_str());
        number
            .and_then(|number| number.parse().ok())
            .ok_or_else(|| io::Error::other("its group has no number"))
    }

    fn driver_of(&self, folder: &Path) -> Option<String> {
        let driver = fs::read_link(folder.join("driver")).ok()?;
        Some(driver.file_name()?.to_string_lossy().into_owned())
    }

    fn members(&self, group: u32) -> Vec<PathBuf> {
        let folder = format!("/sys/kernel/iommu_groups/{group}/devices");
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let mut members: Vec<_> = entries.map(|entry| entry.path()).collect();
        members.sort();
        members
    }

    fn open_container(&self) -> io::Result<OwnedFd> {
        open(Path::new("/dev/vfio/vfio"))
    }

    fn open_group(&self, group: u32) -> io::Result<OwnedFd> {
        open(&Path::new("/dev/vfio").join(group.to_string()))
    }

    fn number_of(&self, group: BorrowedFd<'_>) -> Option<u32> {
        let link = format!("/proc/self/fd/{}", group.as_raw_fd());
        let path = fs::read_link(link).ok()?;
        let number = path.strip_prefix("/dev/vfio").ok()?;
        number.to_str()?.parse().ok()
    }

    fn is_known_version(&self, container: BorrowedFd<'_>) -> io::Result<bool> {
        // SAFETY: it takes no argument.
        let version = unsafe { get_api_version(container.as_raw_fd(), 0) }?;
        Ok(u32::try_from(version) == Ok(VFIO_API_VERSION))
    }

    fn has(&self, container: BorrowedFd<'_>, extension: Extension) -> bool {
        let number = match extension {
            Extension::Type1v2 => VFIO_TYPE1v2_IOMMU,
            Extension::CacheCoherent => VFIO_DMA_CC_IOMMU,
            Extension::UpdateAddress => VFIO_UPDATE_VADDR,
            Extension::UnmapAll => VFIO_UNMAP_ALL,
        };
        // SAFETY: its argument is a number.
        unsafe { check_extension(container.as_raw_fd(), number as i32) }.is_ok_and(|has| has > 0)
    }

    fn set_iommu(&self, container: BorrowedFd<'_>) -> io::Result<()> {
        // SAFETY: its argument is a number.
        unsafe { set_iommu(container.as_raw_fd(), VFIO_TYPE1v2_IOMMU as i32) }?;
        Ok(())
    }

    fn is_viable(&self, group: BorrowedFd<'_>) -> io::Result<bool> {
        let mut status = vfio_group_status {
            argsz: size_of::<vfio_group_status>() as u32,
            flags: 0,
        };
        // SAFETY: the structure has the size it says.
        unsafe { group_get_status(group.as_raw_fd(), &mut status) }?;
        Ok(status.flags & VFIO_GROUP_FLAGS_VIABLE != 0)
    }

    fn set_container(&self, group: BorrowedFd<'_>, container: BorrowedFd<'_>) -> io::Result<()> {
        // SAFETY: it reads one descriptor's number.
        unsafe { group_set_container(group.as_raw_fd(), &container.as_raw_fd()) }?;
        Ok(())
    }

    fn open_device(&self, group: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
        let name = CString::new(name)?;
        // SAFETY: it reads a string that ends.
        let fd = unsafe { group_get_device_fd(group.as_raw_fd(), name.as_ptr()) }?;
        // SAFETY: the kernel has just made it, for the caller.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    fn map(&self, container: BorrowedFd<'_>, range: DmaRange) -> io::Result<()> {
        let flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE;
        map_dma(container, flags, range)
    }

    fn take_addresses(&self, container: BorrowedFd<'_>) -> io::Result<()> {
        let mut unmap = vfio_iommu_type1_dma_unmap {
            argsz: size_of::<vfio_iommu_type1_dma_unmap>() as u32,
            flags: VFIO_DMA_UNMAP_FLAG_VADDR | VFIO_DMA_UNMAP_FLAG_ALL,
            ..Default::default()
        };
        // SAFETY: the structure has the size it says.
        unsafe { iommu_unmap_dma(container.as_raw_fd(), &mut unmap) }?;
        Ok(())
    }

    fn give_address(&self, container: BorrowedFd<'_>, range: DmaRange) -> io::Result<()> {
        map_dma(container, VFIO_DMA_MAP_FLAG_VADDR, range)
    }

    fn device_info(&self, device: BorrowedFd<'_>) -> io::Result<DeviceInfo> {
        let mut info = vfio_device_info {
            argsz: size_of::<vfio_device_info>() as u32,
            ..Default::default()
        };
        // SAFETY: the structure has the size it says.
        unsafe { device_get_info(device.as_raw_fd(), &mut info) }?;
        Ok(DeviceInfo {
            pci: info.flags & VFIO_DEVICE_FLAGS_PCI != 0,
            resets: info.flags & VFIO_DEVICE_FLAGS_RESET != 0,
        })
    }

    fn region(&self, device: BorrowedFd<'_>, index: u32) -> io::Result<Region> {
        const HEAD: usize = size_of::<vfio_region_info>();
        let mut bytes = HEAD;
        loop {
            // Eight bytes each, for the alignment of the structure.
            let mut buffer = vec![0u64; bytes.div_ceil(8)];
            let info = buffer.as_mut_ptr().cast::<vfio_region_info>();
            // SAFETY: the buffer is at least as large as the structure and aligned as it.
            unsafe {
                (*info).argsz = bytes as u32;
                (*info).index = index;
            }
            // SAFETY: the buffer has the size that the structure says.
            match unsafe { device_get_region_info(device.as_raw_fd(), info) } {
                // What a device may have and this one has not.
                Err(Errno::EINVAL) => return Ok(Region::default()),
                other => other?,
            };
            // SAFETY: as above; the kernel has filled it.
            let found = unsafe { *info };
            let wanted = found.argsz as usize;
            if wanted > bytes && wanted < LARGEST {
                bytes = wanted;
                continue;
            }
            let data: Vec<u8> = buffer.iter().flat_map(|word| word.to_ne_bytes()).collect();
            return Ok(region(&found, &data));
        }
    }

    fn irqs(&self, device: BorrowedFd<'_>, kind: Irq) -> io::Result<u32> {
        let mut info = vfio_irq_info {
            argsz: size_of::<vfio_irq_info>() as u32,
            index: kind as u32,
            ..Default::default()
        };
        // SAFETY: the structure has the size it says.
        match unsafe { device_get_irq_info(device.as_raw_fd(), &mut info) } {
            Err(Errno::EINVAL) => return Ok(0),
            other => other?,
        };
        let told = info.flags & VFIO_IRQ_INFO_EVENTFD != 0;
        Ok(if told { info.count } else { 0 })
    }

    fn set_irqs(&self, device: BorrowedFd<'_>, kind: Irq, events: &[RawFd]) -> io::Result<u32> {
        let data = if events.is_empty() {
            VFIO_IRQ_SET_DATA_NONE
        } else {
            VFIO_IRQ_SET_DATA_EVENTFD
        };
        let head = [
            (size_of::<vfio_irq_set>() + size_of_val(events)) as u32,
            data | VFIO_IRQ_SET_ACTION_TRIGGER,
            kind as u32,
            0,
            events.len() as u32,
        ];
        let fds = events.iter().map(|fd| *fd as u32);
        let set: Vec<u32> = head.into_iter().chain(fds).collect();
        // SAFETY: the five fields of the structure, which is aligned to 4 bytes, and what they say
        // follows.
        let possible = unsafe { device_set_irqs(device.as_raw_fd(), set.as_ptr().cast()) }?;
        Ok(possible as u32)
    }

    fn reset(&self, device: BorrowedFd<'_>) -> io::Result<()> {
        // SAFETY: it takes no argument.
        unsafe { device_reset(device.as_raw_fd(), 0) }?;
        Ok(())
    }

    fn read(&self, device: BorrowedFd<'_>, offset: u64, data: &mut [u8]) -> io::Result<()> {
        file(device, |file| file.read_exact_at(data, offset))
    }

    fn write(&self, device: BorrowedFd<'_>, offset: u64, data: &[u8]) -> io::Result<()> {
        file(device, |file| file.write_all_at(data, offset))
    }
}

fn map_dma(container: BorrowedFd<'_>, flags: u32, range: DmaRange) -> io::Result<()> {
    let map = vfio_iommu_type1_dma_map {
        argsz: size_of::<vfio_iommu_type1_dma_map>() as u32,
        flags,
        vaddr: range.address,
        iova: range.iova,
        size: range.size,
    };
    // SAFETY: the structure has the size it says. The kernel pins the memory, which is the guest's and
    // written by it at any time, so that it stays there for as long as it is mapped.
    unsafe { iommu_map_dma(container.as_raw_fd(), &map) }?;
    Ok(())
}

/// More than any region's description has.
const LARGEST: usize = 1 << 16;

fn open(path: &Path) -> io::Result<OwnedFd> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    Ok(file.into())
}

/// Calls `f` with a descriptor as a file, and leaves it open.
fn file<T>(fd: BorrowedFd<'_>, f: impl FnOnce(&File) -> T) -> T {
    // SAFETY: it is open while borrowed, and is not closed here.
    let file = std::mem::ManuallyDrop::new(unsafe { File::from_raw_fd(fd.as_raw_fd()) });
    f(&file)
}
