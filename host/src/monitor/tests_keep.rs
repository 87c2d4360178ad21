//! Clients that stay connected while the monitor is detached and attached again.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde_json::{Value, json};

use super::events::BEHIND;
use super::tests::{DEADLINE, Fake, Peer, control};
use super::*;

/// A program with a monitor, and its successors.
struct Program {
    monitor: Option<Monitor>,
    addresses: Vec<MonitorOption>,
    path: PathBuf,
    fake: Arc<Fake>,
}

impl Program {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("baton-keep-{}-{name}", std::process::id()));
        let addresses = vec![unix(&path)];
        let fake = Fake::new();
        let monitor =
            Monitor::start(&addresses, Arc::clone(&fake) as _, fake.events.clone()).unwrap();
        Self {
            monitor: Some(monitor),
            addresses,
            path,
            fake,
        }
    }

    fn ready(&self) -> Peer {
        let mut peer = Peer::connect(&self.path);
        let done = peer.ask(&json!({"execute": "qmp_capabilities"}));
        assert_eq!(done, json!({"return": {}}));
        peer
    }

    fn detach(&mut self) -> Kept {
        self.monitor.take().unwrap().detach()
    }

    /// Goes on in the same program.
    fn attach(&mut self, kept: Kept) {
        let control = Arc::clone(&self.fake) as _;
        let events = self.fake.events.clone();
        self.monitor = Some(Monitor::attach(kept, &self.addresses, control, events).unwrap());
    }

    /// Goes on as another program does.
    fn attach_in_next(&mut self, kept: Kept) {
        self.fake = Fake::new();
        self.attach(carried(kept));
    }

    fn update(&mut self) {
        let kept = self.detach();
        self.attach_in_next(kept);
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Some(monitor) = self.monitor.take() {
            monitor.shutdown(DEADLINE);
        }
    }
}

fn unix(path: &Path) -> MonitorOption {
    control(MonitorAddress::Unix {
        path: path.to_owned(),
        wait: false,
    })
}

/// What arrives at the other side of an exec.
fn carried(kept: Kept) -> Kept {
    let (description, fds) = kept.into_parts();
    let bytes = rmp_serde::to_vec_named(&description).unwrap();
    Kept::from_parts(rmp_serde::from_slice(&bytes).unwrap(), fds).unwrap()
}

fn number(at: usize) -> Option<Value> {
    Some(json!({ "at": at }))
}

/// Commands whose ends the test decides.
struct Slow {
    begun: Sender<Command>,
    end: Mutex<Receiver<()>>,
    events: Events,
}

impl Control for Slow {
    fn execute(&self, command: Command, _: &Caller) -> Result<Value, QmpError> {
        self.begun.send(command.clone()).unwrap();
        if command == Command::Stop {
            self.end.lock().unwrap().recv().unwrap();
            self.events.emit("STOP", None);
        }
        Ok(json!({}))
    }
}

#[test]
fn a_command_may_be_half_said_before_and_half_after() {
    let mut program = Program::new("half");
    let mut peer = program.ready();
    peer.write("{\"execute\":\"query-status\",\"id\":1}{\"execute\": \"query-");
    assert_eq!(peer.read()["id"], 1);
    program.update();
    peer.write("kvm\", \"id\": 2}");
    assert_eq!(peer.read(), json!({"return": {}, "id": 2}));
    assert_eq!(*program.fake.asked.lock().unwrap(), [Command::QueryKvm]);
}

#[test]
fn a_message_that_is_too_long_is_skipped_to_its_end() {
    let mut program = Program::new("long");
    let mut peer = program.ready();
    peer.write(&format!("{{\"a\": \"{}", "x".repeat(framing::MESSAGE_MAX)));
    assert_eq!(peer.read()["error"]["class"], "GenericError");
    program.update();
    peer.write("still the same\"}\n{\"execute\": \"query-kvm\"}");
    assert_eq!(peer.read(), json!({"return": {}}));
}

#[test]
fn commands_after_one_that_runs_are_carried_out_once_in_order() {
    let path = std::env::temp_dir().join(format!("baton-keep-{}-slow", std::process::id()));
    let (begun, begins) = channel();
    let (ends, end) = channel();
    let events = Events::new();
    let slow = Arc::new(Slow {
        begun,
        end: Mutex::new(end),
        events: events.clone(),
    });
    let address = [unix(&path)];
    let monitor = Monitor::start(&address, Arc::clone(&slow) as _, events.clone()).unwrap();
    let mut peer = Peer::connect(&path);
    peer.write("{'execute': 'qmp_capabilities'}{'execute': 'stop', 'id': 1}");
    peer.write("{'execute': 'query-kvm', 'id': 2}{'execute': 'stop', 'id': 3}");
    peer.write("{'execute': 'query-name', 'id': 4}");
    assert_eq!(peer.read(), json!({"return": {}}));
    assert_eq!(begins.recv_timeout(DEADLINE).unwrap(), Command::Stop);
    // It ends while it is waited for.
    let detaching = std::thread::spawn(move || monitor.detach());
    ends.send(()).unwrap();
    let kept = carried(detaching.join().unwrap());
    let monitor = Monitor::attach(kept, &address, Arc::clone(&slow) as _, events.clone()).unwrap();
    assert_eq!(peer.read()["event"], "STOP");
    assert_eq!(
        [peer.read()["id"].clone(), peer.read()["id"].clone()],
        [1, 2]
    );
    assert_eq!(begins.recv_timeout(DEADLINE).unwrap(), Command::QueryKvm);
    assert_eq!(begins.recv_timeout(DEADLINE).unwrap(), Command::Stop);
    // This one does not end: its client is told.
    let kept = carried(monitor.detach());
    let monitor = Monitor::attach(kept, &address, slow, events).unwrap();
    let told = peer.read();
    let desc = told["error"]["desc"].as_str().unwrap();
    assert!(
        told["id"] == 3 && desc.contains("interrupted by a live update"),
        "{told}"
    );
    assert_eq!(peer.read(), json!({"return": {}, "id": 4}));
    assert_eq!(begins.recv_timeout(DEADLINE).unwrap(), Command::QueryName);
    ends.send(()).unwrap();
    assert_eq!(peer.read()["event"], "STOP");
    monitor.shutdown(DEADLINE);
}

#[test]
fn a_client_that_does_not_read_holds_nothing_up_and_gets_whole_lines() {
    let mut program = Program::new("full");
    let mut stuck = program.ready();
    let text = "x".repeat(4096);
    let mut at = 0;
    for _ in 0..3 {
        for _ in 0..2 * BEHIND {
            let data = json!({ "text": text, "at": at });
            program.fake.events.emit("FILL", Some(data));
            at += 1;
        }
        // It asks, and is answered when it reads.
        stuck.write(&json!({"execute": "query-kvm", "id": at}).to_string());
        let begun = Instant::now();
        let kept = program.detach();
        assert!(begun.elapsed() < DEADLINE);
        let (description, fds) = kept.into_parts();
        let size = rmp_serde::to_vec_named(&description).unwrap().len();
        assert!(size < (BEHIND + 2) * (text.len() + 256), "{size} bytes");
        program.fake = Fake::new();
        program.attach(Kept::from_parts(description, fds).unwrap());
    }
    let (mut last, mut answers, mut events) = (None, Vec::new(), 0);
    while answers.len() < 3 || last != Some(at - 1) {
        let said = stuck.read();
        match said["data"]["at"].as_u64() {
            Some(now) => {
                assert!(last < Some(now), "{now} after {last:?}");
                last = Some(now);
                events += 1;
            }
            None => answers.push(said["id"].as_u64().unwrap()),
        }
    }
    let third = 2 * BEHIND as u64;
    assert_eq!(answers, [third, 2 * third, 3 * third]);
    assert!(events >= BEHIND, "only {events} events");
}

#[test]
fn events_in_between_arrive_once_and_in_order() {
    let mut program = Program::new("events");
    let (mut hears, mut deaf) = (program.ready(), Peer::connect(&program.path));
    let emit = |program: &Program, at| program.fake.events.emit("STOP", number(at));
    emit(&program, 0);
    let kept = program.detach();
    emit(&program, 1);
    // The first exec fails.
    let (description, fds) = kept.into_parts();
    emit(&program, 2);
    program.attach(Kept::from_parts(description, fds).unwrap());
    emit(&program, 3);
    let kept = program.detach();
    emit(&program, 4);
    let kept = carried(kept);
    program.fake = Fake::new();
    emit(&program, 5);
    program.attach(kept);
    emit(&program, 6);
    // And one that is given up before anything is taken apart.
    let kept = program.detach();
    emit(&program, 7);
    program.attach(kept);
    emit(&program, 8);
    for at in 0..=8 {
        assert_eq!(hears.read()["data"]["at"], at);
    }
    let late = Peer::connect(&program.path);
    for peer in [&mut hears, &mut deaf, &mut { late }] {
        // Nobody has been told anything else, and nobody is greeted twice.
        let answer = peer.ask(&json!({"execute": "qmp_capabilities", "id": 1}));
        assert_eq!(answer["id"], 1);
    }
}

#[test]
fn of_too_many_events_in_between_the_oldest_are_lost() {
    let mut program = Program::new("flood");
    let mut peer = program.ready();
    let kept = program.detach();
    for at in 0..BEHIND + 7 {
        program.fake.events.emit("STOP", number(at));
    }
    program.attach_in_next(kept);
    for at in 7..BEHIND + 7 {
        assert_eq!(peer.read()["data"]["at"], at);
    }
}

#[test]
fn who_connects_in_between_is_served_and_so_is_who_comes_later() {
    let mut program = Program::new("gap");
    let kept = program.detach();
    let gap = UnixStream::connect(&program.path).unwrap();
    program.attach_in_next(kept);
    let mut greeting = String::new();
    BufReader::new(gap).read_line(&mut greeting).unwrap();
    assert!(greeting.contains("QMP"), "{greeting}");
    program.ready();
}

#[test]
fn who_leaves_in_between_is_let_go() {
    let mut program = Program::new("leaves");
    let (mut stays, leaves) = (program.ready(), program.ready());
    let also_leaves = program.ready();
    program.fake.events.emit("STOP", None);
    drop(leaves);
    let kept = program.detach();
    drop(also_leaves);
    program.attach_in_next(kept);
    assert_eq!(stays.read()["event"], "STOP");
    // Those that have gone are soon not among the kept.
    let begun = Instant::now();
    loop {
        let kept = program.detach();
        if format!("{kept:?}").contains("clients: 1,") {
            program.attach(kept);
            break;
        }
        assert!(begun.elapsed() < DEADLINE, "{kept:?}");
        program.attach(kept);
        stays.ask(&json!({"execute": "query-kvm"}));
    }
}

#[test]
fn a_path_is_removed_by_who_has_it_in_the_end() {
    let mut program = Program::new("path");
    let (description, fds) = program.detach().into_parts();
    assert!(program.path.exists());
    let kept = Kept::from_parts(description.clone(), fds).unwrap();
    let copies = kept.into_parts();
    let program_path = program.path.clone();
    // The old side lets go of what it has.
    drop(description);
    assert!(program_path.exists());
    let kept = Kept::from_parts(copies.0, copies.1).unwrap();
    program.attach(kept);
    assert!(program_path.exists());
    drop(program);
    assert!(!program_path.exists());
    // Who keeps it and does not go on has it as well.
    let mut program = Program::new("path");
    drop(program.detach());
    assert!(!program.path.exists());
}

#[test]
fn a_path_that_another_process_has_bound_since_is_left_alone() {
    let mut program = Program::new("bound");
    let kept = program.detach();
    std::fs::remove_file(&program.path).unwrap();
    let other = UnixListener::bind(&program.path).unwrap();
    program.attach_in_next(kept);
    let path = program.path.clone();
    drop(program);
    assert!(path.exists());
    std::fs::remove_file(&path).unwrap();
    drop(other);
}

#[test]
fn other_addresses_are_closed_and_bound_and_clients_stay() {
    let mut program = Program::new("moved");
    let (old, mut peer) = (program.path.clone(), program.ready());
    let new = old.with_extension("new");
    // The guest has started long ago: nobody waits.
    program.addresses = vec![control(MonitorAddress::Unix {
        path: new.clone(),
        wait: true,
    })];
    program.update();
    program.path = new;
    assert!(!old.exists() && UnixStream::connect(&old).is_err());
    let mut later = program.ready();
    for peer in [&mut peer, &mut later] {
        assert_eq!(
            peer.ask(&json!({"execute": "query-kvm"})),
            json!({"return": {}})
        );
    }
}

#[test]
fn what_cannot_be_attached_is_given_back() {
    let mut program = Program::new("refused");
    let mut peer = program.ready();
    let file = program.path.with_extension("file");
    std::fs::write(&file, "precious").unwrap();
    let kept = program.detach();
    program.fake.events.emit("STOP", None);
    let addresses = [unix(&file)];
    let events = program.fake.events.clone();
    let refused = Monitor::attach(kept, &addresses, Arc::clone(&program.fake) as _, events);
    let Err(AttachError { error, kept }) = refused else {
        panic!("there is a file");
    };
    assert!(error.to_string().contains("no socket"), "{error}");
    program.attach_in_next(*kept);
    assert_eq!(peer.read()["event"], "STOP");
    program.ready();
    std::fs::remove_file(&file).unwrap();
}

#[test]
fn a_tcp_client_stays_connected() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let mut program = Program::new("tcp");
    program.addresses.push(control(MonitorAddress::Tcp {
        host: "127.0.0.1".into(),
        port,
        wait: false,
    }));
    program.update();
    let connect = || {
        let stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        BufReader::new(stream)
    };
    let line = |stream: &mut BufReader<std::net::TcpStream>| {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        serde_json::from_str::<Value>(&line).unwrap()
    };
    let mut peer = connect();
    assert!(line(&mut peer)["QMP"].is_object());
    program.update();
    peer.get_mut()
        .write_all(b"{'execute': 'qmp_capabilities'}")
        .unwrap();
    assert_eq!(line(&mut peer), json!({"return": {}}));
    assert!(line(&mut connect())["QMP"].is_object());
}

/// Commands and events run all the time while programs come and go.
#[test]
fn nothing_is_lost_or_doubled_whenever_the_monitor_changes() {
    const COMMANDS: usize = 400;
    let mut program = Program::new("always");
    let mut peer = program.ready();
    let mut writer = peer.stream.try_clone().unwrap();
    let text: String = (0..COMMANDS)
        .map(|id| json!({"execute": "query-name", "id": id}).to_string())
        .collect();
    let saying = std::thread::spawn(move || {
        for part in text.as_bytes().chunks(7) {
            writer.write_all(part).unwrap();
            std::thread::yield_now();
        }
    });
    let (heard, hearing) = channel();
    let listening = std::thread::spawn(move || {
        let (mut answers, mut events) = (0, 0);
        loop {
            let said = peer.read();
            match said["data"]["at"].as_u64() {
                Some(u64::MAX) => break,
                Some(at) => {
                    assert_eq!(at, events);
                    events += 1;
                }
                None => {
                    assert_eq!(said["id"], answers);
                    assert_eq!(said["return"]["name"], "gr\u{fc}n");
                    answers += 1;
                    heard.send(answers).unwrap();
                }
            }
        }
        (answers, events)
    });
    let (mut emitted, mut updates) = (0, 0);
    let mut emit = |program: &Program| {
        program.fake.events.emit("STOP", number(emitted));
        emitted += 1;
    };
    let mut answered = 0;
    while answered < COMMANDS || updates < 20 {
        emit(&program);
        let kept = program.detach();
        emit(&program);
        let kept = carried(kept);
        if updates % 2 == 0 {
            program.fake = Fake::new();
        }
        emit(&program);
        program.attach(kept);
        updates += 1;
        if answered < COMMANDS {
            answered = hearing.recv_timeout(DEADLINE).unwrap();
        }
    }
    program
        .fake
        .events
        .emit("STOP", Some(json!({ "at": u64::MAX })));
    saying.join().unwrap();
    let (answers, events) = listening.join().unwrap();
    assert_eq!((answers, events as usize), (COMMANDS, emitted));
}

/// Gives the standard streams of a client to programs that say nothing else.
fn on_streams(input: OwnedFd, output: OwnedFd) -> Program {
    let fake = Fake::new();
    let mut kept = Kept::default();
    kept.add_streams(MonitorMode::Control, input, output);
    let addresses = vec![control(MonitorAddress::Stdio)];
    let control = Arc::clone(&fake) as _;
    let monitor = Monitor::serve(kept, &addresses, control, fake.events.clone()).unwrap();
    Program {
        monitor: Some(monitor),
        addresses,
        path: PathBuf::new(),
        fake,
    }
}

#[test]
fn standard_streams_go_on_if_they_are_pipes() {
    let (ours, mut input) = std::io::pipe().unwrap();
    let (output, theirs) = std::io::pipe().unwrap();
    let mut program = on_streams(ours.into(), theirs.into());
    let mut output = BufReader::new(output);
    let mut read = || {
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        serde_json::from_str::<Value>(&line).unwrap()
    };
    assert!(read()["QMP"].is_object());
    input
        .write_all(b"{'execute': 'qmp_capabilities'}{'exec")
        .unwrap();
    assert_eq!(read(), json!({"return": {}}));
    program.update();
    input.write_all(b"ute': 'query-kvm', 'id': 1}").unwrap();
    assert_eq!(read(), json!({"return": {}, "id": 1}));
    // What is said while nobody reads, and what nobody reads at once.
    let kept = program.detach();
    input
        .write_all(b"{'execute': 'query-kvm', 'id': 2}")
        .unwrap();
    for at in 0..BEHIND {
        let data = json!({ "at": at, "text": "x".repeat(1024) });
        program.fake.events.emit("STOP", Some(data));
    }
    program.attach_in_next(kept);
    program.update();
    for at in 0..BEHIND {
        assert_eq!(read()["data"]["at"], at);
    }
    assert_eq!(read(), json!({"return": {}, "id": 2}));
    drop(input);
    let mut rest = Vec::new();
    output.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty(), "the end of input ends the client");
    // It has been greeted, and is not there any more.
    program.update();
}

#[test]
fn standard_streams_go_on_if_they_are_files() {
    let path = std::env::temp_dir().join(format!("baton-keep-{}-streams", std::process::id()));
    let (asked, told) = (path.with_extension("in"), path.with_extension("out"));
    let mut text = String::from("{'execute': 'qmp_capabilities', 'id': 0}");
    for id in 1..2000 {
        text += &json!({"execute": "query-kvm", "id": id}).to_string();
    }
    std::fs::write(&asked, text).unwrap();
    let input = std::fs::File::open(&asked).unwrap();
    let output = std::fs::File::create(&told).unwrap();
    let mut program = on_streams(input.into(), output.into());
    let (begun, mut seen) = (Instant::now(), 0);
    loop {
        let said = std::fs::read_to_string(&told).unwrap();
        if said.contains("\"id\":1999") {
            break;
        }
        assert!(begun.elapsed() < DEADLINE);
        if said.len() > seen {
            seen = said.len();
            program.update();
        }
        std::thread::yield_now();
    }
    let said = std::fs::read_to_string(&told).unwrap();
    let ids: Vec<u64> = said
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].as_u64())
        .collect();
    assert!(ids.iter().copied().eq(0..2000));
    assert_eq!(said.matches("QMP").count(), 1);
    for path in [asked, told] {
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn a_terminal_stays_blocking_for_others_and_holds_nothing_up() {
    let pty = nix::pty::openpty(None, None).unwrap();
    let (terminal, mut person) = (pty.slave, std::fs::File::from(pty.master));
    let mut raw = nix::sys::termios::tcgetattr(&terminal).unwrap();
    nix::sys::termios::cfmakeraw(&mut raw);
    nix::sys::termios::tcsetattr(&terminal, nix::sys::termios::SetArg::TCSANOW, &raw).unwrap();
    let shared = terminal.try_clone().unwrap();
    let mut program = on_streams(terminal.try_clone().unwrap(), terminal);
    person
        .write_all(b"{'execute': 'qmp_capabilities'}")
        .unwrap();
    let mut output = BufReader::new(person.try_clone().unwrap());
    let mut read = || {
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        serde_json::from_str::<Value>(&line).unwrap()
    };
    assert!(read()["QMP"].is_object());
    assert_eq!(read(), json!({"return": {}}));
    for at in 0..BEHIND {
        let data = json!({ "at": at, "text": "x".repeat(1024) });
        program.fake.events.emit("STOP", Some(data));
    }
    program.update();
    let flags = nix::fcntl::fcntl(&shared, nix::fcntl::FcntlArg::F_GETFL).unwrap();
    assert_eq!(flags & nix::libc::O_NONBLOCK, 0);
    person
        .write_all(b"{'execute': 'query-kvm', 'id': 1}")
        .unwrap();
    for at in 0..BEHIND {
        assert_eq!(read()["data"]["at"], at);
    }
    assert_eq!(read(), json!({"return": {}, "id": 1}));
    drop(shared);
}
