//! What a device is created from.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::descriptor::Value;
use crate::error::{Error, Result};
use crate::migration::Mode;

/// The input of `create`: all of it data.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Config {
    /// The device's id: what the user said, or the place it sits at.
    pub id: String,
    /// Every property that was said or has a default, checked against the descriptor.
    pub properties: BTreeMap<String, Value>,
    /// The drives that properties of kind `Drive` name, by the property's name.
    #[serde(default)]
    pub drives: BTreeMap<String, Drive>,
    /// The network backends that properties of kind `Netdev` name, by the property's name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub netdevs: BTreeMap<String, Netdev>,
    /// The objects that properties of kind `Object` name, by the property's name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub objects: BTreeMap<String, Object>,
    /// What sits on the device's own bus, in the order said.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub children: Vec<Child>,
    /// Set when the device's state will be loaded, which is when it must open nothing that
    /// [`Host::preserved_fd`](crate::Host::preserved_fd) gives it, and touch nothing the same
    /// device in another process may still be using. In mode `normal` nothing is given, and what only
    /// one process can have, such as a lock, is taken by `Start`.
    #[serde(default)]
    pub restoring: Option<Mode>,
}

impl Config {
    /// A property of kind `Bool`.
    pub fn bool(&self, name: &str) -> Result<bool> {
        match self.properties.get(name) {
            Some(Value::Bool(value)) => Ok(*value),
            other => Err(mistyped(name, "on or off", other)),
        }
    }

    /// A property of kind `Uint`.
    pub fn uint(&self, name: &str) -> Result<u64> {
        match self.properties.get(name) {
            Some(Value::Uint(value)) => Ok(*value),
            other => Err(mistyped(name, "a number", other)),
        }
    }

    /// A property of any kind that is text.
    pub fn string(&self, name: &str) -> Result<&str> {
        match self.properties.get(name) {
            Some(Value::String(value)) => Ok(value),
            other => Err(mistyped(name, "text", other)),
        }
    }

    /// A property of kind `Uint` that may be absent.
    pub fn uint_if_said(&self, name: &str) -> Result<Option<u64>> {
        self.properties
            .contains_key(name)
            .then(|| self.uint(name))
            .transpose()
    }

    /// A property of any kind that is text, which may be absent.
    pub fn string_if_said(&self, name: &str) -> Result<Option<&str>> {
        self.properties
            .contains_key(name)
            .then(|| self.string(name))
            .transpose()
    }

    /// The drive that property `name` names.
    pub fn drive(&self, name: &str) -> Result<&Drive> {
        self.drives
            .get(name)
            .ok_or_else(|| mistyped(name, "the id of a -drive", None))
    }
}

fn mistyped(name: &str, want: &str, found: Option<&Value>) -> Error {
    Error::invalid(match found {
        Some(value) => format!("Property '{name}' is '{value}', it takes {want}"),
        None => format!("Property '{name}' is missing, it takes {want}"),
    })
}

/// Something that sits on a device's own bus (see [`ChildBus`](crate::ChildBus)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Child {
    /// Which of the descriptor's [`ChildType`](crate::ChildType)s.
    pub device_type: String,
    /// Its id and its properties, checked against the type. The parent's `restoring` holds for it.
    pub config: Config,
}

/// A `-drive`, as the user described it. The device opens it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Drive {
    /// Its id.
    pub id: String,
    /// The file's path.
    pub file: String,
    /// `raw`, or another word that the device may refuse.
    pub format: String,
    /// Whether the guest may only read.
    #[serde(default)]
    pub read_only: bool,
    /// `discard=unmap`: a discard frees the file's blocks.
    #[serde(default)]
    pub discard: bool,
    /// `aio=`: `threads` or `io_uring`; absent, the device chooses.
    #[serde(default)]
    pub aio: Option<String>,
    /// `cache.direct`: bypass the host's page cache.
    #[serde(default)]
    pub direct: bool,
    /// `cache.no-flush`: the guest's flushes are not passed on.
    #[serde(default)]
    pub no_flush: bool,
    /// `file.locking`: whether the image is locked; on unless said otherwise.
    #[serde(default = "yes")]
    pub locking: bool,
}

/// A `-netdev`, as the user described it. The device opens it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Netdev {
    /// Its id.
    pub id: String,
    /// `type=`: `user`, `tap`, ..., or another word that the device may refuse.
    pub kind: String,
    /// Its other properties as text, whose types were checked. A part of a part has a dot in its
    /// name: `addr.path`.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

/// An `-object` that devices name, as the user described it. What it stands for, a source of entropy for
/// example, is opened by the device; several devices may name the same.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Object {
    /// Its id.
    pub id: String,
    /// `qom-type=`: one of the types that the property takes.
    pub kind: String,
    /// Its other properties as text; those with a default are always there.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

fn yes() -> bool {
    true
}
