//! Guest memory that is not RAM: KVM's memory slots behind those of RAM. No dirty log knows of them, and
//! no state has what is in them.
// Mapping what a descriptor has, and giving KVM its address, needs `unsafe`.
#![allow(unsafe_code)]

use std::fs::File;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use baton_plugin_api::{Error, Result};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use nix::libc::c_void;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::kvm::{KvmError, ioctl};

/// RAM has those below, one for each of its ranges.
const FIRST: u32 = 16;

/// Where KVM is told of a slot.
pub trait SetSlot: Send + Sync {
    /// The slot is `size` bytes of this process at `host_address`, or nothing if that is 0.
    ///
    /// # Safety
    ///
    /// The memory must stay mapped until the slot is nothing again.
    unsafe fn set_slot(
        &self,
        region: kvm_userspace_memory_region,
    ) -> std::result::Result<(), KvmError>;
}

impl SetSlot for VmFd {
    unsafe fn set_slot(
        &self,
        region: kvm_userspace_memory_region,
    ) -> std::result::Result<(), KvmError> {
        // SAFETY: the caller's promise.
        unsafe { self.set_user_memory_region(region) }.map_err(ioctl("map memory of a device"))
    }
}

/// The slots that RAM does not use.
pub struct MemorySlots {
    vm: Arc<dyn SetSlot>,
    numbers: Mutex<Numbers>,
}

struct Numbers {
    /// Those that were never used.
    fresh: Range<u32>,
    /// Those that were, and are not any more.
    free: Vec<u32>,
}

impl MemorySlots {
    /// Those of a VM that has `count` slots in all.
    pub fn new(vm: Arc<dyn SetSlot>, count: u32) -> Arc<Self> {
        Arc::new(Self {
            vm,
            numbers: Mutex::new(Numbers {
                fresh: FIRST..count,
                free: Vec::new(),
            }),
        })
    }

    /// A slot for `size` bytes of `fd`, which the guest does not see yet.
    pub fn take(self: &Arc<Self>, fd: OwnedFd, fd_offset: u64, size: u64) -> Result<Slot> {
        let mut numbers = self.numbers();
        let number = numbers.free.pop().or_else(|| numbers.fresh.next());
        let number = number.ok_or_else(|| {
            Error::invalid("KVM has no memory slot left for it; take a device away")
        })?;
        drop(numbers);
        let memory = Mapping::new(fd, fd_offset, size);
        if memory.is_err() {
            self.numbers().free.push(number);
        }
        Ok(Slot {
            slots: Arc::clone(self),
            number,
            memory: memory?,
            at: None,
        })
    }

    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Memory of a descriptor, and the slot by which the guest sees it somewhere.
pub struct Slot {
    slots: Arc<MemorySlots>,
    number: u32,
    memory: Mapping,
    at: Option<u64>,
}

impl Slot {
    /// Lets the guest see it at an address, or not at all.
    pub fn place(&mut self, at: Option<u64>) -> std::result::Result<(), KvmError> {
        if self.at == at {
            return Ok(());
        }
        // KVM moves a slot, but not every version while its guest looks; the guest has moved the BAR,
        // and cannot expect much of an access meanwhile.
        if self.at.is_some() {
            self.set(0, 0)?;
            self.at = None;
        }
        if let Some(address) = at {
            self.set(address, self.memory.size.get() as u64)?;
            self.at = at;
        }
        Ok(())
    }

    fn set(&self, guest_address: u64, size: u64) -> std::result::Result<(), KvmError> {
        let region = kvm_userspace_memory_region {
            slot: self.number,
            flags: 0,
            guest_phys_addr: guest_address,
            memory_size: size,
            userspace_addr: self.memory.start.as_ptr() as u64,
        };
        // SAFETY: the memory is mapped as long as `self`, whose end takes the slot away; if KVM does
        // not let it go, the memory stays mapped.
        unsafe { self.slots.vm.set_slot(region) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        match self.place(None) {
            Ok(()) => {
                self.memory.unmap();
                self.slots.numbers().free.push(self.number);
            }
            Err(e) => tracing::error!("a device's memory stays in the guest: {e}"),
        }
    }
}

/// A shared mapping.
struct Mapping {
    start: NonNull<c_void>,
    size: NonZeroUsize,
}

// SAFETY: it is an address, behind which nobody here looks.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(fd: OwnedFd, offset: u64, size: u64) -> Result<Self> {
        let what = || format!("Cannot map {size:#x} bytes of descriptor at {offset:#x}");
        let length = usize::try_from(size).ok().and_then(NonZeroUsize::new);
        let (Some(length), Ok(at)) = (length, i64::try_from(offset)) else {
            return Err(Error::invalid(format!("{}: it does not fit", what())));
        };
        let file = File::from(fd);
        let found = file.metadata().map_err(|e| Error::io(what(), &e))?;
        // Behind a file's end there is nothing to touch; a device tells by itself.
        if found.is_file() && offset.checked_add(size).is_none_or(|end| end > found.len()) {
            return Err(Error::invalid(format!("{}: the file ends before", what())));
        }
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, where the kernel finds room.
        let start = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, &file, at) }
            .map_err(|e| Error::io(what(), &e.into()))?;
        Ok(Self {
            start,
            size: length,
        })
    }

    fn unmap(&self) {
        // SAFETY: mapped by `new`, and this is its only owner's end.
        if let Err(e) = unsafe { munmap(self.start, self.size.get()) } {
            tracing::error!("a device's memory stays mapped: {e}");
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use kvm_ioctls::VcpuExit;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use std::collections::BTreeMap;
    use std::os::unix::fs::FileExt;

    /// What KVM would know: where each slot is, and its bytes.
    #[derive(Default)]
    pub struct Told(pub Mutex<BTreeMap<u32, (u64, u64)>>);

    impl SetSlot for Told {
        unsafe fn set_slot(
            &self,
            region: kvm_userspace_memory_region,
        ) -> std::result::Result<(), KvmError> {
            let mut told = self.0.lock().unwrap();
            match region.memory_size {
                0 => told.remove(&region.slot).map(drop).unwrap(),
                // KVM takes no slot in another's place, and none that is there with another size.
                size => {
                    let place = (region.guest_phys_addr, size);
                    assert_eq!(told.insert(region.slot, place), None);
                }
            }
            Ok(())
        }
    }

    impl Told {
        pub fn places(&self) -> Vec<(u64, u64)> {
            self.0.lock().unwrap().values().copied().collect()
        }
    }

    /// A descriptor with this many bytes.
    pub fn memory(size: u64) -> OwnedFd {
        let fd = memfd_create("bar", MFdFlags::MFD_CLOEXEC).unwrap();
        File::from(fd.try_clone().unwrap()).set_len(size).unwrap();
        fd
    }

    #[test]
    fn a_slot_is_none_of_rams_moves_and_goes_with_its_owner() {
        let told = Arc::new(Told::default());
        let slots = MemorySlots::new(Arc::clone(&told) as _, FIRST + 2);
        let mut first = slots.take(memory(0x2000), 0x1000, 0x1000).unwrap();
        assert!(told.places().is_empty());
        first.place(Some(0xd000_0000)).unwrap();
        first.place(Some(0xd100_0000)).unwrap();
        let mut second = slots.take(memory(0x1000), 0, 0x1000).unwrap();
        second.place(Some(0xd000_0000)).unwrap();
        let known = told.0.lock().unwrap().clone();
        assert_eq!(
            known.into_iter().collect::<Vec<_>>(),
            [
                (FIRST, (0xd100_0000, 0x1000)),
                (FIRST + 1, (0xd000_0000, 0x1000))
            ]
        );
        let full = slots.take(memory(0x1000), 0, 0x1000).err().unwrap();
        assert!(full.message.contains("no memory slot left"), "{full}");
        drop(first);
        assert_eq!(told.places(), [(0xd000_0000, 0x1000)]);
        second.place(None).unwrap();
        assert!(told.places().is_empty());
        assert!(slots.take(memory(0x1000), 0, 0x1000).is_ok());
    }

    #[test]
    fn what_a_file_does_not_have_is_not_mapped() {
        let slots = MemorySlots::new(Arc::new(Told::default()), FIRST + 1);
        for (offset, size) in [
            (0x1000, 0x1000),
            (0, 0x2000),
            (u64::MAX - 4095, 0x1000),
            (0, 0),
        ] {
            assert!(slots.take(memory(0x1000), offset, size).is_err());
        }
        // No slot was lost.
        assert!(slots.take(memory(0x1000), 0, 0x1000).is_ok());
    }

    #[test]
    fn a_guest_reaches_the_memory_where_the_slot_is_and_exits_where_it_is_not() {
        if !std::path::Path::new("/dev/kvm").exists() {
            eprintln!("SKIPPED: there is no /dev/kvm");
            return;
        }
        const CODE: u64 = 0x1000;
        // mov al, [0x8000]; inc ax; mov [0x8001], al; hlt
        const PROGRAM: [u8; 8] = [0xa0, 0x00, 0x80, 0x40, 0xa2, 0x01, 0x80, 0xf4];
        let kvm = kvm_ioctls::Kvm::new().unwrap();
        let vm = Arc::new(kvm.create_vm().unwrap());
        vm.set_tss_address(0xfffb_d000).unwrap();
        let slots = MemorySlots::new(Arc::clone(&vm) as _, FIRST + 2);
        let filled = |size: u64, at: u64, bytes: &[u8]| {
            let fd = memory(size);
            let file = File::from(fd.try_clone().unwrap());
            file.write_all_at(bytes, at).unwrap();
            (fd, file)
        };
        let (code, _) = filled(0x1000, 0, &PROGRAM);
        let mut code = slots.take(code, 0, 0x1000).unwrap();
        code.place(Some(CODE)).unwrap();
        let (bar, seen) = filled(0x2000, 0x1000, b"a");
        let mut bar = slots.take(bar, 0x1000, 0x1000).unwrap();
        bar.place(Some(0x8000)).unwrap();

        let mut vcpu = vm.create_vcpu(0).unwrap();
        let mut sregs = vcpu.get_sregs().unwrap();
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        vcpu.set_sregs(&sregs).unwrap();
        let regs = kvm_bindings::kvm_regs {
            rip: CODE,
            rflags: 2,
            ..Default::default()
        };
        // Emulation may stop for no reason that a guest sees.
        let mut run = || {
            vcpu.set_regs(&regs).unwrap();
            loop {
                match vcpu.run().unwrap() {
                    VcpuExit::Intr => {}
                    exit => break format!("{exit:?}"),
                }
            }
        };
        assert_eq!(run(), "Hlt");
        let mut now = [0; 2];
        seen.read_exact_at(&mut now, 0x1000).unwrap();
        assert_eq!(&now, b"ab");

        bar.place(None).unwrap();
        let exit = run();
        assert!(exit.starts_with("MmioRead(32768"), "{exit}");
    }
}
