//! The whole of it without a VM: machines and places that fail at every step.

mod fakes;
mod order;
