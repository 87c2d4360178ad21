//! A machine's state in memory, between the stream and the devices.

use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::ops::RangeInclusive;

use serde::de::DeserializeOwned;

use super::{Header, StateReader, StreamError, payload};
use crate::Section;
use baton_plugin_api::migration::SUBSECTION;

/// One section as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SectionData {
    /// Device path, slash, section name.
    pub name: String,
    /// Tells several of one name apart.
    pub instance: u32,
    /// The version it was written with.
    pub version: u32,
    /// The state, as [`super::encode`] made it.
    pub payload: Vec<u8>,
}

impl SectionData {
    /// Refuses a version that `loads` does not cover, in QEMU's words.
    pub fn check_version(&self, loads: &RangeInclusive<u32>) -> Result<(), StreamError> {
        let (name, found) = (self.name.clone(), self.version);
        if found > *loads.end() {
            return Err(StreamError::TooNew {
                name,
                found,
                local: *loads.end(),
            });
        }
        if found < *loads.start() {
            return Err(StreamError::TooOld {
                name,
                found,
                minimum: *loads.start(),
            });
        }
        Ok(())
    }

    /// The state as a value, for a section that has one version's layout.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, StreamError> {
        payload::decode(&self.name, &self.payload)
    }
}

/// A section that a machine loads.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// The path of its device.
    pub device_path: &'a str,
    /// Its name, versions and subsections.
    pub section: &'a Section,
    /// How many there are, counted from 0.
    pub instances: u32,
}

/// All sections of a stream, in its order, until their owners take them out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateImage {
    header: Header,
    /// A taken section leaves `None`.
    sections: Vec<Option<SectionData>>,
    /// Position in `sections`, by name and instance.
    index: HashMap<String, HashMap<u32, usize>>,
}

impl StateImage {
    /// An image without sections.
    pub fn new(header: Header) -> Self {
        Self {
            header,
            sections: Vec::new(),
            index: HashMap::new(),
        }
    }

    /// Reads a whole stream; bytes after its end mark are left unread.
    pub fn read(input: impl Read) -> Result<Self, StreamError> {
        StateReader::new(input)?.into_image()
    }

    /// What the stream says of itself.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Adds a section at the end; the same name and instance twice is an error.
    pub fn push(&mut self, section: SectionData) -> Result<(), StreamError> {
        let position = self.sections.len();
        let instances = self.index.entry(section.name.clone()).or_default();
        if instances.insert(section.instance, position).is_some() {
            let SectionData { name, instance, .. } = section;
            return Err(StreamError::Duplicate { name, instance });
        }
        self.sections.push(Some(section));
        Ok(())
    }

    /// Takes out a section that must be there.
    pub fn take(&mut self, name: &str, instance: u32) -> Result<SectionData, StreamError> {
        self.take_if_present(name, instance)
            .ok_or_else(|| StreamError::Missing {
                name: name.to_owned(),
                instance,
            })
    }

    /// Takes out a section that need not be there, such as a subsection.
    pub fn take_if_present(&mut self, name: &str, instance: u32) -> Option<SectionData> {
        let position = *self.index.get(name)?.get(&instance)?;
        self.sections[position].take()
    }

    /// Checks, before anything is loaded, that every section that is expected is there, in a version
    /// that is loaded, and that nothing else is: what a device of the source has said would be lost
    /// without a word. The texts are QEMU's.
    pub fn check(&self, expected: &[Expected<'_>]) -> Result<(), StreamError> {
        let mut known = HashSet::new();
        for &Expected {
            device_path,
            section,
            instances,
        } in expected
        {
            for instance in 0..instances {
                for (at, (name, loads)) in section.names().enumerate() {
                    let name = super::section_name(device_path, &name);
                    match self.get(&name, instance) {
                        Some(found) => found.check_version(&loads)?,
                        // Subsections need not be there.
                        None if at > 0 => continue,
                        None => return Err(StreamError::Missing { name, instance }),
                    }
                    known.insert((name, instance));
                }
            }
        }
        for SectionData { name, instance, .. } in self.sections() {
            if known.contains(&(name.clone(), *instance)) {
                continue;
            }
            let parent = expected.iter().find_map(|e| {
                let parent = super::section_name(e.device_path, &e.section.name);
                let subsection = name.strip_prefix(&parent)?.strip_prefix(SUBSECTION)?;
                Some((
                    format!("{}{SUBSECTION}{subsection}", e.section.name),
                    parent,
                ))
            });
            return Err(match parent {
                Some((subsection, section)) => StreamError::UnknownSubsection {
                    subsection,
                    section,
                },
                None => StreamError::Unknown {
                    name: name.clone(),
                    instance: *instance,
                },
            });
        }
        Ok(())
    }

    fn get(&self, name: &str, instance: u32) -> Option<&SectionData> {
        self.sections[*self.index.get(name)?.get(&instance)?].as_ref()
    }

    /// Puts back a section that was taken out, maybe changed. One that was never there is not put.
    pub fn put_back(&mut self, section: SectionData) {
        let instances = self.index.get(&section.name);
        if let Some(position) = instances.and_then(|all| all.get(&section.instance)) {
            self.sections[*position] = Some(section);
        }
    }

    /// Takes out a section and checks its version against what its owner `accepts`.
    pub fn take_checked(
        &mut self,
        device_path: &str,
        accepts: &Section,
        instance: u32,
    ) -> Result<SectionData, StreamError> {
        let section = self.take(&super::section_name(device_path, &accepts.name), instance)?;
        section.check_version(&(accepts.minimum_version..=accepts.version))?;
        Ok(section)
    }

    /// The sections still there, in the order of the stream.
    pub fn sections(&self) -> impl Iterator<Item = &SectionData> {
        self.sections.iter().flatten()
    }

    /// How many sections it ever had.
    pub fn len(&self) -> usize {
        self.sections.len()
    }

    /// Whether it never had a section.
    pub fn is_empty(&self) -> bool {
        self.sections.is_empty()
    }

    /// Refuses an image of which a section was not taken, in QEMU's words: a device of the source
    /// that is not here would lose its state without a word.
    pub fn all_taken(&self) -> Result<(), StreamError> {
        match self.sections().next() {
            None => Ok(()),
            Some(SectionData { name, instance, .. }) => Err(StreamError::Unknown {
                name: name.clone(),
                instance: *instance,
            }),
        }
    }
}
