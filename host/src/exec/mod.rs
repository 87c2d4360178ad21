//! cpr-exec: the process executes its successor, which finds the guest in the descriptors it inherits.
//!
//! ```text
//!  old program   rehearsal: the successor is started beside, builds the machine, and ends
//!                guest stopped, state in a memfd; a memfd that describes it all: the handoff
//!                holder: a child that keeps the old memory, and the guest if the successor dies
//!                execve
//!  successor     reads the handoff, builds the machine on the descriptors, loads, claims, starts
//!                an error before: executes the old program again, which does the same
//! ```
//!
//! The successor is told by an environment variable, so that it knows before it looks at its
//! arguments, and whatever is wrong with these has somebody to go back to.

mod fds;
mod guard;
mod handoff;
mod holder;
mod inherited;
mod program;
mod rehearsal;

pub use fds::Outlive;
pub use guard::Guard;
pub use handoff::{Handoff, Monitors, OldProgram, write as write_handoff};
pub use holder::{Holder, settle};
pub use inherited::{Inherited, Purpose, inherited};
pub use program::{Program, running};
pub use rehearsal::rehearse;
