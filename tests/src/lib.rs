//! The test kit: starts the project's own test guest on Baton or on QEMU, hands it over from
//! process to process, watches it from outside and judges what it finds.
//!
//! It knows a VMM by its command line, its monitor and the guest's RAM in a shared file, and nothing
//! of its insides, so the same test runs against both VMMs.

pub mod check;
pub mod clients;
pub mod console;
pub mod copied;
pub mod cut;
pub mod disk;
pub mod fault;
pub mod fixtures;
pub mod guest;
pub mod kept;
pub mod machine;
pub mod native;
pub mod process;
pub mod progress;
pub mod qmp;
pub mod ram;
pub mod refusal;
pub mod scratch;
pub mod serial;
pub mod setup;
pub mod sockets;
pub mod stream;
pub mod terminal;
pub mod transfer;
pub mod update;
pub mod vmm;
pub mod wait;
pub mod watch;

mod world;

#[path = "../guest/report.rs"]
pub mod report;

pub use machine::Machine;
pub use setup::{Serial, Setup};
pub use transfer::{Handover, transfer};
pub use vmm::Vmm;
