//! Block nodes that come and go while the process runs: QMP's `blockdev-add` and `blockdev-del`.

use std::fs::OpenOptions;

use baton_migration::HostError;
use baton_plugin_api::Drive;
use serde_json::{Map, Value};

use crate::cli::Options;
use crate::cli::blockdev::{drives_of, node_name};
use crate::fdset::{self, Access};
use crate::machine::Machine;
use crate::vm::{State, Vm};

/// The nodes that have come, and the drives that they make together. They name each other alone, and no
/// node of the command line.
#[derive(Debug, Clone, Default)]
pub struct Nodes {
    /// Each as the JSON of a `-blockdev`, in the order they came.
    said: Vec<String>,
    drives: Vec<Drive>,
}

impl Nodes {
    /// Those that another program had.
    pub fn said_before(said: Vec<String>) -> Result<Self, String> {
        let drives = drives_of(&said)?;
        Ok(Self { said, drives })
    }

    /// Each as the JSON of a `-blockdev`.
    pub fn said(&self) -> &[String] {
        &self.said
    }

    /// The same as values.
    pub fn arguments(&self) -> serde_json::Result<Vec<Value>> {
        let said = self.said.iter();
        said.map(|text| serde_json::from_str(text)).collect()
    }

    fn has(&self, name: &str) -> bool {
        self.said.iter().any(|text| is_named(text, name))
    }

    fn with(&self, text: String) -> Result<Self, String> {
        Self::said_before([&self.said[..], &[text]].concat())
    }

    fn without(&self, name: &str) -> Result<Self, String> {
        let mut said = self.said.clone();
        said.retain(|text| !is_named(text, name));
        Self::said_before(said)
    }
}

fn is_named(text: &str, name: &str) -> bool {
    node_name(text).is_ok_and(|own| own == name)
}

impl State {
    /// Every drive that a device can name.
    pub fn drives(&self, options: &Options) -> Vec<Drive> {
        [&options.drives[..], &self.nodes.drives[..]].concat()
    }
}

impl Vm {
    /// The QMP command `blockdev-add`. The texts of errors are QEMU's where it has them.
    pub fn blockdev_add(&self, arguments: Map<String, Value>) -> Result<(), HostError> {
        let text = Value::Object(arguments).to_string();
        let name = node_name(&text)?;
        // A file system may be slow to answer, and nobody else is to wait for it.
        for drive in drives_of(std::slice::from_ref(&text)).unwrap_or_default() {
            openable(&drive)?;
        }
        let mut state = self.state();
        if state.migrating {
            return Err("blockdev-add not allowed while migrating".into());
        }
        let taken = self.options.drives.iter().any(|drive| drive.id == name);
        if taken || state.nodes.has(&name) {
            return Err(format!("Duplicate nodes with node-name='{name}'").into());
        }
        state.nodes = state.nodes.with(text)?;
        Ok(())
    }

    /// The QMP command `blockdev-del`.
    pub fn blockdev_del(&self, name: &str) -> Result<(), HostError> {
        let mut state = self.state();
        if state.migrating {
            return Err("blockdev-del not allowed while migrating".into());
        }
        self.remove_ejected_from(&mut state);
        if self.options.drives.iter().any(|drive| drive.id == name) {
            return Err(format!(
                "Node '{name}' is of the command line, and stays until the process ends"
            )
            .into());
        }
        if !state.nodes.has(name) {
            return Err(format!("Failed to find node with node-name='{name}'").into());
        }
        let busy = || HostError::from(format!("Node '{name}' is in use"));
        let devices = state.machine.iter().flat_map(Machine::devices);
        let mut drives = devices.flat_map(|device| device.config().drives.values());
        if drives.any(|drive| drive.id == name) {
            return Err(busy());
        }
        // A node that shows it would be left with nothing below.
        let left = state.nodes.without(name).map_err(|_| busy())?;
        let before = std::mem::replace(&mut state.nodes, left);
        if state.machine.is_none() && self.plan(&state).is_err() {
            state.nodes = before;
            return Err(busy());
        }
        Ok(())
    }
}

/// Whether a device could open the image now.
fn openable(drive: &Drive) -> Result<(), HostError> {
    let access = match drive.read_only {
        true => Access::READ,
        false => Access::READ_WRITE,
    };
    let path = drive.file.as_ref();
    let opened = fdset::open(path, access).unwrap_or_else(|| {
        OpenOptions::new()
            .read(true)
            .write(!drive.read_only)
            .open(path)
    });
    opened
        .map(drop)
        .map_err(|e| format!("Could not open '{}': {e}", drive.file).into())
}
