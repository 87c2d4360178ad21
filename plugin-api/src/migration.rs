//! What the migration core asks of every device, as data: modes, blockers, vmstate sections, file
//! descriptors and events. The names are those of QEMU's `qapi/migration.json`.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A migration mode (QEMU's `MigMode`), in its QAPI spelling.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Between two hosts, over a stream.
    #[default]
    Normal,
    /// State to a file, RAM in place or in the same file; the host may be rebooted in between.
    CprReboot,
    /// To a new process on the same host, RAM and descriptors handed over.
    CprTransfer,
    /// The process executes its successor.
    CprExec,
}

impl Mode {
    /// Every mode, in QAPI's order.
    pub const ALL: [Mode; 4] = [
        Mode::Normal,
        Mode::CprReboot,
        Mode::CprTransfer,
        Mode::CprExec,
    ];

    /// The QAPI spelling.
    pub const fn as_str(self) -> &'static str {
        match self {
            Mode::Normal => "normal",
            Mode::CprReboot => "cpr-reboot",
            Mode::CprTransfer => "cpr-transfer",
            Mode::CprExec => "cpr-exec",
        }
    }

    /// Whether open file descriptors survive the handover, so that a device hands its own over
    /// instead of opening them again.
    pub const fn preserves_fds(self) -> bool {
        matches!(self, Mode::CprTransfer | Mode::CprExec)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Mode {
    type Err = String;

    /// Takes the QAPI spelling only; the error is QEMU's text.
    fn from_str(s: &str) -> Result<Self, String> {
        Mode::ALL
            .into_iter()
            .find(|mode| mode.as_str() == s)
            .ok_or_else(|| format!("Parameter 'mode' does not accept value '{s}'"))
    }
}

/// Why a migration cannot be done in some modes, and what the operator can do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocker {
    /// Stable within the device, such as `image-without-lock`; tools match on it.
    pub id: String,
    /// One sentence for people.
    pub reason: String,
    /// One sentence: what removes the blocker.
    pub remedy: String,
    /// The modes it blocks. A blocker of no mode blocks nothing.
    pub modes: Vec<Mode>,
    /// Whether it is lifted while the guest is suspended (ACPI S3, QEMU's runstate `suspended`), as that
    /// of a device that is passed through: the guest's driver has put it to rest then, and sets it up
    /// again when it is woken. The guest is not woken before the migration ends.
    #[serde(default)]
    pub unless_suspended: bool,
}

/// A vmstate section that a device writes and reads.
///
/// A device loads every version from `minimum_version` to `version` and writes `version`. What is
/// added to a section later is a new version of it, or a subsection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Section {
    /// Unique within the device, at most 63 bytes, such as `virtio-blk`.
    pub name: String,
    /// The version that is written.
    pub version: u32,
    /// The oldest version that is still loaded.
    pub minimum_version: u32,
    /// Of the sections of all devices those with a higher priority are loaded first, and those with
    /// the same in the order of the devices and, within one, of its descriptor.
    #[serde(default)]
    pub priority: i32,
    /// What may be there beside the section, loaded right after it in this order.
    #[serde(default)]
    pub subsections: Vec<Subsection>,
}

/// An optional piece of a section, written only when it is needed, so that whoever does not know it
/// can still load a state that does without.
///
/// The messages and the stream name it `parent/name`. If it is missing from a state, the device is
/// as the section alone left it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subsection {
    /// Unique within the section, at most 63 bytes, such as `unsent`.
    pub name: String,
    /// The version that is written.
    pub version: u32,
    /// The oldest version that is still loaded.
    pub minimum_version: u32,
}

impl Section {
    /// A section that reads all versions from `minimum_version` to `version`, of priority 0 and
    /// without subsections.
    pub fn new(name: &str, version: u32, minimum_version: u32) -> Self {
        Self {
            name: name.to_owned(),
            version,
            minimum_version,
            priority: 0,
            subsections: Vec::new(),
        }
    }

    /// The same section with another priority.
    #[must_use]
    pub fn priority(self, priority: i32) -> Self {
        Self { priority, ..self }
    }

    /// The same section with one subsection more.
    #[must_use]
    pub fn subsection(mut self, name: &str, version: u32, minimum_version: u32) -> Self {
        self.subsections.push(Subsection {
            name: name.to_owned(),
            version,
            minimum_version,
        });
        self
    }

    /// The names it has in messages, those of its subsections after its own, each with the oldest
    /// and the newest version that is loaded.
    pub fn names(&self) -> impl Iterator<Item = (String, RangeInclusive<u32>)> {
        let own = (self.name.clone(), self.minimum_version..=self.version);
        let subsections = self.subsections.iter().map(|sub| {
            let name = format!("{}{SUBSECTION}{}", self.name, sub.name);
            (name, sub.minimum_version..=sub.version)
        });
        std::iter::once(own).chain(subsections)
    }
}

/// Stands between a section's name and a subsection's, and in neither.
pub const SUBSECTION: char = '/';

/// A kind of descriptor a device can hand over, as declared in its descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdDeclaration {
    /// Unique within the device, at most 63 bytes, such as `image`.
    pub name: String,
    /// What it is, for people.
    pub help: String,
    /// The modes in which it is handed over.
    pub modes: Vec<Mode>,
}

/// An open descriptor that a device hands over now.
///
/// The number stays the device's own: whoever gets it duplicates it before the device is dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fd {
    /// One of the declared names.
    pub name: String,
    /// Tells several descriptors of one name apart.
    pub instance: u32,
    /// The descriptor in the device's process.
    pub fd: i32,
}

/// Events of a migration that a device may want to know of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationEvent {
    /// A migration begins; the guest still runs.
    Setup,
    /// The guest stands still, the device is quiesced, and another process that has opened the same
    /// by itself may start it next: the device lets go of what only one process can have, such as a
    /// lock. `Start` takes it back. Modes in which descriptors are handed over do not have this.
    Switchover,
    /// It was cancelled; the guest goes on here.
    Cancelled,
    /// It failed; the guest goes on here.
    Failed,
    /// It is done; the guest runs elsewhere and this device will be dropped.
    Done,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_reads_back_from_its_qapi_spelling() {
        for mode in Mode::ALL {
            assert_eq!(mode.as_str().parse::<Mode>(), Ok(mode));
            let json = rmp_serde::to_vec_named(&mode).unwrap();
            assert_eq!(
                rmp_serde::from_slice::<String>(&json).unwrap(),
                mode.as_str()
            );
        }
        assert_eq!(
            "cpr-bogus".parse::<Mode>(),
            Err("Parameter 'mode' does not accept value 'cpr-bogus'".to_owned())
        );
    }
}
