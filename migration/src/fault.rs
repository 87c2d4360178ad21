//! Places where a test makes the process fail: builds with debug assertions have them, releases do
//! not.
//!
//! `BATON_FAULTS` in the environment names a folder, which is looked into at each place. A file with
//! the place's name says what happens there: `kill` (SIGKILL), `stop` (SIGSTOP), `abort`, `panic`,
//! `hang` or `error`. It is removed before that happens, so that it happens once, in whichever
//! process comes first. Places of a handover are `source-` or `target-` and the action that is about
//! to be carried out, as the drivers log it; others are where they are called from. A file
//! `patience` says how many milliseconds to wait for a peer.

use crate::HostError;

use std::fmt::Debug;
use std::time::Duration;

/// The place before an action of a handover is carried out: `SIDE-Action`, without what is in it.
#[cfg(debug_assertions)]
pub(crate) fn before(side: &str, action: &dyn Debug) -> Result<(), HostError> {
    let action = format!("{action:?}");
    let name = action
        .split(|c: char| !c.is_alphanumeric())
        .next()
        .unwrap_or_default();
    point(&format!("{side}-{name}"))
}

/// Nothing, in a release.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub(crate) fn before(_: &str, _: &dyn Debug) -> Result<(), HostError> {
    Ok(())
}

/// How long to wait for a peer: `time`, unless a test has less patience.
pub fn patience(time: Duration) -> Duration {
    #[cfg(debug_assertions)]
    if let Some(ms) = said("patience").and_then(|ms| ms.parse().ok()) {
        return Duration::from_millis(ms);
    }
    time
}

/// A file in the folder.
#[cfg(debug_assertions)]
fn file(name: &str) -> Option<std::path::PathBuf> {
    use std::path::PathBuf;
    use std::sync::OnceLock;

    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| std::env::var_os("BATON_FAULTS").map(PathBuf::from));
    folder.as_ref().map(|folder| folder.join(name))
}

/// What a file in the folder says.
#[cfg(debug_assertions)]
fn said(name: &str) -> Option<String> {
    let text = std::fs::read_to_string(file(name)?).ok()?;
    Some(text.trim().to_owned())
}

/// Fails here, if a test wants it.
///
/// # Errors
/// When it wants an `error`.
#[cfg(debug_assertions)]
pub fn point(place: &str) -> Result<(), HostError> {
    use nix::sys::signal::{Signal, raise};

    let Some((what, file)) = said(place).zip(file(place)) else {
        return Ok(());
    };
    if std::fs::remove_file(file).is_err() {
        // It happens to somebody else.
        return Ok(());
    }
    tracing::warn!("a fault is wanted: {what} at {place}");
    match what.as_str() {
        "kill" => raise(Signal::SIGKILL)?,
        // Goes on if a test says so.
        "stop" => raise(Signal::SIGSTOP)?,
        "abort" => raise(Signal::SIGABRT)?,
        "hang" => loop {
            std::thread::park();
        },
        #[allow(clippy::panic)]
        "panic" => panic!("a fault was wanted at {place}"),
        _ => return Err(format!("a fault was wanted at {place}").into()),
    }
    Ok(())
}

/// Nothing, in a release.
///
/// # Errors
/// Never.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn point(_: &str) -> Result<(), HostError> {
    Ok(())
}
