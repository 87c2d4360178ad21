//! The VM as KVM has it: created, with its memory slots, interrupt controllers and timer.
// Giving KVM the addresses of guest memory needs `unsafe`.
#![allow(unsafe_code)]

use std::sync::Arc;

use kvm_bindings::{
    CpuId, KVM_CAP_PMU_CAPABILITY, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY,
    KVM_PMU_CAP_DISABLE, kvm_enable_cap, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use nix::errno::Errno;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::layout;
use crate::memory::Ram;

/// Why there is no VM.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The device node cannot be opened.
    #[error("Cannot open /dev/kvm: {}", hint(*.0))]
    Open(Errno),
    /// The kernel's KVM is too old, or lacks something.
    #[error("KVM of this host lacks {0}; Baton needs Linux 5.10 or later on x86-64")]
    Lacks(&'static str),
    /// An ioctl failed.
    #[error("KVM cannot {what}: {source}")]
    Ioctl {
        /// What was being done.
        what: &'static str,
        /// The kernel's reason.
        source: Errno,
    },
}

fn hint(errno: Errno) -> String {
    match errno {
        Errno::ENOENT => "it is not there; load the module kvm_intel or kvm_amd, or enable \
                          virtualization in the firmware"
            .into(),
        Errno::EACCES | Errno::EPERM => {
            "no permission; add the user to the group that owns it (usually 'kvm')".into()
        }
        other => other.desc().to_owned(),
    }
}

/// Makes the error of an ioctl.
pub(crate) fn ioctl(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> KvmError {
    move |e| KvmError::Ioctl {
        what,
        source: Errno::from_raw(e.errno()),
    }
}

/// KVM itself, opened and checked.
pub struct Host {
    /// The system descriptor.
    pub kvm: Kvm,
}

impl Host {
    /// Opens `/dev/kvm` and checks that it can do what Baton relies on.
    pub fn open() -> Result<Self, KvmError> {
        let kvm = Kvm::new().map_err(|e| KvmError::Open(Errno::from_raw(e.errno())))?;
        if kvm.get_api_version() != 12 {
            return Err(KvmError::Lacks("API version 12"));
        }
        for (cap, name) in [
            (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
            (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
            (Cap::Irqfd, "KVM_CAP_IRQFD"),
            (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
            (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
            (Cap::PitState2, "KVM_CAP_PIT_STATE2"),
            (Cap::Xcrs, "KVM_CAP_XCRS"),
            (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
            (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK"),
            (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
        ] {
            if !kvm.check_extension(cap) {
                return Err(KvmError::Lacks(name));
            }
        }
        Ok(Self { kvm })
    }

    /// What the host's CPU and KVM can offer a guest.
    pub fn supported_cpuid(&self) -> Result<CpuId, KvmError> {
        self.kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(ioctl("tell its CPUID"))
    }

    /// The most vCPUs a VM may have: what KVM allows, and APIC ids that fit one byte.
    pub fn max_vcpus(&self) -> u32 {
        (self.kvm.get_max_vcpus() as u32).min(XAPIC_IDS)
    }

    /// A VM with `ram` as its memory, an in-kernel irqchip and PIT, and no vCPU yet.
    pub fn create_vm(&self, ram: &Ram) -> Result<Arc<VmFd>, KvmError> {
        let vm = loop {
            match self.kvm.create_vm() {
                // A signal that comes at the wrong time; nothing was created.
                Err(e) if e.errno() == Errno::EINTR as i32 => {}
                other => break other.map_err(ioctl("create a VM"))?,
            }
        };
        without_pmu(&vm);
        vm.set_tss_address(layout::KVM_TSS as usize)
            .map_err(ioctl("set the TSS address"))?;
        vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(ioctl("set the identity map address"))?;
        map_ram(&vm, ram, 0)?;
        vm.create_irq_chip()
            .map_err(ioctl("create the interrupt controllers"))?;
        let pit = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        };
        vm.create_pit2(pit).map_err(ioctl("create the timer"))?;
        Ok(Arc::new(vm))
    }
}

/// Maps `ram` into the guest, or changes the flags of where it is mapped. `ram` must stay mapped as
/// long as the VM is there; the machine keeps both.
pub(super) fn map_ram(vm: &VmFd, ram: &Ram, flags: u32) -> Result<(), KvmError> {
    for (slot, region) in ram.memory().iter().enumerate() {
        let region = kvm_userspace_memory_region {
            slot: slot as u32,
            flags,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the region is mapped as long as `ram`, which the machine keeps as long as the VM.
        unsafe { vm.set_user_memory_region(region) }.map_err(ioctl("map guest memory"))?;
    }
    Ok(())
}

/// Ids 0 to 254; 255 means all.
const XAPIC_IDS: u32 = 255;

/// Takes the performance counters away, which CPUID hides and no state carries: on AMD a guest can
/// use the oldest of them without asking. A KVM that cannot (before Linux 5.18) is left as it is.
fn without_pmu(vm: &VmFd) {
    let mut capability = kvm_enable_cap {
        cap: KVM_CAP_PMU_CAPABILITY,
        ..Default::default()
    };
    capability.args[0] = u64::from(KVM_PMU_CAP_DISABLE);
    if let Err(e) = vm.enable_cap(&capability) {
        tracing::debug!("the guest keeps its performance counters: {e}");
    }
}
