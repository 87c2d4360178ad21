//! Listening sockets that are given to another process.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::tests::{DEADLINE, Fake, Peer};
use super::*;

/// Says when nobody is left.
struct Left(Mutex<Sender<()>>);

impl Control for Left {
    fn execute(&self, _: Command, _: &Caller) -> Result<Value, QmpError> {
        Ok(json!({}))
    }

    fn deserted(&self) {
        self.0.lock().unwrap().send(()).unwrap();
    }
}

fn path(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("baton-given-{}-{name}", std::process::id()))
}

fn unix(path: &Path) -> MonitorOption {
    MonitorOption {
        address: address(path),
        mode: MonitorMode::Control,
    }
}

fn address(path: &Path) -> MonitorAddress {
    let path = path.to_owned();
    MonitorAddress::Unix { path, wait: false }
}

/// A source with a monitor at `path`.
fn source(path: &Path) -> (Monitor, Receiver<()>) {
    let (left, is_left) = channel();
    let control = Arc::new(Left(Mutex::new(left)));
    let monitor = Monitor::start(&[unix(path)], control, Events::new()).unwrap();
    (monitor, is_left)
}

/// What the target does with the source's sockets.
fn target(monitor: &Monitor, path: &Path) -> (Monitor, Arc<Fake>) {
    let fake = Fake::new();
    let sockets = monitor.sockets().unwrap().into_iter();
    let sockets = sockets.map(|(_, fd)| (unix(path), fd)).collect();
    let kept = Kept::from_sockets(sockets).unwrap();
    let events = fake.events.clone();
    let target = Monitor::attach(kept, &[unix(path)], Arc::clone(&fake) as _, events).unwrap();
    (target, fake)
}

/// Asks something; the answer shows whether the VM is the [`Fake`].
fn ask(peer: &mut Peer) -> Value {
    peer.ask(&json!({"execute": "qmp_capabilities"}));
    peer.ask(&json!({"execute": "query-name"}))["return"].take()
}

#[test]
fn who_connects_comes_to_the_other_and_who_was_connected_stays() {
    let path = path("stay");
    let (mut monitor, is_left) = source(&path);
    let mut stays = Peer::connect(&path);
    monitor.shut(true);
    let waits = UnixStream::connect(&path).unwrap();
    let (target, _) = target(&monitor, &path);
    monitor.give_up(&[address(&path)]);
    monitor.shut(false);
    let mut comes = Peer::over(waits);
    assert_eq!(ask(&mut comes)["name"], "gr\u{fc}n");
    assert_eq!(ask(&mut stays), json!({}));
    assert_eq!(is_left.try_recv(), Err(TryRecvError::Empty));
    drop(stays);
    is_left.recv_timeout(DEADLINE).unwrap();
    // The path is the other's.
    monitor.shutdown(DEADLINE);
    assert!(path.exists());
    target.shutdown(DEADLINE);
    assert!(!path.exists());
}

#[test]
fn a_door_that_is_opened_again_lets_in_who_has_waited() {
    let path = path("again");
    let (monitor, is_left) = source(&path);
    monitor.shut(true);
    let waits = UnixStream::connect(&path).unwrap();
    monitor.shut(false);
    assert_eq!(ask(&mut Peer::over(waits)), json!({}));
    // Nothing was given away.
    monitor.shutdown(DEADLINE);
    assert_eq!(is_left.try_recv(), Err(TryRecvError::Disconnected));
    assert!(!path.exists());
}

#[test]
fn what_is_not_given_away_goes_on() {
    let (ours, theirs) = (path("ours"), path("theirs"));
    let (left, is_left) = channel();
    let control = Arc::new(Left(Mutex::new(left)));
    let options = [unix(&ours), unix(&theirs)];
    let mut monitor = Monitor::start(&options, control, Events::new()).unwrap();
    monitor.give_up(&[address(&theirs)]);
    assert_eq!(ask(&mut Peer::connect(&ours)), json!({}));
    assert_eq!(is_left.try_recv(), Err(TryRecvError::Empty));
    monitor.shutdown(DEADLINE);
    std::fs::remove_file(&theirs).unwrap();
}
