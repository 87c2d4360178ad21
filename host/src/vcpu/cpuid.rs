//! The CPU that the guest sees with `-cpu host`: the host's, as far as KVM emulates it and Baton
//! carries its state, arranged as one socket of `vcpus` cores with one thread each.
//!
//! Everything comes out of KVM_GET_SUPPORTED_CPUID and the arguments: the same host gives the same
//! leaves each time. Leaf numbers and bits are those of Intel SDM volume 2, CPUID, and AMD APM
//! volume 3, appendix E. The TSC stays as invariant as the host's is: a handover does not leave
//! the host, and the TSC goes on there.

use std::collections::BTreeMap;

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};
use thiserror::Error;

/// KVM told of so many leaves that the guest's would be more than KVM takes.
#[derive(Debug, Error)]
#[error("CPUID has {leaves} leaves, and KVM takes at most {KVM_MAX_CPUID_ENTRIES}")]
pub struct TooManyLeaves {
    /// How many.
    leaves: usize,
}

/// A register of a leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}
use Register::{Eax, Ebx, Ecx, Edx};

impl Register {
    /// Its value in a leaf.
    pub(super) fn of(self, entry: &mut kvm_cpuid_entry2) -> &mut u32 {
        match self {
            Eax => &mut entry.eax,
            Ebx => &mut entry.ebx,
            Ecx => &mut entry.ecx,
            Edx => &mut entry.edx,
        }
    }
}

/// Features taken away: leaf, subleaf, register, bits.
const HIDDEN: [(u32, u32, Register, u32); 8] = [
    // VMX: a handover carries no state of nested guests (KVM_GET_NESTED_STATE).
    // DTES64, DS-CPL, PDCM: parts of the performance monitoring unit, which is off.
    (1, 0, Ecx, 1 << 5 | 1 << 2 | 1 << 4 | 1 << 15),
    // DS: likewise.
    (1, 0, Edx, 1 << 21),
    // SGX: its memory cannot be handed over. PT: it writes traces to memory while it is saved.
    (7, 0, Ebx, 1 << 2 | 1 << 25),
    // SHSTK: the shadow stack pointer is in no MSR. SGX_LC: as SGX.
    (7, 0, Ecx, 1 << 7 | 1 << 30),
    // ARCH_LBR: performance monitoring.
    (7, 0, Edx, 1 << 19),
    // SVM: as VMX. IBS and the four kinds of PERFCTR: performance monitoring.
    (
        0x8000_0001,
        0,
        Ecx,
        1 << 2 | 1 << 10 | 1 << 23 | 1 << 24 | 1 << 28,
    ),
    // LBR_V2 and PERFMON_V2, and the counts behind them.
    (0x8000_0022, 0, Eax, u32::MAX),
    (0x8000_0022, 0, Ebx, u32::MAX),
];

/// Leaves that describe what is hidden above or is not offered at all, with all their subleaves:
/// performance monitoring, SGX, PT, last branch records, SVM, memory encryption.
const EMPTIED: [u32; 8] = [
    0xa,
    0x12,
    0x14,
    0x1c,
    0x8000_000a,
    0x8000_001b,
    0x8000_001f,
    0x8000_0025,
];

/// Leaves that enumerate topology, made anew or left out.
const TOPOLOGY: [u32; 3] = [0xb, 0x1f, 0x8000_0026];
/// The two of them that Intel and AMD share.
const EXTENDED_TOPOLOGY: [u32; 2] = [0xb, 0x1f];

/// The leaves of vCPU `index`, whose APIC id is the same number, among `vcpus`.
///
/// `supported` is KVM_GET_SUPPORTED_CPUID. `tsc_deadline` is whether the extension
/// KVM_CAP_TSC_DEADLINE_TIMER is there, which `supported` does not tell on older kernels
/// (Documentation/virt/kvm/api.rst, 4.46).
///
/// # Errors
///
/// There are more leaves than KVM_SET_CPUID2 takes.
pub fn guest_cpuid(
    supported: &CpuId,
    index: u32,
    vcpus: u32,
    tsc_deadline: bool,
) -> Result<CpuId, TooManyLeaves> {
    let vcpus = vcpus.max(1);
    let mut entries: Vec<_> = supported.as_slice().to_vec();
    entries.retain(|e| !TOPOLOGY.contains(&e.function));
    let highest = find(&entries, 0).map_or(0, |e| e.eax);
    let amd = is_amd(&entries);
    for entry in &mut entries {
        hide(entry);
        arrange(entry, index, vcpus, amd);
        if entry.function == 1 {
            set(&mut entry.ecx, 1 << 24, tsc_deadline);
        }
    }
    for leaf in EXTENDED_TOPOLOGY {
        if leaf <= highest {
            entries.extend(extended_topology(leaf, index, vcpus));
        }
    }
    // Linux logs leaves in this order; KVM does not mind.
    entries.sort_by_key(|e| (e.function, e.index));
    CpuId::from_entries(&entries).map_err(|_| TooManyLeaves {
        leaves: entries.len(),
    })
}

/// What two hosts must have in common for a guest with these leaves to go on: `vendor`, `model`,
/// and each leaf (with its subleaf) with EAX, EBX, ECX and EDX in hexadecimal. Leaves of zeroes are
/// as good as absent, and not listed.
///
/// APIC ids are among them, so compare the leaves of the same vCPU.
pub fn digest(cpuid: &CpuId) -> BTreeMap<String, String> {
    let entries = cpuid.as_slice();
    let mut digest: BTreeMap<_, _> = entries
        .iter()
        .filter(|e| [e.eax, e.ebx, e.ecx, e.edx] != [0; 4])
        .map(|e| {
            let subleaf = if e.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX == 0 {
                String::new()
            } else {
                format!(".{}", e.index)
            };
            (
                format!("leaf {:#010x}{subleaf}", e.function),
                format!("{:08x} {:08x} {:08x} {:08x}", e.eax, e.ebx, e.ecx, e.edx),
            )
        })
        .collect();
    if let Some(e) = find(entries, 0) {
        digest.insert("vendor".to_owned(), text(&[e.ebx, e.edx, e.ecx]));
    }
    let model: Vec<u32> = (0x8000_0002..=0x8000_0004)
        .filter_map(|leaf| find(entries, leaf))
        .flat_map(|e| [e.eax, e.ebx, e.ecx, e.edx])
        .collect();
    let model = text(&model);
    if !model.is_empty() {
        digest.insert("model".to_owned(), model);
    }
    digest
}

fn find(entries: &[kvm_cpuid_entry2], function: u32) -> Option<&kvm_cpuid_entry2> {
    entries
        .iter()
        .find(|e| e.function == function && e.index == 0)
}

/// AMD, or Hygon, whose processors are AMD's.
fn is_amd(entries: &[kvm_cpuid_entry2]) -> bool {
    find(entries, 0).is_some_and(|e| {
        ["AuthenticAMD", "HygonGenuine"].contains(&text(&[e.ebx, e.edx, e.ecx]).as_str())
    })
}

/// ASCII in registers, up to its end or NUL.
fn text(registers: &[u32]) -> String {
    let bytes: Vec<u8> = registers
        .iter()
        .flat_map(|r| r.to_le_bytes())
        .take_while(|&b| b != 0)
        .collect();
    String::from_utf8_lossy(&bytes).trim().to_owned()
}

/// The bits of a register that no guest gets.
pub(super) fn hidden(leaf: u32, subleaf: u32, register: Register) -> u32 {
    let same = |of: &&(u32, u32, Register, u32)| (of.0, of.1, of.2) == (leaf, subleaf, register);
    HIDDEN.iter().filter(same).fold(0, |all, of| all | of.3)
}

/// Takes away what is not offered.
fn hide(entry: &mut kvm_cpuid_entry2) {
    for (leaf, index, register, bits) in HIDDEN {
        if (leaf, index) == (entry.function, entry.index) {
            *register.of(entry) &= !bits;
        }
    }
    if EMPTIED.contains(&entry.function) {
        (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
    }
}

/// Puts the vCPU's place among the others where KVM left the host's.
fn arrange(entry: &mut kvm_cpuid_entry2, index: u32, vcpus: u32, amd: bool) {
    let several = vcpus > 1;
    match entry.function {
        1 => {
            put(&mut entry.ebx, 16, 8, id_space(vcpus));
            // Only the low byte of an APIC id has room here; leaf 0xb has all of it.
            put(&mut entry.ebx, 24, 8, index & 0xff);
            set(&mut entry.ecx, 1 << 31, true); // a hypervisor
            set(&mut entry.edx, 1 << 28, several); // HTT: the count above means something
        }
        4 if entry.eax & 0x1f != 0 => {
            let sharers = sharers(entry.eax, vcpus);
            put(&mut entry.eax, 14, 12, sharers - 1);
            put(&mut entry.eax, 26, 6, id_space(vcpus) - 1);
        }
        0x8000_0001 if amd => set(&mut entry.ecx, 1 << 1, several), // CmpLegacy
        0x8000_0008 if amd => {
            put(&mut entry.ecx, 0, 8, vcpus - 1);
            put(&mut entry.ecx, 12, 4, id_bits(vcpus));
        }
        0x8000_001d if entry.eax & 0x1f != 0 => {
            let sharers = sharers(entry.eax, vcpus);
            put(&mut entry.eax, 14, 12, sharers - 1);
        }
        0x8000_001e if amd => {
            entry.eax = index;
            entry.ebx = index & 0xff; // core id; one thread a core
            entry.ecx = 0; // node 0 of one
        }
        _ => {}
    }
}

/// The subleaves of leaf 0xb or 0x1f: threads of a core, cores of the socket, the end.
fn extended_topology(function: u32, index: u32, vcpus: u32) -> [kvm_cpuid_entry2; 3] {
    // Subleaf, shift to the next level's id, count, type (1 thread, 2 core, 0 none).
    [(0, 0, 1, 1), (1, id_bits(vcpus), vcpus, 2), (2, 0, 0, 0)].map(|(n, shift, count, kind)| {
        kvm_cpuid_entry2 {
            function,
            index: n,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: count,
            ecx: kind << 8 | n,
            edx: index,
            ..Default::default()
        }
    })
}

/// How many APIC ids a cache of this level serves: the first two levels are a core's own.
fn sharers(eax: u32, vcpus: u32) -> u32 {
    if eax >> 5 & 7 >= 3 {
        id_space(vcpus)
    } else {
        1
    }
}

/// The APIC ids that are set aside for the socket: a power of two.
fn id_space(vcpus: u32) -> u32 {
    1 << id_bits(vcpus)
}

/// The bits of an APIC id that tell the cores apart.
fn id_bits(vcpus: u32) -> u32 {
    vcpus.max(1).next_power_of_two().trailing_zeros()
}

fn set(register: &mut u32, bits: u32, on: bool) {
    if on {
        *register |= bits
    } else {
        *register &= !bits
    }
}

/// Puts a number into a field, or the field's largest if it has no room for it.
fn put(register: &mut u32, shift: u32, width: u32, value: u32) {
    let largest = (1 << width) - 1;
    *register = *register & !(largest << shift) | value.min(largest) << shift;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    }

    /// A host's leaves, with every bit set where the guest's place goes.
    fn host(vendor: &[u8; 12]) -> CpuId {
        let part = |i: usize| u32::from_le_bytes(vendor[i..i + 4].try_into().expect("four bytes"));
        let all = [u32::MAX; 4];
        CpuId::from_entries(&[
            entry(0, 0, [0x1f, part(0), part(8), part(4)]),
            entry(1, 0, all),
            entry(4, 0, [0xfc00_4121, 1, 2, 3]),
            entry(4, 1, [0xfc00_4143, 1, 2, 3]),
            entry(4, 2, [0xfc00_4163, 1, 2, 3]),
            entry(4, 3, [0; 4]),
            entry(7, 0, [0, u32::MAX, u32::MAX, u32::MAX]),
            entry(0xa, 0, all),
            entry(0xb, 0, all),
            entry(0xb, 1, all),
            entry(0x1f, 0, all),
            entry(0x4000_0001, 0, all),
            entry(0x8000_0001, 0, all),
            entry(0x8000_0002, 0, [u32::from_le_bytes(*b"Fast"), 0, 0, 0]),
            entry(0x8000_0003, 0, [0; 4]),
            entry(0x8000_0004, 0, [0; 4]),
            entry(0x8000_0008, 0, all),
            entry(0x8000_000a, 0, all),
            entry(0x8000_001d, 3, [0xfc00_4163, 1, 2, 3]),
            entry(0x8000_001e, 0, all),
            entry(0x8000_0026, 0, all),
        ])
        .expect("few leaves")
    }

    fn guest(vendor: &[u8; 12], index: u32, vcpus: u32) -> CpuId {
        guest_cpuid(&host(vendor), index, vcpus, true).expect("few leaves")
    }

    fn leaf(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid
            .as_slice()
            .iter()
            .find(|e| (e.function, e.index) == (function, index))
            .expect("the leaf")
    }

    const INTEL: &[u8; 12] = b"GenuineIntel";
    const AMD: &[u8; 12] = b"AuthenticAMD";

    #[test]
    fn leaf_1_has_the_vcpus_place_and_a_hypervisor() {
        let leaf_1 = leaf(&guest(INTEL, 2, 3), 1, 0);
        assert_eq!(leaf_1.ebx >> 16, 0x0204);
        assert_eq!(leaf_1.ecx >> 31, 1);
        assert_eq!(leaf_1.edx >> 28 & 1, 1);
        let alone = leaf(&guest(INTEL, 0, 1), 1, 0);
        assert_eq!((alone.ebx >> 16, alone.edx >> 28 & 1), (0x0001, 0));
        let many = leaf(&guest(INTEL, 300, 512), 1, 0);
        assert_eq!(many.ebx >> 16, 0x2cff);
    }

    #[test]
    fn tsc_deadline_follows_the_extension_whatever_the_leaf_says() {
        for offered in [true, false] {
            let cpuid = guest_cpuid(&host(INTEL), 0, 1, offered).expect("few leaves");
            assert_eq!(leaf(&cpuid, 1, 0).ecx >> 24 & 1, u32::from(offered));
        }
    }

    #[test]
    fn features_without_state_carried_over_are_hidden() {
        let cpuid = guest(AMD, 0, 2);
        let (one, seven) = (leaf(&cpuid, 1, 0), leaf(&cpuid, 7, 0));
        assert_eq!(one.ecx & (1 << 5 | 1 << 15), 0, "VMX, PDCM");
        assert_eq!(seven.ebx & (1 << 2 | 1 << 25), 0, "SGX, PT");
        assert_eq!(seven.ecx & 1 << 7, 0, "SHSTK");
        assert_eq!(leaf(&cpuid, 0x8000_0001, 0).ecx & 1 << 2, 0, "SVM");
        for function in [0xa, 0x8000_000a] {
            let e = leaf(&cpuid, function, 0);
            assert_eq!([e.eax, e.ebx, e.ecx, e.edx], [0; 4], "{function:#x}");
        }
        assert_eq!(leaf(&cpuid, 0x4000_0001, 0).eax, u32::MAX, "KVM's own stay");
    }

    #[test]
    fn caches_are_private_but_for_the_last_which_all_cores_share() {
        let cpuid = guest(INTEL, 0, 6);
        let sharing = |e: kvm_cpuid_entry2| (e.eax >> 26, e.eax >> 14 & 0xfff, e.eax & 0x3fff);
        assert_eq!(sharing(leaf(&cpuid, 4, 0)), (7, 0, 0x121));
        assert_eq!(sharing(leaf(&cpuid, 4, 1)), (7, 0, 0x143));
        assert_eq!(sharing(leaf(&cpuid, 4, 2)), (7, 7, 0x163));
        assert_eq!(leaf(&cpuid, 4, 3).eax, 0, "no cache");
        assert_eq!(leaf(&cpuid, 0x8000_001d, 3).eax >> 14 & 0xfff, 7);
        let large = guest(INTEL, 0, 4096);
        assert_eq!(
            sharing(leaf(&large, 4, 2)),
            (63, 4095, 0x163),
            "as much as fits"
        );
    }

    #[test]
    fn topology_is_one_socket_of_single_threaded_cores() {
        let cpuid = guest(INTEL, 2, 3);
        for function in [0xb, 0x1f] {
            let registers = |index| {
                let e = leaf(&cpuid, function, index);
                assert_eq!(e.flags, KVM_CPUID_FLAG_SIGNIFCANT_INDEX);
                [e.eax, e.ebx, e.ecx, e.edx]
            };
            assert_eq!(registers(0), [0, 1, 0x100, 2]);
            assert_eq!(registers(1), [2, 3, 0x201, 2]);
            assert_eq!(registers(2), [0, 0, 2, 2]);
        }
        assert!(cpuid.as_slice().iter().all(|e| e.function != 0x8000_0026));
    }

    #[test]
    fn amd_leaves_have_the_vcpus_place_on_amd_only() {
        let cpuid = guest(AMD, 5, 6);
        assert_eq!(leaf(&cpuid, 0x8000_0008, 0).ecx & 0xf0ff, 0x3005);
        let place = leaf(&cpuid, 0x8000_001e, 0);
        assert_eq!((place.eax, place.ebx, place.ecx), (5, 5, 0));
        assert_eq!(leaf(&cpuid, 0x8000_0001, 0).ecx >> 1 & 1, 1, "CmpLegacy");
        assert_eq!(leaf(&guest(AMD, 0, 1), 0x8000_0001, 0).ecx >> 1 & 1, 0);
        assert_eq!(leaf(&guest(INTEL, 5, 6), 0x8000_001e, 0).eax, u32::MAX);
    }

    #[test]
    fn same_host_gives_the_same_leaves_and_digest() {
        assert_eq!(guest(AMD, 1, 2), guest(AMD, 1, 2));
        assert_eq!(digest(&guest(AMD, 1, 2)), digest(&guest(AMD, 1, 2)));
    }

    #[test]
    fn digest_is_readable_and_tells_hosts_apart() {
        let (ours, theirs) = (digest(&guest(INTEL, 0, 1)), digest(&guest(AMD, 0, 1)));
        assert_eq!(
            (ours["vendor"].as_str(), ours["model"].as_str()),
            ("GenuineIntel", "Fast")
        );
        assert_eq!(theirs["vendor"], "AuthenticAMD");
        assert_eq!(
            ours["leaf 0x0000000b.1"],
            "00000000 00000001 00000201 00000000"
        );
        let different: Vec<_> = ours
            .keys()
            .filter(|key| ours[*key] != theirs[*key])
            .collect();
        assert_eq!(
            different,
            [
                "leaf 0x00000000",
                "leaf 0x80000001",
                "leaf 0x80000008",
                "leaf 0x8000001e",
                "vendor"
            ]
        );
    }

    #[test]
    fn host_with_too_many_leaves_is_refused() {
        let mut leaves = host(INTEL).as_slice().to_vec();
        leaves.retain(|e| e.function != 0xb);
        leaves.extend((0..256 - leaves.len() as u32).map(|i| entry(0xd, i, [0; 4])));
        let supported = CpuId::from_entries(&leaves).expect("256 leaves");
        let error = guest_cpuid(&supported, 0, 1, true)
            .expect_err("too many")
            .to_string();
        assert_eq!(error, "CPUID has 260 leaves, and KVM takes at most 256");
    }
}
