//! Waiting for the end of a migration that has begun.

use std::time::{Duration, Instant};

use baton_migration::HostError;
use serde_json::{Value, json};

use super::qmp::QmpError;
use super::session::Session;

/// How often to ask.
const LOOK: Duration = Duration::from_millis(10);
/// How long a migration that was cancelled may take to end.
const CANCELLED: Duration = Duration::from_secs(30);

/// How it has ended.
pub(super) enum End {
    /// The guest is where it should be: what `query-migrate` says.
    Completed(Value),
    /// It goes on where it was.
    Failed(String),
    /// The monitor does not answer any more.
    Lost(String),
}

/// Asks until it has ended. Cancels it after `timeout`.
pub(super) fn wait(session: &mut Session, timeout: Duration) -> Result<End, HostError> {
    let begun = Instant::now();
    let mut cancelled = false;
    loop {
        let info = match session.client.execute("query-migrate", &json!({})) {
            Ok(info) => info,
            Err(e @ QmpError::Lost { .. }) => return Ok(End::Lost(e.to_string())),
            Err(e) => return Err(e.into()),
        };
        let reason = || {
            info["error-desc"]
                .as_str()
                .unwrap_or("no reason given")
                .to_owned()
        };
        match info["status"].as_str().unwrap_or_default() {
            "completed" => return Ok(End::Completed(info)),
            "failed" => return Ok(End::Failed(reason())),
            "cancelled" if cancelled => {
                let waited = timeout.as_secs();
                return Ok(End::Failed(format!(
                    "the guest had not gone over after {waited} s"
                )));
            }
            "cancelled" => return Ok(End::Failed("somebody has cancelled it".into())),
            status if cancelled && begun.elapsed() > timeout + CANCELLED => {
                return Err(format!(
                    "the migration is still '{status}' long after it was cancelled; look at \
                     query-migrate"
                )
                .into());
            }
            _ => {}
        }
        if !cancelled && begun.elapsed() > timeout {
            cancelled = true;
            // Whether that came in time is seen by how it ends.
            let _ = session.ask("migrate_cancel", &json!({}));
        }
        std::thread::sleep(LOOK);
    }
}
