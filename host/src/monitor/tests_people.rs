//! Clients of the monitor for people, against a VM that is a fake.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::tests::{DEADLINE, control};
use super::*;

/// The end of `stop` and of a migration is the test's to decide.
struct Slow {
    begun: Mutex<Sender<Command>>,
    end: Mutex<Receiver<()>>,
    status: Mutex<&'static str>,
}

impl Slow {
    fn new() -> (Arc<Self>, Receiver<Command>, Sender<()>) {
        let (begun, begins) = channel();
        let (ends, end) = channel();
        let slow = Self {
            begun: Mutex::new(begun),
            end: Mutex::new(end),
            status: Mutex::new("active"),
        };
        (Arc::new(slow), begins, ends)
    }
}

impl Control for Slow {
    fn execute(&self, command: Command, _: &Caller) -> Result<Value, QmpError> {
        match &command {
            Command::QueryStatus => return Ok(json!({ "running": true, "status": "running" })),
            Command::QueryMigrate => return Ok(json!({ "status": *self.status.lock().unwrap() })),
            _ => {}
        }
        self.begun.lock().unwrap().send(command.clone()).unwrap();
        if command == Command::Stop {
            self.end.lock().unwrap().recv().unwrap();
        }
        Ok(json!({}))
    }
}

struct Rig {
    monitor: Option<Monitor>,
    options: Vec<MonitorOption>,
    path: PathBuf,
    slow: Arc<Slow>,
    begins: Receiver<Command>,
    ends: Sender<()>,
}

impl Rig {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("baton-hmp-{}-{name}", std::process::id()));
        let options = vec![people(&path)];
        let (slow, begins, ends) = Slow::new();
        let events = Events::new();
        let monitor = Monitor::start(&options, Arc::clone(&slow) as _, events).unwrap();
        Self {
            monitor: Some(monitor),
            options,
            path,
            slow,
            begins,
            ends,
        }
    }

    fn connect(&self) -> Person {
        let mut person = Person(UnixStream::connect(&self.path).unwrap());
        person.0.set_read_timeout(Some(DEADLINE)).unwrap();
        person.hears("QEMU 10.2.0 monitor - type 'help' for more information\r\n(qemu) ");
        person
    }

    fn begun(&self) -> Command {
        self.begins.recv_timeout(DEADLINE).unwrap()
    }

    /// Goes on as another program does.
    fn update(&mut self) {
        let kept = self.monitor.take().unwrap().detach();
        let (description, fds) = kept.into_parts();
        let bytes = rmp_serde::to_vec_named(&description).unwrap();
        let kept = Kept::from_parts(rmp_serde::from_slice(&bytes).unwrap(), fds).unwrap();
        let control = Arc::clone(&self.slow) as _;
        self.monitor = Some(Monitor::attach(kept, &self.options, control, Events::new()).unwrap());
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(monitor) = self.monitor.take() {
            monitor.shutdown(DEADLINE);
        }
    }
}

fn people(path: &std::path::Path) -> MonitorOption {
    MonitorOption {
        address: MonitorAddress::Unix {
            path: path.to_owned(),
            wait: false,
        },
        mode: MonitorMode::Readline,
    }
}

struct Person(UnixStream);

impl Person {
    fn says(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).unwrap();
    }

    /// Hears this next, and not yet what comes after it.
    fn hears(&mut self, text: &str) {
        let mut heard = vec![0; text.len()];
        self.0.read_exact(&mut heard).unwrap();
        assert_eq!(String::from_utf8(heard).unwrap(), text);
    }

    fn asks(&mut self) {
        self.says("info status\n");
        self.hears("VM status: running\r\n(qemu) ");
    }

    fn hears_the_end(&mut self) {
        assert_eq!(self.0.read(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn sixty_four_clients_are_served_at_once_and_one_that_never_reads_waits_alone() {
    let rig = Rig::new("many");
    let mut stuck = UnixStream::connect(&rig.path).unwrap();
    stuck.set_nonblocking(true).unwrap();
    // Until neither side takes any more.
    let many = "help\n".repeat(4096);
    while stuck.write(many.as_bytes()).is_ok() {}
    let mut clients: Vec<_> = (0..64).map(|_| rig.connect()).collect();
    for client in &mut clients {
        client.asks();
    }
    clients.into_iter().for_each(|mut client| client.asks());
    rig.connect().asks();
}

#[test]
fn a_client_that_has_said_its_last_line_gets_its_answer() {
    let rig = Rig::new("last");
    let mut person = rig.connect();
    person.says("info status\n");
    person.0.shutdown(std::net::Shutdown::Write).unwrap();
    person.hears("VM status: running\r\n(qemu) ");
    person.hears_the_end();
}

#[test]
fn there_is_no_prompt_after_quit() {
    let rig = Rig::new("quit");
    let mut person = rig.connect();
    person.says("quit\n");
    assert_eq!(rig.begun(), Command::Quit);
    drop(rig);
    person.hears_the_end();
}

#[test]
fn a_line_may_be_half_said_before_an_update_and_half_after() {
    let mut rig = Rig::new("half");
    let mut person = rig.connect();
    person.says("info sta");
    rig.update();
    person.says("tus\n");
    // There is no second greeting.
    person.hears("VM status: running\r\n(qemu) ");
    rig.connect().asks();
}

#[test]
fn a_command_that_runs_during_an_update_is_waited_for_a_second() {
    let mut rig = Rig::new("running");
    let mut person = rig.connect();
    person.says("stop\ninfo status\n");
    assert_eq!(rig.begun(), Command::Stop);
    rig.ends.send(()).unwrap();
    rig.update();
    person.hears("(qemu) VM status: running\r\n(qemu) ");
    person.says("stop\ninfo status\n");
    assert_eq!(rig.begun(), Command::Stop);
    rig.update();
    person.hears("Error: The command was interrupted by a live update of Baton");
    rig.ends.send(()).unwrap();
    let mut rest = String::new();
    while !rest.ends_with("VM status: running\r\n(qemu) ") {
        let mut byte = [0];
        person.0.read_exact(&mut byte).unwrap();
        rest.push(char::from(byte[0]));
    }
}

#[test]
fn a_migrate_that_waits_gives_its_prompt_back_in_the_next_program() {
    let mut rig = Rig::new("waits");
    let mut person = rig.connect();
    person.says("migrate file:a\ninfo status\n");
    assert!(matches!(rig.begun(), Command::Migrate { .. }));
    rig.update();
    *rig.slow.status.lock().unwrap() = "completed";
    person.hears("(qemu) VM status: running\r\n(qemu) ");
}

#[test]
fn a_socket_of_a_monitor_for_programs_may_become_one_for_people() {
    let mut rig = Rig::new("becomes");
    let mut person = rig.connect();
    let address = rig.options[0].address.clone();
    rig.options = vec![control(address)];
    rig.update();
    let mut program = UnixStream::connect(&rig.path).unwrap();
    let mut greeting = [0; 7];
    program.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"{\"QMP\":");
    // Who was there before is spoken to as before.
    person.asks();
}

#[test]
fn pipes_are_spoken_to_in_lines_before_and_after_an_update() {
    let (input, mut theirs) = std::io::pipe().unwrap();
    let (mut output, ours) = std::io::pipe().unwrap();
    let (slow, _begins, _ends) = Slow::new();
    let mut kept = Kept::default();
    kept.add_streams(MonitorMode::Readline, input.into(), OwnedFd::from(ours));
    let stdio = [MonitorOption {
        address: MonitorAddress::Stdio,
        mode: MonitorMode::Readline,
    }];
    let monitor = Monitor::serve(kept, &stdio, Arc::clone(&slow) as _, Events::new()).unwrap();
    let mut heard = |text: &str| {
        let mut bytes = vec![0; text.len()];
        output.read_exact(&mut bytes).unwrap();
        assert_eq!(String::from_utf8(bytes).unwrap(), text);
    };
    heard("QEMU 10.2.0 monitor - type 'help' for more information\r\n(qemu) ");
    theirs.write_all(b"info status\ninfo ").unwrap();
    heard("VM status: running\r\n(qemu) ");
    let kept = monitor.detach();
    let monitor = Monitor::attach(kept, &stdio, slow, Events::new()).unwrap();
    theirs.write_all(b"status\n").unwrap();
    heard("VM status: running\r\n(qemu) ");
    monitor.shutdown(DEADLINE);
}
