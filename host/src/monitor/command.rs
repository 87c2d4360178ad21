//! The commands, typed once: QMP's list of commands and the checks of arguments follow from here.

use baton_migration::Mode;
use baton_migration::address::MigrationChannel;
use baton_migration::settings::{Capability, ParameterChanges};
use baton_migration::status::MigrationStatus;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::error::QmpError;

/// What a client may ask of the VM.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// `query-status`
    QueryStatus,
    /// `stop`
    Stop,
    /// `cont`
    Cont,
    /// `quit`
    Quit,
    /// `system_reset`
    SystemReset,
    /// `system_powerdown`
    SystemPowerdown,
    /// `query-name`
    QueryName,
    /// `query-kvm`
    QueryKvm,
    /// `query-devices`
    QueryDevices,
    /// `query-plugins`
    QueryPlugins,
    /// `migrate`
    Migrate {
        /// The main channel as a URI.
        uri: Option<String>,
        /// All channels.
        channels: Option<Vec<MigrationChannel>>,
    },
    /// `migrate-continue`
    MigrateContinue {
        /// The status the migration is thought to be in.
        state: MigrationStatus,
    },
    /// `cpr-save`
    CprSave {
        /// The file the guest is kept in.
        filename: String,
    },
    /// `cpr-load`
    CprLoad {
        /// The file it was kept in.
        filename: String,
    },
    /// `migrate_cancel`
    MigrateCancel,
    /// `migrate-incoming`
    MigrateIncoming {
        /// The main channel as a URI.
        uri: Option<String>,
        /// The main channel.
        channels: Option<Vec<MigrationChannel>>,
        /// Whether the process ends when the guest does not come; it does unless said otherwise.
        exit_on_error: Option<bool>,
    },
    /// `migrate-set-parameters`
    MigrateSetParameters(ParameterChanges),
    /// `migrate-set-capabilities`
    MigrateSetCapabilities(Vec<(Capability, bool)>),
    /// `query-migrate`
    QueryMigrate,
    /// `query-migratable`
    QueryMigratable {
        /// The one mode to tell of; all if there is none.
        mode: Option<Mode>,
    },
    /// `query-migrate-parameters`
    QueryMigrateParameters,
    /// `query-migrate-capabilities`
    QueryMigrateCapabilities,
}

type Arguments = Map<String, Value>;

/// Makes a command of its arguments.
type Reader = fn(Arguments) -> Result<Command, QmpError>;

/// Each command's name, and how its arguments are read.
const COMMANDS: &[(&str, Reader)] = &[
    ("cont", |a| none(&a, Command::Cont)),
    ("cpr-load", |a| {
        Ok(Command::CprLoad {
            filename: cpr_file(a)?,
        })
    }),
    ("cpr-save", |a| {
        Ok(Command::CprSave {
            filename: cpr_file(a)?,
        })
    }),
    ("migrate", migrate),
    ("migrate-continue", migrate_continue),
    ("migrate-incoming", migrate_incoming),
    ("migrate-set-capabilities", migrate_set_capabilities),
    ("migrate-set-parameters", |a| migrate_set_parameters(&a)),
    ("migrate_cancel", |a| none(&a, Command::MigrateCancel)),
    ("query-devices", |a| none(&a, Command::QueryDevices)),
    ("query-kvm", |a| none(&a, Command::QueryKvm)),
    ("query-migratable", query_migratable),
    ("query-migrate", |a| none(&a, Command::QueryMigrate)),
    ("query-migrate-capabilities", |a| {
        none(&a, Command::QueryMigrateCapabilities)
    }),
    ("query-migrate-parameters", |a| {
        none(&a, Command::QueryMigrateParameters)
    }),
    ("query-name", |a| none(&a, Command::QueryName)),
    ("query-plugins", |a| none(&a, Command::QueryPlugins)),
    ("query-status", |a| none(&a, Command::QueryStatus)),
    ("quit", |a| none(&a, Command::Quit)),
    ("stop", |a| none(&a, Command::Stop)),
    ("system_powerdown", |a| none(&a, Command::SystemPowerdown)),
    ("system_reset", |a| none(&a, Command::SystemReset)),
];

impl Command {
    /// The names of all commands of the VM, sorted.
    pub fn names() -> impl Iterator<Item = &'static str> {
        COMMANDS.iter().map(|(name, _)| *name)
    }

    /// The command `name` with these arguments; the errors are QEMU's.
    pub(super) fn parse(name: &str, arguments: Arguments) -> Result<Self, QmpError> {
        match COMMANDS.iter().find(|(known, _)| *known == name) {
            Some((_, read)) => read(arguments),
            None => Err(QmpError::unknown_command(name)),
        }
    }
}

fn none(arguments: &Arguments, command: Command) -> Result<Command, QmpError> {
    finish(arguments)?;
    Ok(command)
}

/// Refuses an argument that nobody took.
pub(super) fn finish(arguments: &Arguments) -> Result<(), QmpError> {
    match arguments.keys().next() {
        Some(name) => Err(QmpError::generic(format!(
            "Parameter '{name}' is unexpected"
        ))),
        None => Ok(()),
    }
}

/// Takes an argument that need not be there.
pub(super) fn take<T: DeserializeOwned>(
    arguments: &mut Arguments,
    name: &str,
    expects: &str,
) -> Result<Option<T>, QmpError> {
    let Some(value) = arguments.remove(name) else {
        return Ok(None);
    };
    serde_json::from_value(value).map(Some).map_err(|_| {
        QmpError::generic(format!(
            "Invalid parameter type for '{name}', expected: {expects}"
        ))
    })
}

/// Takes an argument that must be there.
fn required<T: DeserializeOwned>(
    arguments: &mut Arguments,
    name: &str,
    expects: &str,
) -> Result<T, QmpError> {
    take(arguments, name, expects)?
        .ok_or_else(|| QmpError::generic(format!("Parameter '{name}' is missing")))
}

/// Channels say themselves what is wrong with them.
fn channels(arguments: &mut Arguments) -> Result<Option<Vec<MigrationChannel>>, QmpError> {
    let Some(list) = take::<Vec<Value>>(arguments, "channels", "array")? else {
        return Ok(None);
    };
    let channel = |(at, value): (usize, Value)| {
        if !value.is_object() {
            return Err(QmpError::generic(format!(
                "Invalid parameter type for 'channels[{at}]', expected: object"
            )));
        }
        MigrationChannel::deserialize(value).map_err(|e| QmpError::generic(e.to_string()))
    };
    list.into_iter()
        .enumerate()
        .map(channel)
        .collect::<Result<_, _>>()
        .map(Some)
}

fn migrate(mut arguments: Arguments) -> Result<Command, QmpError> {
    let uri = take(&mut arguments, "uri", "string")?;
    let channels = channels(&mut arguments)?;
    // QEMU's `detach` says what is always so.
    take::<bool>(&mut arguments, "detach", "boolean")?;
    if take::<bool>(&mut arguments, "resume", "boolean")? == Some(true) {
        return Err(QmpError::generic(
            "Parameter 'resume' belongs to postcopy, which Baton does not have; leave it out",
        ));
    }
    finish(&arguments)?;
    Ok(Command::Migrate { uri, channels })
}

/// The arguments of cpr-save and cpr-load.
fn cpr_file(mut arguments: Arguments) -> Result<String, QmpError> {
    let mut string = |name: &str| {
        take::<String>(&mut arguments, name, "string")?
            .ok_or_else(|| QmpError::generic(format!("Parameter '{name}' is missing")))
    };
    let (filename, mode) = (string("filename")?, string("mode")?);
    if mode != "reboot" {
        return Err(QmpError::generic(format!(
            "Parameter 'mode' does not accept value '{mode}'; use reboot"
        )));
    }
    finish(&arguments)?;
    Ok(filename)
}

fn migrate_incoming(mut arguments: Arguments) -> Result<Command, QmpError> {
    let uri = take(&mut arguments, "uri", "string")?;
    let channels = channels(&mut arguments)?;
    let exit_on_error = take(&mut arguments, "exit-on-error", "boolean")?;
    finish(&arguments)?;
    Ok(Command::MigrateIncoming {
        uri,
        channels,
        exit_on_error,
    })
}

fn migrate_set_parameters(arguments: &Arguments) -> Result<Command, QmpError> {
    ParameterChanges::read(arguments)
        .map(Command::MigrateSetParameters)
        .map_err(QmpError::generic)
}

fn migrate_continue(mut arguments: Arguments) -> Result<Command, QmpError> {
    let name: String = required(&mut arguments, "state", "string")?;
    let state = MigrationStatus::deserialize(Value::from(name.as_str())).map_err(|_| {
        QmpError::generic(format!("Parameter 'state' does not accept value '{name}'"))
    })?;
    finish(&arguments)?;
    Ok(Command::MigrateContinue { state })
}

fn query_migratable(mut arguments: Arguments) -> Result<Command, QmpError> {
    let mode = take::<String>(&mut arguments, "mode", "string")?
        .map(|mode| mode.parse().map_err(|e: String| QmpError::generic(e)))
        .transpose()?;
    finish(&arguments)?;
    Ok(Command::QueryMigratable { mode })
}

fn migrate_set_capabilities(mut arguments: Arguments) -> Result<Command, QmpError> {
    let list: Vec<Value> = required(&mut arguments, "capabilities", "array")?;
    let changes = list
        .into_iter()
        .enumerate()
        .map(|(at, value)| capability_status(&format!("capabilities[{at}]"), value))
        .collect::<Result<_, _>>()?;
    finish(&arguments)?;
    Ok(Command::MigrateSetCapabilities(changes))
}

/// QAPI `MigrationCapabilityStatus`. Errors name its members by its place in the list, except for a
/// value that does not exist, as in QEMU.
fn capability_status(place: &str, value: Value) -> Result<(Capability, bool), QmpError> {
    let Value::Object(members) = value else {
        return Err(QmpError::generic(format!(
            "Invalid parameter type for '{place}', expected: object"
        )));
    };
    let mut members = members
        .into_iter()
        .map(|(name, value)| (format!("{place}.{name}"), value))
        .collect();
    let name: String = required(&mut members, &format!("{place}.capability"), "string")?;
    let capability = name.parse().map_err(|e: String| QmpError::generic(e))?;
    let state = required(&mut members, &format!("{place}.state"), "boolean")?;
    finish(&members)?;
    Ok((capability, state))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(name: &str, arguments: Value) -> Result<Command, String> {
        let Value::Object(arguments) = arguments else {
            panic!("arguments are an object")
        };
        Command::parse(name, arguments).map_err(|e| e.desc)
    }

    #[test]
    fn commands_are_sorted_so_that_lists_of_them_are() {
        assert!(Command::names().is_sorted());
    }

    #[test]
    fn every_command_is_documented() {
        let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/qmp.md"));
        for name in Command::names() {
            assert!(
                page.contains(&format!("`{name}`")),
                "docs/qmp.md does not mention {name}"
            );
        }
    }

    #[test]
    fn the_documents_migrate_is_understood() {
        let channels = json!([
            {"channel-type": "main",
             "addr": {"transport": "socket", "type": "inet", "host": "0", "port": "44444"}},
            {"channel-type": "cpr",
             "addr": {"transport": "socket", "type": "unix", "path": "cpr.sock"}}]);
        let Ok(Command::Migrate {
            uri: None,
            channels: Some(list),
        }) = parse("migrate", json!({ "channels": channels }))
        else {
            panic!("it is a migrate with channels");
        };
        assert_eq!(list.len(), 2);
    }

    #[test]
    fn what_does_not_fit_is_refused_in_qemus_words() {
        for (name, arguments, text) in [
            (
                "stop",
                json!({"now": true}),
                "Parameter 'now' is unexpected",
            ),
            (
                "migrate-set-parameters",
                json!({"mode": "cpr-bogus"}),
                "Parameter 'mode' does not accept value 'cpr-bogus'",
            ),
            (
                "migrate-continue",
                json!({}),
                "Parameter 'state' is missing",
            ),
            (
                "migrate-continue",
                json!({"state": "foo"}),
                "Parameter 'state' does not accept value 'foo'",
            ),
            (
                "migrate-set-capabilities",
                json!({}),
                "Parameter 'capabilities' is missing",
            ),
            (
                "migrate-set-capabilities",
                json!({"capabilities": 3}),
                "Invalid parameter type for 'capabilities', expected: array",
            ),
            (
                "migrate-set-capabilities",
                json!({"capabilities": [3]}),
                "Invalid parameter type for 'capabilities[0]', expected: object",
            ),
            (
                "migrate-set-capabilities",
                json!({"capabilities": [{"capability": "events"}]}),
                "Parameter 'capabilities[0].state' is missing",
            ),
            (
                "migrate-set-capabilities",
                json!({"capabilities": [{"capability": "events", "state": 3}]}),
                "Invalid parameter type for 'capabilities[0].state', expected: boolean",
            ),
            (
                "migrate-set-capabilities",
                json!({"capabilities": [{"capability": "foo", "state": true}]}),
                "Parameter 'capability' does not accept value 'foo'",
            ),
            (
                "migrate-set-capabilities",
                json!({"capabilities": [{"capability": "events", "state": true, "x": 1}]}),
                "Parameter 'capabilities[0].x' is unexpected",
            ),
            (
                "migrate",
                json!({"channels": [{"channel-type": "main"}]}),
                "Parameter 'addr' is missing",
            ),
            (
                "migrate",
                json!({"channels": [3]}),
                "Invalid parameter type for 'channels[0]', expected: object",
            ),
            (
                "migrate",
                json!({"uri": "a", "resume": true}),
                "Parameter 'resume' belongs to postcopy, which Baton does not have; leave it out",
            ),
            (
                "migrate",
                json!({"uri": 3}),
                "Invalid parameter type for 'uri', expected: string",
            ),
            ("nope", json!({}), "The command nope has not been found"),
        ] {
            assert_eq!(parse(name, arguments).unwrap_err(), text);
        }
    }
}
