//! What a command line asks for, checked.

use std::path::PathBuf;

use baton_migration::Mode;
use baton_migration::address::IncomingChannels;
use baton_migration::settings::Settings;
use baton_plugin_api::{Drive, Netdev, Object};

use super::add_fd::AddFd;
use super::cpu::CpuOption;
use super::device::DeviceOption;
use super::machine::Machine;
use super::object::MemoryBackend;
use super::user::RunAs;
use crate::chardev::Chardev;
use crate::log::LogOptions;
use crate::monitor::{MonitorAddress, MonitorOption};
use crate::update::UpdateOptions;

/// What to do.
#[derive(Debug)]
pub enum Invocation {
    /// Run a guest.
    Run(Box<Options>),
    /// `-device help` and `-device NAME,help`.
    DeviceHelp {
        /// The one device type to describe; all if there is none.
        device: Option<String>,
        /// The values of `-plugin`, whose device types are described.
        plugins: Vec<PathBuf>,
    },
    /// `baton plugin info FILE`.
    PluginInfo(PathBuf),
    /// `-dump-vmstate FILE`.
    DumpVmstate {
        /// The file to write.
        file: PathBuf,
        /// The machine to describe.
        options: Box<Options>,
        /// Nothing was said of devices: every type there is is described.
        all: bool,
    },
    /// `baton state show FILE`.
    StateShow {
        /// The state file.
        file: PathBuf,
        /// Where in it the state begins, in bytes.
        offset: u64,
        /// Long binary is not cut.
        full: bool,
    },
    /// `baton state check OLD NEW`.
    StateCheck {
        /// What writes a state: a description or a state file.
        old: PathBuf,
        /// What is to load it.
        new: PathBuf,
        /// The result is JSON.
        json: bool,
    },
    /// `baton completions SHELL`.
    Completions(clap_complete::Shell),
    /// `baton update`.
    Update(Box<UpdateOptions>),
    /// The help of an option but `-device`: what to print.
    OptionHelp(String),
    /// `-version`.
    Version,
    /// `-help`.
    Help,
}

/// The guest to run and its surroundings.
///
/// Within each kind ids are unique, and everything that is named by an id is there, except by a
/// property of a device: see [`Backends`](super::Backends).
#[derive(Debug)]
pub struct Options {
    /// `-name`.
    pub name: Option<String>,
    /// `-machine`.
    pub machine: Machine,
    /// `-cpu`.
    pub cpu: CpuOption,
    /// `-smp`: one socket of this many cores with one thread each.
    pub cpus: u32,
    /// The guest's RAM: the backend that `-machine memory-backend=` names, or an implicit one.
    pub memory: MemoryBackend,
    /// `-kernel` and what goes with it; only a target may be without.
    pub kernel: Option<Kernel>,
    /// The machine's own devices, then `-device` in the order said, then those of `if=virtio`.
    pub devices: Vec<DeviceOption>,
    /// `-drive`, and the nodes of `-blockdev` that are no other's.
    pub drives: Vec<Drive>,
    /// `-netdev`.
    pub netdevs: Vec<Netdev>,
    /// `-object`, but for guest RAM.
    pub objects: Vec<Object>,
    /// `-chardev` and those that `-serial` makes.
    pub chardevs: Vec<Chardev>,
    /// `-plugin`: files and directories, in the order said.
    pub plugins: Vec<PathBuf>,
    /// `-qmp` and `-monitor`.
    pub monitors: Vec<MonitorOption>,
    /// `-add-fd`.
    pub passed: Vec<AddFd>,
    /// `-incoming`, if it was said.
    pub incoming: Option<IncomingChannels>,
    /// `-global migration.PROPERTY=VALUE`: what is set before there is a monitor.
    pub settings: Settings,
    /// `-only-migratable`: the modes that nothing may block.
    pub only_migratable: Vec<Mode>,
    /// `-S`: do not start the guest.
    pub paused: bool,
    /// `-action reboot=shutdown`: a guest's reset is a shutdown.
    pub no_reboot: bool,
    /// `-action shutdown=pause`: a guest that switches itself off stays, stopped.
    pub no_shutdown: bool,
    /// `-daemonize`.
    pub daemonize: bool,
    /// `-pidfile`.
    pub pidfile: Option<PathBuf>,
    /// `-run-with user=`.
    pub run_as: Option<RunAs>,
    /// `-D` and `-d`.
    pub log: LogOptions,
    /// `-msg timestamp=on`.
    pub timestamps: bool,
}

impl Options {
    /// Whether a guest or a monitor uses standard input and output.
    pub fn uses_stdio(&self) -> bool {
        let guest = |chardev: &Chardev| chardev.backend.is_stdio();
        let monitor = |monitor: &MonitorOption| monitor.address == MonitorAddress::Stdio;
        self.chardevs.iter().any(guest) || self.monitors.iter().any(monitor)
    }
}

/// What the guest boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// `-kernel`.
    pub path: PathBuf,
    /// `-initrd`.
    pub initrd: Option<PathBuf>,
    /// `-append`: the kernel's command line, maybe empty.
    pub append: String,
}
