//! The monitor for people: QEMU's HMP, with its commands, its texts and its prompt.
//!
//! What a command does is asked of [`Control`](super::Control) by the names and arguments of QMP, so
//! that both monitors do and refuse the same. This module has what lies between a stream of bytes and
//! that:
//!
//! - [`table`] has every command once: how its arguments are read, its help, what Tab offers for it
//!   and the page `docs/hmp.md` follow from there;
//! - [`session`] turns bytes into lines to carry out, and what came out of them into text. It knows no
//!   stream: [`editor`] edits the line where the other side is a terminal;
//! - [`client`] moves the bytes;
//! - [`run`] carries out one line, which is all that the QMP command `human-monitor-command` needs.

mod arguments;
mod client;
mod commands;
mod complete;
mod editor;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod info;
mod machine;
mod migration;
mod run;
mod session;
mod table;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_machine;
#[cfg(test)]
mod tests_session;

pub(super) use client::{Client, Parked};
pub(crate) use run::print;
pub(super) use session::{Session, State};
