//! The commands, typed once: QMP's list of commands and the checks of arguments follow from here.

use baton_migration::Mode;
use baton_migration::address::MigrationChannel;
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
    MigrateSetParameters {
        /// `mode`
        mode: Option<Mode>,
    },
    /// `query-migrate`
    QueryMigrate,
    /// `query-migrate-parameters`
    QueryMigrateParameters,
}

type Arguments = Map<String, Value>;

/// Makes a command of its arguments.
type Reader = fn(Arguments) -> Result<Command, QmpError>;

/// Each command's name, and how its arguments are read.
const COMMANDS: &[(&str, Reader)] = &[
    ("cont", |a| none(&a, Command::Cont)),
    ("migrate", migrate),
    ("migrate-incoming", migrate_incoming),
    ("migrate-set-parameters", migrate_set_parameters),
    ("migrate_cancel", |a| none(&a, Command::MigrateCancel)),
    ("query-devices", |a| none(&a, Command::QueryDevices)),
    ("query-kvm", |a| none(&a, Command::QueryKvm)),
    ("query-migrate", |a| none(&a, Command::QueryMigrate)),
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

/// The other members of QEMU's `MigrateSetParameters`, which a client may know of.
const PARAMETERS: [&str; 30] = [
    "announce-initial",
    "announce-max",
    "announce-rounds",
    "announce-step",
    "avail-switchover-bandwidth",
    "block-bitmap-mapping",
    "cpr-exec-command",
    "cpu-throttle-increment",
    "cpu-throttle-initial",
    "cpu-throttle-tailslow",
    "direct-io",
    "downtime-limit",
    "max-bandwidth",
    "max-cpu-throttle",
    "max-postcopy-bandwidth",
    "multifd-channels",
    "multifd-compression",
    "multifd-qatzip-level",
    "multifd-zlib-level",
    "multifd-zstd-level",
    "throttle-trigger-threshold",
    "tls-authz",
    "tls-creds",
    "tls-hostname",
    "vcpu-dirty-limit",
    "x-checkpoint-delay",
    "x-rdma-chunk-size",
    "x-vcpu-dirty-limit-period",
    "xbzrle-cache-size",
    "zero-page-detection",
];

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

fn migrate_set_parameters(mut arguments: Arguments) -> Result<Command, QmpError> {
    let mode = take::<String>(&mut arguments, "mode", "string")?
        .map(|mode| mode.parse().map_err(|e: String| QmpError::generic(e)))
        .transpose()?;
    if let Some(name) = arguments
        .keys()
        .find(|name| PARAMETERS.contains(&name.as_str()))
    {
        return Err(QmpError::generic(format!(
            "Parameter '{name}' is not supported: it does not apply to cpr-transfer; leave it out"
        )));
    }
    finish(&arguments)?;
    Ok(Command::MigrateSetParameters { mode })
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
                "migrate-set-parameters",
                json!({"mode": 3}),
                "Invalid parameter type for 'mode', expected: string",
            ),
            (
                "migrate-set-parameters",
                json!({"max-bandwidth": 1}),
                "Parameter 'max-bandwidth' is not supported: it does not apply to cpr-transfer; \
                 leave it out",
            ),
            (
                "migrate-set-parameters",
                json!({"mod": "normal"}),
                "Parameter 'mod' is unexpected",
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
