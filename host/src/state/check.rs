//! `baton state check`: whether one build can load what another writes.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::File;
use std::io::Read;
use std::ops::RangeInclusive;
use std::path::Path;

use baton_migration::HostError;
use baton_plugin_api::migration::SUBSECTION;
use serde::Serialize;

use super::StateFile;
use super::description::{
    Description, DeviceDescription, MachineDescription, SectionDescription, SubsectionDescription,
};
use crate::machine::MACHINE;

/// The exit status when the files cannot be compared.
pub(crate) const CANNOT_CHECK: u8 = 255;

/// The longest description that is read, in bytes: a thousand devices have a tenth of that.
const DESCRIPTION_MAX: u64 = 16 << 20;

/// What was found, to be printed.
pub(crate) struct Report {
    /// For people or, as JSON, for programs.
    pub(crate) text: String,
    /// The number of things that do not fit, at most 254.
    pub(crate) status: u8,
}

/// What there is to say of a section, a device or the machine.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Line {
    /// Which: a section's name is the device's and its own, with a slash between.
    pub(crate) name: String,
    verdict: Verdict,
    /// One sentence for people.
    pub(crate) message: String,
}

impl Line {
    /// Whether NEW can load it.
    pub(crate) fn is_ok(&self) -> bool {
        self.verdict == Verdict::Ok
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    Ok,
    /// The machine types, or the types of a device, are not the same.
    OtherType,
    /// NEW has no such device.
    MissingDevice,
    /// NEW knows no such section.
    MissingSection,
    /// NEW knows no such subsection.
    MissingSubsection,
    /// NEW loads older versions alone.
    TooNew,
    /// NEW loads newer versions alone.
    TooOld,
    /// NEW needs it and OLD does not write it.
    NotWritten,
}

/// Compares the files: descriptions that `-dump-vmstate` wrote, or a state file and a description.
pub(crate) fn check(old: &Path, new: &Path, json: bool) -> Result<Report, HostError> {
    let (old_build, new_build) = (read(old)?, read(new)?);
    if let (Source::State(_), Source::State(_)) = (&old_build, &new_build) {
        return Err(format!(
            "{} and {} are both state files; one of the two must be what -dump-vmstate wrote",
            old.display(),
            new.display()
        )
        .into());
    };
    let lines = compare(&old_build.writes(), &new_build.loads());
    let findings = lines.iter().filter(|l| !l.is_ok()).count();
    let text = if json {
        serde_json::to_string_pretty(&serde_json::json!({
            "findings": findings,
            "lines": lines,
        }))?
    } else {
        text(&lines, findings)
    };
    Ok(Report {
        text,
        status: findings.min(usize::from(CANNOT_CHECK) - 1) as u8,
    })
}

fn text(lines: &[Line], findings: usize) -> String {
    let mut text = String::new();
    for line in lines {
        let mark = if line.is_ok() { "ok " } else { "BAD" };
        let _ = writeln!(text, "{mark} {}: {}", line.name, line.message);
    }
    let _ = match findings {
        0 => writeln!(text, "NEW can load what OLD writes"),
        1 => writeln!(text, "NEW cannot load what OLD writes: 1 finding"),
        n => writeln!(text, "NEW cannot load what OLD writes: {n} findings"),
    };
    text
}

/// What a file tells of a build.
enum Source {
    Described(Description),
    /// What it wrote once.
    State(Description),
}

impl Source {
    fn writes(self) -> Description {
        match self {
            Self::Described(description) | Self::State(description) => description,
        }
    }

    /// A state tells nothing of the older versions its build may load: it is taken to load them all.
    fn loads(self) -> Description {
        match self {
            Self::Described(description) => description,
            Self::State(mut description) => {
                let devices = description.devices.iter_mut().map(|d| &mut d.sections);
                for section in devices.chain([&mut description.machine.sections]).flatten() {
                    section.minimum_version = 0;
                    for sub in &mut section.subsections {
                        sub.minimum_version = 0;
                    }
                }
                description
            }
        }
    }
}

fn read(path: &Path) -> Result<Source, HostError> {
    let fail = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let file = File::open(path).map_err(|e| fail(&e))?;
    let mut start = Vec::new();
    (&file)
        .take(1)
        .read_to_end(&mut start)
        .map_err(|e| fail(&e))?;
    if start != b"{" {
        return StateFile::read(path, 0).map(|file| Source::State(of_state(&file)));
    }
    (&file)
        .take(DESCRIPTION_MAX)
        .read_to_end(&mut start)
        .map_err(|e| fail(&e))?;
    serde_json::from_slice(&start)
        .map(Source::Described)
        .map_err(|e| fail(&format_args!("is not what -dump-vmstate writes: {e}")).into())
}

/// What a state says of the machine that wrote it.
fn of_state(file: &StateFile) -> Description {
    let header = file.image.header();
    let mut devices = BTreeMap::<&str, Vec<SectionDescription>>::new();
    for section in file.image.sections() {
        let mut names = section.name.splitn(3, SUBSECTION);
        let device = names.next().unwrap_or_default();
        let name = names.next().unwrap_or_default();
        let sections = devices.entry(device).or_default();
        // There may be several instances, and subsections in any order.
        let at = sections.iter().position(|known| known.name == name);
        let at = at.unwrap_or_else(|| {
            sections.push(SectionDescription {
                name: name.to_owned(),
                version: section.version,
                minimum_version: section.version,
                priority: 0,
                subsections: Vec::new(),
            });
            sections.len() - 1
        });
        match names.next() {
            Some(sub) => sections[at].subsections.push(SubsectionDescription {
                name: sub.to_owned(),
                version: section.version,
                minimum_version: section.version,
            }),
            None => {
                sections[at].version = section.version;
                sections[at].minimum_version = section.version;
            }
        }
    }
    let sections = devices.remove(MACHINE).unwrap_or_default();
    Description {
        producer: header.producer.clone(),
        build_id: None,
        plugins: Vec::new(),
        machine: MachineDescription {
            kind: header.fingerprint.machine_type.clone(),
            sections,
        },
        devices: devices
            .into_iter()
            .map(|(id, sections)| DeviceDescription {
                kind: None,
                id: Some(id.to_owned()),
                sections,
            })
            .collect(),
    }
}

/// What NEW can make of what OLD writes.
pub(crate) fn compare(old: &Description, new: &Description) -> Vec<Line> {
    let mut lines = Lines(Vec::new());
    if old.machine.kind != new.machine.kind {
        lines.add(
            MACHINE,
            Verdict::OtherType,
            format!(
                "the machine type is {} in OLD and {} in NEW",
                old.machine.kind, new.machine.kind
            ),
        );
    }
    lines.sections(MACHINE, &old.machine.sections, &new.machine.sections);
    for device in &old.devices {
        lines.device(device, new);
    }
    // A state of a machine has something of each of its devices.
    for device in new.devices.iter().filter(|device| device.id.is_some()) {
        let written = |other: &&DeviceDescription| other.id.is_none() || other.id == device.id;
        if !device.sections.is_empty() && old.devices.iter().find(written).is_none() {
            let name = name_of(device);
            lines.add(name, Verdict::NotWritten, "OLD has no such device".into());
        }
    }
    lines.0
}

fn name_of(device: &DeviceDescription) -> &str {
    let name = device.id.as_deref().or(device.kind.as_deref());
    name.unwrap_or_default()
}

struct Lines(Vec<Line>);

impl Lines {
    fn add(&mut self, name: &str, verdict: Verdict, message: String) {
        self.0.push(Line {
            name: name.to_owned(),
            verdict,
            message,
        });
    }

    /// Finds the device in `new`: by its id if both sides have ids, else by its type. A state that
    /// is compared with a build, not a machine, has only the sections' names to go by.
    fn device(&mut self, device: &DeviceDescription, new: &Description) {
        let name = name_of(device);
        let types_only = new.devices.iter().all(|other| other.id.is_none());
        let found = if device.id.is_some() && !types_only {
            new.devices.iter().find(|other| other.id == device.id)
        } else if device.kind.is_some() {
            new.devices.iter().find(|other| other.kind == device.kind)
        } else {
            return self.by_names(name, &device.sections, new);
        };
        let Some(found) = found else {
            self.add(
                name,
                Verdict::MissingDevice,
                "NEW has no such device".into(),
            );
            return;
        };
        if let (Some(old), Some(new)) = (&device.kind, &found.kind)
            && old != new
        {
            let message = format!("it is of type {old} in OLD and {new} in NEW");
            self.add(name, Verdict::OtherType, message);
            return;
        }
        self.sections(name, &device.sections, &found.sections);
    }

    fn by_names(&mut self, device: &str, written: &[SectionDescription], new: &Description) {
        for section in written {
            let all = new.devices.iter().flat_map(|device| &device.sections);
            let known: Vec<_> = all.filter(|known| known.name == section.name).collect();
            let fits = known.iter().find(|known| {
                let mut lines = Lines(Vec::new());
                lines.section(device, section, Some(known));
                lines.0.iter().all(|line| line.verdict == Verdict::Ok)
            });
            let best = fits.or(known.first());
            self.section(device, section, best.copied());
        }
    }

    fn sections(
        &mut self,
        device: &str,
        written: &[SectionDescription],
        loaded: &[SectionDescription],
    ) {
        for section in written {
            let known = loaded.iter().find(|known| known.name == section.name);
            self.section(device, section, known);
        }
        for section in loaded {
            if written.iter().all(|known| known.name != section.name) {
                self.add(
                    &format!("{device}/{}", section.name),
                    Verdict::NotWritten,
                    "NEW needs it and OLD does not write it".into(),
                );
            }
        }
    }

    fn section(
        &mut self,
        device: &str,
        written: &SectionDescription,
        known: Option<&SectionDescription>,
    ) {
        let name = format!("{device}/{}", written.name);
        let Some(known) = known else {
            self.add(
                &name,
                Verdict::MissingSection,
                "NEW knows no such section".into(),
            );
            return;
        };
        let (verdict, message) = judge(written.version, &(known.minimum_version..=known.version));
        self.add(&name, verdict, message);
        for sub in &written.subsections {
            let known = known
                .subsections
                .iter()
                .find(|known| known.name == sub.name);
            let (verdict, message) = match known {
                Some(known) => judge(sub.version, &(known.minimum_version..=known.version)),
                None => (
                    Verdict::MissingSubsection,
                    "NEW knows no such subsection".to_owned(),
                ),
            };
            self.add(&format!("{name}{SUBSECTION}{}", sub.name), verdict, message);
        }
    }
}

/// Whether `version` is one of those that are loaded.
fn judge(version: u32, loads: &RangeInclusive<u32>) -> (Verdict, String) {
    if version > *loads.end() {
        let message = format!(
            "version {version} is too new, NEW loads up to {}",
            loads.end()
        );
        (Verdict::TooNew, message)
    } else if version < *loads.start() {
        let message = format!(
            "version {version} is too old, NEW loads from {}",
            loads.start()
        );
        (Verdict::TooOld, message)
    } else {
        (Verdict::Ok, format!("version {version}"))
    }
}

#[cfg(test)]
mod tests;
