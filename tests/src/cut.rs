//! A connection between two of Baton's processes that is cut before a message of a kind.

use anyhow::{Context, Result, bail, ensure};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::JoinHandle;

/// Length of a frame's header: the payload's length as little-endian `u32`, then the kind.
const HEADER: usize = 5;

/// Stands between source and target.
pub struct Cut(JoinHandle<Result<bool>>);

impl Cut {
    /// Listens at `from` for one client, and passes on what it and who listens at `to` say to each
    /// other, until one is about to say a message of kind `kind`.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn before(kind: u8, from: &Path, to: &Path) -> Result<Self> {
        // One of an earlier cut.
        std::fs::remove_file(from).ok();
        let listener = UnixListener::bind(from).context("Cannot listen between the two")?;
        let to = to.to_owned();
        let thread = std::thread::spawn(move || {
            let (source, _) = listener.accept()?;
            let target = UnixStream::connect(to)?;
            let back = (target.try_clone()?, source.try_clone()?);
            let backwards = std::thread::spawn(move || pass_on(kind, back.0, back.1));
            let cut = pass_on(kind, source, target)?;
            match backwards.join() {
                Ok(also) => Ok(cut | also?),
                Err(_) => bail!("A thread between the two panicked"),
            }
        });
        Ok(Self(thread))
    }

    /// An error unless it was cut because of the message.
    ///
    /// # Errors
    /// Exactly then.
    pub fn happened(self) -> Result<()> {
        match self.0.join() {
            Ok(cut) => ensure!(cut?, "Nobody said that message"),
            Err(_) => bail!("The thread between the two panicked"),
        }
        Ok(())
    }
}

/// Passes messages on until the kind comes, or either side is gone; both are disconnected then. Gives
/// whether it was the kind.
fn pass_on(kind: u8, mut from: UnixStream, mut to: UnixStream) -> Result<bool> {
    let mut cut = false;
    let mut header = [0; HEADER];
    while from.read_exact(&mut header).is_ok() {
        let [a, b, c, d, this] = header;
        cut = this == kind;
        if cut {
            break;
        }
        let mut payload = vec![0; u32::from_le_bytes([a, b, c, d]) as usize];
        let passed = from
            .read_exact(&mut payload)
            .and_then(|()| to.write_all(&header))
            .and_then(|()| to.write_all(&payload));
        if passed.is_err() {
            break;
        }
    }
    for end in [from, to] {
        // It may have gone already.
        end.shutdown(Shutdown::Both).ok();
    }
    Ok(cut)
}
