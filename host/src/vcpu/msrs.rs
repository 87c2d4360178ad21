//! Which model-specific registers are a vCPU's state, and in which order they go back.
//!
//! KVM_GET_MSR_INDEX_LIST names most of them. It leaves out the memory type range registers and
//! the machine check banks, and it names some that are another's alias, that act when written, or
//! that belong to features which [`super::cpuid`] hides. Numbers are those of Intel SDM volume 4,
//! AMD APM volume 2, appendix A, and Documentation/virt/kvm/x86/msr.rst.
//!
//! A vCPU's MSRs are written last but for its pending events: after CPUID, which decides what KVM
//! accepts; after the special registers and XSAVE; after the local APIC, since IA32_TSC_DEADLINE
//! is dropped in silence while the APIC's timer is in another mode, and KVM's paravirtual ones
//! address it; and after the TSC, to which the deadline and kvmclock refer. QEMU's
//! `kvm_arch_put_registers` keeps the same order.
// An ioctl that kvm-ioctls does not have needs `unsafe`.
#![allow(unsafe_code)]

use std::ops::RangeInclusive;
use std::os::fd::AsRawFd;

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use nix::errno::Errno;

/// KVM_GET_MSRS and KVM_SET_MSRS refuse more at once (`MAX_IO_MSRS` in arch/x86/kvm/x86.c, which
/// itself is refused already).
pub const MAX_PER_CALL: usize = 255;

/// As many as QEMU has (`MCE_BANKS_DEF`).
const MACHINE_CHECK_BANKS: u32 = 10;
/// IA32_MC0_CTL; each bank has CTL, STATUS, ADDR and MISC.
const MC0_CTL: u32 = 0x400;

const TSC: u32 = 0x10;
const TSC_DEADLINE: u32 = 0x6e0;
const MISC_ENABLE: u32 = 0x1a0;
const MTRR_DEF_TYPE: u32 = 0x2ff;
const KVM_ASYNC_PF_EN: u32 = 0x4b56_4d02;
const KVM_ASYNC_PF_INT: u32 = 0x4b56_4d06;

/// Memory type range registers, which QEMU adds by hand as well: eight variable ranges, as KVM's
/// IA32_MTRRCAP says, the fixed ones, and the default, which turns all of them on.
const MTRRS: [RangeInclusive<u32>; 5] = [
    0x200..=0x20f,
    0x250..=0x250,
    0x258..=0x259,
    0x268..=0x26f,
    MTRR_DEF_TYPE..=MTRR_DEF_TYPE,
];

/// What KVM lists and is not carried over.
const LEFT_OUT: [RangeInclusive<u32>; 22] = [
    // kvmclock's older numbers: KVM keeps one value for both, and writing a clock's address makes
    // it write guest memory, once is enough.
    0x11..=0x12,
    // Writing it acknowledges a page; it reads 0.
    0x4b56_4d07..=0x4b56_4d07,
    // Hyper-V's, which are not offered.
    0x4000_0000..=0x4000_01ff,
    // SGX: launch key hashes.
    0x8c..=0x8f,
    // VMX capabilities. KVM fails these for a vCPU without VMX.
    0x480..=0x493,
    // SVM: VM_CR, HSAVE_PA, TSC_RATIO.
    0xc001_0114..=0xc001_0114,
    0xc001_0117..=0xc001_0117,
    0xc000_0104..=0xc000_0104,
    // Processor trace.
    0x560..=0x58f,
    // Performance monitoring, Intel: counters, event selectors, capabilities, fixed counters,
    // fixed control and global status, PEBS, DS area.
    0xc1..=0xc8,
    0x186..=0x18d,
    0x345..=0x345,
    0x309..=0x30f,
    0x38d..=0x390,
    0x3f1..=0x3f2,
    0x600..=0x600,
    0x4c1..=0x4c8,
    // Last branch records.
    0x14ce..=0x14cf,
    // Performance monitoring, AMD: the first generation, the second, global.
    0xc001_0000..=0xc001_0007,
    0xc001_0200..=0xc001_020b,
    0xc000_0300..=0xc000_0303,
    // The same, per-core L3 and northbridge counters.
    0xc001_0230..=0xc001_0247,
];

/// The MSRs to save, in the order to restore them, out of KVM_GET_MSR_INDEX_LIST.
///
/// `tsc_offset` is whether vCPUs have the attribute KVM_VCPU_TSC_OFFSET: the TSC is then carried
/// as an offset, since its value is out of date by the time it is written, and left out here.
///
/// KVM refuses some that it lists, as the vCPU's CPUID has it: [`readable`] finds the others.
pub fn migratable(list: &[u32], tsc_offset: bool) -> Vec<u32> {
    let left_out = |index: &u32| {
        LEFT_OUT.iter().any(|range| range.contains(index)) || (tsc_offset && *index == TSC)
    };
    let mut indices: Vec<u32> = list
        .iter()
        .copied()
        .filter(|index| !left_out(index))
        .chain(MTRRS.into_iter().flatten())
        .chain(MC0_CTL..MC0_CTL + 4 * MACHINE_CHECK_BANKS)
        .collect();
    indices.sort_by_key(|&index| (rank(index), index));
    indices.dedup();
    indices
}

/// When to restore an MSR; those of one rank go by number. Numbers alone put IA32_TSC first,
/// PLATFORM_INFO before MISC_FEATURES_ENABLES, which it permits, IA32_FEATURE_CONTROL before what
/// it enables, and the MTRRs' ranges before the switch that turns them on.
fn rank(index: u32) -> u8 {
    match index {
        // Turning asynchronous page faults on may raise the interrupt that this names.
        KVM_ASYNC_PF_INT => 0,
        KVM_ASYNC_PF_EN => 2,
        // Starts the timer.
        TSC_DEADLINE => 3,
        _ => 1,
    }
}

/// Those of `list` that this vCPU has, in the same order; to be asked once, after CPUID was set.
///
/// # Errors
///
/// KVM fails for another reason than an MSR it does not know.
pub fn readable(vcpu: &VcpuFd, list: &[u32]) -> Result<Vec<u32>, kvm_ioctls::Error> {
    let mut found = Vec::with_capacity(list.len());
    let mut rest = list;
    while !rest.is_empty() {
        let chunk = &rest[..rest.len().min(MAX_PER_CALL)];
        let entries: Vec<_> = chunk
            .iter()
            .map(|&index| kvm_msr_entry {
                index,
                ..Default::default()
            })
            .collect();
        let mut msrs = Msrs::from_entries(&entries)
            .map_err(|_| kvm_ioctls::Error::new(Errno::E2BIG as i32))?;
        // KVM stops at the first it refuses and says how many it read (api.rst, 4.18).
        let count = vcpu.get_msrs(&mut msrs)?;
        found.extend_from_slice(&chunk[..count]);
        rest = &rest[(count + usize::from(count < chunk.len()))..];
    }
    Ok(found)
}

/// What a vCPU has at the machine's reset, on top of KVM's own values. No firmware sets it:
///
/// - IA32_MTRR_DEF_TYPE: on, and write-back where no range says otherwise. The reset value, off,
///   means uncached, and KVM obeys it as soon as a device is passed through;
/// - IA32_MISC_ENABLE: fast string operations, without which Linux avoids `rep movsb`.
pub fn at_reset() -> [(u32, u64); 2] {
    const ENABLE_WRITE_BACK: u64 = 1 << 11 | 6;
    const FAST_STRINGS: u64 = 1;
    [
        (MTRR_DEF_TYPE, ENABLE_WRITE_BACK),
        (MISC_ENABLE, FAST_STRINGS),
    ]
}

// KVM_X86_SETUP_MCE (api.rst, 4.105).
nix::ioctl_write_ptr!(kvm_x86_setup_mce, 0xae, 0x9c, u64);

/// Gives a new vCPU the machine check banks that [`migratable`] lists; KVM's default is 32, which
/// are 88 more registers to save.
///
/// # Errors
///
/// KVM refuses: it has had the ioctl since Linux 2.6.31.
pub fn set_up_machine_check(vcpu: &VcpuFd) -> Result<(), Errno> {
    let capabilities = u64::from(MACHINE_CHECK_BANKS);
    // SAFETY: the descriptor is a vCPU's, and KVM reads one u64 during the call.
    unsafe { kvm_x86_setup_mce(vcpu.as_raw_fd(), &capabilities) }.map(drop)
}

#[cfg(test)]
mod tests {
    use kvm_ioctls::Kvm;

    use super::*;

    /// Some of what KVM lists, in its order.
    const LIST: [u32; 14] = [
        0x174,
        0x10,
        0x4b56_4d02,
        0x4b56_4d06,
        0x11,
        0x4b56_4d00,
        0x4b56_4d07,
        0x6e0,
        0x3b,
        0x480,
        0x4000_0000,
        0xc1,
        0xc000_0102,
        0x174,
    ];

    fn position(indices: &[u32], index: u32) -> usize {
        indices
            .iter()
            .position(|&i| i == index)
            .unwrap_or_else(|| panic!("{index:#x} is missing"))
    }

    #[test]
    fn tsc_is_carried_as_an_offset_where_kvm_can() {
        assert!(!migratable(&LIST, true).contains(&TSC));
        let without = migratable(&LIST, false);
        assert!(position(&without, TSC) < position(&without, TSC_DEADLINE));
    }

    #[test]
    fn order_is_that_in_which_kvm_takes_them() {
        let order = migratable(&LIST, true);
        assert_eq!(order.last(), Some(&TSC_DEADLINE));
        assert!(position(&order, KVM_ASYNC_PF_INT) < position(&order, KVM_ASYNC_PF_EN));
        assert!(position(&order, 0x26f) < position(&order, MTRR_DEF_TYPE));
        let mut reversed = LIST;
        reversed.reverse();
        assert_eq!(
            migratable(&reversed, true),
            order,
            "whatever order KVM lists them in"
        );
    }

    #[test]
    fn mtrrs_and_machine_check_banks_are_added_once() {
        let mut list = LIST.to_vec();
        list.extend([MTRR_DEF_TYPE, MC0_CTL]);
        let order = migratable(&list, true);
        for index in [
            0x200, 0x20f, 0x250, 0x258, 0x259, 0x268, 0x26f, 0x2ff, 0x400, 0x427, 0x174,
        ] {
            assert_eq!(
                order.iter().filter(|&&i| i == index).count(),
                1,
                "{index:#x}"
            );
        }
        assert!(!order.contains(&0x428));
    }

    #[test]
    fn aliases_actions_and_hidden_features_are_left_out() {
        let order = migratable(&LIST, true);
        for index in [0x11, 0x4b56_4d07, 0x480, 0x4000_0000, 0xc1] {
            assert!(!order.contains(&index), "{index:#x}");
        }
        for index in [0x4b56_4d00, 0x3b, 0xc000_0102] {
            assert!(order.contains(&index), "{index:#x}");
        }
    }

    #[test]
    fn all_msrs_of_a_real_vcpu_can_be_written_back() {
        let test = "all_msrs_of_a_real_vcpu_can_be_written_back";
        if !std::path::Path::new("/dev/kvm").exists() {
            eprintln!("SKIPPED {test}: there is no /dev/kvm");
            return;
        }
        let kvm = Kvm::new().expect("KVM");
        let vm = kvm.create_vm().expect("a VM");
        vm.create_irq_chip().expect("an irqchip");
        let vcpu = vm.create_vcpu(0).expect("a vCPU");
        let supported = kvm
            .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .expect("CPUID");
        let cpuid = super::super::cpuid::guest_cpuid(&supported, 0, 1, true).expect("leaves");
        vcpu.set_cpuid2(&cpuid).expect("CPUID set");
        set_up_machine_check(&vcpu).expect("machine check banks");
        let list = kvm.get_msr_index_list().expect("the list");
        let all = migratable(list.as_slice(), true);
        let readable = readable(&vcpu, &all).expect("readable");
        eprintln!(
            "{} listed, {} kept, {} readable",
            list.as_slice().len(),
            all.len(),
            readable.len()
        );
        assert!(readable.contains(&MTRR_DEF_TYPE) && readable.contains(&0x427));

        let set = |entries: &[kvm_msr_entry]| {
            let msrs = Msrs::from_entries(entries).expect("few");
            vcpu.set_msrs(&msrs).expect("set")
        };
        let reset = at_reset().map(|(index, data)| kvm_msr_entry {
            index,
            data,
            ..Default::default()
        });
        assert_eq!(set(&reset), reset.len());
        for chunk in readable.chunks(MAX_PER_CALL) {
            let entries: Vec<_> = chunk
                .iter()
                .map(|&index| kvm_msr_entry {
                    index,
                    ..Default::default()
                })
                .collect();
            let mut msrs = Msrs::from_entries(&entries).expect("few");
            assert_eq!(vcpu.get_msrs(&mut msrs).expect("read"), chunk.len());
            let count = set(msrs.as_slice());
            assert_eq!(
                count,
                chunk.len(),
                "refused: {:#x?}",
                msrs.as_slice().get(count)
            );
        }
    }
}
