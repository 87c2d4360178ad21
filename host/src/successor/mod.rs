//! A process that is started by a running one to take its guest over.
//!
//! `baton update` has the running process start its successor, so that the successor lives where the
//! running one does: the same user, control group, limits, folder, environment and standard streams,
//! whoever runs the update and from where. The successor reports to the update, and ends if the update
//! goes before the guest comes:
//!
//! ```text
//!  baton update   query-process; a folder with a socket to report to
//!                 start-successor -> the running process starts the successor
//!  successor      connects to that socket, builds up, waits for a source: "waiting"
//!  baton update   migrate -> the guest goes from the one to the other: "running"
//! ```
//!
//! From the moment the source has connected, the two processes settle between themselves whose the
//! guest is, and whether the update still lives does not matter to it.

mod folder;
mod origin;
mod report;
mod start;

pub use folder::Folder;
pub use origin::{Origin, StandardStreams, describe, note};
pub use report::{Report, connect, failed, guest_comes, running, waiting, watch_for_end};
pub use start::{Start, start};
