//! The guest's time stamp counter as an offset to the host's: KVM_VCPU_TSC_CTRL
//! (Documentation/virt/kvm/devices/vcpu.rst). It goes on through a handover as if nothing had been.
// The attribute's address is passed as a number, which needs `unsafe`.
#![allow(unsafe_code)]

use std::os::fd::AsRawFd;

use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_device_attr};
use kvm_ioctls::VcpuFd;
use nix::errno::Errno;

nix::ioctl_write_ptr!(kvm_set_device_attr, 0xae, 0xe1, kvm_device_attr);
nix::ioctl_write_ptr!(kvm_get_device_attr, 0xae, 0xe2, kvm_device_attr);
nix::ioctl_write_ptr!(kvm_has_device_attr, 0xae, 0xe3, kvm_device_attr);

fn attribute(address: u64) -> kvm_device_attr {
    kvm_device_attr {
        flags: 0,
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        addr: address,
    }
}

/// Whether the kernel has the attribute (since Linux 5.16).
pub(super) fn has_offset(vcpu: &VcpuFd) -> bool {
    // SAFETY: the kernel only looks at the attribute itself.
    unsafe { kvm_has_device_attr(vcpu.as_raw_fd(), &attribute(0)) }.is_ok()
}

/// The offset.
pub(super) fn offset(vcpu: &VcpuFd) -> Result<u64, Errno> {
    let mut offset = 0u64;
    let attribute = attribute(&raw mut offset as u64);
    // SAFETY: the kernel writes eight bytes to `offset`, which lives.
    unsafe { kvm_get_device_attr(vcpu.as_raw_fd(), &raw const attribute) }?;
    Ok(offset)
}

/// Sets the offset.
pub(super) fn set_offset(vcpu: &VcpuFd, offset: u64) -> Result<(), Errno> {
    let attribute = attribute(&raw const offset as u64);
    // SAFETY: the kernel reads eight bytes from `offset`, which lives.
    unsafe { kvm_set_device_attr(vcpu.as_raw_fd(), &raw const attribute) }.map(|_| ())
}
