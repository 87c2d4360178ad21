//! The first vCPU's registers at the kernel's entry, and the tables in RAM they point to.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::GuestMemoryMmap;

use super::low_memory::{GDT, PAGE_TABLES, write, write_bytes};
use super::{Entry, Error};

/// Protected mode (Intel SDM volume 3, section 2.5).
const CR0_PE: u64 = 1;
/// An x87 is there: always set.
pub const CR0_ET: u64 = 1 << 4;
/// Paging.
const CR0_PG: u64 = 1 << 31;
/// Page table entries of 64 bits, which long mode needs.
const CR4_PAE: u64 = 1 << 5;
/// Long mode enabled, and active (Intel SDM volume 3, section 2.2.1).
const EFER_LME_LMA: u64 = (1 << 8) | (1 << 10);
/// Bit 1 reads 1, interrupts are off.
pub const RFLAGS: u64 = 2;

/// Selectors that the 64-bit protocol names: `__BOOT_CS`, `__BOOT_DS` (boot.rst).
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;
/// A task state segment: no protocol wants one in the table, but VMX wants one loaded.
const BOOT_TSS: u16 = 0x20;
/// The smallest limit of a TSS, and the one that PVH prescribes.
const TSS_LIMIT: u32 = 0x67;

/// Present and writable (Intel SDM volume 3, section 4.5).
const PRESENT_WRITE: u64 = 3;
/// Maps a page of 2 MiB.
const LARGE: u64 = 1 << 7;
const PAGE: u64 = 4096;
const ENTRIES: u64 = 512;
/// The gigabytes that are mapped.
const GIB: u64 = 4;

/// The first vCPU's registers.
#[derive(Debug, Clone, Copy)]
pub struct BspRegisters {
    /// For KVM_SET_REGS, complete.
    pub regs: kvm_regs,
    long_mode: bool,
}

/// The registers for `entry`; for the 64-bit protocol it writes page tables and a descriptor table
/// to low RAM.
///
/// # Errors
///
/// Those tables cannot be written: RAM is smaller than a kernel needs.
pub fn bsp_registers(entry: Entry, memory: &GuestMemoryMmap<()>) -> Result<BspRegisters, Error> {
    let mut regs = kvm_regs {
        rflags: RFLAGS,
        ..Default::default()
    };
    let long_mode = match entry {
        Entry::Pvh { rip, start_info } => {
            regs.rip = rip;
            regs.rbx = start_info;
            false
        }
        Entry::Linux64 { rip, zero_page } => {
            regs.rip = rip;
            regs.rsi = zero_page;
            write_page_tables(memory)?;
            write_gdt(memory)?;
            true
        }
    };
    Ok(BspRegisters { regs, long_mode })
}

impl BspRegisters {
    /// Flat 32-bit protected mode without paging, at `rip`.
    pub fn flat(rip: u32) -> Self {
        Self {
            regs: kvm_regs {
                rip: rip.into(),
                rflags: RFLAGS,
                ..Default::default()
            },
            long_mode: false,
        }
    }

    /// Changes what a vCPU just reset has in its special registers (KVM_GET_SREGS) into what the
    /// kernel expects; everything else, such as the local APIC's base, stays.
    pub fn apply(&self, sregs: &mut kvm_sregs) {
        sregs.cs = code(self.long_mode);
        let data = data();
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        sregs.tr = task();
        sregs.idt = kvm_dtable::default();
        sregs.gdt = kvm_dtable::default();
        sregs.cr0 = CR0_PE | CR0_ET;
        sregs.cr3 = 0;
        sregs.cr4 = 0;
        sregs.efer = 0;
        if self.long_mode {
            sregs.gdt.base = GDT;
            sregs.gdt.limit = (size_of_val(&descriptors()) - 1) as u16;
            sregs.cr0 |= CR0_PG;
            sregs.cr3 = PAGE_TABLES;
            sregs.cr4 = CR4_PAE;
            sregs.efer = EFER_LME_LMA;
        }
    }
}

/// A flat segment of 4 GiB.
fn flat(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        s: 1,
        g: 1,
        ..Default::default()
    }
}

/// Execute and read, accessed.
fn code(long_mode: bool) -> kvm_segment {
    // In long mode D must be clear where L is set.
    kvm_segment {
        l: u8::from(long_mode),
        db: u8::from(!long_mode),
        ..flat(BOOT_CS, 0xb)
    }
}

/// Read and write, accessed.
fn data() -> kvm_segment {
    kvm_segment {
        db: 1,
        ..flat(BOOT_DS, 0x3)
    }
}

/// A busy TSS of 32 bits in protected mode, of 64 bits in long mode: one type stands for both.
fn task() -> kvm_segment {
    kvm_segment {
        limit: TSS_LIMIT,
        selector: BOOT_TSS,
        type_: 0xb,
        present: 1,
        ..Default::default()
    }
}

/// The table that the selectors index; the TSS takes two entries in long mode.
fn descriptors() -> [u64; 6] {
    [
        0,
        0,
        descriptor(&code(true)),
        descriptor(&data()),
        descriptor(&task()),
        0,
    ]
}

/// A descriptor in memory (Intel SDM volume 3, section 3.4.5).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 {
        segment.limit >> 12
    } else {
        segment.limit
    });
    let base = segment.base;
    let access =
        u64::from(segment.type_ | segment.s << 4 | segment.dpl << 5 | segment.present << 7);
    let flags = u64::from(segment.avl | segment.l << 1 | segment.db << 2 | segment.g << 3);
    (limit & 0xffff)
        | (base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | flags << 52
        | (base >> 24 & 0xff) << 56
}

fn write_gdt(memory: &GuestMemoryMmap<()>) -> Result<(), Error> {
    for (address, descriptor) in (GDT..).step_by(8).zip(descriptors()) {
        write(memory, "boot descriptor table", address, descriptor)?;
    }
    Ok(())
}

/// Maps the first 4 GiB to themselves: all that the protocol wants mapped lies below.
fn write_page_tables(memory: &GuestMemoryMmap<()>) -> Result<(), Error> {
    let pointers = PAGE_TABLES + PAGE;
    let directories = pointers + PAGE;
    let mut tables = vec![0; (ENTRIES * (2 + GIB)) as usize];
    tables[0] = pointers | PRESENT_WRITE;
    let (_, rest) = tables.split_at_mut(ENTRIES as usize);
    let (pointer_entries, directory_entries) = rest.split_at_mut(ENTRIES as usize);
    for (i, entry) in (0..GIB).zip(pointer_entries) {
        *entry = (directories + i * PAGE) | PRESENT_WRITE;
    }
    for (i, entry) in (0..).zip(directory_entries) {
        *entry = (i << 21) | LARGE | PRESENT_WRITE;
    }
    let bytes: Vec<u8> = tables
        .iter()
        .flat_map(|entry: &u64| entry.to_le_bytes())
        .collect();
    write_bytes(memory, "boot page tables", PAGE_TABLES, &bytes)
}

#[cfg(test)]
mod tests {
    use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_userspace_memory_region};
    use kvm_ioctls::{Kvm, VcpuExit};
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

    use super::*;

    fn ram() -> GuestMemoryMmap<()> {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4 << 20)]).expect("RAM")
    }

    #[test]
    fn page_tables_map_4_gib_to_themselves() {
        let memory = ram();
        let entry = Entry::Linux64 {
            rip: 0x10_0200,
            zero_page: 0x3000,
        };
        bsp_registers(entry, &memory).expect("registers");
        let read = |address| {
            memory
                .read_obj::<u64>(GuestAddress(address))
                .expect("in RAM")
        };
        assert_eq!(
            (read(PAGE_TABLES), read(PAGE_TABLES + 8)),
            (PAGE_TABLES + 0x1003, 0)
        );
        assert_eq!(read(PAGE_TABLES + 0x1018), PAGE_TABLES + 0x5003);
        assert_eq!(read(PAGE_TABLES + 0x1020), 0);
        assert_eq!(read(PAGE_TABLES + 0x2000), 0x83);
        assert_eq!(read(PAGE_TABLES + 0x5ff8), 0xffe0_0083);
    }

    #[test]
    fn descriptor_table_has_the_protocols_selectors() {
        let expected = [
            0,
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x8b00_0000_0067,
            0,
        ];
        assert_eq!(descriptors(), expected);
    }

    /// Runs machine code from 1 MiB on real KVM until it writes to port 0x80; gives what it wrote.
    fn run(test: &str, code: &[u8], entry: Entry) -> Option<u32> {
        if !std::path::Path::new("/dev/kvm").exists() {
            eprintln!("SKIPPED {test}: there is no /dev/kvm");
            return None;
        }
        let memory = ram();
        memory
            .write_slice(code, GuestAddress(0x10_0000))
            .expect("code written");
        let kvm = Kvm::new().expect("KVM");
        let vm = kvm.create_vm().expect("a VM");
        vm.set_tss_address(0xfffb_d000).expect("a TSS address");
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: 4 << 20,
            userspace_addr: memory.get_host_address(GuestAddress(0)).expect("RAM") as u64,
        };
        #[allow(unsafe_code)]
        // SAFETY: `memory` stays mapped until the end of this function, longer than the VM runs.
        unsafe { vm.set_user_memory_region(region) }.expect("a memory slot");
        let mut vcpu = vm.create_vcpu(0).expect("a vCPU");
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .expect("CPUID");
        vcpu.set_cpuid2(&cpuid).expect("CPUID set");
        let registers = bsp_registers(entry, &memory).expect("registers");
        let mut sregs = vcpu.get_sregs().expect("special registers");
        registers.apply(&mut sregs);
        vcpu.set_sregs(&sregs).expect("special registers set");
        vcpu.set_regs(&registers.regs).expect("registers set");
        loop {
            match vcpu.run().expect("the vCPU runs") {
                VcpuExit::IoOut(0x80, data) => {
                    return Some(u32::from_le_bytes(data.try_into().expect("four bytes")));
                }
                // Emulation may stop for no reason that a guest sees.
                VcpuExit::Intr => {}
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn pvh_entry_runs_flat_32_bit_code_with_start_info_in_ebx() {
        // mov eax, ebx; out 0x80, eax. In 64-bit mode 0x48 would be a prefix, not "dec eax".
        let code = [0x89, 0xd8, 0x48, 0xe7, 0x80];
        let entry = Entry::Pvh {
            rip: 0x10_0000,
            start_info: 0x2001,
        };
        let test = "pvh_entry_runs_flat_32_bit_code_with_start_info_in_ebx";
        if let Some(written) = run(test, &code, entry) {
            assert_eq!(written, 0x2000);
        }
    }

    #[test]
    fn linux_entry_runs_64_bit_code_with_the_zero_page_in_rsi() {
        // mov ax, 0x18; mov ds, ax; mov ss, ax: the selectors are in the table.
        // lea rax, [rsi + 1]; out 0x80, eax. In 32-bit mode "dec eax" would be behind the lea.
        let code = [
            0x66, 0xb8, 0x18, 0, 0x8e, 0xd8, 0x8e, 0xd0, // selectors
            0x48, 0x8d, 0x46, 1, 0xe7, 0x80,
        ];
        let entry = Entry::Linux64 {
            rip: 0x10_0000,
            zero_page: 0x3000,
        };
        let test = "linux_entry_runs_64_bit_code_with_the_zero_page_in_rsi";
        if let Some(written) = run(test, &code, entry) {
            assert_eq!(written, 0x3001);
        }
    }
}
