//! Clients against a monitor whose VM is a fake.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use super::*;

pub(super) const DEADLINE: Duration = Duration::from_secs(20);

/// A monitor for programs.
pub(super) fn control(address: MonitorAddress) -> MonitorOption {
    let mode = MonitorMode::Control;
    MonitorOption { address, mode }
}

/// Notes what it was asked, and emits STOP when asked to stop.
pub(super) struct Fake {
    pub(super) asked: Mutex<Vec<Command>>,
    pub(super) events: Events,
}

impl Fake {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            asked: Mutex::default(),
            events: Events::new(),
        })
    }
}

impl Control for Fake {
    fn execute(&self, command: Command, _: &Caller) -> Result<Value, QmpError> {
        if command == Command::Stop {
            self.events.emit("STOP", None);
        }
        self.asked.lock().unwrap().push(command.clone());
        match command {
            Command::Cont => Err(QmpError::generic("no")),
            Command::QueryName => Ok(json!({ "name": "gr\u{fc}n" })),
            _ => Ok(json!({})),
        }
    }
}

struct Rig {
    monitor: Option<Monitor>,
    path: PathBuf,
    fake: Arc<Fake>,
}

impl Rig {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("baton-qmp-{}-{name}", std::process::id()));
        let fake = Fake::new();
        let events = fake.events.clone();
        let address = MonitorAddress::Unix {
            path: path.clone(),
            wait: false,
        };
        let monitor = Monitor::start(&[control(address)], Arc::clone(&fake) as _, events).unwrap();
        Self {
            monitor: Some(monitor),
            path,
            fake,
        }
    }

    fn connect(&self) -> Peer {
        Peer::connect(&self.path)
    }

    fn ready(&self) -> Peer {
        let mut peer = self.connect();
        assert_eq!(
            peer.ask(&json!({"execute": "qmp_capabilities"})),
            json!({"return": {}})
        );
        peer
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(monitor) = self.monitor.take() {
            monitor.shutdown(DEADLINE);
        }
    }
}

pub(super) struct Peer {
    pub(super) reader: BufReader<UnixStream>,
    pub(super) stream: UnixStream,
}

impl Peer {
    /// One that has its greeting.
    pub(super) fn connect(path: &std::path::Path) -> Self {
        Self::over(UnixStream::connect(path).unwrap())
    }

    /// The same over a connection that is there.
    pub(super) fn over(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut peer = Self {
            reader: BufReader::new(stream.try_clone().unwrap()),
            stream,
        };
        assert!(peer.read()["QMP"]["version"]["qemu"]["major"].is_u64());
        peer
    }

    pub(super) fn write(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).unwrap();
    }

    pub(super) fn read(&mut self) -> Value {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        assert!(line.ends_with("\r\n") && line.is_ascii(), "{line:?}");
        serde_json::from_str(&line).unwrap()
    }

    pub(super) fn ask(&mut self, command: &Value) -> Value {
        self.write(&format!("{command}\n"));
        self.read()
    }
}

#[test]
fn a_command_reaches_the_vm_and_its_answer_has_the_id() {
    let rig = Rig::new("id");
    let mut peer = rig.ready();
    let answer = peer.ask(&json!({"execute": "query-status", "id": {"a": [1]}}));
    assert_eq!(answer, json!({"return": {}, "id": {"a": [1]}}));
    assert_eq!(*rig.fake.asked.lock().unwrap(), [Command::QueryStatus]);
    let refused = peer.ask(&json!({"execute": "cont"}));
    assert_eq!(
        refused,
        json!({"error": {"class": "GenericError", "desc": "no"}})
    );
}

#[test]
fn text_outside_ascii_is_escaped() {
    let rig = Rig::new("ascii");
    let answer = rig.ready().ask(&json!({"execute": "query-name"}));
    assert_eq!(answer["return"]["name"], "gr\u{fc}n");
}

#[test]
fn an_event_of_a_command_comes_before_its_answer() {
    let rig = Rig::new("order");
    let (mut asks, mut listens, mut deaf) = (rig.ready(), rig.ready(), rig.connect());
    let event = asks.ask(&json!({"execute": "stop"}));
    assert_eq!(event["event"], "STOP");
    assert!(
        event["timestamp"]["seconds"].is_u64() && event.get("data").is_none(),
        "{event}"
    );
    assert_eq!(asks.read(), json!({"return": {}}));
    assert_eq!(listens.read()["event"], "STOP");
    // A client that has not negotiated hears nothing.
    assert_eq!(
        deaf.ask(&json!({"execute": "qmp_capabilities"})),
        json!({"return": {}})
    );
}

#[test]
fn half_lines_and_several_commands_at_once_are_understood() {
    let rig = Rig::new("halves");
    let mut peer = rig.ready();
    peer.write("{\"execute\":");
    peer.write("\"query-status\",\n\"id\":1}{\"execute\":\"query-kvm\",\"id\":2}");
    assert_eq!(
        [peer.read()["id"].clone(), peer.read()["id"].clone()],
        [1, 2]
    );
}

#[test]
fn invalid_input_is_answered_and_the_connection_goes_on() {
    let rig = Rig::new("invalid");
    let mut peer = rig.ready();
    peer.stream.write_all(b"\xff\xfe{\n").unwrap();
    assert_eq!(
        peer.read()["error"]["desc"],
        "JSON parse error, invalid UTF-8 sequence in string"
    );
    let deep = "[".repeat(10_000) + &"]".repeat(10_000);
    peer.write(&format!("{deep}\n"));
    assert_eq!(
        peer.read()["error"]["desc"],
        "JSON parse error, recursion limit exceeded at line 1 column 128"
    );
    peer.write("{\"execute\": \"stop\n");
    assert_eq!(
        peer.read()["error"]["desc"],
        "JSON parse error, stray '\\n'"
    );
    let huge = "x".repeat(framing::MESSAGE_MAX);
    peer.write(&format!("{{\"execute\": \"{huge}\"}}\n"));
    let text = format!("JSON message is larger than {} bytes", framing::MESSAGE_MAX);
    assert!(peer.read()["error"]["desc"] == text);
    assert_eq!(
        peer.ask(&json!({"execute": "query-status"})),
        json!({"return": {}})
    );
}

#[test]
fn a_client_that_never_reads_stalls_nobody() {
    let rig = Rig::new("stuck");
    let stuck = rig.ready();
    let mut peer = rig.ready();
    let data = json!({ "text": "x".repeat(4096) });
    for _ in 0..4096 {
        rig.fake.events.emit("FILL", Some(data.clone()));
    }
    peer.write("{\"execute\": \"query-kvm\", \"id\": \"after\"}\n");
    let answered = (0..5000)
        .map(|_| peer.read())
        .any(|said| said["id"] == "after");
    assert!(answered);
    drop(stuck);
}

#[test]
fn sixty_four_clients_are_served_at_once() {
    let rig = Rig::new("many");
    let mut peers: Vec<_> = (0..64).map(|_| rig.ready()).collect();
    for (id, peer) in peers.iter_mut().enumerate() {
        peer.write(&json!({"execute": "query-status", "id": id}).to_string());
    }
    for (id, peer) in peers.iter_mut().enumerate() {
        assert_eq!(peer.read()["id"], id);
    }
}

#[test]
fn what_was_emitted_before_the_end_still_arrives() {
    let mut rig = Rig::new("end");
    let mut peer = rig.ready();
    rig.fake
        .events
        .emit("SHUTDOWN", Some(json!({"guest": true})));
    rig.monitor.take().unwrap().shutdown(DEADLINE);
    assert_eq!(peer.read()["event"], "SHUTDOWN");
    assert_eq!(peer.reader.read(&mut [0]).unwrap(), 0);
    assert!(!rig.path.exists());
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let rig = Rig::new("stale");
    let address = || {
        vec![control(MonitorAddress::Unix {
            path: rig.path.clone(),
            wait: false,
        })]
    };
    let start = || Monitor::start(&address(), Arc::clone(&rig.fake) as _, Events::new());
    let Err(error) = start() else {
        panic!("the path is in use")
    };
    assert!(
        error.to_string().contains("another process listens there"),
        "{error}"
    );
    let stale = rig.path.with_extension("stale");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    let address = vec![control(MonitorAddress::Unix {
        path: stale,
        wait: false,
    })];
    Monitor::start(&address, Arc::clone(&rig.fake) as _, Events::new())
        .unwrap()
        .shutdown(DEADLINE);
}

#[test]
fn a_path_that_a_successor_has_bound_is_left_to_it() {
    let mut rig = Rig::new("successor");
    std::fs::remove_file(&rig.path).unwrap();
    let successor = std::os::unix::net::UnixListener::bind(&rig.path).unwrap();
    rig.monitor.take().unwrap().shutdown(DEADLINE);
    assert!(rig.path.exists());
    std::fs::remove_file(&rig.path).unwrap();
    drop(successor);
}

#[test]
fn a_file_that_is_no_socket_is_left_alone() {
    let path = std::env::temp_dir().join(format!("baton-qmp-{}-file", std::process::id()));
    std::fs::write(&path, "precious").unwrap();
    let error = listener::bind_unix(&path).err().unwrap();
    assert_eq!(
        error,
        "there is a file that is no socket; remove it, or say another path"
    );
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_listener_that_takes_no_clients_is_in_use_and_holds_nobody_up() {
    let path = std::env::temp_dir().join(format!("baton-qmp-{}-full", std::process::id()));
    let busy = std::os::unix::net::UnixListener::bind(&path).unwrap();
    // Fill its queue, as far as the system lets it grow.
    let address = nix::sys::socket::UnixAddr::new(&path).unwrap();
    nix::sys::socket::listen(&busy, nix::sys::socket::Backlog::new(1).unwrap()).unwrap();
    let mut waiting = Vec::new();
    loop {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, connect, socket};
        use std::os::fd::AsRawFd;
        let flags = SockFlag::SOCK_NONBLOCK;
        let one = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
        match connect(one.as_raw_fd(), &address) {
            Ok(()) => waiting.push(one),
            Err(_) => break,
        }
    }
    let error = listener::bind_unix(&path).err().unwrap();
    assert!(
        error.starts_with("another process listens there"),
        "{error}"
    );
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_failure_to_take_a_client_does_not_end_the_monitor() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let mut results = [Err(std::io::ErrorKind::ConnectionAborted.into()), Ok(7)].into_iter();
    let client = runtime.block_on(server::accepted(|| {
        std::future::ready(results.next().unwrap())
    }));
    assert_eq!(client, 7);
}

/// A client on streams: what it writes to, what it reads from, and the monitor.
fn on_streams(fake: &Arc<Fake>) -> (UnixStream, std::io::PipeReader, Monitor) {
    let (input, theirs) = UnixStream::pair().unwrap();
    let (output, ours) = std::io::pipe().unwrap();
    let mut kept = Kept::default();
    kept.add_streams(MonitorMode::Control, theirs.into(), ours.into());
    let stdio = [control(MonitorAddress::Stdio)];
    let monitor = Monitor::serve(kept, &stdio, Arc::clone(fake) as _, fake.events.clone()).unwrap();
    (input, output, monitor)
}

#[test]
fn a_client_on_standard_streams_gets_all_answers_before_the_end() {
    let (mut input, mut output, monitor) = on_streams(&Fake::new());
    input
        .write_all(b"{'execute': 'qmp_capabilities'} {'execute': 'stop', 'id': 1}")
        .unwrap();
    // The end of input ends the client, once it has its answers.
    drop(input);
    let mut said = String::new();
    output.read_to_string(&mut said).unwrap();
    assert!(said.ends_with("{\"id\":1,\"return\":{}}\r\n"), "{said}");
    monitor.shutdown(DEADLINE);
}

#[test]
fn the_end_waits_for_output_on_its_way() {
    let fake = Fake::new();
    let (mut input, mut output, monitor) = on_streams(&fake);
    input
        .write_all(b"{'execute': 'qmp_capabilities'} {'execute': 'quit'}")
        .unwrap();
    let started = std::time::Instant::now();
    while fake.asked.lock().unwrap().is_empty() {
        assert!(started.elapsed() < DEADLINE);
        std::thread::yield_now();
    }
    fake.events.emit("SHUTDOWN", None);
    let started = std::time::Instant::now();
    monitor.shutdown(DEADLINE);
    assert!(started.elapsed() < DEADLINE, "it waits for nothing else");
    let mut said = String::new();
    output.read_to_string(&mut said).unwrap();
    let last_two: Vec<_> = said.lines().rev().take(2).collect();
    assert!(last_two.contains(&"{\"return\":{}}"), "{said}");
    assert!(
        last_two.iter().any(|line| line.contains("SHUTDOWN")),
        "{said}"
    );
}

#[test]
fn a_command_that_panics_is_an_error_of_that_command() {
    struct Panics;
    impl Control for Panics {
        fn execute(&self, _: Command, _: &Caller) -> Result<Value, QmpError> {
            panic!("on purpose");
        }
    }
    let path = std::env::temp_dir().join(format!("baton-qmp-{}-panic", std::process::id()));
    let address = MonitorAddress::Unix {
        path: path.clone(),
        wait: false,
    };
    let monitor = Monitor::start(&[control(address)], Arc::new(Panics), Events::new()).unwrap();
    let mut peer = Peer::connect(&path);
    peer.ask(&json!({"execute": "qmp_capabilities"}));
    let text = "The command failed inside Baton; see its log";
    assert_eq!(peer.ask(&json!({"execute": "stop"}))["error"]["desc"], text);
    assert_eq!(peer.ask(&json!({"execute": "stop"}))["error"]["desc"], text);
    monitor.shutdown(DEADLINE);
}

#[test]
fn with_wait_the_monitor_starts_once_a_client_is_there() {
    let path = std::env::temp_dir().join(format!("baton-qmp-{}-wait", std::process::id()));
    let address = MonitorAddress::Unix {
        path: path.clone(),
        wait: true,
    };
    let fake = Fake::new();
    let events = fake.events.clone();
    let starting =
        std::thread::spawn(move || Monitor::start(&[control(address)], fake, events).unwrap());
    let begun = std::time::Instant::now();
    let stream = loop {
        match UnixStream::connect(&path) {
            Ok(stream) => break stream,
            Err(_) => assert!(begun.elapsed() < DEADLINE),
        }
        assert!(!starting.is_finished());
        std::thread::yield_now();
    };
    let monitor = starting.join().unwrap();
    let mut peer = Peer {
        reader: BufReader::new(stream.try_clone().unwrap()),
        stream,
    };
    assert!(peer.read()["QMP"].is_object());
    assert_eq!(
        peer.ask(&json!({"execute": "qmp_capabilities"})),
        json!({"return": {}})
    );
    monitor.shutdown(DEADLINE);
}
