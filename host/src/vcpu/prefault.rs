//! Guest RAM entered into KVM's own page tables ahead of time: KVM_PRE_FAULT_MEMORY
//! (Documentation/virt/kvm/api.rst, since Linux 6.11), so that a guest that comes in does not fault
//! on every page.
// The ioctl has no safe wrapper.
#![allow(unsafe_code)]

use std::os::fd::AsRawFd;

use kvm_ioctls::VcpuFd;
use nix::errno::Errno;

/// `struct kvm_pre_fault_memory`.
#[repr(C)]
#[derive(Default)]
struct PreFault {
    gpa: u64,
    size: u64,
    flags: u64,
    padding: [u64; 5],
}

/// KVM_CAP_PRE_FAULT_MEMORY.
pub const CAPABILITY: u32 = 236;

nix::ioctl_readwrite!(kvm_pre_fault_memory, 0xae, 0xd5, PreFault);

/// Enters `size` bytes of RAM from `gpa` on; both are whole pages. The vCPU has never run or is
/// stopped. What the kernel does not do is left for the guest's faults.
pub(super) fn pre_fault(vcpu: &VcpuFd, gpa: u64, size: u64) -> Result<(), Errno> {
    let mut range = PreFault {
        gpa,
        size,
        ..PreFault::default()
    };
    // The kernel takes what it has done off the range, and may be interrupted.
    while range.size > 0 {
        let before = range.size;
        // SAFETY: the kernel reads and writes the structure, which lives.
        match unsafe { kvm_pre_fault_memory(vcpu.as_raw_fd(), &raw mut range) } {
            Ok(_) if range.size < before => {}
            Err(Errno::EINTR | Errno::EAGAIN) if range.size < before => {}
            Ok(_) => return Err(Errno::EAGAIN),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structure_is_as_long_as_the_kernels() {
        assert_eq!(size_of::<PreFault>(), 64);
    }
}
