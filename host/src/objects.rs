//! Objects that devices name, which come and go while the process runs: QMP's `object-add` and
//! `object-del`.

use baton_migration::HostError;
use baton_plugin_api::Object;
use serde_json::{Map, Value};

use crate::cli::Options;
use crate::cli::object::added;
use crate::machine::Machine;
use crate::vm::{State, Vm};

/// The JSON of an `-object` that describes this one.
pub fn arguments(object: &Object) -> Value {
    let own = [("qom-type", &object.kind), ("id", &object.id)];
    let own = own.into_iter().chain(
        object
            .options
            .iter()
            .map(|(name, value)| (name.as_str(), value)),
    );
    own.map(|(name, value)| (name.to_owned(), Value::from(value.as_str())))
        .collect::<Map<_, _>>()
        .into()
}

impl State {
    /// Every object that a device can name.
    pub fn objects(&self, options: &Options) -> Vec<Object> {
        [&options.objects[..], &self.objects[..]].concat()
    }
}

impl Vm {
    /// The QMP command `object-add`. The texts of errors are QEMU's where it has them.
    pub fn object_add(&self, arguments: Map<String, Value>) -> Result<(), HostError> {
        let object = added(&Value::Object(arguments).to_string())?;
        let mut state = self.state();
        if state.migrating {
            return Err("object-add not allowed while migrating".into());
        }
        let taken = |other: Object| other.id == object.id;
        let ram = self.options.memory.id.as_str() == object.id;
        if ram || state.objects(&self.options).into_iter().any(taken) {
            return Err(format!(
                "attempt to add duplicate property '{}' to object (type 'container')",
                object.id
            )
            .into());
        }
        state.objects.push(object);
        Ok(())
    }

    /// The QMP command `object-del`.
    pub fn object_del(&self, id: &str) -> Result<(), HostError> {
        let mut state = self.state();
        if state.migrating {
            return Err("object-del not allowed while migrating".into());
        }
        self.remove_ejected_from(&mut state);
        let busy = || HostError::from(format!("object '{id}' is in use, can not be deleted"));
        if self.options.memory.id.as_str() == id {
            return Err(busy());
        }
        if self.options.objects.iter().any(|object| object.id == id) {
            return Err(format!(
                "object '{id}' is of the command line, and stays until the process ends"
            )
            .into());
        }
        let at = state.objects.iter().position(|object| object.id == id);
        let at = at.ok_or_else(|| HostError::from(format!("object '{id}' not found")))?;
        let devices = state.machine.iter().flat_map(Machine::devices);
        let mut used = devices.flat_map(|device| device.config().objects.values());
        if used.any(|object| object.id == id) {
            return Err(busy());
        }
        let object = state.objects.remove(at);
        if state.machine.is_none() && self.plan(&state).is_err() {
            state.objects.insert(at, object);
            return Err(busy());
        }
        Ok(())
    }
}
