//! The whole of it without a VM: machines and places that fail at every step.

pub(super) mod fakes;
mod order;
mod places;
mod restoring;
