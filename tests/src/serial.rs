//! What the guest has said on its serial port, in a file that every generation goes on in.

use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The guest's words, read line by line.
#[derive(Debug)]
pub struct SerialLog {
    file: PathBuf,
    /// Where the next line begins that nobody has waited for yet.
    next: Mutex<usize>,
}

impl SerialLog {
    /// The log in `file`, which may not be there yet.
    pub fn new(file: PathBuf) -> Self {
        Self {
            file,
            next: Mutex::new(0),
        }
    }

    /// Where it is.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// All of it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn text(&self) -> Result<String> {
        match fs::read(&self.file) {
            Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).replace('\r', "")),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            Err(error) => Err(error)
                .with_context(|| format!("Cannot read the guest's log {}", self.file.display())),
        }
    }

    /// The next line that begins with `start`, if it is there, whole; lines before it are passed
    /// over.
    ///
    /// # Errors
    /// As [`Self::text`].
    pub fn take_line(&self, start: &str) -> Result<Option<String>> {
        let text = self.text()?;
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let mut at = *next;
        for line in text.get(at..).unwrap_or_default().split_inclusive('\n') {
            at += line.len();
            if let Some(whole) = line
                .strip_suffix('\n')
                .filter(|line| line.starts_with(start))
            {
                *next = at;
                return Ok(Some(whole.to_owned()));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn a_line_is_taken_once_and_only_when_it_is_whole() {
        let scratch = Scratch::new().unwrap();
        let log = SerialLog::new(scratch.join("serial"));
        assert_eq!(log.take_line("a").unwrap(), None);
        fs::write(log.file(), "a 1\r\nb\r\na 2\r\na 3").unwrap();
        assert_eq!(log.take_line("a").unwrap().as_deref(), Some("a 1"));
        assert_eq!(log.take_line("a").unwrap().as_deref(), Some("a 2"));
        assert_eq!(log.take_line("a").unwrap(), None);
        fs::write(log.file(), "a 1\r\nb\r\na 2\r\na 34\r\n").unwrap();
        assert_eq!(log.take_line("a").unwrap().as_deref(), Some("a 34"));
    }
}
