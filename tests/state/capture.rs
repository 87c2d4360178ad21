//! The state that crosses in a handover, taken from the main channel on its way.

use anyhow::{Context, Result, ensure};
use baton_testkit::Machine;
use baton_testkit::scratch::Scratch;
use baton_testkit::transfer::{outcome, set_mode};
use serde_json::json;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread;

/// The kind of the message that holds the state: `docs/state-format.md`.
const STATE: u8 = 7;

/// Hands the guest over, and gives the stream.
pub(crate) fn captured(mut source: Machine) -> Result<Vec<u8>> {
    let mut target = source.successor()?;
    let mut channels = target.channels();
    let scratch = Scratch::new()?;
    let relay = scratch.join("relay.sock");
    let main = channels
        .as_array_mut()
        .into_iter()
        .flatten()
        .find(|channel| channel["channel-type"] == "main")
        .context("There is no main channel")?;
    let address = main["addr"]["path"].take();
    let address = PathBuf::from(address.as_str().context("It is no socket")?);
    main["addr"]["path"] = json!(relay);
    let listener = UnixListener::bind(&relay)?;
    let taken = thread::spawn(move || relayed(&listener, &address));

    set_mode(&mut source)?;
    source.qmp()?.forget_events();
    source.execute("migrate", &json!({ "channels": channels }))?;
    let info = outcome(&mut source)?;
    ensure!(info["status"] == "completed", "{info}");
    target.wait_progress()?;
    // Both ends of the channel go with the processes.
    target.quit()?;
    source.quit()?;
    let bytes = taken.join().ok().context("The relay has panicked")??;
    message(&bytes, STATE).context("No state came through")
}

/// Passes on both directions of the one connection there is; gives what the source has sent.
fn relayed(listener: &UnixListener, to: &PathBuf) -> Result<Vec<u8>> {
    let (mut source, _) = listener.accept()?;
    let mut target = UnixStream::connect(to)?;
    let (mut answers, mut back) = (target.try_clone()?, source.try_clone()?);
    let answers = thread::spawn(move || std::io::copy(&mut answers, &mut back));
    let (mut all, mut some) = (Vec::new(), vec![0; 1 << 16]);
    while let Ok(n @ 1..) = source.read(&mut some) {
        all.extend_from_slice(&some[..n]);
        target.write_all(&some[..n])?;
    }
    target.shutdown(std::net::Shutdown::Both).ok();
    answers.join().ok();
    Ok(all)
}

/// The first message of a kind among frames.
fn message(mut frames: &[u8], kind: u8) -> Option<Vec<u8>> {
    loop {
        let (length, rest) = frames.split_first_chunk()?;
        let (found, rest) = rest.split_first()?;
        let (payload, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        if *found == kind {
            return Some(payload.to_vec());
        }
        frames = rest;
    }
}
