//! Waiting on a condition, never for a time.

use anyhow::{Result, bail};
use std::time::{Duration, Instant};

/// What takes longer does not happen: generous, since a busy machine must not fail a test.
pub const PATIENCE: Duration = Duration::from_secs(60);

const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// Waits until `done` gives a value.
///
/// # Errors
/// What `done` fails with, or that `what` did not happen in time.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut done: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = done()? {
            return Ok(value);
        }
        if start.elapsed() > limit {
            bail!("Waited {} s in vain for {what}", limit.as_secs());
        }
        // Each look takes time from the guest, which may share the only CPU: look often at what may
        // be over soon, and rarely at what takes long.
        let pause = start.elapsed() / 10;
        std::thread::sleep(pause.clamp(SHORTEST_PAUSE, LONGEST_PAUSE));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_with_the_value_or_says_what_it_waited_for() {
        let mut looks = 0;
        let value = wait_for("three looks", PATIENCE, || {
            looks += 1;
            Ok((looks == 3).then_some(looks))
        });
        assert_eq!(value.unwrap(), 3);

        let error = wait_for::<()>("the moon", Duration::ZERO, || Ok(None)).unwrap_err();
        assert_eq!(error.to_string(), "Waited 0 s in vain for the moon");
    }
}
