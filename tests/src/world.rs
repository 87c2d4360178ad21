//! What all processes in the life of a guest have in common: its files and their names.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::fs::{File, OpenOptions};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::machine::Main;
use crate::process;
use crate::ram::GuestRam;
use crate::scratch::Scratch;
use crate::serial::SerialLog;
use crate::setup::{RAM, SERIAL, Setup};

/// Tells Baton where its faults are wanted.
pub(crate) const FAULTS: &str = "BATON_FAULTS";

/// A guest's surroundings; they go with the last process.
pub(crate) struct World {
    pub(crate) setup: Setup,
    pub(crate) arguments: Vec<String>,
    pub(crate) ram: Arc<GuestRam>,
    pub(crate) serial: SerialLog,
    /// How many processes there have been.
    generations: AtomicU32,
    pub(crate) scratch: Scratch,
}

impl World {
    /// Makes the folder, RAM and disk.
    pub(crate) fn new(setup: Setup) -> Result<Self> {
        let scratch = Scratch::new()?;
        std::fs::create_dir(scratch.join("faults")).context("Cannot make a folder for faults")?;
        let ram = GuestRam::create(&scratch.join(RAM), setup.memory_mib << 20)?;
        if let Some(from) = &setup.filled_from {
            let mut from = File::open(from).context("Cannot read what RAM is filled from")?;
            let to = OpenOptions::new().write(true).open(scratch.join(RAM));
            to.and_then(|mut to| std::io::copy(&mut from, &mut to))
                .context("Cannot fill guest RAM")?;
        }
        if setup.touched {
            GuestRam::allocate(&scratch.join(RAM))?;
        }
        if let (Some(image), Some(mib)) = (setup.disk(scratch.path()), setup.disk_mib) {
            File::create(&image)
                .and_then(|file| file.set_len(mib << 20))
                .with_context(|| format!("Cannot make the disk {}", image.display()))?;
        }
        Ok(Self {
            arguments: setup.arguments(&scratch)?,
            serial: SerialLog::new(scratch.join(SERIAL)),
            ram: Arc::new(ram),
            generations: AtomicU32::new(0),
            setup,
            scratch,
        })
    }

    /// The RAM of a new process and its arguments: those that all have in common, or with RAM in a
    /// file of its own.
    pub(crate) fn memory(&self, apart: Option<&str>) -> Result<(Arc<GuestRam>, Vec<String>)> {
        let Some(name) = apart else {
            return Ok((Arc::clone(&self.ram), self.arguments.clone()));
        };
        let own = self.scratch.join(name);
        let ram = GuestRam::create(&own, self.setup.memory_mib << 20)?;
        let path = |file: &std::path::Path| format!("mem-path={},", file.display());
        let (common, own) = (path(&self.scratch.join(RAM)), path(&own));
        let arguments = self.arguments.iter();
        let arguments = arguments.map(|argument| argument.replace(&common, &own));
        Ok((Arc::new(ram), arguments.collect()))
    }

    /// The number of a new process.
    pub(crate) fn next_generation(&self) -> u32 {
        self.generations.fetch_add(1, Ordering::Relaxed)
    }

    /// The guest's disk image.
    pub(crate) fn disk(&self) -> Option<PathBuf> {
        self.setup.disk(self.scratch.path())
    }

    /// The folder of the faults that are wanted.
    pub(crate) fn faults(&self) -> PathBuf {
        self.scratch.join("faults")
    }

    /// A socket of a process: `cpr`, `main` or `qmp`.
    pub(crate) fn socket(&self, kind: &str, number: u32) -> PathBuf {
        self.scratch.join(&format!("{kind}-{number}.sock"))
    }

    /// What a process writes to its standard error.
    pub(crate) fn log(&self, number: u32) -> PathBuf {
        self.scratch.join(&format!("vmm-{number}.log"))
    }

    /// A channel to a process, as JSON.
    pub(crate) fn channel(&self, kind: &str, number: u32) -> Value {
        json!({
            "channel-type": kind,
            "addr": { "transport": "socket", "type": "unix", "path": self.socket(kind, number) }
        })
    }

    /// The value of `-incoming` for a main channel.
    pub(crate) fn main_uri(&self, main: &Main, number: u32) -> String {
        match main {
            Main::Unix => format!("unix:{}", self.socket("main", number).display()),
            Main::Tcp(port) => format!("tcp:0:{port}"),
            Main::Deferred => "defer".to_owned(),
            Main::Kept(incoming) => incoming.clone(),
        }
    }

    /// The serial log, to write at its end.
    pub(crate) fn open_serial(&self) -> Result<File> {
        let path = self.serial.file();
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .with_context(|| format!("Cannot open the guest's log {}", path.display()))
    }
}

impl Drop for World {
    /// Ends what no [`crate::Machine`] stands for, a process that took another's place for one.
    fn drop(&mut self) {
        process::clear_out(self.scratch.path());
    }
}
