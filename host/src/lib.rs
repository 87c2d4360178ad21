//! Baton: a virtual machine monitor for Linux/KVM whose process can be replaced under a running
//! guest.
//!
//! The binary is a thin wrapper around [`run`]; the modules are a library so that tests can use
//! them.
#![deny(unsafe_code)]

pub mod cli;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod machine;
pub mod memory;
pub mod monitor;
pub mod plugin;
pub mod vcpu;

mod blockers;
mod chardev;
mod control;
mod daemon;
mod exec;
mod fd;
mod fdset;
mod handover;
mod help;
mod hotplug;
mod lifecycle;
mod log;
mod nodes;
mod objects;
mod pidfile;
mod process;
mod query;
mod replace;
mod runstate;
mod state;
mod successor;
mod systemd;
mod update;
mod vm;

pub use process::run;
