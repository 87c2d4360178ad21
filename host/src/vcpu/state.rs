//! Everything of a vCPU that KVM keeps for it.
//!
//! Register blocks are saved as the kernel lays them out (its UAPI headers fix that layout for
//! ever); the blocks are the values of named fields.
// XSAVE areas of variable size need `unsafe`.
#![allow(unsafe_code)]

use baton_plugin_api::Section;
use kvm_bindings::{
    Msrs, Xsave, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::msrs::MAX_PER_CALL;
use super::{VcpuError, tsc};

/// The section's name and versions; the instance is the vCPU's number.
pub fn section() -> Section {
    Section::new("cpu", 1, 1)
}

/// The state of one vCPU.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VcpuState {
    regs: kvm_regs,
    sregs: kvm_sregs,
    /// The XSAVE area, as long as the host's features make it.
    #[serde(with = "bytes")]
    xsave: Vec<u8>,
    xcrs: kvm_xcrs,
    lapic: kvm_lapic_state,
    mp_state: kvm_mp_state,
    events: kvm_vcpu_events,
    debug_regs: kvm_debugregs,
    /// Index and value, in the order to restore.
    msrs: Vec<(u32, u64)>,
    /// To the host's time stamp counter.
    tsc_offset: Option<u64>,
    tsc_khz: Option<u32>,
}

/// A section's bytes as MessagePack's binary type.
mod bytes {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        serde_bytes::ByteBuf::deserialize(d).map(serde_bytes::ByteBuf::into_vec)
    }
}

/// What a vCPU has, found out when it is created.
#[derive(Clone)]
pub(super) struct Abilities {
    /// MSRs to save, in the order to restore.
    pub(super) msrs: Vec<u32>,
    pub(super) tsc_offset: bool,
    /// Bytes of the XSAVE area, at least 4096.
    pub(super) xsave_len: usize,
}

const XSAVE_MIN: usize = size_of::<kvm_xsave>();

fn failed(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> VcpuError {
    move |e| VcpuError::Ioctl {
        what,
        source: Errno::from_raw(e.errno()),
    }
}

impl VcpuState {
    /// Changes the offset of the time stamp counter, if it is known, as a function of itself and of
    /// the counter's frequency in kHz.
    pub(crate) fn shift_tsc(&mut self, offset: impl FnOnce(u64, u32) -> u64) {
        if let (Some(old), Some(khz)) = (self.tsc_offset, self.tsc_khz) {
            self.tsc_offset = Some(offset(old, khz));
        }
    }

    /// Reads the state of a vCPU that has been called out and has completed its last exit.
    pub(super) fn save(vcpu: &VcpuFd, can: &Abilities) -> Result<Self, VcpuError> {
        // First, since reading it may move pending events into the registers read later.
        let mp_state = vcpu.get_mp_state().map_err(failed("read its run state"))?;
        let events = vcpu.get_vcpu_events().map_err(failed("read its events"))?;
        Ok(Self {
            regs: vcpu.get_regs().map_err(failed("read its registers"))?,
            sregs: vcpu
                .get_sregs()
                .map_err(failed("read its system registers"))?,
            xsave: save_xsave(vcpu, can.xsave_len)?,
            xcrs: vcpu
                .get_xcrs()
                .map_err(failed("read its extended control registers"))?,
            lapic: vcpu.get_lapic().map_err(failed("read its local APIC"))?,
            debug_regs: vcpu
                .get_debug_regs()
                .map_err(failed("read its debug registers"))?,
            msrs: save_msrs(vcpu, &can.msrs)?,
            tsc_offset: can
                .tsc_offset
                .then(|| tsc::offset(vcpu))
                .transpose()
                .map_err(|source| VcpuError::Ioctl {
                    what: "read its TSC offset",
                    source,
                })?,
            tsc_khz: vcpu.get_tsc_khz().ok(),
            mp_state,
            events,
        })
    }

    /// Writes the state into a vCPU that has never run or has been called out.
    ///
    /// Order: the local APIC needs the APIC base of the system registers; a TSC deadline counts
    /// from the TSC, and is written with the MSRs, last; events come after all that may change
    /// them.
    pub(super) fn load(&self, vcpu: &VcpuFd, can: &Abilities) -> Result<(), VcpuError> {
        if let Some(khz) = self.tsc_khz
            && vcpu.get_tsc_khz().ok() != Some(khz)
        {
            vcpu.set_tsc_khz(khz)
                .map_err(failed("run its TSC at the source's frequency"))?;
        }
        vcpu.set_sregs(&self.sregs)
            .map_err(failed("write its system registers"))?;
        vcpu.set_regs(&self.regs)
            .map_err(failed("write its registers"))?;
        load_xsave(vcpu, &self.xsave, can.xsave_len)?;
        vcpu.set_xcrs(&self.xcrs)
            .map_err(failed("write its extended control registers"))?;
        vcpu.set_debug_regs(&self.debug_regs)
            .map_err(failed("write its debug registers"))?;
        vcpu.set_lapic(&self.lapic)
            .map_err(failed("write its local APIC"))?;
        match (self.tsc_offset, can.tsc_offset) {
            (Some(offset), true) => {
                tsc::set_offset(vcpu, offset).map_err(|source| VcpuError::Ioctl {
                    what: "write its TSC offset",
                    source,
                })?
            }
            (Some(_), false) => return Err(VcpuError::NoTscOffset),
            (None, _) => {}
        }
        load_msrs(vcpu, &self.msrs)?;
        vcpu.set_mp_state(self.mp_state)
            .map_err(failed("write its run state"))?;
        vcpu.set_vcpu_events(&self.events)
            .map_err(failed("write its events"))
    }
}

fn save_xsave(vcpu: &VcpuFd, len: usize) -> Result<Vec<u8>, VcpuError> {
    let read = "read its XSAVE area";
    if len <= XSAVE_MIN {
        let xsave = vcpu.get_xsave().map_err(failed(read))?;
        return Ok(xsave
            .region
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect());
    }
    let mut xsave = Xsave::new((len - XSAVE_MIN).div_ceil(4)).map_err(|_| VcpuError::Ioctl {
        what: read,
        source: Errno::E2BIG,
    })?;
    // SAFETY: the area is as long as KVM_CAP_XSAVE2 says.
    unsafe { vcpu.get_xsave2(&mut xsave) }.map_err(failed(read))?;
    let fixed = xsave.as_fam_struct_ref().xsave.region;
    let words = fixed.iter().chain(xsave.as_slice());
    Ok(words.flat_map(|word| word.to_le_bytes()).collect())
}

fn load_xsave(vcpu: &VcpuFd, bytes: &[u8], len: usize) -> Result<(), VcpuError> {
    let write = "write its XSAVE area";
    if bytes.len() < XSAVE_MIN || bytes.len() > len.max(XSAVE_MIN) || !bytes.len().is_multiple_of(4)
    {
        return Err(VcpuError::Xsave {
            found: bytes.len(),
            here: len,
        });
    }
    let words: Vec<u32> = bytes
        .chunks_exact(4)
        .map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
        .collect();
    let (fixed, rest) = words.split_at(XSAVE_MIN / 4);
    if len <= XSAVE_MIN {
        let mut xsave = kvm_xsave::default();
        xsave.region.copy_from_slice(fixed);
        // SAFETY: the area has the size that this host's KVM reads.
        return unsafe { vcpu.set_xsave(&xsave) }.map_err(failed(write));
    }
    let mut xsave = Xsave::new((len - XSAVE_MIN).div_ceil(4)).map_err(|_| VcpuError::Ioctl {
        what: write,
        source: Errno::E2BIG,
    })?;
    // SAFETY: the fixed part is overwritten whole; the length of the variable part stays.
    unsafe { xsave.as_mut_fam_struct() }
        .xsave
        .region
        .copy_from_slice(fixed);
    xsave.as_mut_slice()[..rest.len()].copy_from_slice(rest);
    // SAFETY: as in `save_xsave`.
    unsafe { vcpu.set_xsave2(&xsave) }.map_err(failed(write))
}

fn save_msrs(vcpu: &VcpuFd, list: &[u32]) -> Result<Vec<(u32, u64)>, VcpuError> {
    let mut all = Vec::with_capacity(list.len());
    for part in list.chunks(MAX_PER_CALL) {
        let entries: Vec<_> = part
            .iter()
            .map(|&index| kvm_msr_entry {
                index,
                ..Default::default()
            })
            .collect();
        let mut msrs = table(&entries)?;
        let read = vcpu.get_msrs(&mut msrs).map_err(failed("read its MSRs"))?;
        if let Some(refused) = part.get(read) {
            return Err(VcpuError::Msr {
                what: "read",
                index: *refused,
            });
        }
        all.extend(msrs.as_slice().iter().map(|e| (e.index, e.data)));
    }
    Ok(all)
}

fn load_msrs(vcpu: &VcpuFd, list: &[(u32, u64)]) -> Result<(), VcpuError> {
    for part in list.chunks(MAX_PER_CALL) {
        let entries: Vec<_> = part
            .iter()
            .map(|&(index, data)| kvm_msr_entry {
                index,
                data,
                ..Default::default()
            })
            .collect();
        let written = vcpu
            .set_msrs(&table(&entries)?)
            .map_err(failed("write its MSRs"))?;
        if let Some((refused, _)) = part.get(written) {
            return Err(VcpuError::Msr {
                what: "write",
                index: *refused,
            });
        }
    }
    Ok(())
}

fn table(entries: &[kvm_msr_entry]) -> Result<Msrs, VcpuError> {
    Msrs::from_entries(entries).map_err(|_| VcpuError::Ioctl {
        what: "list its MSRs",
        source: Errno::E2BIG,
    })
}
