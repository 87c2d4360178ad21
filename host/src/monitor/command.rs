//! What a client may ask of the VM: a variant for each command of [`super::table`].

use std::path::PathBuf;

use baton_migration::Mode;
use baton_migration::address::MigrationChannel;
use baton_migration::settings::{Capability, ParameterChanges};
use baton_migration::status::MigrationStatus;
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::error::QmpError;
use super::qapi;
use super::table;
use crate::chardev::qapi::{BackendArgument, DataFormat};
use crate::cli::DeviceOption;

/// A command with its arguments, which fit its [`Spec`](super::table::Spec).
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(
    rename_all = "kebab-case",
    rename_all_fields = "kebab-case",
    deny_unknown_fields
)]
#[allow(missing_docs, reason = "the table of commands says what each is")]
pub enum Command {
    #[serde(rename = "qmp_capabilities")]
    QmpCapabilities {
        #[serde(default)]
        enable: Vec<String>,
    },
    QueryVersion,
    QueryCommands,
    QueryQmpSchema,
    HumanMonitorCommand {
        command_line: String,
        cpu_index: Option<i64>,
    },
    QueryStatus,
    QueryName,
    QueryKvm,
    QueryDevices,
    QueryPlugins,
    QueryAddressSpaces,
    #[serde(rename = "device_add")]
    DeviceAdd(#[serde(deserialize_with = "device")] Box<DeviceOption>),
    #[serde(rename = "device_del")]
    DeviceDel {
        id: String,
    },
    PluginReplace {
        file: String,
    },
    ObjectAdd(Map<String, Value>),
    ObjectDel {
        id: String,
    },
    BlockdevAdd(Map<String, Value>),
    BlockdevDel {
        node_name: String,
    },
    Stop,
    Cont,
    Quit,
    #[serde(rename = "system_reset")]
    SystemReset,
    #[serde(rename = "system_powerdown")]
    SystemPowerdown,
    #[serde(rename = "system_wakeup")]
    SystemWakeup,
    Migrate {
        uri: Option<String>,
        channels: Option<Vec<MigrationChannel>>,
        detach: Option<bool>,
        #[serde(default, deserialize_with = "no_postcopy")]
        resume: (),
    },
    MigrateContinue {
        state: MigrationStatus,
    },
    CprSave {
        filename: String,
        mode: CprMode,
    },
    CprLoad {
        filename: String,
        mode: CprMode,
    },
    #[serde(rename = "migrate_cancel")]
    MigrateCancel,
    MigrateIncoming {
        uri: Option<String>,
        channels: Option<Vec<MigrationChannel>>,
        exit_on_error: Option<bool>,
    },
    MigrateSetParameters(#[serde(deserialize_with = "changes")] ParameterChanges),
    MigrateSetCapabilities {
        capabilities: Vec<CapabilityStatus>,
    },
    QueryYank,
    Yank {
        instances: Vec<YankInstance>,
    },
    Getfd {
        fdname: String,
    },
    Closefd {
        fdname: String,
    },
    AddFd {
        fdset_id: Option<i64>,
        opaque: Option<String>,
    },
    RemoveFd {
        fdset_id: i64,
        fd: Option<i64>,
    },
    QueryFdsets,
    QueryTarget,
    QueryMachines,
    QueryCurrentMachine,
    QueryUuid,
    QueryCpusFast,
    QueryMemorySizeSummary,
    QueryMemoryDevices,
    QueryMemdev,
    QueryIothreads,
    QueryCommandLineOptions {
        option: Option<String>,
    },
    QueryBlock,
    QueryPci,
    QueryNamedBlockNodes {
        flat: Option<bool>,
    },
    QomList {
        path: String,
    },
    QomGet {
        path: String,
        property: String,
    },
    QomListTypes {
        implements: Option<String>,
        r#abstract: Option<bool>,
    },
    QomListProperties {
        typename: String,
    },
    DeviceListProperties {
        typename: String,
    },
    QueryMigrationthreads,
    QueryMigrate,
    QueryMigratable {
        mode: Option<Mode>,
    },
    QueryMigrateParameters,
    QueryMigrateCapabilities,
    QueryChardev,
    QueryChardevBackends,
    ChardevAdd {
        id: String,
        backend: BackendArgument,
    },
    ChardevRemove {
        id: String,
    },
    RingbufRead {
        device: String,
        size: i64,
        #[serde(default)]
        format: DataFormat,
    },
    RingbufWrite {
        device: String,
        data: String,
        #[serde(default)]
        format: DataFormat,
    },
    QueryProcess,
    QueryVmstate,
    StartSuccessor {
        program: PathBuf,
        arguments: Vec<String>,
        report: PathBuf,
        log: Option<PathBuf>,
    },
}

/// QAPI `MigrationCapabilityStatus`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CapabilityStatus {
    /// Which.
    pub capability: Capability,
    /// Whether it is on.
    pub state: bool,
}

/// QAPI `YankInstance`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(
    tag = "type",
    rename_all = "kebab-case",
    rename_all_fields = "kebab-case"
)]
#[allow(missing_docs, reason = "the table of commands says what each is")]
pub enum YankInstance {
    BlockNode { node_name: String },
    Chardev { id: String },
    Migration,
}

/// What `cpr-save` and `cpr-load` can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CprMode {
    /// The guest is kept, and the host may be started anew meanwhile.
    Reboot,
}

impl Command {
    /// The command `name` with these arguments; the errors are QEMU's.
    pub fn parse(name: &str, arguments: Map<String, Value>) -> Result<Self, QmpError> {
        let spec = table::command(name).ok_or_else(|| QmpError::unknown_command(name))?;
        qapi::check_members(&spec.arguments, &arguments, "").map_err(QmpError::generic)?;
        let said = match spec.arguments.members {
            [] => Value::from(name),
            _ => Value::Object(Map::from_iter([(name.to_owned(), arguments.into())])),
        };
        // What is left to complain about has a text of its own.
        serde_json::from_value(said).map_err(|e| QmpError::generic(e.to_string()))
    }
}

fn no_postcopy<'de, D: Deserializer<'de>>(resume: D) -> Result<(), D::Error> {
    match bool::deserialize(resume)? {
        false => Ok(()),
        true => Err(D::Error::custom(
            "Parameter 'resume' belongs to postcopy, which Baton does not have; leave it out",
        )),
    }
}

fn device<'de, D: Deserializer<'de>>(arguments: D) -> Result<Box<DeviceOption>, D::Error> {
    let option = DeviceOption::from_arguments(Map::deserialize(arguments)?);
    option.map(Box::new).map_err(D::Error::custom)
}

fn changes<'de, D: Deserializer<'de>>(arguments: D) -> Result<ParameterChanges, D::Error> {
    ParameterChanges::read(&Map::deserialize(arguments)?).map_err(D::Error::custom)
}

#[cfg(test)]
#[path = "tests_command.rs"]
mod tests;
