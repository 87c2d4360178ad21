//! Layer 3 of the contract: what a plugin says of itself, as data.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::migration::{Blocker, FdDeclaration, Section};

/// The device types of one plugin file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginDescriptor {
    /// The plugin's name; the same as in the magic block.
    pub name: String,
    /// The plugin's version; the same as in the magic block.
    pub version: String,
    /// One line for people.
    pub description: String,
    /// At least one.
    pub devices: Vec<DeviceType>,
}

/// Which contract a device follows and where it sits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BusClass {
    /// Ports, MMIO and interrupt lines of the machine itself.
    Platform,
    /// A virtio backend; the host is its virtio-pci transport.
    Virtio,
    /// A PCI function.
    Pci,
}

impl BusClass {
    /// As `-device help` prints it.
    pub const fn as_str(self) -> &'static str {
        match self {
            BusClass::Platform => "platform",
            BusClass::Virtio => "virtio",
            BusClass::Pci => "pci",
        }
    }
}

/// A device type, before any device is created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceType {
    /// The name after `-device`.
    pub name: String,
    /// Its contract.
    pub bus: BusClass,
    /// One line for people.
    pub description: String,
    /// What may be said on the command line.
    #[serde(default)]
    pub properties: Vec<Property>,
    /// What blocks a mode for every device of this type.
    #[serde(default)]
    pub blockers: Vec<Blocker>,
    /// What its devices save.
    #[serde(default)]
    pub sections: Vec<Section>,
    /// What its devices hand over.
    #[serde(default)]
    pub fds: Vec<FdDeclaration>,
    /// What may sit on its devices, if they are controllers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub child_bus: Option<ChildBus>,
}

/// A bus that a device has for its children: devices which it alone knows how to drive.
///
/// A child has no instance of its own. What was said of it reaches its parent, as
/// [`Config::children`](crate::Config) or, on a guest that runs, by
/// [`Device::attach`](crate::Device::attach), and the parent saves it, hands it over, and answers for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildBus {
    /// What kind of bus, in QEMU's words: `virtio-serial-bus`.
    pub name: String,
    /// What may sit on it; at least one.
    pub devices: Vec<ChildType>,
}

/// A type of child.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildType {
    /// The name after `-device`.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// What may be said on the command line.
    #[serde(default)]
    pub properties: Vec<Property>,
}

impl DeviceType {
    /// A type with no properties, sections or descriptors yet.
    pub fn new(name: &str, bus: BusClass, description: &str) -> Self {
        Self {
            name: name.to_owned(),
            bus,
            description: description.to_owned(),
            properties: Vec::new(),
            blockers: Vec::new(),
            sections: Vec::new(),
            fds: Vec::new(),
            child_bus: None,
        }
    }

    /// The types of its children; none if it has no bus for any.
    pub fn children(&self) -> &[ChildType] {
        self.child_bus.as_ref().map_or(&[], |bus| &bus.devices)
    }
}

/// The type of a property.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PropertyKind {
    /// `on` or `off`.
    Bool,
    /// A number within both bounds.
    Uint {
        /// The smallest value.
        min: u64,
        /// The largest value.
        max: u64,
    },
    /// Text of at most this many bytes.
    String {
        /// The bound.
        max_len: u32,
    },
    /// One of these words.
    Enum(Vec<String>),
    /// The id of a `-drive`, whose options reach the device as [`Config::drives`](crate::Config).
    Drive,
    /// The id of a `-chardev`, whose descriptors [`Host::chardev`](crate::Host::chardev) gives.
    Chardev,
    /// The id of a `-netdev`, whose options reach the device as [`Config::netdevs`](crate::Config).
    Netdev,
    /// The id of an `-object` of one of these types, which reaches the device as
    /// [`Config::objects`](crate::Config).
    Object(Vec<String>),
}

impl PropertyKind {
    /// As `-device NAME,help` prints it.
    pub fn describe(&self) -> String {
        match self {
            PropertyKind::Bool => "<bool>".into(),
            PropertyKind::Uint { min, max } if *max == u64::MAX => format!("<uint> at least {min}"),
            PropertyKind::Uint { min, max } => format!("<uint {min}..={max}>"),
            PropertyKind::String { .. } => "<str>".into(),
            PropertyKind::Enum(words) => format!("<{}>", words.join("|")),
            PropertyKind::Drive => "<id of a -drive>".into(),
            PropertyKind::Chardev => "<id of a -chardev>".into(),
            PropertyKind::Netdev => "<id of a -netdev>".into(),
            PropertyKind::Object(types) => format!("<id of an -object {}>", types.join("|")),
        }
    }
}

/// A property's value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// Of a [`PropertyKind::Bool`].
    Bool(bool),
    /// Of a [`PropertyKind::Uint`].
    Uint(u64),
    /// Of every other kind.
    String(String),
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::Bool(true) => f.write_str("on"),
            Value::Bool(false) => f.write_str("off"),
            Value::Uint(n) => write!(f, "{n}"),
            Value::String(s) => f.write_str(s),
        }
    }
}

/// Something that may be said of a device on the command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Property {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: PropertyKind,
    /// What holds when it is not said; without a default it is absent then.
    #[serde(default)]
    pub default: Option<Value>,
    /// Whether it must be said.
    #[serde(default)]
    pub required: bool,
    /// One line for people.
    pub help: String,
}

impl Property {
    /// An optional property with no default.
    pub fn new(name: &str, kind: PropertyKind, help: &str) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            default: None,
            required: false,
            help: help.to_owned(),
        }
    }

    /// `on` or `off`.
    pub fn bool(name: &str, default: bool, help: &str) -> Self {
        Self {
            default: Some(Value::Bool(default)),
            ..Self::new(name, PropertyKind::Bool, help)
        }
    }

    /// A number from `min` to `max`.
    pub fn uint(name: &str, min: u64, max: u64, default: u64, help: &str) -> Self {
        Self {
            default: Some(Value::Uint(default)),
            ..Self::new(name, PropertyKind::Uint { min, max }, help)
        }
    }

    /// Text of at most `max_len` bytes.
    pub fn string(name: &str, max_len: u32, default: &str, help: &str) -> Self {
        Self {
            default: Some(Value::String(default.to_owned())),
            ..Self::new(name, PropertyKind::String { max_len }, help)
        }
    }

    /// The same property, which must be said.
    #[must_use]
    pub fn required(self) -> Self {
        Self {
            required: true,
            default: None,
            ..self
        }
    }
}

/// The longest name of a device type, property, section or descriptor, in bytes.
pub const NAME_MAX: usize = 63;

impl PluginDescriptor {
    /// What may stand after `-device`: its devices, each before what may sit on it.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.devices.iter().flat_map(|device| {
            let children = device.children().iter().map(|child| child.name.as_str());
            std::iter::once(device.name.as_str()).chain(children)
        })
    }

    /// Checks what the host relies on; the error says what is wrong, in one line.
    pub fn check(&self) -> Result<(), String> {
        if self.devices.is_empty() {
            return Err("it offers no device".into());
        }
        unique("device", self.names())?;
        for device in &self.devices {
            let within = |what: String| format!("in device type '{}', {what}", device.name);
            check_properties(&device.properties)
                .and_then(|()| unique("section", device.sections.iter().map(|s| s.name.as_str())))
                .and_then(|()| unique("descriptor", device.fds.iter().map(|f| f.name.as_str())))
                .map_err(within)?;
            if let Some(bus) = &device.child_bus {
                unique("bus", [bus.name.as_str()].into_iter()).map_err(within)?;
                if bus.devices.is_empty() {
                    return Err(within(format!("nothing can sit on bus '{}'", bus.name)));
                }
            }
            for child in device.children() {
                check_properties(&child.properties)
                    .map_err(|what| format!("in device type '{}', {what}", child.name))?;
            }
            for section in &device.sections {
                let subsections = section.subsections.iter().map(|sub| sub.name.as_str());
                unique("subsection", subsections).map_err(within)?;
                let mut unloadable = section.names().filter(|(_, loads)| loads.is_empty());
                if let Some((name, loads)) = unloadable.next() {
                    return Err(within(format!(
                        "section '{name}' has minimum version {} above its version {}",
                        loads.start(),
                        loads.end()
                    )));
                }
            }
        }
        Ok(())
    }
}

fn check_properties(properties: &[Property]) -> Result<(), String> {
    unique("property", properties.iter().map(|p| p.name.as_str()))?;
    let misfit = |p: &&Property| p.default.as_ref().is_some_and(|v| !fits(&p.kind, v));
    match properties.iter().find(misfit) {
        Some(Property { name, .. }) => Err(format!(
            "the default of property '{name}' is not of its type"
        )),
        None => Ok(()),
    }
}

/// Whether `value` is one of `kind`'s.
pub fn fits(kind: &PropertyKind, value: &Value) -> bool {
    match (kind, value) {
        (PropertyKind::Bool, Value::Bool(_)) => true,
        (PropertyKind::Uint { min, max }, Value::Uint(n)) => (min..=max).contains(&n),
        (PropertyKind::String { max_len }, Value::String(s)) => s.len() <= *max_len as usize,
        (PropertyKind::Enum(words), Value::String(s)) => words.contains(s),
        (
            PropertyKind::Drive
            | PropertyKind::Chardev
            | PropertyKind::Netdev
            | PropertyKind::Object(_),
            Value::String(_),
        ) => true,
        _ => false,
    }
}

fn unique<'a>(what: &str, names: impl Iterator<Item = &'a str>) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for name in names {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(plain) {
            return Err(format!(
                "the {what} name {name:?} is not 1 to {NAME_MAX} letters, digits, '-', '_' or '.'"
            ));
        }
        if !seen.insert(name) {
            return Err(format!("the {what} '{name}' is there twice"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plugin(device: DeviceType) -> PluginDescriptor {
        PluginDescriptor {
            name: "p".into(),
            version: "1".into(),
            description: String::new(),
            devices: vec![device],
        }
    }

    #[test]
    fn a_sound_descriptor_passes_and_survives_the_wire() {
        let mut device = DeviceType::new("dev", BusClass::Virtio, "a device");
        device.properties = vec![Property::uint("n", 1, 9, 3, "a number")];
        device.sections = vec![
            Section::new("dev", 2, 1)
                .priority(-3)
                .subsection("sub", 4, 4),
        ];
        let plugin = plugin(device);
        assert_eq!(plugin.check(), Ok(()));
        let bytes = rmp_serde::to_vec_named(&plugin).unwrap();
        assert_eq!(
            rmp_serde::from_slice::<PluginDescriptor>(&bytes).unwrap(),
            plugin
        );
    }

    #[test]
    fn a_default_outside_its_bounds_is_refused() {
        let mut device = DeviceType::new("dev", BusClass::Virtio, "");
        device.properties = vec![Property::uint("n", 1, 9, 10, "")];
        assert!(plugin(device).check().unwrap_err().contains("'n'"));
    }

    #[test]
    fn a_name_that_could_not_be_said_on_a_command_line_is_refused() {
        let device = DeviceType::new("a,b", BusClass::Virtio, "");
        assert!(plugin(device).check().unwrap_err().contains("a,b"));
    }

    #[test]
    fn what_sits_on_a_device_is_checked_as_the_device_is() {
        let child = |name: &str, properties| ChildType {
            name: name.into(),
            description: String::new(),
            properties,
        };
        let wrong = Property::uint("n", 1, 9, 10, "");
        for (children, text) in [
            (vec![], "nothing can sit on bus 'dev-bus'"),
            (
                vec![child("dev", vec![])],
                "the device 'dev' is there twice",
            ),
            (
                vec![child("port", vec![wrong])],
                "in device type 'port', the default of property 'n'",
            ),
        ] {
            let mut device = DeviceType::new("dev", BusClass::Virtio, "");
            device.child_bus = Some(ChildBus {
                name: "dev-bus".into(),
                devices: children,
            });
            let error = plugin(device).check().unwrap_err();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn a_section_no_version_can_load_is_refused() {
        let mut device = DeviceType::new("dev", BusClass::Virtio, "");
        for (section, text) in [
            (Section::new("dev", 1, 2), "'dev' has minimum version 2"),
            (
                Section::new("dev", 1, 1).subsection("sub", 3, 4),
                "'dev/sub' has minimum version 4",
            ),
        ] {
            device.sections = vec![section];
            let error = plugin(device.clone()).check().unwrap_err();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn a_subsection_that_is_there_twice_or_has_no_plain_name_is_refused() {
        let mut device = DeviceType::new("dev", BusClass::Virtio, "");
        let section = Section::new("dev", 1, 1).subsection("sub", 1, 1);
        for (name, text) in [("sub", "'sub' is there twice"), ("a/b", "\"a/b\"")] {
            device.sections = vec![section.clone().subsection(name, 1, 1)];
            let error = plugin(device.clone()).check().unwrap_err();
            assert!(error.contains(text), "{error}");
        }
    }
}
