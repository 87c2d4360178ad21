//! The lab: real Linux guests under real KVM on a machine that may have neither.
//!
//! Three levels. L0 is this machine: a QEMU under pure emulation whose CPU has AMD's
//! virtualization. L1 is a stock Debian kernel in it, so `/dev/kvm` there is true. L2 is a guest of
//! the VMM under test: the same stock kernel. Nothing needs root, and nothing is mounted here.
//!
//! [`run`] does one job; [`missing`] says what this machine lacks for it and [`install_missing`]
//! gets that as root. docs/lab.md is the user's page.

mod apt;
mod cpio;
mod guest_agent;
mod images;
mod inside;
mod libraries;
mod modules;
mod native;
mod needs;
mod outer;
mod packages;
mod passthrough;
mod paths;
mod process;
mod report;

pub(crate) mod agent;
pub(crate) mod cli;

pub(crate) use baton_testkit::Vmm;
pub(crate) use needs::{Missing, install_clients, install_missing, missing};
pub(crate) use outer::{lacks, run};
pub(crate) use report::LabReport;

use std::path::PathBuf;
use std::time::Duration;

/// What L1 does once it is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    /// Boot a guest, hand it over that many times by cpr-transfer, and judge what it says.
    Transfer { count: u32 },
    /// Boot a guest, take it through every migration mode, and judge the same way.
    Modes,
    /// Boot a guest, plug devices into it and out of it, and judge the same way.
    Hotplug,
    /// Keep a guest whose RAM is persistent memory, boot L1 into another kernel, and go on there.
    Kexec,
    /// Let a guest suspend itself to RAM, migrate it asleep, wake it, and judge the same way.
    Suspend,
    /// Boot a guest and replay the examples of QEMU's document on it.
    Document,
    /// Give a guest a disk of L1's by VFIO, let its agent suspend it, migrate it asleep, wake it.
    Vfio,
    /// Boot a guest and let `baton update` replace its VMM, by builds that fail too.
    Update,
    /// Run those native tests in L1 that need hardware which this machine may not have.
    Native,
    /// Run this shell script as `/lab/run`; its exit status is the result.
    Script(PathBuf),
    /// Give the terminal a shell in L1.
    Shell,
}

impl Job {
    /// What the agent in L1 is told to do; nothing for a job that does without it.
    fn agent(&self, vmm: Vmm) -> Option<String> {
        match self {
            Self::Transfer { count } => Some(format!("transfer {vmm} {count}")),
            Self::Modes => Some(format!("modes {vmm}")),
            Self::Hotplug => Some(format!("hotplug {vmm}")),
            Self::Kexec => Some(format!("kexec {vmm}")),
            Self::Suspend => Some(format!("suspend {vmm}")),
            Self::Document => Some(format!("document {vmm}")),
            Self::Vfio => Some(format!("vfio {vmm}")),
            Self::Update => Some(format!("update {vmm}")),
            Self::Native | Self::Script(_) | Self::Shell => None,
        }
    }

    /// Whether L1 has a disk to pass through, and the guest an agent. Scripts and people have all there is.
    fn passes_through(&self) -> bool {
        matches!(
            self,
            Self::Vfio | Self::Document | Self::Native | Self::Script(_) | Self::Shell
        )
    }

    /// Whether the job needs what QEMU has not, or not yet: modes, a way back from S3 for a guest
    /// that no firmware has booted, or `baton update`.
    fn only_baton(&self) -> bool {
        matches!(
            self,
            Self::Modes
                | Self::Hotplug
                | Self::Kexec
                | Self::Suspend
                | Self::Document
                | Self::Native
                | Self::Update
        )
    }
}

/// How a job is run. `Options::default()` is right for most.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub vmm: Vmm,
    /// The VMM's program; without it `target/debug/baton`, or this machine's QEMU.
    pub binary: Option<PathBuf>,
    /// The folder whose `lib*.so` files go into L1; without it the folder of `binary`.
    pub plugin_dir: Option<PathBuf>,
    /// More programs or files to copy into `/lab` of L1, programs with their libraries.
    pub add: Vec<PathBuf>,
    /// How long one attempt may take, in this machine's time.
    pub timeout: Duration,
    /// CPUs of L1. Two vCPUs of one guest really running at once reset L1 now and then (a QEMU
    /// fault), so more than one only suits single-CPU guests.
    pub cpus: u32,
    /// Keep the logs of a job that passed, too.
    pub keep: bool,
    /// Show L1's console while it runs.
    pub echo: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            vmm: Vmm::Baton,
            binary: None,
            plugin_dir: None,
            add: Vec::new(),
            timeout: Duration::from_secs(300),
            cpus: 1,
            keep: false,
            echo: false,
        }
    }
}
