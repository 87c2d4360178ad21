//! Baton's migration core: what moves a running guest from one process to the next.
//!
//! Nothing here knows KVM or loads a plugin. The VMM implements a few small traits,
//! [`handover::SourceHost`] first; this crate does the rest, and its tests
//! do the same against fake machines.
//!
//! | module | what it is |
//! |---|---|
//! | [`address`] | migration addresses in QAPI's JSON form, as URIs and as dotted keys |
//! | [`blockers`] | who objects to a migration, per mode |
//! | [`channel`] | connected sockets that carry bounded frames and file descriptors |
//! | [`checkpoint`] | keeping a guest in a file or behind a command, and restoring it |
//! | [`claim`] | the shared word that decides which process runs the guest |
//! | [`fault`] | where tests make a process fail |
//! | [`fds`] | the descriptors a target received, each taken once |
//! | [`fingerprint`] | what two machines must have in common |
//! | [`handover`] | the protocol and its two state machines |
//! | [`precopy`] | copying RAM to another process or host while the guest runs |
//! | [`settings`] | what an operator sets: migration parameters and capabilities |
//! | [`status`] | what `query-migrate` reports |
//! | [`stream`] | the vmstate stream |
//!
//! Mode `normal` is driven by [`precopy`], `cpr-transfer` by [`handover`], the others by
//! [`checkpoint`].

#![warn(missing_docs)]

pub mod address;
pub mod blockers;
pub mod channel;
pub mod checkpoint;
pub mod claim;
pub mod fault;
pub mod fds;
pub mod fingerprint;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod handover;
pub mod precopy;
pub mod settings;
pub mod status;
pub mod stream;

pub use baton_plugin_api::migration::{Blocker, Fd, FdDeclaration, MigrationEvent, Mode, Section};

/// An error of the VMM or of a device, as the core carries it to the peer and to `query-migrate`.
///
/// Its whole chain of sources is reported, so an error need not repeat its source's text.
pub type HostError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// Carries out a step of a migration. A panic in it, which is a mistake of ours, is an error like
/// any other: whoever has the guest must go on with it.
fn caught<T>(step: impl FnOnce() -> Result<T, HostError>) -> Result<T, HostError> {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    catch_unwind(AssertUnwindSafe(step)).unwrap_or_else(|_panic| {
        #[cfg(test)]
        if _panic.is::<Died>() {
            std::panic::resume_unwind(_panic);
        }
        Err("a mistake in Baton ended it; the log says more".into())
    })
}

/// What a side's thread unwinds with in tests where its process dies.
#[cfg(test)]
struct Died;

/// The text of an error and of all its sources, joined with `: `.
pub fn error_chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
