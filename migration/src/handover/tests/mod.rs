//! Whole handovers over real sockets, between fakes or against a scripted peer that goes wrong.

mod bad_source;
mod bad_target;
mod both_sides;
mod cancel;
mod cut;
mod fakes;
mod pause;
mod peer;
mod rig;
