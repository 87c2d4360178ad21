//! The running process, as its monitor tells of it.

use std::time::Duration;

use baton_migration::{HostError, Mode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::UpdateOptions;
use super::line::Device;
use super::qmp::{Client, QmpError};
use crate::successor::Origin;

/// How long the monitor may take for an answer.
pub(super) const ANSWER: Duration = Duration::from_secs(60);

/// A connection to the process that has the guest.
pub(super) struct Session {
    pub(super) client: Client,
    pub(super) origin: Origin,
}

/// Something that blocks a mode.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Blocker {
    pub(super) owner: String,
    pub(super) reason: String,
    pub(super) remedy: String,
}

impl std::fmt::Display for Blocker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.owner.is_empty() {
            write!(f, "{}: ", self.owner)?;
        }
        write!(f, "{}", self.reason.trim_end_matches('.'))?;
        match self.remedy.trim_end_matches('.') {
            "" => Ok(()),
            remedy => write!(f, " ({remedy})"),
        }
    }
}

impl Session {
    /// Connects, and asks what is needed of everything else.
    pub(super) fn open(options: &UpdateOptions) -> Result<Self, HostError> {
        let mut client = Client::connect(&options.qmp, ANSWER)?;
        let status = client.execute("query-status", &json!({}))?;
        let runstate = status["status"].as_str().unwrap_or_default();
        if !matches!(runstate, "running" | "paused" | "prelaunch" | "suspended") {
            return Err(format!(
                "the process at {} is in runstate '{runstate}', and has no guest to hand over",
                options.qmp
            )
            .into());
        }
        let origin = match client.execute("query-process", &json!({})) {
            Ok(origin) => serde_json::from_value(origin)
                .map_err(|e| format!("query-process gives what cannot be understood: {e}"))?,
            Err(QmpError::Unknown(_)) => {
                return Err(format!(
                    "the process at {} is no Baton that can be updated by this command",
                    options.qmp
                )
                .into());
            }
            Err(e) => return Err(e.into()),
        };
        Ok(Self { client, origin })
    }

    pub(super) fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value, HostError> {
        self.client
            .execute(command, arguments)
            .map_err(|e| format!("{command}: {e}").into())
    }

    /// The devices of the machine.
    pub(super) fn devices(&mut self) -> Result<Vec<Device>, HostError> {
        let answer = self.ask("query-devices", &json!({}))?;
        serde_json::from_value(answer)
            .map_err(|e| format!("query-devices gives what cannot be understood: {e}").into())
    }

    /// What stands in the way of `mode` in the running process.
    pub(super) fn blockers(&mut self, mode: Mode) -> Result<Vec<Blocker>, HostError> {
        let mut answer = self.ask("query-migratable", &json!({ "mode": mode }))?;
        let blockers = answer[0]["blockers"].take();
        serde_json::from_value(blockers)
            .map_err(|e| format!("query-migratable gives what cannot be understood: {e}").into())
    }

    /// An error with all that blocks `mode`.
    pub(super) fn refuse_blockers(&mut self, mode: Mode) -> Result<(), HostError> {
        let blockers = self.blockers(mode)?;
        if blockers.is_empty() {
            return Ok(());
        }
        let list: Vec<_> = blockers.iter().map(ToString::to_string).collect();
        Err(format!("the guest cannot be moved by {mode}: {}", list.join("; ")).into())
    }

    /// Sets what the migration needs, and gives what has to be set again if it fails.
    pub(super) fn prepare(&mut self, parameters: &Value) -> Result<Before, HostError> {
        let found = self.ask("query-migrate-parameters", &json!({}))?;
        let list = self.ask("query-migrate-capabilities", &json!({}))?;
        let pause = list
            .as_array()
            .into_iter()
            .flatten()
            .any(|row| row["capability"] == PAUSE && row["state"] == true);
        let mut before = serde_json::Map::new();
        for (name, value) in found.as_object().into_iter().flatten() {
            if parameters.get(name).is_some() {
                before.insert(name.clone(), value.clone());
            }
        }
        // The operator's, for migrations that are watched.
        if pause {
            self.pause(false)?;
        }
        let before = Before {
            parameters: before.into(),
            pause,
        };
        if let Err(e) = self.ask("migrate-set-parameters", parameters) {
            self.restore(&before);
            return Err(e);
        }
        Ok(before)
    }

    /// Sets what was set before. The guest goes on, so that an error is no matter.
    pub(super) fn restore(&mut self, before: &Before) {
        let _ = self.ask("migrate-set-parameters", &before.parameters);
        if before.pause {
            let _ = self.pause(true);
        }
    }

    fn pause(&mut self, on: bool) -> Result<Value, HostError> {
        let list = json!([{ "capability": PAUSE, "state": on }]);
        self.ask("migrate-set-capabilities", &json!({ "capabilities": list }))
    }
}

const PAUSE: &str = "pause-before-switchover";

/// Settings as they were.
pub(super) struct Before {
    parameters: Value,
    pause: bool,
}
