//! Descriptors that a client passes, in place of paths and addresses.

use anyhow::{Result, ensure};
use baton_testkit::kept::set_mode;
use baton_testkit::{Machine, Setup, Vmm, needs_baton};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::{Value, json};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, IoSlice, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use crate::is_whole;

/// A client that passes descriptors.
struct Client {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Client {
    fn new(machine: &mut Machine) -> Result<Self> {
        machine.wait_listening("qmp")?;
        let stream = UnixStream::connect(machine.socket("qmp"))?;
        let lines = BufReader::new(stream.try_clone()?);
        let mut client = Self { stream, lines };
        client.read()?;
        client.ask("qmp_capabilities", &json!({}), &[])?;
        Ok(client)
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    }

    /// Says a command with descriptors, and gives its answer.
    fn ask(&mut self, name: &str, arguments: &Value, fds: &[RawFd]) -> Result<Value> {
        let text = json!({ "execute": name, "arguments": arguments }).to_string();
        let rights = [ControlMessage::ScmRights(fds)];
        let rights = if fds.is_empty() { &[] } else { &rights[..] };
        let (socket, bytes) = (self.stream.as_raw_fd(), [IoSlice::new(text.as_bytes())]);
        sendmsg::<()>(socket, &bytes, rights, MsgFlags::empty(), None)?;
        loop {
            let said = self.read()?;
            if said.get("event").is_none() {
                return Ok(said);
            }
        }
    }

    fn done(&mut self, name: &str, arguments: &Value, fds: &[RawFd]) -> Result<Value> {
        let said = self.ask(name, arguments, fds)?;
        ensure!(said.get("error").is_none(), "{name}: {said}");
        Ok(said["return"].clone())
    }
}

fn writable(machine: &Machine, name: &str) -> Result<File> {
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(true);
    Ok(options.open(machine.file(name))?)
}

/// Keeps the guest at `to` and loads it from `from`, each with the descriptors it needs.
fn through(
    named: &str,
    keep: impl Fn(&Machine, &mut Client) -> Result<()>,
    load: impl Fn(&Machine, &mut Client) -> Result<()>,
) -> Result<()> {
    let mut machine = Setup::new(Vmm::Baton)?.boot()?;
    machine.wait_progress()?;
    set_mode(&mut machine)?;
    let mut client = Client::new(&mut machine)?;
    keep(&machine, &mut client)?;
    client.done("migrate", &json!({ "uri": named }), &[])?;
    machine.wait_status("postmigrate")?;
    machine.execute("quit", &json!({}))?;
    machine.ended_well()?;
    let mut next = machine.loading("defer")?;
    set_mode(&mut next)?;
    let mut client = Client::new(&mut next)?;
    load(&next, &mut client)?;
    client.done("migrate-incoming", &json!({ "uri": named }), &[])?;
    next.wait_status("running")?;
    is_whole(&mut next)
}

#[test]
fn a_guest_is_kept_in_a_file_that_a_client_has_opened_and_named() -> Result<()> {
    needs_baton!();
    let name = json!({ "fdname": "state" });
    through(
        "fd:state",
        |machine, client| {
            let file = writable(machine, "kept")?;
            client.done("getfd", &name, &[file.as_raw_fd()]).map(drop)
        },
        |machine, client| {
            let refused = client.ask("migrate-incoming", &json!({ "uri": "fd:state" }), &[])?;
            let text = "File descriptor named 'state' has not been found";
            ensure!(refused["error"]["desc"] == text, "{refused}");
            let file = File::open(machine.file("kept"))?;
            client.done("getfd", &name, &[file.as_raw_fd()]).map(drop)
        },
    )
}

#[test]
fn a_guest_is_kept_in_a_file_of_a_set() -> Result<()> {
    needs_baton!();
    let set = json!({ "fdset-id": 7 });
    through(
        "file:/dev/fdset/7,offset=4096",
        |machine, client| {
            let mut file = writable(machine, "kept")?;
            file.write_all(b"somebody else's")?;
            client.done("add-fd", &set, &[file.as_raw_fd()]).map(drop)
        },
        |machine, client| {
            let kept = std::fs::read(machine.file("kept"))?;
            ensure!(kept.starts_with(b"somebody else's"), "It was written over");
            let file = File::open(machine.file("kept"))?;
            client.done("add-fd", &set, &[file.as_raw_fd()]).map(drop)
        },
    )
}
