//! Monitors that outlive the program that serves them.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Control, Events, Monitor, MonitorAddress, MonitorError};

/// What nobody serves now.
#[derive(Default)]
pub struct Kept;

/// What was kept, for the next program.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct KeptDescription {}

impl Kept {
    /// Takes it apart.
    pub fn into_parts(self) -> (KeptDescription, Vec<OwnedFd>) {
        (KeptDescription {}, Vec::new())
    }

    /// Puts it together.
    pub fn from_parts(_: KeptDescription, _: Vec<OwnedFd>) -> Result<Self, String> {
        Ok(Self)
    }
}

impl Monitor {
    /// Stops serving.
    pub fn detach(self) -> Kept {
        self.shutdown(Duration::from_millis(100));
        Kept
    }

    /// Serves again.
    pub fn attach(
        _: Kept,
        addresses: Vec<MonitorAddress>,
        control: Arc<dyn Control>,
        events: Events,
    ) -> Result<Self, MonitorError> {
        Self::start(addresses, control, events)
    }
}
