//! The service manager's descriptor store: FDSTORE= of sd_notify(3). What is in it outlives the process,
//! and the next process of the service inherits it by name.

use std::io::{IoSlice, PipeReader};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use super::activation;
use super::notify::{SOCKET, connected};

/// How many descriptors the manager stores for the service; systemd says so since version 254.
const ROOM: &str = "FDSTORE";
/// How long a manager may take to do what it is told. It has other services too.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether there is a store that takes a descriptor. A manager does not say when it drops one.
pub fn has_room() -> Result<(), String> {
    let room = std::env::var(ROOM).ok().and_then(|n| n.parse::<u32>().ok());
    if std::env::var_os(SOCKET).is_some() && room.is_some_and(|n| n > 0) {
        return Ok(());
    }
    Err(format!(
        "there is no descriptor store: ${SOCKET} and ${ROOM} are not both set; run Baton as a service of \
         systemd 254 or later whose unit has FileDescriptorStoreMax=1 or more"
    ))
}

/// Puts a descriptor into the store. When this returns well the manager has taken it.
pub fn put(name: &str, fd: impl AsFd) -> Result<(), String> {
    has_room()?;
    let state = format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0");
    send(&state, Some(fd.as_fd()))
        .and_then(|()| barrier())
        .map_err(|e| format!("the service manager does not take '{name}' into its store: {e}"))
}

/// Takes what is called so out of the store, and closes what this process has inherited of it.
pub fn remove(name: &str) -> Result<(), String> {
    drop(activation::take(name));
    send(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), None)
        .map_err(|e| format!("the service manager does not let '{name}' go from its store: {e}"))
}

/// Waits until the manager has done what it was told before: it closes the descriptor then.
fn barrier() -> std::io::Result<()> {
    let (reader, writer) = std::io::pipe()?;
    send("BARRIER=1", Some(writer.as_fd()))?;
    drop(writer);
    wait(&reader)
}

fn wait(reader: &PipeReader) -> std::io::Result<()> {
    let patience = PollTimeout::try_from(PATIENCE).map_err(std::io::Error::other)?;
    loop {
        let mut wanted = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
        match poll(&mut wanted, patience) {
            Ok(0) => {
                let seconds = PATIENCE.as_secs();
                let text = format!("it has not answered for {seconds} s");
                return Err(std::io::Error::other(text));
            }
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

fn send(state: &str, fd: Option<BorrowedFd<'_>>) -> std::io::Result<()> {
    let socket = std::env::var_os(SOCKET)
        .ok_or_else(|| std::io::Error::other(format!("${SOCKET} is not set")))?;
    let datagram: UnixDatagram = connected(&socket)?;
    // This must arrive, or not be believed to have.
    datagram.set_write_timeout(Some(PATIENCE))?;
    let fds: Vec<_> = fd.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let control = if fds.is_empty() {
        &rights[..0]
    } else {
        &rights
    };
    let text = [IoSlice::new(state.as_bytes())];
    let none = MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(datagram.as_raw_fd(), &text, control, none, None)?;
    Ok(())
}
