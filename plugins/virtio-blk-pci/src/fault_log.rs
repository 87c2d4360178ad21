//! The log of what the host's file refused.

use std::io;
use std::time::{Duration, Instant};

use baton_plugin_api::Host;

/// Between two lines: a guest can make as many requests fail as it likes.
const PAUSE: Duration = Duration::from_secs(1);
const WARNING: u32 = 2;

/// Writes lines, but not too many.
pub(crate) struct FaultLog {
    host: Host,
    device: String,
    image: String,
    last: Option<Instant>,
    unsaid: u64,
}

impl FaultLog {
    pub(crate) fn new(host: Host, device: &str, image: &str) -> Self {
        Self {
            host,
            device: device.to_owned(),
            image: image.to_owned(),
            last: None,
            unsaid: 0,
        }
    }

    /// A request failed, which the guest is told in any case.
    pub(crate) fn failed(&mut self, verb: &str, error: &io::Error) {
        if self.last.is_some_and(|last| last.elapsed() < PAUSE) {
            self.unsaid += 1;
            return;
        }
        let others = match self.unsaid {
            0 => String::new(),
            n => format!(" ({n} more failed before)"),
        };
        self.host.log(
            WARNING,
            "virtio-blk-pci",
            &format!(
                "Device '{}': Cannot {verb} '{}': {error}; the guest got an I/O error{others}",
                self.device, self.image
            ),
        );
        (self.last, self.unsaid) = (Some(Instant::now()), 0);
    }
}
