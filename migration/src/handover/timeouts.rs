//! How long each side waits for the other.

use std::time::Duration;

/// Every wait of a handover. The defaults suit a host under load; where the guest stands still
/// meanwhile, the time is the longest blackout a peer that does not answer can cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// To connect to a channel: 5 s.
    pub connect: Duration,
    /// To send one message, and to receive one where it is due at once: 10 s.
    pub message: Duration,
    /// For the target to be ready. `None` by default: the guest runs meanwhile, a hang-up is noticed
    /// and an operator can cancel.
    pub ready: Option<Duration>,
    /// For the source's state, on the target, from READY on, or from the main channel's opening on
    /// if the source waits for its operator before: 60 s. The source may need long to quiesce; if
    /// it gives up, it says so.
    pub state: Duration,
    /// For the target to load the state, on the source, while the guest stands still: 10 s.
    pub load: Duration,
    /// For the source to commit, on the target, while the guest stands still: 10 s. After it the
    /// target takes the source for dead and claims the guest, which is safe in any case.
    pub commit: Duration,
    /// For the target to start, on the source, while the guest stands still: 10 s. After it the
    /// source takes the guest back, unless it was started.
    pub start: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let seconds = |s| crate::fault::patience(Duration::from_secs(s));
        Self {
            connect: seconds(5),
            message: seconds(10),
            ready: None,
            state: seconds(60),
            load: seconds(10),
            commit: seconds(10),
            start: seconds(10),
        }
    }
}
