//! Objects as a tree, as QEMU's QOM has them: the machine with its devices and CPUs, and the memory
//! backends. The tree is made anew for each question, from what is there.

use std::collections::BTreeMap;

use baton_plugin_api::{Config, Property, PropertyKind};
use serde_json::{Value, json};

use super::machine::{MACHINE_TYPE, backend};
use crate::machine::MachineDevice;
use crate::monitor::QmpError;
use crate::plugin::Registry;
use crate::vm::Vm;

const CPU_TYPE: &str = "host-x86_64-cpu";
const CONTAINER: &str = "container";

/// Types that objects are not of alone, and types that are not a device's: name, parent, whether
/// there are objects of it.
const TYPES: [(&str, Option<&str>, bool); 16] = [
    ("object", None, false),
    (CONTAINER, Some("object"), true),
    ("machine", Some("object"), false),
    ("baton-1.0-machine", Some("machine"), true),
    ("device", Some("object"), false),
    ("cpu", Some("device"), false),
    (CPU_TYPE, Some("cpu"), true),
    ("memory-backend", Some("object"), false),
    ("memory-backend-file", Some("memory-backend"), true),
    ("memory-backend-memfd", Some("memory-backend"), true),
    ("memory-backend-ram", Some("memory-backend"), true),
    ("memory-backend-shm", Some("memory-backend"), true),
    ("rng-backend", Some("object"), false),
    ("rng-builtin", Some("rng-backend"), true),
    ("rng-random", Some("rng-backend"), true),
    ("chardev", Some("object"), true),
];

/// An object.
struct Node {
    of: String,
    properties: BTreeMap<String, (&'static str, Value)>,
    children: BTreeMap<String, Node>,
}

impl Node {
    fn new(of: impl Into<String>) -> Self {
        let of = of.into();
        let own = ("type".to_owned(), ("string", Value::from(of.as_str())));
        Self {
            of,
            properties: BTreeMap::from([own]),
            children: BTreeMap::new(),
        }
    }

    fn has(&mut self, name: &str, of: &'static str, value: impl Into<Value>) {
        self.properties.insert(name.to_owned(), (of, value.into()));
    }

    fn child(&mut self, name: impl Into<String>, node: Node) {
        self.children.insert(name.into(), node);
    }

    /// The object at a path from here.
    fn at<'a>(&self, mut path: impl Iterator<Item = &'a str>) -> Option<&Node> {
        match path.next() {
            None => Some(self),
            Some(name) => self.children.get(name)?.at(path),
        }
    }

    /// Every object from which `path` leads to one, as QEMU takes a path that does not begin with a
    /// slash.
    fn anywhere<'a>(&'a self, path: &[&str], found: &mut Vec<&'a Node>) {
        found.extend(self.at(path.iter().copied()));
        self.children
            .values()
            .for_each(|child| child.anywhere(path, found));
    }
}

/// The QOM path of a virtual CPU.
pub fn cpu_path(cpu: u32) -> String {
    format!("/machine/unattached/cpu[{cpu}]")
}

/// The QOM path of a device.
pub fn device_path(device: &MachineDevice) -> String {
    format!("/machine/{}/{}", folder(device), device.id())
}

/// Where a device is in the tree. One that has no id of its own has its place for one.
fn folder(device: &MachineDevice) -> &'static str {
    match device.id() == device.place() || device.place() == "platform" {
        true => "peripheral-anon",
        false => "peripheral",
    }
}

fn tree(vm: &Vm) -> Node {
    let mut root = Node::new(CONTAINER);
    root.child("machine", machine(vm));
    let mut objects = Node::new(CONTAINER);
    let memory = &vm.options.memory;
    let (of, properties) = backend(&memory.kind);
    let mut object = Node::new(of);
    object.has("size", "size", memory.size);
    object.has("share", "bool", memory.share);
    object.has("prealloc", "bool", memory.prealloc);
    for (name, value) in properties {
        object.has(name, json_type(&value), value);
    }
    objects.child(memory.id.to_string(), object);
    for object in vm.state().objects(&vm.options) {
        let mut node = Node::new(object.kind);
        for (name, value) in object.options {
            node.has(&name, "string", value);
        }
        objects.child(object.id, node);
    }
    root.child("objects", objects);
    let mut chardevs = Node::new(CONTAINER);
    for chardev in vm.chardevs.query() {
        chardevs.child(chardev.label, Node::new("chardev"));
    }
    root.child("chardevs", chardevs);
    root
}

fn machine(vm: &Vm) -> Node {
    let mut node = Node::new(format!("{MACHINE_TYPE}-machine"));
    node.has("memory-backend", "string", vm.options.memory.id.as_str());
    let mut folders =
        ["peripheral", "peripheral-anon", "unattached"].map(|name| (name, Node::new(CONTAINER)));
    let state = vm.state();
    for device in state.machine.iter().flat_map(|machine| machine.devices()) {
        let own = folder(device);
        let place = folders.iter_mut().find(|(name, _)| *name == own);
        if let Some((_, place)) = place {
            let of = device.device_type();
            place.child(
                device.id(),
                device_node(&of.name, &of.properties, device.config()),
            );
        }
        for (child, said) in device.children() {
            let own = ["peripheral-anon", "peripheral"][usize::from(said.id.is_some())];
            let place = folders.iter_mut().find(|(name, _)| *name == own);
            let of = device.device_type().children().iter();
            let of = of.filter(|of| of.name == child.device_type);
            if let Some((_, place)) = place {
                let properties: Vec<_> = of.flat_map(|of| &of.properties).cloned().collect();
                let node = device_node(&child.device_type, &properties, &child.config);
                place.child(&child.config.id, node);
            }
        }
    }
    if state.machine.is_some() {
        for cpu in 0..vm.options.cpus {
            let mut node = Node::new(CPU_TYPE);
            node.has("core-id", "int", cpu);
            folders[2].1.child(format!("cpu[{cpu}]"), node);
        }
    }
    for (name, folder) in folders {
        node.child(name, folder);
    }
    node
}

fn device_node(name: &str, properties: &[Property], config: &Config) -> Node {
    let mut node = Node::new(name);
    for property in properties {
        if let Some(value) = config.properties.get(&property.name) {
            node.has(&property.name, kind(&property.kind), json!(value));
        }
    }
    node.has("realized", "bool", true);
    node
}

fn kind(of: &PropertyKind) -> &'static str {
    match of {
        PropertyKind::Bool => "bool",
        PropertyKind::Uint { .. } => "uint64",
        PropertyKind::String { .. }
        | PropertyKind::Enum(_)
        | PropertyKind::Drive
        | PropertyKind::Chardev
        | PropertyKind::Netdev
        | PropertyKind::Object(_) => "str",
    }
}

fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Bool(_) => "bool",
        Value::Number(_) => "int",
        _ => "string",
    }
}

/// The object at a path, in QEMU's words if there is none or more than one.
fn find<'a>(root: &'a Node, path: &str) -> Result<&'a Node, QmpError> {
    let missing = || QmpError::device_not_found(format!("Device '{path}' not found"));
    let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty()).collect();
    if path.starts_with('/') {
        return root.at(parts.into_iter()).ok_or_else(missing);
    }
    let mut found = Vec::new();
    root.anywhere(&parts, &mut found);
    match found[..] {
        [one] => Ok(one),
        [] => Err(missing()),
        _ => Err(QmpError::generic(format!("Path '{path}' is ambiguous"))),
    }
}

/// The answer of `qom-list`.
pub fn list(vm: &Vm, path: &str) -> Result<Value, QmpError> {
    let root = tree(vm);
    let node = find(&root, path)?;
    let own = node.properties.iter();
    let own = own.map(|(name, (of, _))| json!({ "name": name, "type": of }));
    let child = |(name, child): (&String, &Node)| json!({ "name": name, "type": format!("child<{}>", child.of) });
    Ok(own.chain(node.children.iter().map(child)).collect())
}

/// The answer of `qom-get`. That of a child is its path.
pub fn get(vm: &Vm, path: &str, property: &str) -> Result<Value, QmpError> {
    let root = tree(vm);
    let node = find(&root, path)?;
    if let Some((_, value)) = node.properties.get(property) {
        return Ok(value.clone());
    }
    if node.children.contains_key(property) && path.starts_with('/') {
        return Ok(format!("{}/{property}", path.trim_end_matches('/')).into());
    }
    let of = &node.of;
    Err(QmpError::generic(format!(
        "Property '{of}.{property}' not found"
    )))
}

/// The answer of `qom-list-types`.
pub fn types(registry: &Registry, implements: Option<&str>, all: bool) -> Value {
    let devices = registry
        .kinds()
        .map(|(name, _)| (name, Some("device"), true));
    let known: Vec<_> = TYPES.into_iter().chain(devices).collect();
    let is_one = |name: &str, wanted: &str| {
        let mut now = Some(name);
        while let Some(name) = now {
            if name == wanted {
                return true;
            }
            let entry = known.iter().find(|(known, ..)| *known == name);
            now = entry.and_then(|(_, parent, _)| *parent);
        }
        false
    };
    let rows = known.iter().filter(|(name, _, concrete)| {
        (*concrete || all) && implements.is_none_or(|wanted| is_one(name, wanted))
    });
    rows.map(|(name, parent, concrete)| {
        let mut row = json!({ "name": name });
        if let Some(parent) = parent {
            row["parent"] = (*parent).into();
        }
        if !concrete {
            row["abstract"] = true.into();
        }
        row
    })
    .collect()
}

/// The answer of `device-list-properties`.
pub fn device_properties(registry: &Registry, name: &str) -> Result<Value, QmpError> {
    match registry.kinds().find(|(own, _)| *own == name) {
        Some((_, of)) => Ok(properties(of)),
        None if TYPES.iter().any(|(known, ..)| *known == name) => Err(QmpError::generic(
            "Parameter 'typename' expects a non-abstract device type",
        )),
        None => Err(QmpError::device_not_found(format!(
            "Device '{name}' not found"
        ))),
    }
}

/// The answer of `qom-list-properties`.
pub fn type_properties(registry: &Registry, name: &str) -> Result<Value, QmpError> {
    let own = json!({ "name": "type", "type": "string" });
    if let Some((_, of)) = registry.kinds().find(|(own, _)| *own == name) {
        let mut all = vec![own];
        all.extend(properties(of).as_array().cloned().unwrap_or_default());
        return Ok(all.into());
    }
    if !TYPES.iter().any(|(known, ..)| *known == name) {
        return Err(QmpError::device_not_found(format!(
            "Class '{name}' not found"
        )));
    }
    let mut all = vec![own];
    for (option, help) in crate::cli::object_properties(name) {
        let (name, _) = option.split_once('=').unwrap_or((option, ""));
        all.push(json!({ "name": name, "type": "str", "description": help }));
    }
    Ok(all.into())
}

fn properties(of: &[Property]) -> Value {
    let row = |property: &Property| {
        let mut row = json!({
            "name": property.name,
            "type": kind(&property.kind),
            "description": property.help,
        });
        if let Some(default) = &property.default {
            row["default-value"] = json!(default);
        }
        row
    };
    of.iter().map(row).collect()
}
