//! What the service manager is told: sd_notify(3). Without one nothing happens, and an error is no
//! matter to the guest.

use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Names the manager's socket. It stays in the environment, for whoever goes on with the guest.
pub(super) const SOCKET: &str = "NOTIFY_SOCKET";
/// How often it wants to hear of the process, in microseconds.
const INTERVAL: &str = "WATCHDOG_USEC";
/// Whose task that is; everybody's if nothing is said.
const WATCHED: &str = "WATCHDOG_PID";

/// The process does what it was started for.
pub fn ready(status: &str) {
    notify(&format!("READY=1\nSTATUS={status}"));
}

/// A live update begins.
pub fn reloading(status: &str) {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from);
    let micros = now.unwrap_or_default().as_micros();
    notify(&format!(
        "RELOADING=1\nMONOTONIC_USEC={micros}\nSTATUS={status}"
    ));
}

/// The guest has come to this process from another: this is the service now.
pub fn took_over(status: &str) {
    let pid = std::process::id();
    notify(&format!("MAINPID={pid}\nREADY=1\nSTATUS={status}"));
}

/// The guest has gone from this process to `successor`, if that is known.
pub fn succeeded(successor: Option<u32>) {
    match successor {
        Some(pid) => notify(&format!(
            "MAINPID={pid}\nREADY=1\nSTATUS=The guest runs in process {pid}"
        )),
        None => ready("The guest has gone to another process"),
    }
}

/// The process ends, and the guest with it.
pub fn stopping() {
    notify("STOPPING=1");
}

fn notify(state: &str) {
    let Some(socket) = std::env::var_os(SOCKET) else {
        return;
    };
    if let Err(e) = send(&socket, state) {
        tracing::debug!("{SOCKET}={}: {e}", socket.display());
    }
}

fn send(socket: &OsStr, state: &str) -> std::io::Result<()> {
    let datagram = connected(socket)?;
    // A manager that does not read must not hold anybody up.
    datagram.set_nonblocking(true)?;
    datagram.send(state.as_bytes()).map(drop)
}

/// A socket whose messages go to the manager.
pub(super) fn connected(socket: &OsStr) -> std::io::Result<UnixDatagram> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    let datagram = UnixDatagram::unbound()?;
    datagram.connect_addr(&address)?;
    Ok(datagram)
}

/// Tells the manager again and again that the process is alive, if that wants to know.
#[derive(Debug, Clone, Copy)]
pub struct Watchdog(Option<Duration>);

impl Watchdog {
    /// As the environment says.
    pub fn new() -> Self {
        let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
        Self(interval(
            number(INTERVAL),
            number(WATCHED),
            std::process::id(),
        ))
    }

    /// How long to do something else before the next [`Self::alive`].
    pub fn pause(self) -> Option<Duration> {
        self.0
    }

    /// Says so.
    pub fn alive(self) {
        if self.0.is_some() {
            notify("WATCHDOG=1");
        }
    }
}

/// Half of what is asked for, as sd_watchdog_enabled(3) advises.
fn interval(micros: Option<u64>, watched: Option<u64>, own: u32) -> Option<Duration> {
    let ours = watched.is_none_or(|pid| pid == u64::from(own));
    let micros = micros.filter(|micros| ours && *micros > 0)?;
    Some(Duration::from_micros(micros.div_ceil(2)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_is_told_by_path_and_by_abstract_name() {
        let path = std::env::temp_dir().join(format!("baton-notify-{}", std::process::id()));
        let by_path = UnixDatagram::bind(&path).unwrap();
        let name = format!("baton-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let by_name = UnixDatagram::bind_addr(&address).unwrap();
        let abstract_name = format!("@{name}");
        for (socket, text) in [
            (by_path, path.as_os_str()),
            (by_name, abstract_name.as_ref()),
        ] {
            send(text, "READY=1").unwrap();
            let mut said = [0; 16];
            let length = socket.recv(&mut said).unwrap();
            assert_eq!(&said[..length], b"READY=1");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(send(path.as_os_str(), "READY=1").is_err());
    }

    #[test]
    fn the_watchdog_is_told_twice_as_often_as_asked_and_only_by_its_process() {
        let half = |micros| Some(Duration::from_micros(micros));
        assert_eq!(interval(Some(1000), None, 7), half(500));
        assert_eq!(interval(Some(1000), Some(7), 7), half(500));
        assert_eq!(interval(Some(1000), Some(8), 7), None);
        assert_eq!(interval(Some(0), None, 7), None);
        assert_eq!(interval(None, None, 7), None);
    }
}
