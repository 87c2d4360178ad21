//! What is wrong with a command line, in one line.

use std::fmt;

/// An error of one option. Prints as `-m 4Q: reason`, without the program's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CliError {
    /// What was said: the option and its value.
    pub origin: String,
    /// What is wrong with it and what to do.
    pub reason: String,
}

impl CliError {
    /// An error of what was said as `origin`.
    pub fn new(origin: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            origin: origin.into(),
            reason: reason.into(),
        }
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A value may hold line breaks; the error must not.
        for c in format!("{}: {}", self.origin, self.reason).chars() {
            if c.is_control() {
                write!(f, "{}", c.escape_default())?;
            } else {
                write!(f, "{c}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for CliError {}
