//! What the guest sends, on its way to the character device.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::sync::Arc;

use baton_plugin_api::{Host, Stream};

/// How much output waits for a reader, in bytes. More is dropped, since the guest is not stopped.
pub(crate) const UNSENT_MAX: usize = 64 << 10;

const WARN: u32 = 2;
const INFO: u32 = 3;
const TARGET: &str = "isa_serial";

/// The way out: straight through while the other end takes everything, else by a bounded buffer.
pub(crate) struct Output {
    stream: Option<Arc<Stream>>,
    unsent: VecDeque<u8>,
    dropped: u64,
    told: u64,
    /// Of the character device, for the log.
    name: String,
    host: Host,
}

impl Output {
    /// A way to `stream`, or to nowhere.
    pub(crate) fn new(stream: Option<Arc<Stream>>, name: String, host: Host) -> Self {
        Self {
            stream,
            unsent: VecDeque::new(),
            dropped: 0,
            told: 0,
            name,
            host,
        }
    }

    /// Where it goes.
    pub(crate) fn stream(&self) -> Option<&Arc<Stream>> {
        self.stream.as_ref()
    }

    /// Whether something waits to be sent by [`Self::drain`].
    pub(crate) fn is_waiting(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Sends a byte, after all that wait.
    pub(crate) fn send(&mut self, byte: u8) {
        let Some(stream) = &self.stream else {
            return;
        };
        if self.unsent.is_empty() {
            match stream.write(&[byte]) {
                Ok(_) => return,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) => return self.drop_bytes(1, &e.to_string()),
            }
        }
        if self.unsent.len() < UNSENT_MAX {
            self.unsent.push_back(byte);
        } else {
            self.drop_bytes(1, "nobody reads it");
        }
    }

    /// Sends of what waits as much as is taken now.
    pub(crate) fn drain(&mut self) {
        let Some(stream) = self.stream.clone() else {
            return self.unsent.clear();
        };
        while !self.unsent.is_empty() {
            match stream.write(self.unsent.as_slices().0) {
                Ok(n) => drop(self.unsent.drain(..n)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                // A pipe with no reader, a full disk: it will not get better by trying again.
                Err(e) => {
                    let lost = self.unsent.len();
                    self.unsent.clear();
                    self.drop_bytes(lost as u64, &e.to_string());
                }
            }
        }
    }

    /// What waits, to be saved.
    pub(crate) fn unsent(&self) -> Vec<u8> {
        self.unsent.iter().copied().collect()
    }

    /// Takes over what waited elsewhere; at most [`UNSENT_MAX`] bytes.
    pub(crate) fn restore(&mut self, unsent: Vec<u8>) {
        self.unsent = unsent.into();
        if self.stream.is_none() {
            self.unsent.clear();
        }
    }

    /// Tells how much was dropped, if that has grown since it was told last.
    pub(crate) fn tell_dropped(&mut self) {
        if self.dropped > self.told {
            self.told = self.dropped;
            let text = format!(
                "{} bytes of output to chardev '{}' were dropped so far",
                self.dropped, self.name
            );
            self.host.log(INFO, TARGET, &text);
        }
    }

    fn drop_bytes(&mut self, count: u64, why: &str) {
        if self.dropped == 0 {
            let text = format!(
                "Output to chardev '{}' is dropped, {why}; read it, or leave it out",
                self.name
            );
            self.host.log(WARN, TARGET, &text);
        }
        self.dropped += count;
    }
}
