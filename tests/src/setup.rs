//! The guest to run and the machine it runs on, in words that both VMMs understand.

use anyhow::Result;
use std::path::{Path, PathBuf};

use crate::machine::Machine;
use crate::vmm::{Programs, Vmm};
use crate::{guest, scratch::Scratch};

/// Where the guest's serial line goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serial {
    /// The process's standard streams: the guest can be talked to.
    Stdio,
    /// A file, whose descriptor a handover takes along.
    File,
    /// Where more arguments say. What the guest says is not in its log then.
    Elsewhere,
}

/// What the guest's RAM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Memory {
    Shared,
    Private,
    Implicit,
}

/// A guest on a machine, not started yet. The methods change one thing each.
#[derive(Clone, Debug)]
pub struct Setup {
    pub(crate) vmm: Vmm,
    pub(crate) programs: Programs,
    pub(crate) memory_mib: u64,
    cpus: u32,
    append: Vec<String>,
    pub(crate) disk_mib: Option<u64>,
    rngs: u32,
    memory: Memory,
    pub(crate) touched: bool,
    pub(crate) filled_from: Option<PathBuf>,
    pub(crate) serial: Serial,
    extra: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
}

impl Setup {
    /// One CPU, 128 MiB of RAM, a disk of 4 MiB, one entropy device, a serial line to talk on.
    ///
    /// # Errors
    /// When the VMM is not there.
    pub fn new(vmm: Vmm) -> Result<Self> {
        Ok(Self::with(vmm, vmm.programs()?))
    }

    /// The same with these programs.
    pub fn with(vmm: Vmm, programs: Programs) -> Self {
        Self {
            vmm,
            programs,
            memory_mib: 128,
            cpus: 1,
            append: Vec::new(),
            disk_mib: Some(4),
            rngs: 1,
            memory: Memory::Shared,
            touched: false,
            filled_from: None,
            serial: Serial::Stdio,
            extra: Vec::new(),
            environment: Vec::new(),
        }
    }

    /// CPUs, which the guest uses all.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// Megabytes of RAM.
    pub fn memory_mib(mut self, memory_mib: u64) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    /// Megabytes of disk, or no disk.
    pub fn disk_mib(mut self, disk_mib: Option<u64>) -> Self {
        self.disk_mib = disk_mib;
        self
    }

    /// How many entropy devices.
    pub fn rngs(mut self, rngs: u32) -> Self {
        self.rngs = rngs;
        self
    }

    /// RAM that no other process can map. The report stays empty then.
    pub fn private_memory(mut self) -> Self {
        self.memory = Memory::Private;
        self
    }

    /// RAM of which nothing is said but its size. The report stays empty then.
    pub fn implicit_memory(mut self) -> Self {
        self.memory = Memory::Implicit;
        self
    }

    /// RAM of which every page is there from the beginning, as if the guest had used it all.
    pub fn touched(mut self) -> Self {
        self.touched = true;
        self
    }

    /// RAM that holds what `file` holds until the guest writes it.
    pub fn filled_from(mut self, file: &Path) -> Self {
        self.filled_from = Some(file.to_owned());
        self
    }

    /// Where the serial line goes.
    pub fn serial(mut self, serial: Serial) -> Self {
        self.serial = serial;
        self
    }

    /// More words for the guest's command line: see `tests/guest/README.md`.
    pub fn append(mut self, words: &str) -> Self {
        self.append.push(words.to_owned());
        self
    }

    /// Takes its plugins from another folder.
    #[must_use]
    pub fn plugins(mut self, folder: &Path) -> Self {
        self.programs.plugins = Some(folder.to_owned());
        self
    }

    /// More arguments for the VMM.
    pub fn extra<'a>(mut self, arguments: impl IntoIterator<Item = &'a str>) -> Self {
        self.extra.extend(arguments.into_iter().map(str::to_owned));
        self
    }

    /// Built but not started, as with `-S`.
    pub fn paused(self) -> Self {
        self.extra(["-S"])
    }

    /// A variable of the VMM's environment.
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts it, in a folder of its own.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(self) -> Result<Machine> {
        Machine::first(self)
    }

    /// Starts it and waits until the guest is up.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn boot(self) -> Result<Machine> {
        let mut machine = self.start()?;
        machine.wait_up()?;
        Ok(machine)
    }

    /// The arguments every generation is started with, in `scratch`.
    pub(crate) fn arguments(&self, scratch: &Scratch) -> Result<Vec<String>> {
        let path = |name: &str| scratch.join(name).display().to_string();
        let mut line = Vec::new();
        let mut say = |words: &[&str]| line.extend(words.iter().map(|word| (*word).to_owned()));

        let mib = self.memory_mib;
        let ram = path(RAM);
        say(&[
            "-name",
            "test",
            "-m",
            &format!("{mib}M"),
            "-smp",
            &self.cpus.to_string(),
        ]);
        say(&["-nodefaults", "-display", "none"]);
        // A migration's steps are told only to those who ask.
        say(&["-global", "migration.x-events=on"]);
        let share = match self.memory {
            Memory::Shared => Some("on"),
            Memory::Private => Some("off"),
            Memory::Implicit => None,
        };
        let backend = share.map(|share| {
            format!("memory-backend-file,id=ram0,size={mib}M,mem-path={ram},share={share}")
        });
        if let Some(backend) = &backend {
            say(&["-object", backend]);
        }
        let guest = guest::image()?.display().to_string();
        say(&["-kernel", &guest, "-append", &self.guest_line()]);

        // QEMU needs more said: its devices are also of the older kind unless that is turned off.
        let modern = match self.vmm {
            Vmm::Baton if backend.is_none() => "",
            Vmm::Baton => {
                say(&["-machine", "memory-backend=ram0"]);
                ""
            }
            Vmm::Qemu => {
                say(&[
                    "-machine",
                    "q35,memory-backend=ram0,aux-ram-share=on",
                    "-accel",
                    "kvm",
                ]);
                say(&["-no-user-config", "-monitor", "none"]);
                ",disable-legacy=on"
            }
        };
        if self.disk_mib.is_some() {
            say(&[
                "-drive",
                &format!("if=none,id=d0,file={},format=raw", path(DISK)),
            ]);
            say(&["-device", &format!("virtio-blk-pci,drive=d0{modern}")]);
        }
        for _ in 0..self.rngs {
            say(&["-device", &format!("virtio-rng-pci{modern}")]);
        }
        let serial = path(SERIAL);
        match (self.serial, self.vmm) {
            (Serial::Stdio, _) => say(&["-serial", "stdio"]),
            (Serial::File, Vmm::Baton) => say(&["-serial", &format!("file:{serial}")]),
            // Its second process opens the file anew.
            (Serial::File, Vmm::Qemu) => {
                say(&["-chardev", &format!("file,id=s0,path={serial},append=on")]);
                say(&["-serial", "chardev:s0"]);
            }
            (Serial::Elsewhere, _) => {}
        }
        if let Some(plugins) = &self.programs.plugins {
            say(&["-plugin", &plugins.display().to_string()]);
        }
        line.extend(self.extra.iter().cloned());
        Ok(line)
    }

    fn guest_line(&self) -> String {
        let mut words = vec![format!("smp={}", self.cpus)];
        if self.vmm == Vmm::Qemu {
            // Its sleep type for S5.
            words.push("slp=0".to_owned());
        }
        words.extend(self.append.iter().cloned());
        words.join(" ")
    }

    pub(crate) fn disk(&self, scratch: &Path) -> Option<std::path::PathBuf> {
        self.disk_mib.map(|_| scratch.join(DISK))
    }
}

/// Names in the scratch folder.
pub(crate) const RAM: &str = "ram";
pub(crate) const DISK: &str = "disk.img";
pub(crate) const SERIAL: &str = "serial.log";
