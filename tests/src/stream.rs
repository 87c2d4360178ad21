//! Bytes that go to the guest and come back, on a thread, while something else is done.

use anyhow::{Context, Result, ensure};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use crate::wait::PATIENCE;

/// How many bytes may be on their way.
const AHEAD: u64 = 8 << 10;

/// The bytes of the stream from `at` on: no two places are alike for long.
fn pattern(at: u64, len: usize) -> Vec<u8> {
    (at..)
        .take(len)
        .map(|n| (n ^ (n >> 8) ^ (n >> 17)) as u8)
        .collect()
}

/// A stream that goes on.
pub struct Stream {
    thread: JoinHandle<Result<u64>>,
    /// How many bytes are enough.
    end: Arc<AtomicU64>,
}

impl Stream {
    /// Sends to the other end of `socket`, which must send everything back, once and in order.
    ///
    /// # Errors
    /// When there is no thread.
    pub fn start(mut socket: UnixStream) -> Result<Self> {
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let end = Arc::new(AtomicU64::new(u64::MAX));
        let ended = Arc::clone(&end);
        let body = move || {
            let (mut sent, mut come) = (0, 0);
            let mut bytes = [0; 4096];
            let goes_on = |sent| sent < ended.load(Ordering::SeqCst);
            while come < sent || goes_on(sent) {
                if sent - come < AHEAD && goes_on(sent) {
                    let next = pattern(sent, 1000);
                    socket.write_all(&next).context("Cannot send")?;
                    sent += next.len() as u64;
                    continue;
                }
                let read = socket.read(&mut bytes).context("Nothing comes back")?;
                ensure!(read > 0, "The other end has gone");
                ensure!(
                    bytes[..read] == pattern(come, read),
                    "Other bytes came back after {come}"
                );
                come += read as u64;
            }
            Ok(come)
        };
        let thread = std::thread::Builder::new().name("stream".into());
        let thread = thread.spawn(body).context("There is no thread")?;
        Ok(Self { thread, end })
    }

    /// Ends it, once everything has come back and that was as many bytes at least.
    ///
    /// # Errors
    /// What went wrong in it.
    pub fn stop(self, least: u64) -> Result<u64> {
        self.end.store(least, Ordering::SeqCst);
        let joined = self.thread.join();
        joined.unwrap_or_else(|_| Err(anyhow::anyhow!("The stream panicked")))
    }
}
