//! Clients that pass descriptors, and what they say out of band.

use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::{Value, json};

use super::client::QUEUE;
use super::tests::{DEADLINE, Peer, control};
use super::*;

/// A VM that does what concerns descriptors, and lets `stop` take until it is told.
struct Slow {
    begun: Mutex<Sender<()>>,
    go_on: Mutex<Receiver<()>>,
}

impl Control for Slow {
    fn execute(&self, command: Command, caller: &Caller) -> Result<Value, QmpError> {
        match command {
            Command::Getfd { fdname } => caller.name_fd(fdname),
            Command::Closefd { fdname } => caller.close_fd(&fdname),
            Command::Stop => {
                self.begun.lock().unwrap().send(()).unwrap();
                let go_on = self.go_on.lock().unwrap();
                go_on.recv_timeout(DEADLINE).unwrap();
                Ok(json!({}))
            }
            Command::QueryYank => Ok(json!([])),
            _ => Ok(json!({})),
        }
    }
}

struct Rig {
    monitor: Option<Monitor>,
    slow: Arc<Slow>,
    option: MonitorOption,
    events: Events,
    path: std::path::PathBuf,
    begun: Receiver<()>,
    go_on: Sender<()>,
}

impl Rig {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("baton-fds-{}-{name}", std::process::id()));
        let (begun, begins) = channel();
        let (go_on, goes_on) = channel();
        let slow = Arc::new(Slow {
            begun: Mutex::new(begun),
            go_on: Mutex::new(goes_on),
        });
        let option = control(MonitorAddress::Unix {
            path: path.clone(),
            wait: false,
        });
        let events = Events::new();
        let options = [option.clone()];
        let monitor = Monitor::start(&options, Arc::clone(&slow) as _, events.clone()).unwrap();
        Self {
            monitor: Some(monitor),
            slow,
            option,
            events,
            path,
            begun: begins,
            go_on,
        }
    }

    fn ready(&self, enable: &[&str]) -> Peer {
        let mut peer = Peer::connect(&self.path);
        let arguments = json!({ "enable": enable });
        let agreed = peer.ask(&json!({"execute": "qmp_capabilities", "arguments": arguments}));
        assert_eq!(agreed, json!({"return": {}}));
        peer
    }

    /// Lets another monitor go on.
    fn replace(&mut self) {
        let kept = self.monitor.take().unwrap().detach();
        let (description, fds) = kept.into_parts();
        let packed = rmp_serde::to_vec_named(&description).unwrap();
        let kept = Kept::from_parts(rmp_serde::from_slice(&packed).unwrap(), fds).unwrap();
        let options = [self.option.clone()];
        let slow = Arc::clone(&self.slow) as _;
        let monitor = Monitor::attach(kept, &options, slow, self.events.clone());
        self.monitor = Some(monitor.unwrap());
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(monitor) = self.monitor.take() {
            monitor.shutdown(DEADLINE);
        }
    }
}

/// Sends `text` with descriptors.
fn pass(peer: &Peer, text: &str, fds: &[RawFd]) {
    let sent = sendmsg::<()>(
        peer.stream.as_raw_fd(),
        &[IoSlice::new(text.as_bytes())],
        &[ControlMessage::ScmRights(fds)],
        MsgFlags::empty(),
        None,
    );
    assert_eq!(sent, Ok(text.len()));
}

/// One end of a pipe to pass: the other notices when nobody has it any more.
fn noticed() -> (std::io::PipeReader, OwnedFd) {
    let (reader, writer) = std::io::pipe().unwrap();
    (reader, writer.into())
}

/// Whether nobody has the other end, after a while at most.
fn is_closed(reader: &std::io::PipeReader) {
    use nix::poll::{PollFd, PollFlags, poll};
    use std::os::fd::AsFd;
    let mut fds = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
    let timeout = u16::try_from(DEADLINE.as_millis()).unwrap();
    assert_eq!(poll(&mut fds, timeout), Ok(1), "somebody still has it");
}

fn is_open(reader: &std::io::PipeReader) {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let mut fds = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, PollTimeout::ZERO), Ok(0), "nobody has it");
}

fn getfd(name: &str) -> String {
    json!({"execute": "getfd", "arguments": {"fdname": name}}).to_string()
}

#[test]
fn a_descriptor_comes_with_its_command_and_is_its_clients_alone() {
    let rig = Rig::new("named");
    let (mut peer, mut other) = (rig.ready(&[]), rig.ready(&[]));
    let (reader, writer) = noticed();
    let none = peer.ask(&json!({"execute": "getfd", "arguments": {"fdname": "a"}}));
    assert_eq!(
        none["error"]["desc"],
        "No file descriptor supplied via SCM_RIGHTS"
    );
    pass(&peer, &getfd("a"), &[writer.as_raw_fd()]);
    assert_eq!(peer.read(), json!({"return": {}}));
    drop(writer);
    let close = json!({"execute": "closefd", "arguments": {"fdname": "a"}});
    let not_its = other.ask(&close);
    assert_eq!(
        not_its["error"]["desc"],
        "File descriptor named 'a' not found"
    );
    is_open(&reader);
    assert_eq!(peer.ask(&close), json!({"return": {}}));
    is_closed(&reader);
}

#[test]
fn a_descriptor_is_for_the_command_whose_bytes_it_comes_with() {
    let rig = Rig::new("which");
    let mut peer = rig.ready(&[]);
    // The command before it, in one read, does not get it.
    let (reader, writer) = noticed();
    peer.write(&getfd("first"));
    pass(&peer, &getfd("second"), &[writer.as_raw_fd()]);
    assert!(peer.read()["error"].is_object());
    assert_eq!(peer.read(), json!({"return": {}}));
    // Half of a command, with what is for it, and then the rest.
    let (half_reader, half_writer) = noticed();
    let text = getfd("half");
    pass(&peer, &text[..9], &[half_writer.as_raw_fd()]);
    peer.write(&text[9..]);
    assert_eq!(peer.read(), json!({"return": {}}));
    drop((writer, half_writer));
    is_open(&reader);
    is_open(&half_reader);
    drop(peer);
    is_closed(&reader);
    is_closed(&half_reader);
}

#[test]
fn what_no_command_takes_is_closed() {
    let rig = Rig::new("flood");
    let mut peer = rig.ready(&[]);
    let (reader, writer) = noticed();
    // Many at once, of which one is taken, and many with a command that takes none.
    pass(&peer, &getfd("a"), &[writer.as_raw_fd(); 200]);
    assert_eq!(peer.read(), json!({"return": {}}));
    for _ in 0..50 {
        pass(
            &peer,
            &json!({"execute": "cont"}).to_string(),
            &[writer.as_raw_fd(); 253],
        );
        assert_eq!(peer.read(), json!({"return": {}}));
    }
    // And with what never becomes a command.
    for _ in 0..50 {
        pass(&peer, " ", &[writer.as_raw_fd(); 253]);
    }
    peer.ask(&json!({"execute": "cont"}));
    drop(writer);
    is_open(&reader);
    peer.ask(&json!({"execute": "closefd", "arguments": {"fdname": "a"}}));
    is_closed(&reader);
}

#[test]
fn names_are_kept_with_their_client() {
    let mut rig = Rig::new("kept");
    let mut peer = rig.ready(&[]);
    let (reader, writer) = noticed();
    pass(&peer, &getfd("a"), &[writer.as_raw_fd()]);
    assert_eq!(peer.read(), json!({"return": {}}));
    drop(writer);
    rig.replace();
    is_open(&reader);
    let close = json!({"execute": "closefd", "arguments": {"fdname": "a"}});
    assert_eq!(peer.ask(&close), json!({"return": {}}));
    is_closed(&reader);
}

#[test]
fn what_is_said_out_of_band_passes_a_command_that_takes_its_time() {
    let rig = Rig::new("oob");
    let mut peer = rig.ready(&["oob"]);
    peer.write("{'execute': 'stop', 'id': 1} {'execute': 'cont', 'id': 2}");
    rig.begun.recv_timeout(DEADLINE).unwrap();
    peer.write("{'exec-oob': 'query-yank', 'id': 3}");
    assert_eq!(peer.read(), json!({"return": [], "id": 3}));
    // Those that are not for that, and nonsense, are refused at once as well.
    peer.write("{'exec-oob': 'cont', 'id': 4}");
    let refused = peer.read();
    assert_eq!(refused["id"], 4);
    assert_eq!(
        refused["error"]["desc"],
        "The command cont does not support OOB"
    );
    rig.go_on.send(()).unwrap();
    assert_eq!(peer.read(), json!({"return": {}, "id": 1}));
    assert_eq!(peer.read(), json!({"return": {}, "id": 2}));
    // Without the capability it is not known.
    let mut peer = rig.ready(&[]);
    let unknown = peer.ask(&json!({"exec-oob": "query-yank"}));
    assert_eq!(
        unknown["error"]["desc"],
        "QMP input member 'exec-oob' is unexpected"
    );
}

#[test]
fn commands_that_wait_are_carried_out_in_order_when_the_queue_is_full() {
    let rig = Rig::new("queue");
    let mut peer = rig.ready(&["oob"]);
    peer.write("{'execute': 'stop', 'id': 0}");
    rig.begun.recv_timeout(DEADLINE).unwrap();
    for id in 1..QUEUE {
        peer.write(&json!({"execute": "cont", "id": id}).to_string());
        // One after the other is read.
        let band = format!("{{'exec-oob': 'query-yank', 'id': 'after {id}'}}");
        if id < QUEUE - 1 {
            peer.write(&band);
            assert_eq!(peer.read()["id"], format!("after {id}"));
        }
    }
    // The queue is full: this is read when there is room again.
    peer.write("{'exec-oob': 'query-yank', 'id': 'late'}");
    rig.go_on.send(()).unwrap();
    let answers: Vec<Value> = (0..=QUEUE).map(|_| peer.read()["id"].clone()).collect();
    let mut in_band = answers.iter().filter(|id| id.is_u64());
    assert!((0..QUEUE as u64).all(|id| in_band.next() == Some(&json!(id))));
    assert!(answers.contains(&json!("late")));
}

#[test]
fn what_waits_is_carried_out_once_by_the_next_monitor() {
    let mut rig = Rig::new("waits");
    let mut peer = rig.ready(&["oob"]);
    peer.write("{'execute': 'stop', 'id': 0}");
    rig.begun.recv_timeout(DEADLINE).unwrap();
    peer.write("{'execute': 'cont', 'id': 'g\u{fc}n'}{'execute': 'cont', 'id': 2}{'exec");
    peer.write("-oob': 'query-yank', 'id': 'seen'}{'execute'");
    assert_eq!(peer.read()["id"], "seen");
    rig.go_on.send(()).unwrap();
    rig.replace();
    peer.write(": 'cont', 'id': 3}");
    let answers: Vec<Value> = (0..4).map(|_| peer.read()["id"].clone()).collect();
    assert_eq!(answers, [json!(0), json!("g\u{fc}n"), json!(2), json!(3)]);
}
