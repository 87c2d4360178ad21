//! What KVM has to know of the host's devices that a guest is given: with one whose DMA does not keep to
//! the caches, the guest's own flushing of them must have an effect, which KVM spares it otherwise
//! (Documentation/virt/kvm/devices/vfio.rst).
// Giving KVM the address of a descriptor's number needs `unsafe`.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_ADD, KVM_DEV_VFIO_FILE_DEL, kvm_create_device,
    kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_VFIO,
};
use kvm_ioctls::{DeviceFd, VmFd};
use nix::sys::stat::fstat;

use super::kvm::{KvmError, ioctl};

/// The files that KVM knows of, by the number of their device node: of a group there is one.
pub struct VfioFiles {
    vm: Arc<VmFd>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// Made once it is needed.
    device: Option<DeviceFd>,
    users: BTreeMap<u64, u32>,
}

/// A file that KVM knows of for as long as this is there.
pub struct VfioFile {
    files: Arc<VfioFiles>,
    fd: OwnedFd,
    number: u64,
}

impl VfioFiles {
    /// None of this VM's.
    pub fn new(vm: Arc<VmFd>) -> Arc<Self> {
        let known = Mutex::default();
        Arc::new(Self { vm, known })
    }

    /// Tells KVM of a group or a device.
    pub fn add(self: &Arc<Self>, fd: OwnedFd) -> Result<VfioFile, KvmError> {
        let number = fstat(&fd).map_err(|source| KvmError::Ioctl {
            what: "be told of a device of the host",
            source,
        })?;
        let number = number.st_rdev;
        let mut known = self.known();
        if !known.users.contains_key(&number) {
            if known.device.is_none() {
                known.device = Some(self.make()?);
            }
            known.set(KVM_DEV_VFIO_FILE_ADD, fd.as_raw_fd())?;
        }
        *known.users.entry(number).or_default() += 1;
        drop(known);
        Ok(VfioFile {
            files: Arc::clone(self),
            fd,
            number,
        })
    }

    fn make(&self) -> Result<DeviceFd, KvmError> {
        let mut device = kvm_create_device {
            type_: kvm_device_type_KVM_DEV_TYPE_VFIO,
            ..kvm_create_device::default()
        };
        let made = self.vm.create_device(&mut device);
        made.map_err(ioctl("be told of devices of the host"))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn set(&self, attribute: u32, fd: RawFd) -> Result<(), KvmError> {
        let Some(device) = &self.device else {
            return Ok(());
        };
        let attribute = kvm_device_attr {
            group: KVM_DEV_VFIO_FILE,
            attr: attribute.into(),
            addr: std::ptr::from_ref(&fd) as u64,
            ..kvm_device_attr::default()
        };
        device
            .set_device_attr(&attribute)
            .map_err(ioctl("be told of a device of the host"))
    }
}

impl VfioFile {
    /// Whether it is the same file.
    pub fn is(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Drop for VfioFile {
    fn drop(&mut self) {
        let mut known = self.files.known();
        let users = known.users.entry(self.number).or_default();
        *users = users.saturating_sub(1);
        if *users == 0 {
            known.users.remove(&self.number);
            if let Err(e) = known.set(KVM_DEV_VFIO_FILE_DEL, self.fd.as_raw_fd()) {
                tracing::warn!("{e}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_ioctls::Kvm;

    #[test]
    fn a_file_that_is_not_of_vfio_is_refused_and_not_remembered() {
        let Ok(kvm) = Kvm::new() else {
            eprintln!("SKIPPED: there is no /dev/kvm");
            return;
        };
        let files = VfioFiles::new(Arc::new(kvm.create_vm().unwrap()));
        let null = std::fs::File::open("/dev/null").unwrap();
        for _ in 0..2 {
            let error = files.add(null.try_clone().unwrap().into()).err().unwrap();
            let text = error.to_string();
            assert!(text.starts_with("KVM cannot be told of"), "{text}");
        }
        assert!(files.known().users.is_empty());
    }
}
