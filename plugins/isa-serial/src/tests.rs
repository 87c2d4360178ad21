//! The device as a host drives it, at the other end of real pipes, sockets and files.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use baton_plugin_api::testing::{DEADLINE, TestHost, config_of};
use baton_plugin_api::{Chardev, Device, GuestRam, PlatformDevice, PluginDescriptor, Value, wire};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::unistd::pipe;

use crate::output::UNSENT_MAX;
use crate::state::{SerialSection, UnsentSection};
use crate::{IsaSerial, SECTION, UNSENT};

const DATA: u64 = 0;
const INTERRUPT_ENABLE: u64 = 1;
const INTERRUPT_IDENTIFICATION: u64 = 2;
const MODEM_CONTROL: u64 = 4;
const LINE_STATUS: u64 = 5;

fn device(host: &Arc<TestHost>, chardev: Chardev) -> IsaSerial {
    host.add_chardev("con", chardev);
    let said = [("chardev", Value::String("con".into()))];
    let mut device = IsaSerial::create(config_of::<IsaSerial>("com1", &said), host.host()).unwrap();
    device.realize().unwrap();
    device
}

fn started(host: &Arc<TestHost>, input: Option<OwnedFd>, output: Option<OwnedFd>) -> IsaSerial {
    let mut device = device(host, Chardev { input, output });
    device.start(GuestRam::default()).unwrap();
    device
}

fn read(device: &mut IsaSerial, register: u64) -> u8 {
    let mut data = [0];
    device.read(0, register, &mut data);
    data[0]
}

fn send(device: &mut IsaSerial, bytes: &[u8]) {
    for byte in bytes {
        device.write(0, DATA, &[*byte]);
    }
}

/// Reads input as a driver does, until there are `count` bytes.
fn receive(host: &TestHost, device: &mut IsaSerial, count: usize) -> Vec<u8> {
    let mut got = Vec::new();
    while got.len() < count {
        while read(device, LINE_STATUS) & 1 != 0 {
            got.push(read(device, DATA));
        }
        if got.len() < count {
            host.wait_for_interrupt(0);
            read(device, INTERRUPT_IDENTIFICATION);
        }
    }
    got
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < end, "{what} does not happen");
        std::thread::yield_now();
    }
}

fn file() -> File {
    let flags = nix::sys::memfd::MFdFlags::empty();
    nix::sys::memfd::memfd_create("test", flags).unwrap().into()
}

fn counting(count: usize) -> Vec<u8> {
    (0..count).map(|n| (n % 251) as u8).collect()
}

#[test]
fn the_descriptor_is_sound() {
    let plugin = PluginDescriptor {
        name: "isa-serial".into(),
        version: "1".into(),
        description: String::new(),
        devices: vec![IsaSerial::device_type()],
    };
    assert_eq!(plugin.check(), Ok(()));
}

#[test]
fn a_port_sits_where_a_pc_has_it_unless_told_otherwise() {
    let at = |said: &[(&str, u64)]| {
        let said: Vec<_> = said.iter().map(|(k, n)| (*k, Value::Uint(*n))).collect();
        let config = config_of::<IsaSerial>("com", &said);
        let device = IsaSerial::create(config, TestHost::new().host()).unwrap();
        let info = device.platform();
        let acpi = info.acpi.unwrap();
        (info.regions[0].base, info.irqs[0], acpi.name, acpi.uid)
    };
    assert_eq!(at(&[]), (0x3f8, 4, "COM1".into(), 1));
    assert_eq!(at(&[("index", 3)]), (0x2e8, 3, "COM4".into(), 4));
    assert_eq!(
        at(&[("index", 1), ("iobase", 0x2f0), ("irq", 7)]),
        (0x2f0, 7, "COM2".into(), 2)
    );
}

#[test]
fn without_a_chardev_output_goes_nowhere() {
    let host = TestHost::new();
    let config = config_of::<IsaSerial>("com1", &[]);
    let mut device = IsaSerial::create(config, host.host()).unwrap();
    device.realize().unwrap();
    device.start(GuestRam::default()).unwrap();
    send(&mut device, b"hello");
    assert_eq!(read(&mut device, LINE_STATUS), 0x60);
    device.quiesce().unwrap();
    assert_eq!(host.logged(), []);
}

#[test]
fn output_is_there_when_the_guests_write_returns() {
    let host = TestHost::new();
    let (reader, writer) = pipe().unwrap();
    let mut device = started(&host, None, Some(writer));
    send(&mut device, b"hello");
    let mut bytes = [0; 9];
    assert_eq!(File::from(reader).read(&mut bytes).unwrap(), 5);
    assert_eq!(&bytes[..5], b"hello");
}

#[test]
fn output_goes_to_a_file() {
    let host = TestHost::new();
    let mut file = file();
    let mut device = started(&host, None, Some(file.try_clone().unwrap().into()));
    send(&mut device, b"hello");
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
}

/// Reads what is there, once there is something.
fn read_some(reader: &mut (impl Read + AsFd)) -> Vec<u8> {
    let mut fds = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(DEADLINE).unwrap();
    assert_eq!(nix::poll::poll(&mut fds, timeout), Ok(1), "nothing to read");
    let mut bytes = vec![0; 5000];
    let count = reader.read(&mut bytes).unwrap();
    bytes.truncate(count);
    bytes
}

/// Sends far more than fits anywhere, and then reads what has arrived.
fn nobody_reads(mut reader: impl Read + AsFd, output: OwnedFd) {
    let host = TestHost::new();
    let mut device = started(&host, None, Some(output));
    let port = device.port.clone().unwrap();
    let sent = counting(1 << 20);
    send(&mut device, &sent);
    assert_eq!(port.unsent().len(), UNSENT_MAX);
    let warnings = |host: &TestHost| host.logged().iter().filter(|line| line.0 == 2).count();
    assert_eq!(warnings(&host), 1);
    let mut got = Vec::new();
    while !port.unsent().is_empty() {
        got.extend(read_some(&mut reader));
    }
    device.quiesce().unwrap();
    let (logged, warned, failures) = (host.logged(), warnings(&host), host.failures());
    drop((device, port, host));
    reader.read_to_end(&mut got).unwrap();
    let dropped = logged.last().unwrap().1.split(' ').next().unwrap().parse();
    assert_eq!(Ok(sent.len() - got.len()), dropped);
    assert_eq!(got, sent[..got.len()]);
    assert_eq!((warned, failures), (1, Vec::new()));
}

#[test]
fn output_to_a_pipe_nobody_reads_is_kept_to_a_bound_and_then_dropped() {
    let (reader, writer) = pipe().unwrap();
    nobody_reads(File::from(reader), writer);
}

#[test]
fn output_to_a_socket_nobody_reads_is_kept_to_a_bound_and_then_dropped() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    nobody_reads(theirs, ours.into());
}

#[test]
fn a_handover_does_not_wait_for_a_reader_and_what_was_not_read_goes_along() {
    let host = TestHost::new();
    let (reader, writer) = pipe().unwrap();
    let mut source = started(&host, None, Some(writer));
    let sent = counting(100_000);
    send(&mut source, &sent);
    source.quiesce().unwrap();
    assert!(source.needed(UNSENT));
    let (section, unsent) = (source.save(SECTION).unwrap(), source.save(UNSENT).unwrap());
    let stuck = source.port.as_ref().unwrap().unsent().len();
    assert!(stuck > 0);
    drop(source);
    let mut before = Vec::new();
    host.add_chardev("con", Chardev::default());
    File::from(reader).read_to_end(&mut before).unwrap();
    assert_eq!(before.len() + stuck, sent.len());

    let (reader, writer) = pipe().unwrap();
    let (input, output) = (None, Some(writer));
    let mut target = device(&TestHost::new(), Chardev { input, output });
    target.load(SECTION, 1, &section).unwrap();
    assert!(!target.needed(UNSENT));
    target.load(UNSENT, 1, &unsent).unwrap();
    assert_eq!(target.save(SECTION).unwrap(), section);
    assert_eq!(target.save(UNSENT).unwrap(), unsent);
    // A state without it means that nothing waits.
    target.load(SECTION, 1, &section).unwrap();
    assert!(!target.needed(UNSENT));
    target.load(UNSENT, 1, &unsent).unwrap();
    target.start(GuestRam::default()).unwrap();
    send(&mut target, b"!");
    let (mut reader, mut after) = (File::from(reader), Vec::new());
    while after.len() <= stuck {
        after.extend(read_some(&mut reader));
    }
    assert_eq!(after[..stuck], sent[before.len()..]);
    assert_eq!(after[stuck], b'!');
}

#[test]
fn what_was_not_written_goes_to_a_file_at_the_start() {
    let (_reader, writer) = pipe().unwrap();
    let mut source = started(&TestHost::new(), None, Some(writer));
    let mut section = SerialSection::new(&crate::uart::Uart::new());
    source.quiesce().unwrap();
    section.scratch = 7;
    let mut file = file();
    let (input, output) = (None, Some(file.try_clone().unwrap().into()));
    let mut target = device(&TestHost::new(), Chardev { input, output });
    let section = wire::encode(&section).unwrap();
    let bytes = b"late".to_vec();
    let unsent = wire::encode(&UnsentSection { bytes }).unwrap();
    target.load(SECTION, 1, &section).unwrap();
    target.load(UNSENT, 1, &unsent).unwrap();
    target.start(GuestRam::default()).unwrap();
    send(&mut target, b"r");
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), read(&mut target, 7)), ("later", 7));
}

#[test]
fn output_to_a_pipe_whose_reader_has_gone_is_dropped_with_one_warning() {
    let host = TestHost::new();
    let (reader, writer) = pipe().unwrap();
    let mut device = started(&host, None, Some(writer));
    send(&mut device, b"a");
    drop(reader);
    send(&mut device, b"bcd");
    device.quiesce().unwrap();
    let logged = host.logged();
    assert_eq!(logged.len(), 2, "{logged:?}");
    assert!(logged[0].1.contains("'con'") && logged[0].1.contains("Broken pipe"));
    assert!(logged[1].1.starts_with("3 bytes"));
}

#[test]
fn input_arrives_in_order_however_much_there_is() {
    let host = TestHost::new();
    let (reader, writer) = pipe().unwrap();
    let mut device = started(&host, Some(reader), None);
    device.write(0, INTERRUPT_ENABLE, &[1]);
    let sent = counting(5000);
    File::from(writer).write_all(&sent).unwrap();
    assert_eq!(receive(&host, &mut device, sent.len()), sent);
    let port = device.port.clone().unwrap();
    until("the input's end", || !port.waits_for_input());
    device.quiesce().unwrap();
}

#[test]
fn input_the_fifo_has_no_room_for_is_not_waited_for() {
    let host = TestHost::new();
    let (reader, writer) = pipe().unwrap();
    let mut device = started(&host, Some(reader), None);
    device.write(0, INTERRUPT_ENABLE, &[1]);
    let port = device.port.clone().unwrap();
    let mut writer = File::from(writer);
    writer.write_all(&counting(100)).unwrap();
    until("the thread's pause", || !port.waits_for_input());
    assert_eq!(receive(&host, &mut device, 100), counting(100));
    assert!(port.waits_for_input());
}

#[test]
fn input_comes_from_a_file_and_from_a_socket() {
    let mut file = file();
    file.write_all(&counting(300)).unwrap();
    file.rewind().unwrap();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(&counting(300)).unwrap();
    for input in [OwnedFd::from(file), ours.into()] {
        let host = TestHost::new();
        let mut device = started(&host, Some(input), None);
        device.write(0, INTERRUPT_ENABLE, &[1]);
        assert_eq!(receive(&host, &mut device, 300), counting(300));
    }
}

#[test]
fn an_end_of_input_leaves_output_working_and_the_thread_asleep() {
    let host = TestHost::new();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let (input, writer) = pipe().unwrap();
    let mut device = started(&host, Some(input), Some(ours.into()));
    let port = device.port.clone().unwrap();
    drop(writer);
    until("the input's end", || !port.waits_for_input());
    send(&mut device, &counting(1 << 20));
    let some = read_some(&mut theirs);
    assert_eq!(some, counting(some.len()));
    device.quiesce().unwrap();
}

#[test]
fn input_waits_outside_while_the_guest_tests_itself_in_loopback() {
    let host = TestHost::new();
    let (reader, writer) = pipe().unwrap();
    let mut device = device(
        &host,
        Chardev {
            input: Some(reader),
            output: None,
        },
    );
    device.start(GuestRam::default()).unwrap();
    device.write(0, INTERRUPT_ENABLE, &[1]);
    device.write(0, MODEM_CONTROL, &[0x10]);
    let port = device.port.clone().unwrap();
    until("the thread's pause", || !port.waits_for_input());
    File::from(writer).write_all(b"abc").unwrap();
    send(&mut device, b"x");
    assert_eq!(receive(&host, &mut device, 1), b"x");
    device.write(0, MODEM_CONTROL, &[0x00]);
    assert_eq!(receive(&host, &mut device, 3), b"abc");
}

#[test]
fn a_pending_interrupt_is_raised_once_more_when_the_loaded_device_starts() {
    let host = TestHost::new();
    let (reader, writer) = pipe().unwrap();
    let mut source = started(&host, Some(reader), None);
    source.write(0, INTERRUPT_ENABLE, &[1]);
    File::from(writer).write_all(b"a").unwrap();
    host.wait_for_interrupt(0);
    source.quiesce().unwrap();
    let section = source.save(SECTION).unwrap();

    let host = TestHost::new();
    let mut target = device(&host, Chardev::default());
    target.load(SECTION, 1, &section).unwrap();
    assert_eq!(target.save(SECTION).unwrap(), section);
    assert_eq!(host.interrupts(0), 0);
    target.start(GuestRam::default()).unwrap();
    assert_eq!(host.interrupts(0), 1);
    assert_eq!(read(&mut target, INTERRUPT_IDENTIFICATION), 0xc4);
    assert_eq!(read(&mut target, DATA), b'a');
    target.quiesce().unwrap();
    target.start(GuestRam::default()).unwrap();
    assert_eq!(host.interrupts(0), 0);
}

#[test]
fn damaged_state_is_refused_and_changes_nothing() {
    let mut target = device(&TestHost::new(), Chardev::default());
    target.write(0, 7, &[0x5a]);
    let before = target.save(SECTION).unwrap();
    let good: SerialSection = wire::decode("the state", &before).unwrap();
    type Damage = fn(&mut SerialSection);
    let damages: [(&str, Damage); 5] = [
        ("interrupt enable", |s| s.interrupt_enable = 0x10),
        ("interrupt identification", |s| {
            s.interrupt_identification = 3
        }),
        ("line status", |s| s.line_status = 0x61),
        ("line status", |s| s.input = vec![1]),
        ("bytes of input", |s| {
            s.input = vec![0; 65];
            s.line_status = 0x61;
        }),
    ];
    for (what, damage) in damages {
        let mut state = good.clone();
        state.scratch = 0;
        damage(&mut state);
        let data = wire::encode(&state).unwrap();
        let error = target.load(SECTION, 1, &data).unwrap_err();
        assert!(error.message.contains(what), "{}", error.message);
        assert_eq!(target.save(SECTION).unwrap(), before);
    }
    let bytes = vec![0; UNSENT_MAX + 1];
    let unsent = wire::encode(&UnsentSection { bytes }).unwrap();
    let error = target.load(UNSENT, 1, &unsent).unwrap_err();
    assert!(error.message.contains("unsent output"), "{}", error.message);
    assert!(!target.needed(UNSENT));
    let mut garbage = before.clone();
    garbage.push(0);
    assert!(target.load(SECTION, 1, &garbage).is_err());
    assert!(target.load(SECTION, 1, &before[..20]).is_err());
    assert!(target.load("other", 1, &before).is_err());
}

#[test]
fn a_reset_empties_the_registers_but_not_the_way_out() {
    let host = TestHost::new();
    let (_reader, writer) = pipe().unwrap();
    let mut device = started(&host, None, Some(writer));
    device.write(0, 7, &[0x5a]);
    send(&mut device, &counting(100_000));
    device.quiesce().unwrap();
    let port = device.port.clone().unwrap();
    let unsent = port.unsent();
    device.reset().unwrap();
    assert_eq!((read(&mut device, 7), port.unsent()), (0, unsent));
}

#[test]
fn a_wide_access_is_several_narrow_ones() {
    let mut device = started(&TestHost::new(), None, None);
    device.write(0, 6, &[0, 0x5a]);
    let mut data = [0; 4];
    device.read(0, 6, &mut data);
    assert_eq!(data, [0xb0, 0x5a, 0xff, 0xff]);
}
