//! What two machines must have in common for one to go on with the other's guest.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// A range of guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RamRegion {
    /// Guest physical address, in bytes.
    pub guest_address: u64,
    /// Length, in bytes.
    pub size: u64,
}

impl fmt::Display for RamRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB at {:#x}", self.size >> 20, self.guest_address)
    }
}

/// What the guest sees of its machine before any device: it cannot change under a running guest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineFingerprint {
    /// The versioned machine type, such as `baton-1.0`; never an alias.
    pub machine_type: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// RAM, in ascending order of address.
    pub ram: Vec<RamRegion>,
    /// What the guest was told of its CPU, as the host describes it: `vendor`, `model`,
    /// a digest of the CPUID leaves, and so on. Equal keys must have equal values.
    pub cpu: BTreeMap<String, String>,
}

/// One way in which the machine here differs from the source's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch(String);

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl MachineFingerprint {
    /// How the machine here (`self`) differs from the `source`'s; empty if the guest can go on.
    pub fn compare(&self, source: &Self) -> Vec<Mismatch> {
        let mut found = Vec::new();
        let mut differs = |text: String| found.push(Mismatch(text));

        if self.machine_type != source.machine_type {
            differs(format!(
                "Machine type received is '{theirs}' and local is '{ours}'; start the target with \
                 -machine {theirs}",
                theirs = source.machine_type,
                ours = self.machine_type,
            ));
        }
        if self.vcpus != source.vcpus {
            differs(format!(
                "machine has {} here, {} in the source; start the target with -smp {}",
                count(self.vcpus, "vCPU"),
                source.vcpus,
                source.vcpus
            ));
        }
        if self.ram != source.ram {
            differs(format!(
                "RAM is {} here, {} in the source; start the target with the source's -m and \
                 memory backends",
                regions(&self.ram),
                regions(&source.ram)
            ));
        }
        for key in self
            .cpu
            .keys()
            .chain(source.cpu.keys().filter(|k| !self.cpu.contains_key(*k)))
        {
            let (ours, theirs) = (self.cpu.get(key), source.cpu.get(key));
            if ours != theirs {
                differs(format!(
                    "CPU {key} is {} here, {} in the source; start the target with the source's \
                     -cpu on the same host",
                    quoted(ours),
                    quoted(theirs)
                ));
            }
        }
        found
    }
}

fn count(n: u32, thing: &str) -> String {
    if n == 1 {
        format!("1 {thing}")
    } else {
        format!("{n} {thing}s")
    }
}

fn regions(ram: &[RamRegion]) -> String {
    match ram {
        [] => "absent".to_owned(),
        _ => ram
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(" and "),
    }
}

fn quoted(value: Option<&String>) -> String {
    value.map_or("not given".to_owned(), |v| format!("'{v}'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> MachineFingerprint {
        MachineFingerprint {
            machine_type: "baton-1.0".into(),
            vcpus: 2,
            ram: vec![RamRegion {
                guest_address: 0,
                size: 128 << 20,
            }],
            cpu: BTreeMap::from([("vendor".into(), "GenuineIntel".into())]),
        }
    }

    fn texts(ours: &MachineFingerprint, source: &MachineFingerprint) -> Vec<String> {
        ours.compare(source)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn a_machine_matches_itself() {
        assert_eq!(machine().compare(&machine()), []);
    }

    #[test]
    fn another_number_of_vcpus_is_told_with_its_remedy() {
        let source = MachineFingerprint {
            vcpus: 1,
            ..machine()
        };
        assert_eq!(
            texts(&machine(), &source),
            ["machine has 2 vCPUs here, 1 in the source; start the target with -smp 1"]
        );
    }

    #[test]
    fn another_machine_type_is_told_in_the_words_of_qemu() {
        let source = MachineFingerprint {
            machine_type: "baton-1.1".into(),
            ..machine()
        };
        let text = texts(&machine(), &source).remove(0);
        assert!(
            text.starts_with("Machine type received is 'baton-1.1' and local is 'baton-1.0'"),
            "{text}"
        );
    }

    #[test]
    fn every_difference_is_reported_at_once() {
        let source = MachineFingerprint {
            machine_type: "baton-1.1".into(),
            vcpus: 1,
            ram: vec![],
            cpu: BTreeMap::from([("digest".into(), "1f".into())]),
        };
        let texts = texts(&machine(), &source);
        assert_eq!(texts.len(), 5, "{texts:?}");
        assert!(
            texts[2].contains("RAM is 128 MiB at 0x0 here, absent in the source"),
            "{texts:?}"
        );
        assert!(texts[3].contains("CPU vendor is 'GenuineIntel' here, not given in the source"));
        assert!(texts[4].contains("CPU digest is not given here, '1f' in the source"));
    }
}
