//! Gives a device's properties their types, and each drive and character device to one device.

use std::collections::BTreeMap;

use baton_plugin_api::{
    BusClass, Child, ChildType, Config, DeviceType, Drive, Netdev, Object, Property, PropertyKind,
    Value,
};

use super::device::{BUS, DeviceOption};
use super::error::CliError;
use super::nearest::{hint, not_accepted};
use super::number;
use crate::chardev::Chardev;

/// What devices are connected to. It remembers which device took what.
pub struct Backends<'a> {
    drives: BTreeMap<&'a str, (&'a Drive, bool)>,
    /// How many more devices each takes.
    chardevs: BTreeMap<&'a str, usize>,
    netdevs: BTreeMap<&'a str, (&'a Netdev, bool)>,
    objects: BTreeMap<&'a str, &'a Object>,
}

impl<'a> Backends<'a> {
    /// All of them free.
    pub fn new(drives: &'a [Drive], chardevs: &'a [Chardev]) -> Self {
        Self {
            drives: drives
                .iter()
                .map(|drive| (drive.id.as_str(), (drive, false)))
                .collect(),
            chardevs: chardevs
                .iter()
                .map(|chardev| (chardev.id.as_str(), chardev.users_max()))
                .collect(),
            netdevs: BTreeMap::new(),
            objects: BTreeMap::new(),
        }
    }

    /// These as well.
    #[must_use]
    pub fn with_netdevs(self, netdevs: &'a [Netdev]) -> Self {
        Self {
            netdevs: netdevs
                .iter()
                .map(|netdev| (netdev.id.as_str(), (netdev, false)))
                .collect(),
            ..self
        }
    }

    /// These as well.
    #[must_use]
    pub fn with_objects(self, objects: &'a [Object]) -> Self {
        let objects = objects.iter();
        Self {
            objects: objects.map(|object| (object.id.as_str(), object)).collect(),
            ..self
        }
    }

    /// The network backends that no device has taken.
    pub fn idle_netdevs(&self) -> impl Iterator<Item = &'a Netdev> + '_ {
        self.netdevs
            .values()
            .filter(|(_, taken)| !taken)
            .map(|(netdev, _)| *netdev)
    }

    /// What device `option` of type `kind` is created from: every property that was said or has a
    /// default, checked against the type's descriptor. The id is empty if none was said.
    pub fn configure(
        &mut self,
        kind: &DeviceType,
        option: &DeviceOption,
    ) -> Result<Config, CliError> {
        let typed = self.typed(kind, option);
        let mut config = typed.map_err(|reason| option.error(reason))?;
        for child in &option.children {
            let kind = kind
                .children()
                .iter()
                .find(|kind| kind.name == child.driver);
            let kind = kind.ok_or_else(|| child.error("It does not sit on this device"))?;
            config.children.push(self.configure_child(kind, child)?);
        }
        Ok(config)
    }

    fn typed(&mut self, kind: &DeviceType, option: &DeviceOption) -> Result<Config, String> {
        let pci = kind.bus != BusClass::Platform;
        let place = [
            ("addr", option.address.is_some()),
            ("bus", option.bus.is_some()),
        ];
        if let Some((key, _)) = place.into_iter().find(|(_, said)| *said && !pci) {
            return Err(format!(
                "Property '{}.{key}' not found: it is no PCI device",
                kind.name
            ));
        }
        if let Some(bus) = option.bus.as_deref().filter(|bus| *bus != BUS) {
            return Err(format!("Bus '{bus}' not found; there is only {BUS}"));
        }
        let place: &[&str] = if pci { &["id", "addr", "bus"] } else { &["id"] };
        self.properties((&kind.name, &kind.properties, place), option)
    }

    /// What `option`, which sits on the bus of a device, is created from.
    pub fn configure_child(
        &mut self,
        kind: &ChildType,
        option: &DeviceOption,
    ) -> Result<Child, CliError> {
        let place = &["id", "bus"];
        let config = match option.address {
            Some(_) => Err(format!(
                "Property '{}.addr' not found: it is no PCI device",
                kind.name
            )),
            None => self.properties((&kind.name, &kind.properties, place), option),
        };
        Ok(Child {
            device_type: kind.name.clone(),
            config: config.map_err(|reason| option.error(reason))?,
        })
    }

    /// The properties of a type with this name, these properties, and these words beside them.
    fn properties(
        &mut self,
        (name, known, place): (&str, &[Property], &[&str]),
        option: &DeviceOption,
    ) -> Result<Config, String> {
        let mut config = Config {
            id: option
                .id
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            ..Config::default()
        };
        for (key, text) in &option.properties {
            let Some(property) = known.iter().find(|p| p.name == *key) else {
                let known = known.iter().map(|p| p.name.as_str());
                return Err(format!(
                    "Property '{name}.{key}' not found{}",
                    hint(key, known.chain(place.iter().copied()))
                ));
            };
            let value = self.value(name, property, text, &mut config)?;
            config.properties.insert(key.clone(), value);
        }
        for property in known {
            if config.properties.contains_key(&property.name) {
                continue;
            }
            if property.required {
                return Err(format!(
                    "Parameter '{}' is missing; it expects {}",
                    property.name,
                    property.kind.describe()
                ));
            }
            if let Some(value) = &property.default {
                config
                    .properties
                    .insert(property.name.clone(), value.clone());
            }
        }
        Ok(config)
    }

    fn value(
        &mut self,
        kind: &str,
        property: &Property,
        text: &str,
        config: &mut Config,
    ) -> Result<Value, String> {
        let name = &property.name;
        let owned = || Value::String(text.to_owned());
        match &property.kind {
            PropertyKind::Bool => number::switch(text)
                .map(Value::Bool)
                .ok_or_else(|| format!("Parameter '{name}' expects 'on' or 'off'")),
            PropertyKind::Uint { min, max } => number::number(text)
                .filter(|number| (min..=max).contains(&number))
                .map(Value::Uint)
                .ok_or_else(|| format!("Parameter '{name}' expects {}", range(*min, *max))),
            PropertyKind::String { max_len } if text.len() > *max_len as usize => Err(format!(
                "Parameter '{name}' is {} bytes long; the most is {max_len}",
                text.len()
            )),
            PropertyKind::String { .. } => Ok(owned()),
            PropertyKind::Enum(words) if !words.iter().any(|word| word == text) => {
                Err(not_accepted(name, text, words.iter().map(String::as_str)))
            }
            PropertyKind::Enum(_) => Ok(owned()),
            PropertyKind::Drive => {
                let drives: Vec<_> = self.drives.keys().copied().collect();
                let (drive, taken) = self.drives.get_mut(text).ok_or_else(|| {
                    format!(
                        "Property '{}.{name}' can't find value '{text}'{}",
                        kind,
                        missing(text, drives, "a -drive or -blockdev")
                    )
                })?;
                take(taken, kind, name, text)?;
                config.drives.insert(name.clone(), (*drive).clone());
                Ok(owned())
            }
            PropertyKind::Chardev => {
                let chardevs: Vec<_> = self.chardevs.keys().copied().collect();
                let room = self.chardevs.get_mut(text).ok_or_else(|| {
                    format!(
                        "Property '{}.{name}' can't find value '{text}'{}",
                        kind,
                        missing(text, chardevs, "a -chardev")
                    )
                })?;
                let mut full = *room == 0;
                take(&mut full, kind, name, text)?;
                *room -= 1;
                Ok(owned())
            }
            PropertyKind::Netdev => {
                let netdevs: Vec<_> = self.netdevs.keys().copied().collect();
                let (netdev, taken) = self.netdevs.get_mut(text).ok_or_else(|| {
                    format!(
                        "Property '{}.{name}' can't find value '{text}'{}",
                        kind,
                        missing(text, netdevs, "a -netdev")
                    )
                })?;
                take(taken, kind, name, text)?;
                config.netdevs.insert(name.clone(), (*netdev).clone());
                Ok(owned())
            }
            PropertyKind::Object(types) => {
                let right = |object: &&&Object| types.contains(&object.kind);
                let known = self.objects.values().filter(right);
                let known: Vec<_> = known.map(|object| object.id.as_str()).collect();
                let Some(object) = self.objects.get(text) else {
                    let option = format!("an -object {}", types.join(" or "));
                    return Err(format!(
                        "Property '{}.{name}' can't find value '{text}'{}",
                        kind,
                        missing(text, known, &option)
                    ));
                };
                if !right(&object) {
                    return Err(format!(
                        "Invalid parameter type for '{name}', expected: {}; '{text}' is of {}",
                        types.join(" or "),
                        object.kind
                    ));
                }
                config.objects.insert(name.clone(), (*object).clone());
                Ok(owned())
            }
        }
    }
}

/// What to do about an id that nothing has.
fn missing(id: &str, known: Vec<&str>, option: &str) -> String {
    match hint(id, known) {
        none if none.is_empty() => format!("; add {option} with that id"),
        near => near,
    }
}

fn take(taken: &mut bool, kind: &str, name: &str, id: &str) -> Result<(), String> {
    if std::mem::replace(taken, true) {
        return Err(format!(
            "Property '{kind}.{name}' can't take value '{id}', it's in use"
        ));
    }
    Ok(())
}

fn range(min: u64, max: u64) -> String {
    match max {
        u64::MAX => format!("a number from {min}"),
        _ => format!("a number from {min} to {max}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chardev::ChardevBackend;

    fn disk() -> DeviceType {
        let mut kind = DeviceType::new("virtio-blk-pci", BusClass::Virtio, "a disk");
        let words = vec!["auto".to_owned(), "split".to_owned()];
        kind.properties = vec![
            Property::new("drive", PropertyKind::Drive, "").required(),
            Property::uint("num-queues", 1, 8, 1, ""),
            Property::string("serial", 4, "none", ""),
            Property::bool("event_idx", true, ""),
            Property::new("mode", PropertyKind::Enum(words), ""),
            Property::uint("seed", 0, u64::MAX, 0, ""),
        ];
        kind
    }

    fn serial() -> DeviceType {
        let mut kind = DeviceType::new("isa-serial", BusClass::Platform, "a serial line");
        kind.properties = vec![Property::new("chardev", PropertyKind::Chardev, "").required()];
        kind
    }

    fn configure(kind: &DeviceType, texts: &[&str]) -> Result<Config, String> {
        let drives = [Drive {
            id: "d0".into(),
            file: "/a".into(),
            ..Drive::default()
        }];
        let chardevs = [Chardev {
            id: "c0".parse().unwrap(),
            backend: ChardevBackend::Null,
            mux: false,
            monitors: Vec::new(),
        }];
        let mut backends = Backends::new(&drives, &chardevs);
        let mut last = Ok(Config::default());
        for text in texts {
            let option = DeviceOption::parse(text).unwrap();
            last = backends.configure(kind, &option);
        }
        last.map_err(|error| error.reason)
    }

    #[test]
    fn properties_get_the_types_of_the_descriptor_and_its_defaults() {
        let text = "virtio-blk-pci,id=x,drive=d0,num-queues=0x4,event_idx=off,mode=split,addr=3";
        let config = configure(&disk(), &[text]).unwrap();
        let value = |name: &str| config.properties.get(name);
        assert_eq!(config.id, "x");
        assert_eq!(config.drives["drive"].file, "/a");
        assert_eq!(value("num-queues"), Some(&Value::Uint(4)));
        assert_eq!(value("event_idx"), Some(&Value::Bool(false)));
        assert_eq!(value("mode"), Some(&Value::String("split".into())));
        assert_eq!(value("serial"), Some(&Value::String("none".into())));
        assert_eq!(config.restoring, None);
    }

    #[test]
    fn a_property_that_is_absent_and_has_no_default_stays_absent() {
        let config = configure(&disk(), &["virtio-blk-pci,drive=d0"]).unwrap();
        assert_eq!(config.id, "");
        assert!(!config.properties.contains_key("mode"));
    }

    #[test]
    fn what_the_descriptor_does_not_allow_is_refused() {
        for (text, reason) in [
            (
                "driv=d0",
                "Property 'virtio-blk-pci.driv' not found; did you mean 'drive'?",
            ),
            (
                "bootindex=1",
                "Property 'virtio-blk-pci.bootindex' not found",
            ),
            (
                "serial=a",
                "Parameter 'drive' is missing; it expects <id of a -drive>",
            ),
            (
                "drive=d1",
                "Property 'virtio-blk-pci.drive' can't find value 'd1'; did you mean 'd0'?",
            ),
            (
                "drive=xyz",
                "Property 'virtio-blk-pci.drive' can't find value 'xyz'; \
                 add a -drive or -blockdev with that id",
            ),
            (
                "drive=d0,bus=pci.1",
                "Bus 'pci.1' not found; there is only pcie.0",
            ),
            (
                "num-queues=9",
                "Parameter 'num-queues' expects a number from 1 to 8",
            ),
            (
                "num-queues=-1",
                "Parameter 'num-queues' expects a number from 1 to 8",
            ),
            ("seed=x", "Parameter 'seed' expects a number from 0"),
            (
                "serial=12345",
                "Parameter 'serial' is 5 bytes long; the most is 4",
            ),
            ("event_idx=1", "Parameter 'event_idx' expects 'on' or 'off'"),
            (
                "mode=packed",
                "Parameter 'mode' does not accept value 'packed'; use auto, split",
            ),
        ] {
            let text = format!("virtio-blk-pci,{text}");
            assert_eq!(configure(&disk(), &[&text]).unwrap_err(), reason);
        }
        for (text, reason) in [
            (
                "isa-serial,chardev=c0,addr=1",
                "Property 'isa-serial.addr' not found: it is no PCI device",
            ),
            (
                "isa-serial,chardev=c0,bus=pcie.0",
                "Property 'isa-serial.bus' not found: it is no PCI device",
            ),
            (
                "isa-serial,chardev=c1",
                "Property 'isa-serial.chardev' can't find value 'c1'; did you mean 'c0'?",
            ),
            (
                "isa-serial,chardev=log",
                "Property 'isa-serial.chardev' can't find value 'log'; \
                 add a -chardev with that id",
            ),
        ] {
            assert_eq!(configure(&serial(), &[text]).unwrap_err(), reason);
        }
    }

    #[test]
    fn a_backend_belongs_to_one_device() {
        let twice = ["virtio-blk-pci,drive=d0"; 2];
        assert_eq!(
            configure(&disk(), &twice).unwrap_err(),
            "Property 'virtio-blk-pci.drive' can't take value 'd0', it's in use"
        );
        assert_eq!(
            configure(&serial(), &["isa-serial,chardev=c0"; 2]).unwrap_err(),
            "Property 'isa-serial.chardev' can't take value 'c0', it's in use"
        );
    }

    #[test]
    fn an_object_reaches_all_devices_that_name_it_and_is_of_the_type_they_take() {
        let mut kind = DeviceType::new("virtio-rng-pci", BusClass::Virtio, "entropy");
        let types = vec!["rng-builtin".to_owned(), "rng-random".to_owned()];
        kind.properties = vec![Property::new("rng", PropertyKind::Object(types), "")];
        let object = |id: &str, kind: &str| Object {
            id: id.to_owned(),
            kind: kind.to_owned(),
            ..Object::default()
        };
        let objects = [object("rng0", "rng-random"), object("other", "secret")];
        let mut backends = Backends::new(&[], &[]).with_objects(&objects);
        let mut configured = |text: &str| {
            let option = DeviceOption::parse(text).unwrap();
            backends.configure(&kind, &option).map_err(|e| e.reason)
        };
        for _ in 0..2 {
            let config = configured("virtio-rng-pci,rng=rng0").unwrap();
            assert_eq!(config.objects["rng"], objects[0]);
        }
        for (text, reason) in [
            (
                "virtio-rng-pci,rng=rng1",
                "Property 'virtio-rng-pci.rng' can't find value 'rng1'; did you mean 'rng0'?",
            ),
            (
                "virtio-rng-pci,rng=entropy",
                "Property 'virtio-rng-pci.rng' can't find value 'entropy'; add an -object \
                 rng-builtin or rng-random with that id",
            ),
            (
                "virtio-rng-pci,rng=other",
                "Invalid parameter type for 'rng', expected: rng-builtin or rng-random; 'other' is \
                 of secret",
            ),
        ] {
            assert_eq!(configured(text).unwrap_err(), reason);
        }
    }

    #[test]
    fn a_netdev_reaches_its_device_and_what_none_takes_is_known() {
        let mut kind = DeviceType::new("nic", BusClass::Virtio, "a network card");
        kind.properties = vec![Property::new("netdev", PropertyKind::Netdev, "")];
        let netdev = |id: &str| Netdev {
            id: id.into(),
            kind: "user".into(),
            ..Netdev::default()
        };
        let netdevs = [netdev("n0"), netdev("n1")];
        let mut backends = Backends::new(&[], &[]).with_netdevs(&netdevs);
        let mut configure = |text: &str| {
            let option = DeviceOption::parse(text).unwrap();
            backends
                .configure(&kind, &option)
                .map_err(|error| error.reason)
        };
        assert_eq!(
            configure("nic,netdev=n1").unwrap().netdevs["netdev"],
            netdevs[1]
        );
        assert_eq!(
            configure("nic,netdev=n1").unwrap_err(),
            "Property 'nic.netdev' can't take value 'n1', it's in use"
        );
        assert_eq!(
            configure("nic,netdev=net").unwrap_err(),
            "Property 'nic.netdev' can't find value 'net'; add a -netdev with that id"
        );
        let idle: Vec<_> = backends
            .idle_netdevs()
            .map(|netdev| &netdev.id[..])
            .collect();
        assert_eq!(idle, ["n0"]);
    }

    #[test]
    fn an_error_names_the_option() {
        let option = DeviceOption::parse("isa-serial,char=c").unwrap();
        let error = Backends::new(&[], &[])
            .configure(&serial(), &option)
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "-device isa-serial,char=c: Property 'isa-serial.char' not found; \
             did you mean 'chardev'?"
        );
    }
}
