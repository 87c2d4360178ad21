//! cpr-exec: both sides are this process.

mod source;
mod successor;

pub use source::migrate;
pub use successor::{Succession, rehearse};
