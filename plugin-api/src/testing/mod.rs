//! A host for the tests of plugins: feature `testing`.
// All of it is for tests, where a panic is how a failure is told.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod host;
mod mutate;
mod queue;
mod ram;
mod random;
mod virtio;

pub use host::{DEADLINE, TestHost, config_of};
pub use mutate::exercise;
pub use queue::{Buffer, GuestQueue, Used};
pub use ram::TestRam;
pub use random::Random;
pub use virtio::TestVirtio;
