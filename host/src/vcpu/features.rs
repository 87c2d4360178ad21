//! The CPU features that `-cpu` names: QEMU's names (`target/i386/cpu.c`, `feature_word_info`) for
//! bits of CPUID.
//!
//! Bits that depend on how many vCPUs there are, that the machine sets anyway, or that follow from a
//! control register have no name here: `ht`, `hypervisor`, `tsc-deadline`, `osxsave`.

use kvm_bindings::CpuId;

use super::cpuid::{self, Register};
use Register::{Ebx, Ecx, Edx};

/// A bit of CPUID with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Feature {
    /// QEMU's name.
    pub name: &'static str,
    leaf: u32,
    subleaf: u32,
    register: Register,
    bit: u8,
}

/// A register of a leaf, with the names of its bits from the lowest on; `-` has none.
type Word = (u32, u32, Register, &'static str);

const WORDS: [Word; 8] = [
    (
        1,
        0,
        Edx,
        "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - ds \
         acpi mmx fxsr sse sse2 ss - tm ia64 pbe",
    ),
    (
        1,
        0,
        Ecx,
        "pni pclmulqdq dtes64 monitor ds-cpl vmx smx est tm2 ssse3 cid - fma cx16 xtpr pdcm - pcid \
         dca sse4.1 sse4.2 x2apic movbe popcnt - aes xsave - avx f16c rdrand",
    ),
    (
        7,
        0,
        Ebx,
        "fsgsbase tsc-adjust sgx bmi1 hle avx2 fdp-excptn-only smep bmi2 erms invpcid rtm - \
         zero-fcs-fds mpx - avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb intel-pt \
         avx512pf avx512er avx512cd sha-ni avx512bw avx512vl",
    ),
    (
        7,
        0,
        Ecx,
        "- avx512vbmi umip pku - waitpkg avx512vbmi2 - gfni vaes vpclmulqdq avx512vnni \
         avx512bitalg - avx512-vpopcntdq - la57 - - - - - rdpid - bus-lock-detect cldemote - \
         movdiri movdir64b - sgxlc pks",
    ),
    (
        7,
        0,
        Edx,
        "- - avx512-4vnniw avx512-4fmaps fsrm - - - avx512-vp2intersect - md-clear - - - serialize \
         - tsx-ldtrk - - arch-lbr - - amx-bf16 avx512-fp16 amx-tile amx-int8 spec-ctrl stibp \
         flush-l1d arch-capabilities core-capability ssbd",
    ),
    (
        0x8000_0001,
        0,
        Edx,
        "- - - - - - - - - - - syscall - - - - - - - - nx - mmxext - - fxsr-opt pdpe1gb rdtscp - lm \
         3dnowext 3dnow",
    ),
    (
        0x8000_0001,
        0,
        Ecx,
        "lahf-lm - svm extapic cr8legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit \
         wdt - lwp fma4 tce - nodeid-msr - tbm topoext perfctr-core perfctr-nb",
    ),
    (0x8000_0007, 0, Edx, "- - - - - - - - invtsc"),
];

/// All features, by leaf and bit.
pub fn all() -> impl Iterator<Item = Feature> {
    WORDS
        .into_iter()
        .flat_map(|(leaf, subleaf, register, names)| {
            names
                .split_ascii_whitespace()
                .zip(0..)
                .filter(|(name, _)| *name != "-")
                .map(move |(name, bit)| Feature {
                    name,
                    leaf,
                    subleaf,
                    register,
                    bit,
                })
        })
}

/// The feature with a name, which may have underscores for QEMU's dashes and dots, as it used to.
pub fn find(name: &str) -> Option<Feature> {
    let plain = |name: &str| name.replace(['_', '.'], "-");
    let other = match name {
        "sse3" => "pni",
        "i64" => "lm",
        other => other,
    };
    let wanted = plain(other);
    all().find(|feature| plain(feature.name) == wanted)
}

/// Switches features of `supported`, KVM's answer, on and off.
///
/// # Errors
///
/// A feature is to be on that the host does not have or that is hidden from guests. A feature is
/// never made up.
pub fn apply(supported: &mut CpuId, changes: &[(Feature, bool)]) -> Result<(), String> {
    for (feature, on) in changes {
        let word = supported
            .as_mut_slice()
            .iter_mut()
            .find(|entry| (entry.function, entry.index) == (feature.leaf, feature.subleaf))
            .map(|entry| feature.register.of(entry));
        match (word, on) {
            (_, true) if feature.is_hidden() => {
                return Err(format!(
                    "'{}' is hidden from guests: a handover does not carry its state; leave it out",
                    feature.name
                ));
            }
            (Some(word), true) if *word & feature.mask() != 0 => {}
            (_, true) => return Err(feature.missing()),
            (Some(word), false) => *word &= !feature.mask(),
            (None, false) => {}
        }
    }
    Ok(())
}

impl Feature {
    const fn mask(self) -> u32 {
        1 << self.bit
    }

    /// Whether no guest gets it.
    pub fn is_hidden(self) -> bool {
        cpuid::hidden(self.leaf, self.subleaf, self.register) & self.mask() != 0
    }

    /// QEMU's text (`x86_cpu_filter_features`).
    fn missing(self) -> String {
        format!(
            "host doesn't support requested feature: CPUID[eax={:02X}h,ecx={:02X}h].{}.{} [bit {}]; \
             leave it out",
            self.leaf,
            self.subleaf,
            format!("{:?}", self.register).to_uppercase(),
            self.name,
            self.bit
        )
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use kvm_bindings::kvm_cpuid_entry2;

    use super::*;

    fn bit(name: &str) -> (u32, Register, u8) {
        let feature = find(name).unwrap();
        (feature.leaf, feature.register, feature.bit)
    }

    #[test]
    fn names_are_at_the_bits_that_the_manuals_say() {
        for (name, place) in [
            ("sse2", (1, Edx, 26)),
            ("pbe", (1, Edx, 31)),
            ("vmx", (1, Ecx, 5)),
            ("sse4.2", (1, Ecx, 20)),
            ("sse4_2", (1, Ecx, 20)),
            ("x2apic", (1, Ecx, 21)),
            ("aes", (1, Ecx, 25)),
            ("rdrand", (1, Ecx, 30)),
            ("avx2", (7, Ebx, 5)),
            ("avx512f", (7, Ebx, 16)),
            ("smap", (7, Ebx, 20)),
            ("avx512vl", (7, Ebx, 31)),
            ("umip", (7, Ecx, 2)),
            ("la57", (7, Ecx, 16)),
            ("rdpid", (7, Ecx, 22)),
            ("pks", (7, Ecx, 31)),
            ("fsrm", (7, Edx, 4)),
            ("md-clear", (7, Edx, 10)),
            ("amx-tile", (7, Edx, 24)),
            ("spec-ctrl", (7, Edx, 26)),
            ("ssbd", (7, Edx, 31)),
            ("syscall", (0x8000_0001, Edx, 11)),
            ("nx", (0x8000_0001, Edx, 20)),
            ("rdtscp", (0x8000_0001, Edx, 27)),
            ("lm", (0x8000_0001, Edx, 29)),
            ("invtsc", (0x8000_0007, Edx, 8)),
        ] {
            assert_eq!(bit(name), place, "{name}");
        }
        // CmpLegacy, bit 1, depends on the number of vCPUs, and comes first in the manual.
        assert_eq!(bit("lahf-lm"), (0x8000_0001, Ecx, 0));
        assert_eq!(bit("svm"), (0x8000_0001, Ecx, 2));
        assert_eq!(bit("topoext"), (0x8000_0001, Ecx, 22));
        let names: BTreeSet<_> = all().map(|feature| feature.name).collect();
        assert_eq!(names.len(), all().count());
    }

    #[test]
    fn features_go_and_are_never_made_up() {
        let leaf = kvm_cpuid_entry2 {
            function: 7,
            ebx: 1 << 5 | 1 << 8 | 1 << 2,
            ..Default::default()
        };
        let change = |name: &str, on| [(find(name).unwrap(), on)];
        let mut supported = CpuId::from_entries(&[leaf]).unwrap();
        apply(&mut supported, &change("avx2", true)).unwrap();
        apply(&mut supported, &change("avx2", false)).unwrap();
        apply(&mut supported, &change("aes", false)).unwrap();
        assert_eq!(supported.as_slice()[0].ebx, 1 << 8 | 1 << 2);
        assert_eq!(
            apply(&mut supported, &change("avx512f", true)).unwrap_err(),
            "host doesn't support requested feature: CPUID[eax=07h,ecx=00h].EBX.avx512f [bit 16]; \
             leave it out"
        );
        assert_eq!(
            apply(&mut supported, &change("sgx", true)).unwrap_err(),
            "'sgx' is hidden from guests: a handover does not carry its state; leave it out"
        );
    }
}
