//! The virtio-pci transport (VIRTIO 1.3 section 4.1, modern only) in front of every virtio backend.

mod common;
mod layout;
mod queue;
mod state;
mod transport;

#[cfg(any(test, feature = "fuzzing"))]
pub use state::again;
pub use transport::{PreparedVirtio, Surroundings, VirtioPci};
