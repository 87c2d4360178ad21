//! By cpr-exec: the process becomes the new program.

use baton_migration::{HostError, Mode, fault};
use serde_json::{Value, json};

use super::UpdateOptions;
use super::migration::{self, End};
use super::output::{self, Progress};
use super::program::Program;
use super::session::Session;

pub(super) fn run(
    options: &UpdateOptions,
    mut session: Session,
    program: &Program,
    progress: &mut Progress,
) -> Result<Value, HostError> {
    let command = program.command()?;
    let before = session.origin.clone();
    let parameters = json!({ "mode": Mode::CprExec, "cpr-exec-command": command });
    let settings = session.prepare(&parameters)?;
    fault::point("update-execute")?;
    progress.say(&format!(
        "process {} tries {} beside the guest, and becomes it",
        before.pid,
        program.path.display()
    ));
    if let Err(e) = session.ask("migrate", &json!({})) {
        session.restore(&settings);
        return Err(stays(&e.to_string(), before.pid));
    }
    fault::point("update-executing")?;
    match migration::wait(&mut session, options.timeout)? {
        End::Completed(info) => {
            let now = session.ask("query-process", &json!({}))?;
            let now = serde_json::from_value(now)?;
            Ok(output::result(options.mode, &before, &now, info))
        }
        End::Failed(reason) => {
            session.restore(&settings);
            Err(stays(&reason, before.pid))
        }
        End::Lost(reason) => {
            // The old program is executed again under another number if the process has died.
            let mut again = Session::open(options).map_err(|e| {
                format!("{reason}, and who has the guest is not known: {e}; look for it")
            })?;
            again.restore(&settings);
            Err(stays(&reason, again.origin.pid))
        }
    }
}

fn stays(reason: &str, pid: u32) -> HostError {
    format!("{reason}; the guest goes on in process {pid} as it was").into()
}
