//! The system control interrupt (ACPI 6.5 section 4.8.1): one level-triggered line for several blocks
//! of registers.

use std::sync::{Arc, Mutex, PoisonError};

/// Who raises the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SciSource {
    /// Fixed events: the PM1 registers.
    Fixed = 1 << 0,
    /// General-purpose events: the GPE0 registers.
    General = 1 << 1,
}

/// The line. It is high while any source raises it.
pub struct Sci {
    line: Box<dyn Fn(bool) + Send + Sync>,
    raised: Mutex<u8>,
}

impl Sci {
    /// Low at first; `line` sets it.
    pub fn new(line: impl Fn(bool) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            line: Box::new(line),
            raised: Mutex::new(0),
        })
    }

    /// `source` raises the line from now on, or does not. The controllers are told even if that is no
    /// change: what the line was before a handover they do not know.
    pub fn set(&self, source: SciSource, level: bool) {
        let mut raised = self.raised.lock().unwrap_or_else(PoisonError::into_inner);
        match level {
            true => *raised |= source as u8,
            false => *raised &= !(source as u8),
        }
        (self.line)(*raised != 0);
    }
}
