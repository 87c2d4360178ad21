//! Character devices as devices and peers see them, and from one process to the next.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use baton_migration::Mode;
use baton_migration::fds::FdTable;

use super::{Chardev, Chardevs};
use crate::cli;
use crate::monitor::MonitorMode;

const PATIENCE: Duration = Duration::from_secs(20);
const DEVICE: &str = "isa-serial.0";

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("baton-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

fn configs(texts: &[String]) -> Vec<Chardev> {
    let parse = |text: &String| cli::chardev::parse(text).unwrap();
    texts.iter().map(parse).collect()
}

fn open(texts: &[String]) -> Chardevs {
    let chardevs = Chardevs::new().unwrap();
    chardevs.open(&configs(texts), None, false).unwrap();
    chardevs
}

fn server(path: &Path) -> String {
    let path = path.display();
    format!("socket,id=c,path={path},server=on,wait=off")
}

/// A device's end, which waits neither for room nor for input.
fn device(chardevs: &Chardevs, id: &str, user: &str) -> UnixStream {
    let (input, _) = chardevs.descriptors(id, user).unwrap();
    let stream = UnixStream::from(input.unwrap());
    // Not `set_nonblocking`, which another process's would be too.
    stream
        .set_read_timeout(Some(PATIENCE))
        .and(stream.set_write_timeout(Some(PATIENCE)))
        .unwrap();
    stream
}

fn client(path: &Path) -> UnixStream {
    let client = UnixStream::connect(path).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client
}

fn read(from: &mut impl Read, count: usize) -> String {
    let mut bytes = vec![0; count];
    from.read_exact(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

fn filename(chardevs: &Chardevs) -> String {
    chardevs.query()[0].filename.clone()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "{what}: it does not come");
        std::thread::yield_now();
    }
}

fn counting(count: usize) -> Vec<u8> {
    (0..count).map(|n| (n % 251) as u8).collect()
}

/// What `chardevs` hand over.
fn table(chardevs: &Chardevs, mode: Mode) -> Arc<FdTable> {
    let table = FdTable::new();
    for out in chardevs.handover(mode).unwrap() {
        table.insert(out.key, out.fd).unwrap();
    }
    Arc::new(table)
}

/// The other process: everything is taken, and its devices have their ends.
fn successor(table: &Arc<FdTable>, texts: &[String], users: &[(&str, &str)]) -> Chardevs {
    let successor = Chardevs::new().unwrap();
    successor.open(&configs(texts), Some(table), true).unwrap();
    for (id, user) in users {
        successor.descriptors(id, user).unwrap();
    }
    table.all_claimed().unwrap();
    successor
}

#[test]
fn a_client_comes_and_goes_and_what_is_written_meanwhile_is_gone() {
    let folder = Folder::new("comes");
    let path = folder.join("sock");
    let chardevs = open(&[server(&path)]);
    let mut guest = device(&chardevs, "c", DEVICE);
    guest.write_all(b"to nobody").unwrap();
    until("it is dropped", || {
        chardevs.shared.state().pump();
        let mut peeked = [0];
        let at = &chardevs.shared.state().all["c"].kind;
        let super::open::Kind::Relayed(relayed) = at else {
            panic!("it is relayed")
        };
        let seen = relayed.relay.frontends[0].peek(&mut peeked);
        seen.is_err_and(|e| e.kind() == ErrorKind::WouldBlock)
    });
    let name = format!("unix:{},server=on", path.display());
    assert_eq!(filename(&chardevs), format!("disconnected:{name}"));
    for round in 0..3 {
        let mut client = client(&path);
        client.write_all(format!("in {round}").as_bytes()).unwrap();
        assert_eq!(read(&mut guest, 4), format!("in {round}"));
        assert_eq!(filename(&chardevs), name);
        guest.write_all(format!("out {round}").as_bytes()).unwrap();
        assert_eq!(read(&mut client, 5), format!("out {round}"));
        drop(client);
        until("it is gone", || filename(&chardevs).starts_with("disc"));
    }
    chardevs.finish();
    assert!(!path.exists());
}

#[test]
fn a_peer_that_never_reads_stops_nobody_and_loses_nothing_that_was_taken() {
    let folder = Folder::new("full");
    let path = folder.join("sock");
    let chardevs = open(&[server(&path), "ringbuf,id=other".to_owned()]);
    let mut client = client(&path);
    let mut guest = device(&chardevs, "c", DEVICE);
    until("it is connected", || {
        filename(&chardevs).starts_with("unix")
    });
    // As a device does, which has a thread for what is not taken.
    guest.set_nonblocking(true).unwrap();
    let bytes = counting(8 << 20);
    let mut taken = 0;
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(300) {
        match guest.write(&bytes[taken..]) {
            Ok(written) => taken += written,
            Err(e) => assert_eq!(e.kind(), ErrorKind::WouldBlock),
        }
    }
    assert!(taken < bytes.len(), "somebody has buffered {taken} bytes");
    // The others go on.
    let mut other = device(&chardevs, "other", DEVICE);
    other.write_all(b"alive").unwrap();
    until("another has its turn", || {
        chardevs.ringbuf_read("other", 100).unwrap() == b"alive"
    });
    let mut got = vec![0; taken];
    client.read_exact(&mut got).unwrap();
    assert!(got == bytes[..taken], "bytes are lost, doubled or changed");
}

#[test]
fn a_pty_takes_and_gives_bytes_as_they_are() {
    let folder = Folder::new("pty");
    let link = folder.join("tty");
    let chardevs = open(&[format!("pty,id=c,path={}", link.display())]);
    let mut guest = device(&chardevs, "c", DEVICE);
    let name = filename(&chardevs);
    let path = name.strip_prefix("pty:").unwrap();
    assert_eq!(std::fs::read_link(&link).unwrap(), Path::new(path));
    let mut options = File::options();
    let mut person = options.read(true).write(true).open(&link).unwrap();
    person.write_all(b"\x03in\r").unwrap();
    assert_eq!(read(&mut guest, 4), "\x03in\r");
    guest.write_all(b"out\n").unwrap();
    assert_eq!(read(&mut person, 4), "out\n");
    chardevs.finish();
    assert!(!link.is_symlink());
}

#[test]
fn a_ring_buffer_keeps_the_last_bytes() {
    let chardevs = open(&["ringbuf,id=r,size=8".to_owned(), "null,id=n".to_owned()]);
    let mut guest = device(&chardevs, "r", DEVICE);
    guest.write_all(b"0123456789").unwrap();
    // What was written before is there at once.
    assert_eq!(chardevs.ringbuf_read("r", 3).unwrap(), b"234");
    chardevs.ringbuf_write("r", b"xyz").unwrap();
    assert_eq!(chardevs.ringbuf_read("r", 100).unwrap(), b"56789xyz");
    let refused = |id| chardevs.ringbuf_read(id, 1).unwrap_err();
    assert_eq!(refused("n"), "n is not a ringbuf device");
    assert_eq!(refused("q"), "Device 'q' not found");
}

#[test]
fn keys_switch_between_users_and_all_of_them_are_heard() {
    let folder = Folder::new("mux");
    let path = folder.join("sock");
    let chardevs = open(&[format!("{},mux=on", server(&path))]);
    let (tell, told) = std::sync::mpsc::channel();
    chardevs.on_exit(move || tell.send(()).unwrap());
    let mut first = device(&chardevs, "c", "first");
    let mut second = device(&chardevs, "c", "second");
    let mut client = client(&path);
    client.write_all(b"a\x01cb\x01\x01\x01").unwrap();
    assert_eq!(read(&mut first, 1), "a");
    assert_eq!(read(&mut second, 2), "b\x01");
    client.write_all(b"cd\x01h").unwrap();
    assert_eq!(read(&mut first, 1), "d");
    assert!(read(&mut client, 100).contains("C-a h    print this help"));
    second.write_all(b"second\n").unwrap();
    let mut heard = String::new();
    until("the second is heard", || {
        heard.push_str(&read(&mut client, 1));
        heard.ends_with("second\n")
    });
    client.write_all(b"\x01x").unwrap();
    told.recv_timeout(PATIENCE).unwrap();
    for user in ["third", "fourth"] {
        device(&chardevs, "c", user);
    }
    let refused = chardevs.descriptors("c", "fifth").unwrap_err();
    assert!(refused.contains("is in use"), "{refused}");
    let names: Vec<_> = chardevs.query().into_iter().map(|i| i.label).collect();
    assert_eq!(names, ["c", "c-base"]);
}

#[test]
fn nothing_is_lost_or_doubled_from_one_process_to_the_next() {
    let folder = Folder::new("next");
    let path = folder.join("sock");
    for mode in [Mode::CprTransfer, Mode::CprExec] {
        let texts = [format!("{},mux=on", server(&path))];
        let mut chardevs = open(&texts);
        let mut client = client(&path);
        let mut guest = device(&chardevs, "c", DEVICE);
        let bytes = counting(3 << 20);
        let (mut said, mut typed) = (0, 0);
        let mut heard = Vec::new();
        client.write_all(b"x").unwrap();
        assert_eq!(read(&mut guest, 1), "x");
        for round in 0..20 {
            // As much on the way as there is room for.
            guest.set_nonblocking(true).unwrap();
            while let Ok(count) = guest.write(&bytes[said..][..1 << 10]) {
                said += count;
            }
            client.set_nonblocking(true).unwrap();
            while let Ok(count) = client.write(&[b'a' + round; 1 << 10]) {
                typed += count;
            }
            client.set_nonblocking(false).unwrap();
            chardevs.freeze();
            let table = table(&chardevs, mode);
            let next = successor(&table, &texts, &[("c", DEVICE)]);
            chardevs.hold().unwrap();
            next.load().unwrap();
            guest = device(&next, "c", DEVICE);
            next.serve();
            chardevs.let_go();
            assert_eq!(chardevs.query(), []);
            chardevs = next;
            let mut part = vec![0; said - heard.len()];
            client.read_exact(&mut part).unwrap();
            heard.extend(part);
            guest.set_nonblocking(false).unwrap();
            let mut input = vec![0; typed];
            guest.read_exact(&mut input).unwrap();
            assert!(
                input.iter().all(|b| *b == b'a' + round),
                "input is mixed up"
            );
            typed = 0;
        }
        assert!(heard == bytes[..said], "output is lost, doubled or changed");
        assert!(path.exists());
        drop(chardevs);
        until("the path is removed", || !path.exists());
    }
}

#[test]
fn keys_and_users_stand_where_they_stood() {
    let folder = Folder::new("stand");
    let path = folder.join("sock");
    let texts = [
        format!("{},mux=on", server(&path)),
        "ringbuf,id=r,size=8".to_owned(),
    ];
    let users = [("c", "first"), ("c", "second"), ("r", DEVICE)];
    let chardevs = open(&texts);
    let mut first = device(&chardevs, "c", "first");
    device(&chardevs, "c", "second");
    device(&chardevs, "r", DEVICE)
        .write_all(b"0123456789")
        .unwrap();
    let mut client = client(&path);
    client.write_all(b"a\x01c\x01").unwrap();
    assert_eq!(read(&mut first, 1), "a");
    until("the escape is seen", || {
        let state = chardevs.shared.state();
        let super::open::Kind::Relayed(relayed) = &state.all["c"].kind else {
            panic!("it is relayed")
        };
        relayed.relay.escape_is_down()
    });
    chardevs.ringbuf_write("r", b"").unwrap();
    chardevs.freeze();
    let table = table(&chardevs, Mode::CprTransfer);
    let next = successor(&table, &texts, &users);
    chardevs.hold().unwrap();
    next.load().unwrap();
    next.serve();
    chardevs.let_go();
    let mut second = device(&next, "c", "second");
    client.write_all(b"\x01b").unwrap();
    assert_eq!(read(&mut second, 2), "\x01b");
    assert_eq!(next.ringbuf_read("r", 100).unwrap(), b"23456789");
}

#[test]
fn a_handover_that_fails_leaves_everything_connected() {
    let folder = Folder::new("fails");
    let path = folder.join("sock");
    let texts = [server(&path), "pty,id=p".to_owned()];
    let users = [("c", DEVICE), ("p", DEVICE)];
    let chardevs = open(&texts);
    let mut client = client(&path);
    let mut guest = device(&chardevs, "c", DEVICE);
    let mut other = device(&chardevs, "p", DEVICE);
    let name = chardevs.query()[1].filename.clone();
    let mut options = File::options();
    let tty = name.strip_prefix("pty:").unwrap();
    let mut person = options.read(true).write(true).open(tty).unwrap();
    for how in 0..3 {
        chardevs.freeze();
        let table = table(&chardevs, Mode::CprTransfer);
        let next = successor(&table, &texts, &users);
        if how > 0 {
            chardevs.hold().unwrap();
            client.write_all(b"meanwhile").unwrap();
            guest.write_all(b"this too").unwrap();
            if how > 1 {
                next.load().unwrap();
            }
            // Neither process moves it, however long the other takes.
            std::thread::sleep(Duration::from_millis(20));
            for stream in [&mut guest, &mut client] {
                stream.set_nonblocking(true).unwrap();
                let moved = stream.read(&mut [0]);
                assert_eq!(moved.unwrap_err().kind(), ErrorKind::WouldBlock);
                stream.set_nonblocking(false).unwrap();
            }
        }
        next.abandon();
        assert_eq!(next.query(), []);
        drop(next);
        chardevs.resume();
        chardevs.thaw();
        if how > 0 {
            assert_eq!(read(&mut guest, 9), "meanwhile");
            assert_eq!(read(&mut client, 8), "this too");
        }
        client.write_all(b"in").unwrap();
        assert_eq!(read(&mut guest, 2), "in");
        person.write_all(b"in").unwrap();
        assert_eq!(read(&mut other, 2), "in");
        other.write_all(b"out").unwrap();
        assert_eq!(read(&mut person, 3), "out");
        assert!(path.exists());
    }
}

#[test]
fn a_client_that_connects_during_a_handover_waits_for_its_end() {
    let folder = Folder::new("waits");
    let path = folder.join("sock");
    let texts = [server(&path)];
    let chardevs = open(&texts);
    device(&chardevs, "c", DEVICE);
    chardevs.freeze();
    let table = table(&chardevs, Mode::CprExec);
    let mut client = client(&path);
    client.write_all(b"hello").unwrap();
    let next = successor(&table, &texts, &[("c", DEVICE)]);
    chardevs.hold().unwrap();
    next.load().unwrap();
    assert!(filename(&chardevs).starts_with("disconnected:"));
    next.serve();
    chardevs.let_go();
    assert_eq!(read(&mut device(&next, "c", DEVICE), 5), "hello");
}

#[test]
fn what_does_not_fit_is_not_taken() {
    let folder = Folder::new("fit");
    let path = folder.join("sock");
    let chardevs = open(&[server(&path)]);
    device(&chardevs, "c", DEVICE);
    for (texts, reason) in [
        (&["pty,id=c"][..], "has none of that kind"),
        (&["socket,id=c,path=/x"], "server=off is said here"),
        (
            &["socket,id=d,path=/x,server=on"],
            "the listening socket was not handed over",
        ),
        (&["ringbuf,id=r"], "has none of that kind"),
    ] {
        let table = table(&chardevs, Mode::CprTransfer);
        let next = Chardevs::new().unwrap();
        let texts: Vec<_> = texts.iter().map(ToString::to_string).collect();
        let refused = next.open(&configs(&texts), Some(&table), true);
        let refused = refused
            .and_then(|()| table.all_claimed().map_err(|e| e.to_string()))
            .unwrap_err();
        assert!(refused.contains(reason), "{refused}");
    }
    // A user that the other process does not have.
    let table = table(&chardevs, Mode::CprTransfer);
    let next = Chardevs::new().unwrap();
    next.open(&configs(&[server(&path)]), Some(&table), true)
        .unwrap();
    let left = table.all_claimed().unwrap_err().to_string();
    assert!(left.contains("'c/isa-serial.0'"), "{left}");
    // And a state that is none.
    chardevs.hold().unwrap();
    let refused = successor(
        &self::table(&chardevs, Mode::CprTransfer),
        &[server(&path)],
        &[("c", DEVICE)],
    );
    let carrier = chardevs.handover(Mode::CprTransfer).unwrap();
    let carrier = carrier
        .into_iter()
        .find(|out| out.key.name == "c" && out.key.instance == 5)
        .unwrap();
    File::from(carrier.fd).set_len(3).unwrap();
    let refused = refused.load().unwrap_err();
    assert!(
        refused.contains("its state cannot be understood"),
        "{refused}"
    );
    assert!(path.exists());
}

#[test]
fn character_devices_come_and_go_while_the_guest_runs() {
    let folder = Folder::new("add");
    let chardevs = open(&["null,id=n".to_owned()]);
    let add = |text: &str| chardevs.add(&cli::chardev::parse(text).unwrap());
    assert_eq!(add("ringbuf,id=r"), Ok(None));
    assert!(add("pty,id=p").unwrap().unwrap().starts_with("/dev/pts/"));
    assert_eq!(
        add("null,id=r").unwrap_err(),
        "Chardev with id 'r' already exists"
    );
    let waits = format!("socket,id=s,path={},server=on", folder.join("s").display());
    assert!(add(&waits).unwrap_err().contains("say wait false"));
    let guest = chardevs.descriptors("r", DEVICE).unwrap();
    let refused = chardevs.descriptors("r", "another").unwrap_err();
    assert!(refused.contains("is in use"), "{refused}");
    assert_eq!(chardevs.remove("r").unwrap_err(), "Chardev 'r' is busy");
    drop(guest);
    chardevs.release("r", DEVICE);
    for id in ["r", "p", "n"] {
        chardevs.remove(id).unwrap();
    }
    assert_eq!(chardevs.remove("r").unwrap_err(), "Chardev 'r' not found");
    assert_eq!(chardevs.query(), []);
}

#[test]
fn files_and_pipes_are_read_and_written_by_the_device_itself() {
    let folder = Folder::new("files");
    let (out, input) = (folder.join("out"), folder.join("in"));
    std::fs::write(&out, "old").unwrap();
    std::fs::write(&input, "typed").unwrap();
    let file = |append| {
        let (out, input) = (out.display(), input.display());
        format!("file,id=f,path={out},input-path={input},append={append}")
    };
    let both = |chardevs: &Chardevs, id| {
        let (input, output) = chardevs.descriptors(id, DEVICE).unwrap();
        let file = |fd: Option<OwnedFd>| File::from(fd.unwrap());
        (file(input), file(output))
    };
    let chardevs = open(&[file("on")]);
    let (mut from, mut to) = both(&chardevs, "f");
    assert_eq!(read(&mut from, 2), "ty");
    to.write_all(b" new").unwrap();
    // The same open files, wherever they stand.
    let table = table(&chardevs, Mode::CprTransfer);
    let next = successor(&table, &[file("off")], &[]);
    let (mut from, mut to) = both(&next, "f");
    assert_eq!(read(&mut from, 3), "ped");
    to.write_all(b"er").unwrap();
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "old newer");
    drop(open(&[file("off")]));
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "");

    let pipe = folder.join("p");
    let name = format!("pipe,id=p,path={}", pipe.display());
    let refused = Chardevs::new()
        .unwrap()
        .open(&configs(std::slice::from_ref(&name)), None, false);
    assert!(
        refused.unwrap_err().contains("cannot open"),
        "no pipe is there"
    );
    for end in ["p.in", "p.out"] {
        nix::unistd::mkfifo(&folder.join(end), nix::sys::stat::Mode::S_IRWXU).unwrap();
    }
    let chardevs = open(&[name]);
    let (mut from, mut to) = both(&chardevs, "p");
    let mut options = File::options();
    let options = options.read(true).write(true);
    let mut typed = options.open(folder.join("p.in")).unwrap();
    typed.write_all(b"typed").unwrap();
    assert_eq!(read(&mut from, 5), "typed");
    to.write_all(b"said").unwrap();
    let mut heard = options.open(folder.join("p.out")).unwrap();
    assert_eq!(read(&mut heard, 4), "said");
}

/// A character device with monitors, and the ends of their sessions as they begin.
fn with_monitors(
    text: &str,
    monitors: &[MonitorMode],
) -> (Chardev, Chardevs, Receiver<(MonitorMode, UnixStream, bool)>) {
    let mut config = cli::chardev::parse(text).unwrap();
    config.monitors = monitors.to_vec();
    let chardevs = Chardevs::new().unwrap();
    let sessions = serve(&chardevs);
    chardevs
        .open(std::slice::from_ref(&config), None, false)
        .unwrap();
    (config, chardevs, sessions)
}

fn serve(chardevs: &Chardevs) -> Receiver<(MonitorMode, UnixStream, bool)> {
    let (tell, told) = channel();
    chardevs.serve_monitors(move |mode, end, keys| {
        end.set_read_timeout(Some(PATIENCE)).unwrap();
        // The test may be over.
        tell.send((mode, end, keys)).is_ok()
    });
    told
}

#[test]
fn a_monitor_has_a_session_for_everybody_who_comes() {
    let folder = Folder::new("sessions");
    let path = folder.join("sock");
    let mode = MonitorMode::Control;
    let (_, chardevs, sessions) = with_monitors(&server(&path), &[mode]);
    assert!(chardevs.query()[0].frontend_open);
    assert_eq!(chardevs.remove("c").unwrap_err(), "Chardev 'c' is busy");
    chardevs.descriptors("c", DEVICE).unwrap_err();
    for round in 0..3 {
        sessions.try_recv().expect_err("there is nobody yet");
        let mut client = client(&path);
        let (served, mut monitor, keys) = sessions.recv_timeout(PATIENCE).unwrap();
        assert_eq!((served, keys), (mode, false));
        monitor.write_all(b"hello").unwrap();
        assert_eq!(read(&mut client, 5), "hello");
        client.write_all(b"ask").unwrap();
        assert_eq!(read(&mut monitor, 3), "ask");
        if round == 1 {
            // It has had enough: there is no other before somebody comes again.
            drop(monitor);
            client.write_all(b"more").unwrap();
            until("nobody is left", || filename(&chardevs).starts_with("unix"));
            drop(client);
        } else {
            drop(client);
            assert_eq!(monitor.read(&mut [0]).unwrap(), 0);
        }
    }
}

#[test]
fn a_monitor_beside_a_device_speaks_when_it_is_chosen() {
    let folder = Folder::new("beside");
    let path = folder.join("sock");
    let text = format!("{},mux=on", server(&path));
    let mode = MonitorMode::Readline;
    let (config, chardevs, sessions) = with_monitors(&text, &[mode]);
    let mut guest = device(&chardevs, "c", DEVICE);
    let mut client = client(&path);
    client.write_all(b"a").unwrap();
    assert_eq!(read(&mut guest, 1), "a");
    sessions.try_recv().expect_err("it was not chosen");
    client.write_all(b"\x01cb").unwrap();
    let (_, mut monitor, _) = sessions.recv_timeout(PATIENCE).unwrap();
    assert_eq!(read(&mut monitor, 1), "b");
    client.write_all(b"\x01cc\x01cd").unwrap();
    assert_eq!(read(&mut guest, 1), "c");
    assert_eq!(read(&mut monitor, 1), "d");

    // The same session in the program that the process becomes, another in another process.
    for (transfer, begins) in [(Mode::CprExec, false), (Mode::CprTransfer, true)] {
        chardevs.freeze();
        let table = table(&chardevs, transfer);
        let next = Chardevs::new().unwrap();
        let sessions = serve(&next);
        next.open(std::slice::from_ref(&config), Some(&table), true)
            .unwrap();
        next.descriptors("c", DEVICE).unwrap();
        table.all_claimed().unwrap();
        chardevs.hold().unwrap();
        next.load().unwrap();
        next.serve();
        client.write_all(b"e").unwrap();
        if begins {
            let (_, mut monitor, _) = sessions.recv_timeout(PATIENCE).unwrap();
            assert_eq!(read(&mut monitor, 1), "e");
        } else {
            assert_eq!(read(&mut monitor, 1), "e");
            sessions.try_recv().expect_err("it goes on");
        }
    }
}

#[test]
fn a_monitors_own_character_device_stays_with_its_process() {
    let (config, chardevs, sessions) = with_monitors("pty,id=c", &[MonitorMode::Readline]);
    let mut options = File::options();
    let name = filename(&chardevs);
    let tty = name.strip_prefix("pty:").unwrap();
    let mut person = options.read(true).write(true).open(tty).unwrap();
    let (_, mut monitor, keys) = sessions.recv_timeout(PATIENCE).unwrap();
    assert!(keys);
    chardevs.freeze();
    let table = table(&chardevs, Mode::CprTransfer);
    assert!(table.is_empty());
    let next = Chardevs::new().unwrap();
    next.open(&[config], Some(&table), true).unwrap();
    assert_ne!(filename(&next), name);
    chardevs.hold().unwrap();
    next.load().unwrap();
    next.serve();
    chardevs.let_go();
    person.write_all(b"here").unwrap();
    assert_eq!(read(&mut monitor, 4), "here");
}
