//! Virtual CPUs: one thread each, which runs the guest, stops, saves and loads.

pub mod carried;
pub mod cpuid;
pub mod features;
pub mod msrs;

mod prefault;
mod signal;
mod state;
mod thread;
mod tsc;

pub use prefault::CAPABILITY as PRE_FAULT_CAPABILITY;
pub use signal::install_handler;
pub use state::{VcpuState, section};
pub use thread::{Exits, Payload, Vcpu, VcpuError};
