//! The CPU that a guest was told of where it began, on a host whose kernel tells of another.
//!
//! A guest asks for its CPU once and goes by the answer from then on, so wherever it goes it keeps
//! the leaves it has. KVM's own answer changes from kernel to kernel on the same CPU: features are
//! added, and descriptions are filled in. A host can have a guest if it offers all that the guest
//! was told of; that it would tell of more does not matter.

use std::collections::BTreeMap;

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use thiserror::Error;

/// A CPU, as [`super::cpuid::digest`] writes it, that is none.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum NoCpu {
    /// A leaf is not as a digest has it.
    #[error("The source's CPU has the damaged {0}")]
    Damaged(String),
    /// More leaves than KVM takes.
    #[error("The source's CPU has {0} leaves, which is too many")]
    TooMany(usize),
}

/// EAX, EBX, ECX and EDX.
type Registers = [u32; 4];
const EAX: usize = 0;
const EBX: usize = 1;
const ECX: usize = 2;
const EDX: usize = 3;

/// Leaf, subleaf and register where each bit is a feature: the guest may have fewer than the host.
const FEATURES: [(u32, u32, usize); 24] = [
    (1, 0, ECX),
    (1, 0, EDX),
    (6, 0, EAX),
    (7, 0, EBX),
    (7, 0, ECX),
    (7, 0, EDX),
    (7, 1, EAX),
    (7, 1, EBX),
    (7, 1, ECX),
    (7, 1, EDX),
    (7, 2, EDX),
    (0xd, 0, EAX),
    (0xd, 0, EDX),
    (0xd, 1, EAX),
    (0xd, 1, ECX),
    (0xd, 1, EDX),
    // KVM's own.
    (0x4000_0001, 0, EAX),
    (0x4000_0001, 0, EDX),
    (0x8000_0001, 0, ECX),
    (0x8000_0001, 0, EDX),
    (0x8000_0007, 0, EBX),
    (0x8000_0007, 0, EDX),
    (0x8000_0008, 0, EBX),
    (0x8000_0021, 0, EAX),
];

/// Leaf, subleaf, register and bits that only describe: nothing goes wrong if they are not so.
const DESCRIPTIONS: [(u32, u32, usize, u32); 15] = [
    // The highest leaf or subleaf; what is in them is compared by itself.
    (0, 0, EAX, u32::MAX),
    (7, 0, EAX, u32::MAX),
    (0x4000_0000, 0, EAX, u32::MAX),
    (0x8000_0000, 0, EAX, u32::MAX),
    // Sizes of what is on in XCR0 and XSS, which KVM fills in as the guest asks, and of all that can
    // be on, which follows from the features.
    (0xd, 0, EBX, u32::MAX),
    (0xd, 0, ECX, u32::MAX),
    (0xd, 1, EBX, u32::MAX),
    // AMD: caches and TLBs of the first and of the other levels.
    (0x8000_0005, 0, EAX, u32::MAX),
    (0x8000_0005, 0, EBX, u32::MAX),
    (0x8000_0005, 0, ECX, u32::MAX),
    (0x8000_0005, 0, EDX, u32::MAX),
    (0x8000_0006, 0, EAX, u32::MAX),
    (0x8000_0006, 0, EBX, u32::MAX),
    (0x8000_0006, 0, EDX, u32::MAX),
    // How wide a guest's own guests may take physical addresses to be.
    (0x8000_0008, 0, EAX, 0x00ff_0000),
];

/// The CPU that a machine here has for a guest of a source whose CPU is `theirs`, where the host by
/// itself has `ours`: what the host can offer is as it is there, the rest as it is here.
pub fn agree(
    ours: &BTreeMap<String, String>,
    theirs: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let mut agreed = BTreeMap::new();
    for key in ours
        .keys()
        .chain(theirs.keys().filter(|k| !ours.contains_key(*k)))
    {
        let (here, there) = (ours.get(key), theirs.get(key));
        let chosen = if offers(key, here, there) {
            there
        } else {
            here
        };
        if let Some(value) = chosen {
            agreed.insert(key.clone(), value.clone());
        }
    }
    agreed
}

/// `supported`, with the leaves that a source's guest was told of in the place of this host's.
///
/// # Errors
///
/// The source's are damaged.
pub fn adopt(supported: &CpuId, theirs: &BTreeMap<String, String>) -> Result<CpuId, NoCpu> {
    let mut leaves = BTreeMap::new();
    for (key, value) in theirs.iter().filter(|(key, _)| key.starts_with(LEAF)) {
        let damaged = || NoCpu::Damaged(format!("{key}: '{value}'"));
        let leaf = Leaf::parse(key).ok_or_else(damaged)?;
        leaves.insert(leaf, registers(value).ok_or_else(damaged)?);
    }
    let mut entries: Vec<_> = supported.as_slice().to_vec();
    for entry in &mut entries {
        // What the guest was not told of is zero.
        let told = leaves.remove(&Leaf::of(entry)).unwrap_or_default();
        [entry.eax, entry.ebx, entry.ecx, entry.edx] = told;
    }
    entries.extend(leaves.iter().map(|(leaf, told)| leaf.entry(*told)));
    CpuId::from_entries(&entries).map_err(|_| NoCpu::TooMany(entries.len()))
}

/// Whether a host that has `here` can offer what is `there`.
fn offers(key: &str, here: Option<&String>, there: Option<&String>) -> bool {
    let parse = |text: Option<&String>| text.map_or(Some([0; 4]), |text| registers(text));
    let Some(leaf) = Leaf::parse(key) else {
        return here == there;
    };
    let (Some(here), Some(there)) = (parse(here), parse(there)) else {
        return false;
    };
    // A leaf without any content says nothing.
    there == [0; 4] || (0..4).all(|register| leaf.offers(register, here, there))
}

const LEAF: &str = "leaf ";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Leaf {
    function: u32,
    /// Of a leaf that has subleaves.
    index: Option<u32>,
}

impl Leaf {
    /// The leaf that a digest's key names.
    fn parse(key: &str) -> Option<Self> {
        let name = key.strip_prefix(LEAF)?.strip_prefix("0x")?;
        let (function, index) = match name.split_once('.') {
            Some((function, index)) => (function, Some(index.parse().ok()?)),
            None => (name, None),
        };
        let function = u32::from_str_radix(function, 16).ok()?;
        Some(Self { function, index })
    }

    fn of(entry: &kvm_cpuid_entry2) -> Self {
        let indexed = entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0;
        Self {
            function: entry.function,
            index: indexed.then_some(entry.index),
        }
    }

    fn entry(self, [eax, ebx, ecx, edx]: Registers) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function: self.function,
            index: self.index.unwrap_or(0),
            flags: self.index.map_or(0, |_| KVM_CPUID_FLAG_SIGNIFCANT_INDEX),
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    }

    fn offers(self, register: usize, here: Registers, there: Registers) -> bool {
        let place = (self.function, self.index.unwrap_or(0), register);
        let (here, there) = (here[register], there[register]);
        if FEATURES.contains(&place) {
            return there & !here == 0;
        }
        let free = DESCRIPTIONS
            .iter()
            .find(|(function, index, register, _)| (*function, *index, *register) == place)
            .map_or(0, |(.., bits)| *bits);
        (here ^ there) & !free == 0
    }
}

fn registers(text: &str) -> Option<Registers> {
    let numbers: Vec<u32> = text
        .split(' ')
        .map(|number| u32::from_str_radix(number, 16).ok())
        .collect::<Option<_>>()?;
    numbers.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::super::cpuid::{digest, guest_cpuid};
    use super::*;

    fn entry(function: u32, index: Option<u32>, told: Registers) -> kvm_cpuid_entry2 {
        Leaf { function, index }.entry(told)
    }

    fn amd() -> Registers {
        [0x10, 0x6874_7541, 0x444d_4163, 0x6974_6e65]
    }

    /// What an older and a newer kernel tell of one CPU.
    fn kernels() -> [CpuId; 2] {
        let older = [
            entry(0, None, amd()),
            entry(1, None, [0x800f12, 0x800, 0x7ed8_3203, 0x178b_fbff]),
            entry(7, Some(0), [0, 0x209c_01a9, 0x40_0004, 0]),
            entry(0x8000_0001, None, [0x800f12, 0, 0x0040_0173, 0x2fd3_fbff]),
            entry(0x8000_0008, None, [0x3028, 0, 0, 0]),
            entry(0x8000_001e, None, [0; 4]),
        ];
        let newer = [
            entry(0, None, amd()),
            entry(1, None, [0x800f12, 0x800, 0x7ed8_3203, 0x178b_fbff]),
            entry(7, Some(0), [1, 0x209c_01ab, 0x40_0004, 0x10]),
            entry(7, Some(1), [0x30, 0, 0, 0]),
            entry(0x8000_0001, None, [0x800f12, 0, 0x0040_0173, 0x2fd3_fbff]),
            entry(0x8000_0005, None, [0x01ff_01ff, 0x01ff_01ff, 1, 2]),
            entry(0x8000_0008, None, [0x28_3028, 0x1000, 0, 0]),
            entry(0x8000_001e, None, [0; 4]),
        ];
        [&older[..], &newer[..]].map(|leaves| CpuId::from_entries(leaves).unwrap())
    }

    fn told(supported: &CpuId, vcpu: u32) -> BTreeMap<String, String> {
        digest(&guest_cpuid(supported, vcpu, 2, true).unwrap())
    }

    #[test]
    fn a_guest_of_an_older_kernel_keeps_its_cpu() {
        let [older, newer] = kernels();
        let theirs = told(&older, 0);
        assert_ne!(told(&newer, 0), theirs);
        assert_eq!(agree(&told(&newer, 0), &theirs), theirs);
        let adopted = adopt(&newer, &theirs).unwrap();
        for vcpu in 0..2 {
            assert_eq!(told(&adopted, vcpu), told(&older, vcpu));
        }
    }

    #[test]
    fn a_kernel_that_offers_less_is_told_where() {
        let [older, newer] = kernels();
        let theirs = told(&newer, 0);
        let agreed = agree(&told(&older, 0), &theirs);
        let missing: Vec<_> = theirs
            .keys()
            .filter(|key| agreed.get(*key) != theirs.get(*key))
            .collect();
        assert_eq!(
            missing,
            ["leaf 0x00000007.0", "leaf 0x00000007.1", "leaf 0x80000008"],
            "what only describes is no matter"
        );
    }

    #[test]
    fn another_cpu_is_another_cpu() {
        let [older, _] = kernels();
        let ours = told(&older, 0);
        for (key, value) in [
            ("vendor", "GenuineIntel"),
            ("model", "Fast"),
            ("leaf 0x00000001", "00800f13 00020800 fed83203 178bfbff"),
            ("leaf 0x80000008", "00003030 00000000 00001001 00000000"),
            ("leaf 0x0000000d.2", "00000100 00000240 00000000 00000000"),
        ] {
            let mut theirs = ours.clone();
            theirs.insert(key.to_owned(), value.to_owned());
            let agreed = agree(&ours, &theirs);
            assert_eq!(agreed.get(key), ours.get(key), "{key}");
        }
    }

    #[test]
    fn damaged_leaves_are_refused() {
        let [older, _] = kernels();
        for (key, value) in [
            ("leaf 0x1z", "0 0 0 0"),
            ("leaf 1", "0 0 0 0"),
            ("leaf 0x1.x", "0 0 0 0"),
            ("leaf 0x1", "0 0 0"),
            ("leaf 0x1", "0 0 0 0 0"),
            ("leaf 0x1", "123456789 0 0 0"),
        ] {
            let cpu = BTreeMap::from([(key.to_owned(), value.to_owned())]);
            assert!(adopt(&older, &cpu).is_err(), "{key}: {value}");
            let agreed = agree(&BTreeMap::new(), &cpu);
            assert!(agreed.is_empty(), "{agreed:?}");
        }
        let many: BTreeMap<_, _> = (0..300)
            .map(|n| (format!("leaf {n:#010x}"), "1 0 0 0".to_owned()))
            .collect();
        assert!(matches!(adopt(&older, &many), Err(NoCpu::TooMany(_))));
    }
}
