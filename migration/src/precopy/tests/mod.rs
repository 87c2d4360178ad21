//! Source and target against each other, and each against a peer that dies or lies at every step.

mod bad_source;
mod bad_target;
mod both_sides;
mod fakes;
mod rig;
