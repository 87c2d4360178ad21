//! What a build, or a machine of it, saves and loads: `-dump-vmstate`.

use std::path::Path;

use baton_migration::HostError;
use baton_plugin_api::{DeviceType, Section};
use serde::{Deserialize, Serialize};

use crate::cli::{Options, children};
use crate::machine::{self, MachineDevice};
use crate::plugin::{self, Plugin, Registry};
use crate::vm::Vm;

/// Everything that can be in a state. A later build may say more of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Description {
    /// The program and its version; for people only.
    pub(super) producer: String,
    /// Which build of the program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) build_id: Option<String>,
    /// The plugins; a state does not say which they were.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) plugins: Vec<PluginDescription>,
    pub(super) machine: MachineDescription,
    pub(super) devices: Vec<DeviceDescription>,
}

/// A plugin of a build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct PluginDescription {
    pub(crate) name: String,
    pub(crate) version: String,
    /// The version of the plugin ABI it was built for.
    pub(crate) abi: String,
    pub(crate) file: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) build_id: Option<String>,
}

impl From<&Plugin> for PluginDescription {
    fn from(plugin: &Plugin) -> Self {
        Self {
            name: plugin.descriptor.name.clone(),
            version: plugin.descriptor.version.clone(),
            abi: format!("{}.{}", plugin.magic.abi_major, plugin.magic.abi_minor),
            file: plugin.path.display().to_string(),
            build_id: plugin.build_id.clone(),
        }
    }
}

/// The machine's own part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MachineDescription {
    /// The versioned machine type.
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) sections: Vec<SectionDescription>,
}

/// A device of a machine, or a device type of a build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DeviceDescription {
    /// A state does not say it.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub(super) kind: Option<String>,
    /// The path its sections have in a state; a device type has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<String>,
    pub(super) sections: Vec<SectionDescription>,
}

/// A section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct SectionDescription {
    pub(super) name: String,
    /// The version that is written, and the newest that is loaded.
    pub(super) version: u32,
    /// The oldest version that is loaded.
    pub(super) minimum_version: u32,
    /// Sections with a higher one are loaded first.
    #[serde(default)]
    pub(super) priority: i32,
    #[serde(default)]
    pub(super) subsections: Vec<SubsectionDescription>,
}

/// What may be there beside a section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct SubsectionDescription {
    /// Without its section's.
    pub(super) name: String,
    pub(super) version: u32,
    pub(super) minimum_version: u32,
}

impl From<&Section> for SectionDescription {
    fn from(section: &Section) -> Self {
        Self {
            name: section.name.clone(),
            version: section.version,
            minimum_version: section.minimum_version,
            priority: section.priority,
            subsections: section
                .subsections
                .iter()
                .map(|sub| SubsectionDescription {
                    name: sub.name.clone(),
                    version: sub.version,
                    minimum_version: sub.minimum_version,
                })
                .collect(),
        }
    }
}

/// Writes what the machine of `options` saves and loads into the file `path`, or, if `all`, what
/// every device type there is does.
pub(crate) fn dump(path: &Path, options: &Options, all: bool) -> Result<(), HostError> {
    let registry = Registry::load(&options.plugins)?;
    let devices = if all {
        let types = registry.devices();
        types.map(|(_, found)| device(None, found)).collect()
    } else {
        let wanted = machine::Wanted {
            devices: &children::seat(&options.devices, &registry)?,
            ..machine::Wanted::of(options)
        };
        machine::plan(options, wanted, &registry)?
            .into_iter()
            .map(|planned| device(Some(planned.config.id), planned.device_type))
            .collect()
    };
    let description = of_build(options, &registry, devices);
    let mut text = serde_json::to_string_pretty(&description)?;
    text.push('\n');
    std::fs::write(path, text)
        .map_err(|e| format!("-dump-vmstate {}: cannot be written: {e}", path.display()).into())
}

/// What the running machine of `vm` saves and loads.
pub(crate) fn of_vm(vm: &Vm) -> Result<Description, HostError> {
    let state = vm.state();
    let machine = state
        .machine
        .as_ref()
        .ok_or("There is no machine in this process")?;
    let devices = machine.devices().iter();
    let devices = devices.map(|d| device(Some(d.id().to_owned()), d.device_type()));
    Ok(of_build(&vm.options, &vm.registry(), devices.collect()))
}

fn device(id: Option<String>, device_type: &DeviceType) -> DeviceDescription {
    DeviceDescription {
        kind: Some(device_type.name.clone()),
        id,
        sections: described(&MachineDevice::sections(device_type)),
    }
}

fn of_build(
    options: &Options,
    registry: &Registry,
    devices: Vec<DeviceDescription>,
) -> Description {
    Description {
        producer: concat!("baton ", env!("CARGO_PKG_VERSION")).to_owned(),
        build_id: plugin::build_id(Path::new("/proc/self/exe")),
        plugins: registry.plugins().map(Into::into).collect(),
        machine: MachineDescription {
            kind: options.machine.kind.as_str().to_owned(),
            sections: described(&machine::sections()),
        },
        devices,
    }
}

fn described(sections: &[Section]) -> Vec<SectionDescription> {
    sections.iter().map(SectionDescription::from).collect()
}
