//! The error every device call returns.

use serde::{Deserialize, Serialize};

/// What went wrong, for programs; the message is for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// A property, a file or another input of the user's does not fit.
    Invalid,
    /// The operating system refused something.
    Io,
    /// State to be loaded is malformed or does not fit this device.
    State,
    /// The device does not know this call. Sent by the glue, for a host newer than the plugin.
    Unsupported,
    /// The plugin panicked in this call.
    Panicked,
    /// The device failed earlier and takes no more calls.
    Failed,
}

/// An error with the id of the device it happened in.
///
/// The message is one line, starts with a capital and says what was being done, on what, and what
/// to do about it. The device's id is put in by the glue, a device leaves it empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{}{message}", if device.is_empty() { String::new() } else { format!("Device '{device}': ") })]
pub struct Error {
    /// For programs.
    pub kind: ErrorKind,
    /// The device's id, or empty before the glue has put it in.
    pub device: String,
    /// For people.
    pub message: String,
}

/// What device calls return.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of `kind`, in no device yet.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            device: String::new(),
            message: message.into(),
        }
    }

    /// An input of the user's does not fit.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// The operating system refused `what`.
    pub fn io(what: impl std::fmt::Display, source: &std::io::Error) -> Self {
        Self::new(ErrorKind::Io, format!("{what}: {source}"))
    }

    /// State that does not fit.
    pub fn state(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::State, message)
    }

    /// The same error, in the device `id` unless one is named already.
    #[must_use]
    pub fn in_device(mut self, id: &str) -> Self {
        if self.device.is_empty() {
            id.clone_into(&mut self.device);
        }
        self
    }
}
