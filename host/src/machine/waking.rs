//! Where a guest that sleeps goes on, and how its first processor gets there. A PC's firmware does
//! that; here is none, so that the VMM does.
//!
//! The guest leaves a *waking vector* in the FACS (ACPI 6.5 section 5.2.10), which is in its RAM: it is
//! read when the guest is woken, and may be anything.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::boot::{BspRegisters, CR0_ET, RFLAGS};
use super::layout::FACS;

const LENGTH: usize = 64;
const SIGNATURE: &[u8] = b"FACS";
const VECTOR: usize = 12;
const X_VECTOR: usize = 24;
const OSPM_FLAGS: usize = 36;
/// OSPM flags: the X vector is 64-bit code. A guest must not set it, since the FACS does not offer
/// 64BIT_WAKE_SUPPORTED_F: page tables would have to lie in RAM that nobody has set apart.
const WAKE_64: u32 = 1;
/// Where real mode ends.
const REAL_MODE_END: u64 = 1 << 20;

/// Where the first processor goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WakingVector {
    /// In real mode, at this physical address below 1 MiB.
    Real(u32),
    /// In protected mode with flat segments and no paging, at this address.
    Flat(u32),
}

/// Why there is nowhere to go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "The guest cannot be woken: {0} (its FACS is at {FACS:#x}); it stays suspended until it is reset \
     with system_reset"
)]
pub struct NoVector(String);

impl WakingVector {
    /// Reads what the guest has left.
    ///
    /// # Errors
    ///
    /// It is no address of RAM that the processor could go on at.
    pub fn read(memory: &GuestMemoryMmap<()>) -> Result<Self, NoVector> {
        let mut facs = [0; LENGTH];
        memory
            .read_slice(&mut facs, GuestAddress(FACS))
            .map_err(|e| NoVector(format!("RAM cannot be read: {e}")))?;
        let found = Self::of(&facs)?;
        let (Self::Real(at) | Self::Flat(at)) = found;
        if !memory.address_in_range(GuestAddress(at.into())) {
            return Err(NoVector(format!(
                "its waking vector {at:#x} is no address of RAM"
            )));
        }
        Ok(found)
    }

    fn of(facs: &[u8; LENGTH]) -> Result<Self, NoVector> {
        let word = |at: usize| {
            let bytes = [facs[at], facs[at + 1], facs[at + 2], facs[at + 3]];
            u32::from_le_bytes(bytes)
        };
        if !facs.starts_with(SIGNATURE) {
            return Err(NoVector("it has overwritten its FACS".into()));
        }
        let vector = word(VECTOR);
        let x_vector = u64::from(word(X_VECTOR)) | u64::from(word(X_VECTOR + 4)) << 32;
        if x_vector != 0 {
            if word(OSPM_FLAGS) & WAKE_64 != 0 {
                return Err(NoVector(format!(
                    "its X waking vector {x_vector:#x} is to be entered in 64-bit mode \
                     (64BIT_WAKE_F), which the FACS does not offer"
                )));
            }
            return match u32::try_from(x_vector) {
                Ok(at) => Ok(Self::Flat(at)),
                Err(_) => Err(NoVector(format!(
                    "its X waking vector {x_vector:#x} is above 4 GiB, out of reach of 32-bit mode"
                ))),
            };
        }
        match u64::from(vector) {
            0 => Err(NoVector("its waking vector is 0".into())),
            at if at >= REAL_MODE_END => Err(NoVector(format!(
                "its waking vector {at:#x} is not below 1 MiB, where real mode ends"
            ))),
            _ => Ok(Self::Real(vector)),
        }
    }

    /// The registers to go on with.
    pub fn regs(self) -> kvm_regs {
        match self {
            Self::Flat(at) => BspRegisters::flat(at).regs,
            Self::Real(at) => kvm_regs {
                rip: u64::from(at & 0xf),
                rflags: RFLAGS,
                ..Default::default()
            },
        }
    }

    /// Changes what a vCPU just reset has in its special registers into what it goes on with.
    /// Interrupts are off, caches on; where the interrupt table is is left as reset has it.
    pub fn apply(self, sregs: &mut kvm_sregs) {
        let at = match self {
            Self::Flat(at) => return BspRegisters::flat(at).apply(sregs),
            Self::Real(at) => at,
        };
        let selector = (at >> 4) as u16;
        let segment = |type_| kvm_segment {
            limit: 0xffff,
            type_,
            present: 1,
            s: 1,
            ..Default::default()
        };
        // Read and write, accessed; and execute and read, accessed.
        let data = segment(0x3);
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        sregs.cs = kvm_segment {
            selector,
            base: u64::from(selector) << 4,
            ..segment(0xb)
        };
        sregs.cr0 = CR0_ET;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facs(vector: u32, x_vector: u64, ospm_flags: u32) -> [u8; LENGTH] {
        let mut facs = [0; LENGTH];
        facs[..4].copy_from_slice(SIGNATURE);
        facs[VECTOR..][..4].copy_from_slice(&vector.to_le_bytes());
        facs[X_VECTOR..][..8].copy_from_slice(&x_vector.to_le_bytes());
        facs[OSPM_FLAGS..][..4].copy_from_slice(&ospm_flags.to_le_bytes());
        facs
    }

    fn read(facs: &[u8]) -> Result<WakingVector, String> {
        let ranges = [(GuestAddress(0), 2 << 20)];
        let memory = GuestMemoryMmap::from_ranges(&ranges).expect("RAM");
        memory
            .write_slice(facs, GuestAddress(FACS))
            .expect("the FACS");
        WakingVector::read(&memory).map_err(|e| e.to_string())
    }

    #[test]
    fn the_x_vector_goes_before_the_other() {
        assert_eq!(
            read(&facs(0x9_8765, 0, 0)),
            Ok(WakingVector::Real(0x9_8765))
        );
        assert_eq!(
            read(&facs(0x9_8765, 0x10_0003, 0)),
            Ok(WakingVector::Flat(0x10_0003))
        );
        // Without the X vector its flag means nothing.
        assert_eq!(read(&facs(0x1000, 0, 1)), Ok(WakingVector::Real(0x1000)));
    }

    #[test]
    fn a_vector_that_leads_nowhere_is_refused_in_one_line() {
        for (facs, text) in [
            (facs(0, 0, 0), "its waking vector is 0"),
            (facs(0x10_0000, 0, 0), "0x100000 is not below 1 MiB"),
            (facs(u32::MAX, 0, 0), "0xffffffff is not below 1 MiB"),
            (facs(0x1000, 0x20_0000, 0), "0x200000 is no address of RAM"),
            (facs(0x1000, u64::MAX, 0), "above 4 GiB"),
            (facs(0x1000, 0x10_0000, 1), "64BIT_WAKE_F"),
            ([0; LENGTH], "overwritten"),
            ([0xff; LENGTH], "overwritten"),
        ] {
            let error = read(&facs).expect_err(text);
            assert!(
                error.contains(text) && error.contains("system_reset") && !error.contains('\n'),
                "{error}"
            );
        }
    }

    #[test]
    fn real_mode_begins_at_the_paragraph_and_its_offset() {
        let vector = WakingVector::Real(0x1_2345);
        let mut sregs = kvm_sregs::default();
        vector.apply(&mut sregs);
        // The example of ACPI 6.5 section 5.2.10.
        assert_eq!((sregs.cs.selector, sregs.cs.base), (0x1234, 0x1_2340));
        assert_eq!((vector.regs().rip, vector.regs().rflags), (5, 2));
        assert_eq!(
            (sregs.cr0 & 1, sregs.ds.base, sregs.ds.limit),
            (0, 0, 0xffff)
        );
    }

    #[test]
    fn the_x_vector_is_entered_flat_and_unpaged() {
        let mut sregs = kvm_sregs::default();
        WakingVector::Flat(0x10_0003).apply(&mut sregs);
        assert_eq!(WakingVector::Flat(0x10_0003).regs().rip, 0x10_0003);
        assert_eq!((sregs.cr0 >> 31, sregs.cr0 & 1), (0, 1));
        assert_eq!(
            (sregs.cs.base, sregs.cs.limit, sregs.cs.db),
            (0, u32::MAX, 1)
        );
    }
}
