//! `-machine`, `-smp` and `-m`.

use super::nearest::hint;
use super::number;
use super::pairs::Pairs;

/// The most vCPUs: local APIC ids have eight bits, and the last one is the broadcast address.
pub const MAX_CPUS: u32 = 255;

/// A machine type. A state file names the one it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MachineType {
    /// `baton-1.0`, which `baton` stands for.
    #[default]
    Baton1_0,
}

impl MachineType {
    /// The versioned name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Baton1_0 => "baton-1.0",
        }
    }
}

/// `-machine`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// `type=`.
    pub kind: MachineType,
    /// `aux-ram-share=`: whether RAM that no backend describes is a shared memfd. On by default, so
    /// that a live update needs no option.
    pub aux_ram_share: bool,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            kind: MachineType::default(),
            aux_ram_share: true,
        }
    }
}

/// Properties of QEMU's machines that have one value here.
pub(super) const FIXED: [(&str, &str, &str); 12] = [
    ("acpi", "on", "the machine describes itself by ACPI"),
    ("dump-guest-core", "on", "a core dump holds guest RAM"),
    ("graphics", "off", "there is no graphics card"),
    ("hmat", "off", "there is one memory node"),
    ("hpet", "off", "there is none"),
    (
        "kernel-irqchip",
        "on",
        "the interrupt controllers are KVM's",
    ),
    ("mem-merge", "off", "pages are not offered for merging"),
    ("nvdimm", "off", "there are none"),
    ("pit", "on", "the timer is KVM's"),
    ("smm", "off", "there is no firmware to use it"),
    ("usb", "off", "there is none"),
    ("vmport", "off", "there is none"),
];

/// All values of `-machine` together: of several for one thing the last wins.
#[derive(Default)]
pub(super) struct MachineOption {
    pub(super) machine: Machine,
    /// `memory-backend=`: an id that is to be looked up.
    pub(super) memory_backend: Option<String>,
}

impl MachineOption {
    /// Adds one value of `-machine`.
    pub(super) fn add(&mut self, text: &str) -> Result<(), String> {
        let mut pairs = Pairs::parse_or_json(text, "type")?;
        if let Some(name) = pairs.take("type") {
            self.machine.kind = match name.as_str() {
                "baton" | "baton-1.0" => MachineType::Baton1_0,
                other => {
                    let near = hint(other, ["baton", "baton-1.0"]);
                    return Err(format!(
                        "unsupported machine type '{other}'{}",
                        if near.is_empty() {
                            "; use baton"
                        } else {
                            &near
                        }
                    ));
                }
            };
        }
        if let Some(id) = pairs.take("memory-backend") {
            self.memory_backend = Some(id);
        }
        let share = pairs.switch("aux-ram-share")?;
        let older = pairs.switch("memfd-alloc")?;
        if let (Some(_), Some(_)) = (share, older) {
            return Err(
                "Parameters 'aux-ram-share' and 'memfd-alloc' are the same; leave one out"
                    .to_owned(),
            );
        }
        if let Some(share) = share.or(older) {
            self.machine.aux_ram_share = share;
        }
        if let Some(name) = pairs.take("accel") {
            accelerator(&name)?;
        }
        for (key, only, why) in FIXED {
            if let Some(value) = pairs.take(key).filter(|value| value != only) {
                return Err(format!(
                    "Parameter '{key}' does not accept value '{value}'; use {only}: {why}"
                ));
            }
        }
        pairs.finish("machine.")
    }
}

/// The value of `-accel`: KVM is what there is.
pub(super) fn accelerator(text: &str) -> Result<(), String> {
    let mut pairs = Pairs::parse(text, Some("accel"))?;
    match pairs.require("accel")?.as_str() {
        "kvm" => pairs.finish("accel."),
        // QEMU's text.
        other => Err(format!("invalid accelerator {other}; use kvm")),
    }
}

/// The number of vCPUs from the value of `-smp`: one socket of that many cores is what is built.
pub(super) fn cpus(text: &str) -> Result<u32, String> {
    let mut pairs = Pairs::parse(text, Some("cpus"))?;
    let mut count = |key: &'static str| match pairs.take(key) {
        None => Ok(None),
        Some(text) => number::digits(&text, 10)
            .and_then(|count| u32::try_from(count).ok())
            .filter(|count| *count > 0)
            .map(Some)
            .ok_or_else(|| format!("Parameter '{key}' expects a number from 1")),
    };
    let (cpus, maxcpus) = (count("cpus")?, count("maxcpus")?);
    let (sockets, cores, threads) = (count("sockets")?, count("cores")?, count("threads")?);
    for level in ["books", "drawers", "dies", "clusters", "modules"] {
        if let Some(said) = pairs.take(level).filter(|said| said != "1") {
            return Err(format!("{level}={said} is not supported; use {level}=1"));
        }
    }
    pairs.finish("smp.")?;
    let cpus = cpus.or(maxcpus).or(cores).unwrap_or(1);
    if cpus > MAX_CPUS {
        return Err(format!("{cpus} CPUs are too many; the most is {MAX_CPUS}"));
    }
    if maxcpus.is_some_and(|max| max != cpus) {
        return Err("Parameter 'maxcpus' must equal 'cpus': CPUs cannot be plugged in".to_owned());
    }
    let topology = (
        sockets.unwrap_or(1),
        cores.unwrap_or(cpus),
        threads.unwrap_or(1),
    );
    if topology != (1, cpus, 1) {
        return Err(format!(
            "sockets={},cores={},threads={} is not supported; use sockets=1,cores={cpus},threads=1",
            topology.0, topology.1, topology.2
        ));
    }
    Ok(cpus)
}

/// Bytes from the value of `-m`; the unit is MiB.
pub(super) fn memory_size(text: &str) -> Result<u64, String> {
    let mut pairs = Pairs::parse(text, Some("size"))?;
    let size = pairs.require("size")?;
    for key in ["slots", "maxmem"] {
        if pairs.take(key).is_some() {
            return Err(format!(
                "Parameter '{key}' is not supported: memory cannot be plugged in"
            ));
        }
    }
    pairs.finish("memory.")?;
    number::size(&size, 20)
        .filter(|size| *size > 0)
        .ok_or_else(|| "Parameter 'size' expects a size, such as 512M or 4G".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(texts: &[&str]) -> Result<MachineOption, String> {
        let mut all = MachineOption::default();
        texts.iter().try_for_each(|text| all.add(text))?;
        Ok(all)
    }

    #[test]
    fn values_of_machine_add_up() {
        let all = machine(&["baton", "memory-backend=ram0", "aux-ram-share=on,accel=kvm"]).unwrap();
        assert_eq!(all.machine, Machine::default());
        assert_eq!(all.memory_backend.as_deref(), Some("ram0"));
        let all = machine(&["type=baton-1.0,memfd-alloc=off,usb=off,hpet=off,acpi=on"]).unwrap();
        assert!(!all.machine.aux_ram_share);
        let all = machine(&[r#"{"type": "baton", "memfd-alloc": false}"#]).unwrap();
        assert!(!all.machine.aux_ram_share);
    }

    #[test]
    fn machines_that_are_not_built_are_refused() {
        for (text, reason) in [
            ("q35", "unsupported machine type 'q35'; use baton"),
            (
                "batno",
                "unsupported machine type 'batno'; did you mean 'baton'?",
            ),
            ("accel=tcg", "invalid accelerator tcg; use kvm"),
            (
                "baton,usb=on",
                "Parameter 'usb' does not accept value 'on'; use off: there is none",
            ),
            (
                "aux-ram-share=1",
                "Parameter 'aux-ram-share' expects 'on' or 'off'",
            ),
            (
                "aux-ram-share=on,memfd-alloc=on",
                "Parameters 'aux-ram-share' and 'memfd-alloc' are the same; leave one out",
            ),
            (
                "baton,memory-backed=x",
                "Property 'machine.memory-backed' not found; did you mean 'memory-backend'?",
            ),
            ("baton,usb", "Expected '=' after parameter 'usb'"),
        ] {
            assert_eq!(machine(&[text]).err().unwrap(), reason);
        }
    }

    #[test]
    fn one_socket_of_single_threaded_cores_is_what_is_built() {
        for (text, count) in [
            ("1", 1),
            ("4", 4),
            ("cpus=4,maxcpus=4", 4),
            ("4,sockets=1,cores=4,threads=1", 4),
            ("cores=3", 3),
            ("255", 255),
        ] {
            assert_eq!(cpus(text), Ok(count), "{text}");
        }
        for (text, reason) in [
            ("0", "Parameter 'cpus' expects a number from 1"),
            ("x", "Parameter 'cpus' expects a number from 1"),
            ("256", "256 CPUs are too many; the most is 255"),
            (
                "2,maxcpus=4",
                "Parameter 'maxcpus' must equal 'cpus': CPUs cannot be plugged in",
            ),
            (
                "4,sockets=2,cores=2",
                "sockets=2,cores=2,threads=1 is not supported; use sockets=1,cores=4,threads=1",
            ),
            (
                "4,threads=2",
                "sockets=1,cores=4,threads=2 is not supported; use sockets=1,cores=4,threads=1",
            ),
            ("4,dies=2", "dies=2 is not supported; use dies=1"),
            (
                "4,dices=1",
                "Property 'smp.dices' not found; did you mean 'dies'?",
            ),
        ] {
            assert_eq!(cpus(text).unwrap_err(), reason, "{text}");
        }
    }

    #[test]
    fn the_unit_of_memory_is_a_mebibyte() {
        assert_eq!(memory_size("128"), Ok(128 << 20));
        assert_eq!(memory_size("size=4G"), Ok(4 << 30));
        for (text, reason) in [
            ("", "Parameter 'size' is missing"),
            ("0", "Parameter 'size' expects a size, such as 512M or 4G"),
            ("4Q", "Parameter 'size' expects a size, such as 512M or 4G"),
            (
                "1G,slots=2,maxmem=2G",
                "Parameter 'slots' is not supported: memory cannot be plugged in",
            ),
        ] {
            assert_eq!(memory_size(text).unwrap_err(), reason);
        }
    }
}
