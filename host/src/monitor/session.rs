//! What one client says and hears, without its socket: docs/interop/qmp-spec.rst of QEMU.

use serde_json::{Map, Value, json};

use super::about;
use super::command::Command;
use super::error::QmpError;
use super::table;

/// Where a client stands.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Session {
    negotiated: bool,
    oob: bool,
}

/// What to do with something a client has said.
#[derive(Debug, PartialEq)]
pub(super) enum Said {
    /// Send this.
    Answer(Value),
    /// Let the VM do this.
    Ask(Asked),
}

/// A command for the VM. Its result goes into [`answer`] with the id.
#[derive(Debug, PartialEq)]
pub(super) struct Asked {
    pub(super) name: &'static str,
    pub(super) command: Command,
    pub(super) id: Option<Value>,
}

/// The first thing a client hears.
pub(super) fn greeting() -> Value {
    json!({ "QMP": { "version": about::version(), "capabilities": ["oob"] } })
}

/// The answer to a command, with the client's id for it.
pub(super) fn answer(result: Result<Value, QmpError>, id: Option<Value>) -> Value {
    let mut answer = Map::new();
    match result {
        Ok(value) => answer.insert("return".into(), value),
        Err(e) => answer.insert("error".into(), json!({ "class": e.class, "desc": e.desc })),
    };
    if let Some(id) = id {
        answer.insert("id".into(), id);
    }
    Value::Object(answer)
}

impl Session {
    /// A client that has come so far before; `oob` is agreed on in negotiation.
    pub(super) fn resumed(negotiated: bool, oob: bool) -> Self {
        let oob = negotiated && oob;
        Self { negotiated, oob }
    }

    /// Whether out-of-band commands are agreed on.
    pub(super) fn has_oob(&self) -> bool {
        self.oob
    }

    /// Whether events go to this client.
    pub(super) fn hears_events(&self) -> bool {
        self.negotiated
    }

    /// Whether a value is a command to be carried out before those that wait.
    pub(super) fn is_oob(&self, value: &Value) -> bool {
        let has = |member| value.get(member).is_some();
        self.oob && has("exec-oob") && !has("execute")
    }

    /// Takes a JSON value from the client.
    pub(super) fn take(&mut self, value: Value) -> Said {
        let Value::Object(mut object) = value else {
            return Said::Answer(answer(
                Err(QmpError::generic("QMP input must be a JSON object")),
                None,
            ));
        };
        let id = object.remove("id");
        match self.read(object) {
            Ok(Reading::Done(value)) => Said::Answer(answer(Ok(value), id)),
            Ok(Reading::Ask(name, command)) => Said::Ask(Asked { name, command, id }),
            Err(e) => Said::Answer(answer(Err(e), id)),
        }
    }

    fn read(&mut self, mut object: Map<String, Value>) -> Result<Reading, QmpError> {
        let (member, name) = match (object.remove("execute"), object.remove("exec-oob")) {
            (Some(_), Some(_)) => {
                return Err(QmpError::generic(
                    "QMP input member 'exec-oob' clashes with 'execute'",
                ));
            }
            (Some(name), None) => ("execute", name),
            (None, Some(_)) if !self.oob => return Err(unexpected("exec-oob")),
            (None, Some(name)) => ("exec-oob", name),
            (None, None) => {
                return Err(match object.keys().find(|k| *k != "arguments") {
                    Some(key) => unexpected(key),
                    None => QmpError::generic("QMP input lacks member 'execute'"),
                });
            }
        };
        let Value::String(name) = name else {
            return Err(QmpError::generic(format!(
                "QMP input member '{member}' must be a string"
            )));
        };
        let arguments = match object.remove("arguments") {
            None => Map::new(),
            Some(Value::Object(arguments)) => arguments,
            Some(_) => {
                return Err(QmpError::generic(
                    "QMP input member 'arguments' must be an object",
                ));
            }
        };
        if let Some(key) = object.keys().next() {
            return Err(unexpected(key));
        }
        self.dispatch(&name, arguments, member == "exec-oob")
    }

    fn dispatch(
        &mut self,
        name: &str,
        arguments: Map<String, Value>,
        oob: bool,
    ) -> Result<Reading, QmpError> {
        if !self.negotiated && name != "qmp_capabilities" {
            return Err(QmpError::not_found(
                "Expecting capabilities negotiation with 'qmp_capabilities'",
            ));
        }
        let spec = table::command(name).ok_or_else(|| QmpError::unknown_command(name))?;
        if oob && !spec.oob {
            return Err(QmpError::generic(format!(
                "The command {name} does not support OOB"
            )));
        }
        Ok(match Command::parse(name, arguments)? {
            Command::QmpCapabilities { .. } if self.negotiated => {
                return Err(QmpError::negotiated());
            }
            Command::QmpCapabilities { enable } => {
                self.oob = !enable.is_empty();
                self.negotiated = true;
                Reading::Done(json!({}))
            }
            Command::QueryVersion => Reading::Done(about::version()),
            Command::QueryCommands => Reading::Done(about::commands()),
            Command::QueryQmpSchema => Reading::Done(about::schema()),
            other => Reading::Ask(spec.name, other),
        })
    }
}

enum Reading {
    Done(Value),
    Ask(&'static str, Command),
}

fn unexpected(key: &str) -> QmpError {
    QmpError::generic(format!("QMP input member '{key}' is unexpected"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready() -> Session {
        let mut session = Session::default();
        session.take(json!({"execute": "qmp_capabilities"}));
        session
    }

    fn error(session: &mut Session, said: Value) -> String {
        match session.take(said) {
            Said::Answer(answer) => answer["error"]["desc"].as_str().unwrap().to_owned(),
            Said::Ask(asked) => panic!("{asked:?}"),
        }
    }

    #[test]
    fn nothing_but_negotiation_is_answered_before_it() {
        let mut session = Session::default();
        assert_eq!(
            session.take(json!({"execute": "query-status", "id": [1]})),
            Said::Answer(json!({"error": {"class": "CommandNotFound",
                "desc": "Expecting capabilities negotiation with 'qmp_capabilities'"}, "id": [1]}))
        );
        assert!(!session.hears_events());
        let done = session.take(json!({"execute": "qmp_capabilities", "id": "x"}));
        assert_eq!(done, Said::Answer(json!({"return": {}, "id": "x"})));
        assert!(session.hears_events());
        assert_eq!(
            error(&mut session, json!({"execute": "qmp_capabilities"})),
            "Capabilities negotiation is already complete, command ignored"
        );
    }

    #[test]
    fn malformed_commands_are_refused_in_qemus_words() {
        for (said, text) in [
            (json!(3), "QMP input must be a JSON object"),
            (json!({}), "QMP input lacks member 'execute'"),
            (json!({"x": 1}), "QMP input member 'x' is unexpected"),
            (
                json!({"execute": "stop", "x": 1}),
                "QMP input member 'x' is unexpected",
            ),
            (
                json!({"execute": 1}),
                "QMP input member 'execute' must be a string",
            ),
            (
                json!({"execute": "stop", "arguments": 1}),
                "QMP input member 'arguments' must be an object",
            ),
            (
                json!({"execute": "nope"}),
                "The command nope has not been found",
            ),
        ] {
            assert_eq!(error(&mut ready(), said), text);
        }
    }

    #[test]
    fn out_of_band_is_refused_for_commands_that_are_not() {
        let mut session = Session::default();
        session.take(json!({"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}));
        assert_eq!(
            error(&mut session, json!({"exec-oob": "query-status"})),
            "The command query-status does not support OOB"
        );
    }

    #[test]
    fn a_capability_that_is_not_offered_is_refused() {
        let enable = json!({"execute": "qmp_capabilities", "arguments": {"enable": ["oob", "x"]}});
        let mut session = Session::default();
        assert_eq!(
            error(&mut session, enable),
            "Parameter 'enable[1]' does not accept value 'x'"
        );
        assert!(!session.hears_events());
    }

    #[test]
    fn a_command_of_the_vm_keeps_its_id() {
        let said = ready().take(json!({"execute": "stop", "id": {"n": 1}}));
        let asked = Asked {
            name: "stop",
            command: Command::Stop,
            id: Some(json!({"n": 1})),
        };
        assert_eq!(said, Said::Ask(asked));
    }

    #[test]
    fn the_list_of_commands_is_sorted_and_has_the_monitors_own() {
        let Said::Answer(answer) = ready().take(json!({"execute": "query-commands"})) else {
            panic!("it is answered");
        };
        let names: Vec<_> = answer["return"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row["name"].as_str().unwrap().to_owned())
            .collect();
        assert!(names.is_sorted());
        assert!(names.contains(&"query-version".to_owned()));
    }
}
