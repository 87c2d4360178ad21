//! Places where a test makes the process fail: builds with debug assertions have them, releases do
//! not.
//!
//! `BATON_FAULT=PLACE:WHAT` in the environment names one. Places of a handover are `source-` or
//! `target-` and the action that is about to be carried out, as the drivers log it; others are where
//! they are called from. WHAT is `kill` (SIGKILL), `stop` (SIGSTOP), `abort`, `panic` or `error`.

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

/// How long to wait for a peer: `time`, or `BATON_FAULT_PATIENCE` milliseconds where faults can be
/// wanted.
pub(crate) fn patience(time: Duration) -> Duration {
    #[cfg(debug_assertions)]
    if let Some(ms) = std::env::var("BATON_FAULT_PATIENCE")
        .ok()
        .and_then(|ms| ms.parse().ok())
    {
        return Duration::from_millis(ms);
    }
    time
}

/// Fails here, if the environment says so.
///
/// # Errors
/// When it says `error`.
#[cfg(debug_assertions)]
pub fn point(place: &str) -> Result<(), HostError> {
    use nix::sys::signal::{Signal, raise};
    use std::sync::OnceLock;

    static WANTED: OnceLock<Option<(String, String)>> = OnceLock::new();
    let wanted = WANTED.get_or_init(|| {
        let value = std::env::var("BATON_FAULT").ok()?;
        let (place, what) = value.split_once(':')?;
        Some((place.to_owned(), what.to_owned()))
    });
    let Some((_, what)) = wanted.as_ref().filter(|(wanted, _)| wanted == place) else {
        return Ok(());
    };
    tracing::warn!("a fault is wanted: {what} at {place}");
    match what.as_str() {
        "kill" => raise(Signal::SIGKILL)?,
        // Goes on if a test says so.
        "stop" => raise(Signal::SIGSTOP)?,
        "abort" => raise(Signal::SIGABRT)?,
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
