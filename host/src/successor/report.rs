//! What a successor tells the update that had it started.
// Taking a variable out of the environment is unsafe beside other threads.
#![allow(unsafe_code)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use baton_migration::{HostError, fault};
use serde::{Deserialize, Serialize};

use super::Folder;

/// Names the socket to report to. Who finds it in its environment was started by `start-successor`.
pub(super) const VARIABLE: &str = "BATON_SUCCESSOR";

/// How long the update may take to read a line.
const PATIENCE: Duration = Duration::from_secs(5);

/// One line, in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Report {
    /// A source may come.
    Waiting {
        /// The process, as it knows itself.
        pid: u32,
    },
    /// The guest is here.
    Running {},
    /// It will not be.
    Failed {
        /// Why.
        reason: String,
    },
}

struct Reporter {
    stream: UnixStream,
    path: PathBuf,
    /// Whether a source has come, so that the update is not needed any more.
    coming: AtomicBool,
}

static REPORTER: OnceLock<Reporter> = OnceLock::new();

/// Connects to the update, if there is one. Call it first of all, before there is another thread.
pub fn connect() -> Result<(), HostError> {
    let Some(path) = std::env::var_os(VARIABLE).map(PathBuf::from) else {
        return Ok(());
    };
    // SAFETY: there is no other thread yet.
    unsafe { std::env::remove_var(VARIABLE) };
    // Away from the terminal of the process that has started this one. It fails if it is so already.
    let _ = nix::unistd::setsid();
    let stream = UnixStream::connect(&path)
        .map_err(|e| format!("{VARIABLE}={}: nobody is there: {e}", path.display()))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let coming = AtomicBool::new(false);
    let _ = REPORTER.set(Reporter {
        stream,
        path,
        coming,
    });
    fault::point("successor-connected")
}

/// Ends the process when the update goes before a source has come: nobody will ever send one. Other
/// threads than the caller's may exist.
pub fn watch_for_end() -> Result<(), HostError> {
    let Some(reporter) = REPORTER.get() else {
        return Ok(());
    };
    let mut stream = reporter.stream.try_clone()?;
    std::thread::Builder::new()
        .name("update".into())
        .spawn(move || {
            // It says nothing, so that whatever comes is its end.
            while stream
                .read(&mut [0])
                .is_err_and(|e| e.kind() == std::io::ErrorKind::Interrupted)
            {}
            if !reporter.coming.load(Ordering::SeqCst) {
                eprintln!("baton: the update has ended before the guest came");
                reporter.clear();
                std::process::exit(1);
            }
        })?;
    Ok(())
}

/// A source may come from now on.
pub fn waiting() {
    let pid = std::process::id();
    say(&Report::Waiting { pid });
}

/// A source has come: from now on it has to do with that alone.
pub fn guest_comes() {
    if let Some(reporter) = REPORTER.get() {
        reporter.coming.store(true, Ordering::SeqCst);
    }
}

/// The guest is here.
pub fn running() {
    say(&Report::Running {});
    if let Some(reporter) = REPORTER.get() {
        reporter.clear();
    }
}

/// The guest will not come here.
pub fn failed(reason: &str) {
    say(&Report::Failed {
        reason: reason.to_owned(),
    });
    if let Some(reporter) = REPORTER.get() {
        reporter.clear();
    }
}

fn say(report: &Report) {
    let Some(reporter) = REPORTER.get() else {
        return;
    };
    let Ok(mut line) = serde_json::to_string(report) else {
        return;
    };
    line.push('\n');
    // The update may be gone, which is no matter to the guest.
    let _ = (&reporter.stream).write_all(line.as_bytes());
}

impl Reporter {
    /// The folder is of no more use.
    fn clear(&self) {
        if let Some(folder) = Folder::of_report(&self.path) {
            folder.remove();
        }
    }
}
