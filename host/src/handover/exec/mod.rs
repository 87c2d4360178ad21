//! cpr-exec: both sides are this process.

mod deferred;
mod source;
mod successor;

pub use deferred::{give_back, take_now};
pub use source::migrate;
pub use successor::{Succession, rehearse};

/// A cpr channel leads to another process, and there is none. As in QEMU, whose words these are.
pub fn ignore_cpr_channel() {
    tracing::warn!("ignoring cpr channel for migration mode cpr-exec");
}
