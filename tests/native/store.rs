//! Guest RAM in a service manager's descriptor store, while cpr-reboot leaves no process.
// A descriptor comes in a message as a bare number.
#![allow(unsafe_code)]

use anyhow::{Context, Result, bail, ensure};
use baton_testkit::process::{self, Running, last_words};
use baton_testkit::qmp::Qmp;
use baton_testkit::ram::GuestRam;
use baton_testkit::report::{ENTRY_TSC, TICKS};
use baton_testkit::wait::{PATIENCE, wait_for};
use baton_testkit::{Vmm, guest, needs_baton, sockets};
use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::process::{Command, Stdio};

use crate::systemd::Manager;

const MIB: u64 = 64;
const NAME: &str = "ram-ram0";

/// A process of the service.
struct Service {
    process: Running,
    log: std::path::PathBuf,
    qmp: std::path::PathBuf,
}

/// A manager with a store.
impl Manager {
    /// Starts the service's process, which finds what is stored as its descriptor 3.
    fn start(
        &self,
        room: Option<&str>,
        stored: Option<&OwnedFd>,
        more: &[&str],
    ) -> Result<Service> {
        let programs = Vmm::Baton.programs()?;
        let log = self.scratch.join("log");
        let qmp = self.scratch.join("qmp.sock");
        let ram = format!("memory-backend-memfd,id=ram0,size={MIB}M,fdstore=on");
        let monitor = format!("unix:{},server=on,wait=off", qmp.display());
        let memory = format!("{MIB}M");
        let mut command = Command::new("/bin/sh");
        let script = match stored {
            Some(_) => "exec 3<&0 </dev/null; export LISTEN_PID=$$; exec \"$@\"",
            None => "exec \"$@\" </dev/null",
        };
        command.args(["-c", script, "sh"]).arg(&programs.binary);
        command.args(["-m", &memory, "-nodefaults", "-append", "", "-kernel"]);
        command.arg(guest::image()?);
        command.args(["-object", &ram, "-machine", "memory-backend=ram0"]);
        command.args(["-serial", "file:serial", "-qmp", &monitor]);
        if let Some(plugins) = &programs.plugins {
            command.arg("-plugin").arg(plugins);
        }
        command.args(more).current_dir(self.scratch.path());
        command.env("NOTIFY_SOCKET", self.scratch.join("notify"));
        if let Some(room) = room {
            command.env("FDSTORE", room);
        }
        if let Some(stored) = stored {
            command.env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", NAME);
            command.stdin(stored.try_clone()?);
        }
        command.stdout(Stdio::null()).stderr(File::create(&log)?);
        let process = Running::new(process::spawn(&mut command)?);
        Ok(Service { process, log, qmp })
    }

    /// Waits until the guest is up.
    fn wait_up(&self) -> Result<()> {
        wait_for("the guest to come up", PATIENCE, || {
            let said = fs::read_to_string(self.scratch.join("serial")).unwrap_or_default();
            Ok(said.contains("BATON-GUEST-UP").then_some(()))
        })
    }

    /// The next message and the descriptor that came with it.
    fn receives(&self) -> Result<(String, Option<OwnedFd>)> {
        let mut text = [0; 4096];
        let mut space = cmsg_space!(RawFd);
        let mut into = [IoSliceMut::new(&mut text)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let socket = self.socket.as_raw_fd();
        let message = recvmsg::<()>(socket, &mut into, Some(&mut space), flags)
            .context("It hears nothing")?;
        let mut fd = None;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = control {
                // SAFETY: the kernel has just made it for this process.
                fd = fds.first().map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) });
            }
        }
        let length = message.bytes;
        Ok((String::from_utf8_lossy(&text[..length]).into_owned(), fd))
    }

    fn begins(&self, start: &str) -> Result<Option<OwnedFd>> {
        let (heard, fd) = self.receives()?;
        ensure!(heard.starts_with(start), "{heard:?} is not {start:?}");
        Ok(fd)
    }

    /// Takes what the service puts into the store, and says that it has.
    fn stores(&self) -> Result<OwnedFd> {
        let stored = self.begins(&format!("FDSTORE=1\nFDNAME={NAME}\nFDPOLL=0"))?;
        let barrier = self.begins("BARRIER=1")?;
        ensure!(barrier.is_some(), "Nothing to close");
        stored.context("Nothing to store")
    }
}

impl Service {
    fn qmp(&mut self) -> Result<Qmp> {
        wait_for("the monitor", PATIENCE, || {
            if let Some(status) = self.process.ended()? {
                bail!("{status}: {}", last_words(&self.log));
            }
            Ok(sockets::listens(&self.qmp)?.then_some(()))
        })?;
        Qmp::connect(&self.qmp)
    }

    /// What it says when it ends, which it does with a failure.
    fn refuses(&mut self) -> Result<String> {
        let ended = wait_for("the end", PATIENCE, || self.process.ended())?;
        ensure!(!ended.success(), "It ends well");
        Ok(last_words(&self.log))
    }

    fn quit(&mut self, qmp: &mut Qmp) -> Result<()> {
        qmp.execute("quit", &json!({}))?;
        let ended = wait_for("the end", PATIENCE, || self.process.ended())?;
        ensure!(ended.success(), "{ended}");
        fs::remove_file(&self.qmp).ok();
        Ok(())
    }
}

fn map(stored: &OwnedFd) -> Result<GuestRam> {
    let path = format!("/proc/self/fd/{}", stored.as_raw_fd());
    GuestRam::within(path.as_ref(), 0, MIB << 20)
}

fn wait_status(qmp: &mut Qmp, status: &str) -> Result<()> {
    wait_for(status, PATIENCE, || {
        let now = qmp.execute("query-status", &json!({}))?;
        Ok((now["status"] == status).then_some(()))
    })
}

fn begin(qmp: &mut Qmp, uri: &str) -> Result<()> {
    let capability = json!([{ "capability": "x-ignore-shared", "state": true }]);
    let capabilities = json!({ "capabilities": capability });
    qmp.execute("migrate-set-capabilities", &capabilities)?;
    qmp.execute("migrate-set-parameters", &json!({ "mode": "cpr-reboot" }))?;
    qmp.execute("migrate", &json!({ "uri": uri }))?;
    Ok(())
}

fn end(qmp: &mut Qmp) -> Result<Value> {
    wait_for("the migration's end", PATIENCE, || {
        let info = qmp.execute("query-migrate", &json!({}))?;
        let over = matches!(info["status"].as_str(), Some("completed" | "failed"));
        Ok(over.then_some(info))
    })
}

fn goes_on(ram: &GuestRam) -> Result<()> {
    let before = ram.report().get(TICKS);
    wait_for("a timer tick", PATIENCE, || {
        Ok((ram.report().get(TICKS) > before).then_some(()))
    })
}

#[test]
fn a_guest_stays_in_the_store_until_it_is_loaded() -> Result<()> {
    needs_baton!();
    let manager = Manager::new()?;
    let mut first = manager.start(Some("1"), None, &[])?;
    let mut qmp = first.qmp()?;
    manager.begins("READY=1")?;
    manager.wait_up()?;
    begin(&mut qmp, "file:vm.state")?;
    let stored = manager.stores()?;
    let info = end(&mut qmp)?;
    ensure!(info["status"] == "completed", "{info}");
    wait_status(&mut qmp, "postmigrate")?;
    let state = fs::metadata(manager.scratch.join("vm.state"))?.len();
    ensure!(state < 1 << 20, "{state} bytes of state");
    first.quit(&mut qmp)?;

    let ram = map(&stored)?;
    ram.check_walk()?;
    let entered = ram.report().get(ENTRY_TSC);
    // A guest that is booted beside it would be one too many.
    let refused = manager.start(Some("1"), Some(&stored), &[])?.refuses()?;
    ensure!(
        refused.contains(NAME) && refused.contains("systemctl clean --what=fdstore"),
        "{refused}"
    );

    let incoming = ["-incoming", "file:vm.state"];
    let mut next = manager.start(Some("1"), Some(&stored), &incoming)?;
    let mut qmp = next.qmp()?;
    wait_status(&mut qmp, "running")?;
    goes_on(&ram)?;
    ensure!(
        ram.report().get(ENTRY_TSC) == entered,
        "It has booted again"
    );
    loop {
        let (heard, fd) = manager.receives()?;
        ensure!(fd.is_none(), "{heard}");
        if heard == format!("FDSTOREREMOVE=1\nFDNAME={NAME}") {
            break;
        }
    }
    // And again from there.
    begin(&mut qmp, "file:again.state")?;
    while !manager.receives()?.0.starts_with("FDSTORE=1") {}
    manager.begins("BARRIER=1")?;
    let info = end(&mut qmp)?;
    ensure!(info["status"] == "completed", "{info}");
    next.quit(&mut qmp)?;

    // The manager has lost it.
    let incoming = ["-incoming", "file:again.state"];
    let refused = manager.start(Some("1"), None, &incoming)?.refuses()?;
    ensure!(
        refused.contains(NAME) && refused.contains("FileDescriptorStorePreserve"),
        "{refused}"
    );
    let mut last = manager.start(Some("1"), Some(&stored), &incoming)?;
    wait_status(&mut last.qmp()?, "running")?;
    goes_on(&ram)
}

#[test]
fn a_guest_that_is_not_kept_after_all_leaves_the_store() -> Result<()> {
    needs_baton!();
    let manager = Manager::new()?;
    let mut service = manager.start(Some("1"), None, &[])?;
    let mut qmp = service.qmp()?;
    manager.begins("READY=1")?;
    manager.wait_up()?;
    begin(&mut qmp, "exec:cat >/dev/null; false")?;
    let stored = manager.stores()?;
    let info = end(&mut qmp)?;
    ensure!(info["status"] == "failed", "{info}");
    manager.begins(&format!("FDSTOREREMOVE=1\nFDNAME={NAME}"))?;
    wait_status(&mut qmp, "running")?;
    goes_on(&map(&stored)?)
}

#[test]
fn a_store_that_is_not_there_is_refused_and_one_that_is_gone_keeps_no_guest() -> Result<()> {
    needs_baton!();
    let manager = Manager::new()?;
    for room in [None, Some("0"), Some("many")] {
        let refused = manager.start(room, None, &[])?.refuses()?;
        ensure!(
            refused.contains("ram0") && refused.contains("FileDescriptorStoreMax=1"),
            "{room:?}: {refused}"
        );
    }
    let mut service = manager.start(Some("1"), None, &[])?;
    let mut qmp = service.qmp()?;
    manager.begins("READY=1")?;
    fs::remove_file(manager.scratch.join("notify"))?;
    begin(&mut qmp, "file:vm.state")?;
    let info = end(&mut qmp)?;
    let reason = info["error-desc"].as_str().unwrap_or_default();
    ensure!(info["status"] == "failed", "{info}");
    ensure!(
        reason.contains("does not take 'ram-ram0' into its store"),
        "{info}"
    );
    wait_status(&mut qmp, "running")?;
    ensure!(!manager.scratch.join("vm.state").exists(), "A file is left");
    Ok(())
}
