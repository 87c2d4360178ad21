//! QMP's errors.

use serde::Serialize;

/// QEMU's `QapiErrorClass`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum ErrorClass {
    /// Everything that has no class of its own.
    GenericError,
    /// The command is not known, or not now.
    CommandNotFound,
    /// The device is not active.
    DeviceNotActive,
    /// The device is not there.
    DeviceNotFound,
    /// KVM lacks something.
    KVMMissingCap,
}

/// An error as a client sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct QmpError {
    /// For programs.
    pub class: ErrorClass,
    /// For people.
    pub desc: String,
}

impl QmpError {
    /// An error of no special class.
    pub fn generic(desc: impl Into<String>) -> Self {
        Self {
            class: ErrorClass::GenericError,
            desc: desc.into(),
        }
    }

    /// A device or object that is not there.
    pub fn device_not_found(desc: impl Into<String>) -> Self {
        Self {
            class: ErrorClass::DeviceNotFound,
            desc: desc.into(),
        }
    }

    pub(super) fn not_found(desc: impl Into<String>) -> Self {
        Self {
            class: ErrorClass::CommandNotFound,
            desc: desc.into(),
        }
    }

    /// A client that has negotiated does so again.
    pub fn negotiated() -> Self {
        Self::not_found("Capabilities negotiation is already complete, command ignored")
    }

    /// A command that was not over when the program was replaced.
    pub(super) fn interrupted() -> Self {
        Self::generic(
            "The command was interrupted by a live update of Baton and may or may not take effect; \
             query its outcome, for example with query-status or query-migrate",
        )
    }

    pub(super) fn unknown_command(name: &str) -> Self {
        Self::not_found(format!("The command {name} has not been found"))
    }
}
