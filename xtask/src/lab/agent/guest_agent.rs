//! Talking to the guest's agent, over the socket that is its port's other end. Each command has a
//! connection of its own, as with the tools that one would use at a shell.

use anyhow::{Context, Result, ensure};
use baton_testkit::wait::PATIENCE;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

/// Sends a line and closes the connection, whatever comes back: `ncat --send-only -U SOCKET`.
pub(crate) fn tell(socket: &str, command: &str) -> Result<()> {
    send(socket, command).map(drop)
}

/// Sends a command and gives what it returns. An agent that is not there yet answers once it is.
pub(crate) fn ask(socket: &str, command: &str) -> Result<Value> {
    let stream = send(socket, command)?;
    let about = || format!("The guest agent does not answer {command}");
    stream
        .set_read_timeout(Some(PATIENCE))
        .with_context(about)?;
    let mut line = String::new();
    let read = BufReader::new(&stream).read_line(&mut line);
    read.with_context(about)?;
    stream.shutdown(Shutdown::Both).ok();
    let mut answer: Value = serde_json::from_str(&line)
        .with_context(|| format!("The guest agent answers {command} with '{line}'"))?;
    let value = answer.get_mut("return").map(Value::take);
    value.with_context(|| format!("The guest agent refuses {command}: {answer}"))
}

/// Sees that it lives, and that it is one that can do what the lab wants.
pub(crate) fn lives(socket: &str) -> Result<()> {
    let nothing = ask(socket, "guest-ping")?;
    ensure!(nothing == json!({}), "guest-ping returns {nothing}");
    let info = ask(socket, "guest-info")?;
    let commands = info["supported_commands"].as_array();
    let mut commands = commands.into_iter().flatten();
    ensure!(
        commands.any(|c| c["name"] == SUSPEND && c["enabled"] == true),
        "The guest agent does not offer {SUSPEND}: {info}"
    );
    println!("LAB guest agent {} answers", info["version"]);
    Ok(())
}

/// The command that suspends the guest to RAM. It is answered only when it fails.
pub(crate) const SUSPEND: &str = "guest-suspend-ram";

fn send(socket: &str, command: &str) -> Result<UnixStream> {
    let about = || format!("Cannot send {command} to {socket}");
    let mut stream = UnixStream::connect(socket).with_context(about)?;
    let line = format!("{{\"execute\":\"{command}\"}}\n");
    stream.write_all(line.as_bytes()).with_context(about)?;
    Ok(stream)
}
