use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use super::*;
use crate::address::{InetAddress, SocketAddress};

const SMALL: u8 = 1;
const LARGE: u8 = 2;

fn bounds(kind: u8) -> Option<Limits> {
    match kind {
        SMALL => Some(Limits { length: 16, fds: 0 }),
        LARGE => Some(Limits {
            length: 8 << 20,
            fds: MAX_FDS_PER_FRAME,
        }),
        _ => None,
    }
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(20))
}

fn pair() -> (Channel, Channel) {
    let (a, b) = UnixStream::pair().unwrap();
    let channel = |stream: UnixStream| Channel::new(stream.into(), "test", bounds).unwrap();
    (channel(a), channel(b))
}

/// A channel and the raw other end.
fn raw() -> (Channel, UnixStream) {
    let (a, b) = UnixStream::pair().unwrap();
    (Channel::new(a.into(), "test", bounds).unwrap(), b)
}

fn receive(channel: &mut Channel) -> Result<Frame, ChannelError> {
    loop {
        if let Some(frame) = channel.try_receive()? {
            return Ok(frame);
        }
        let fd = Some((channel.as_fd(), nix::poll::PollFlags::POLLIN));
        assert_eq!(wait([fd], soon()).unwrap(), [true]);
    }
}

/// A path of its own, removed with its directory.
struct TempPath(PathBuf);

impl TempPath {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("baton-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir.join("sock"))
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::Unix(self.0.clone())
    }
}

impl Drop for TempPath {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.0.parent().unwrap());
    }
}

#[test]
fn frames_arrive_whole_and_in_order() {
    let (mut a, mut b) = pair();
    a.send(SMALL, b"one", &[], None, soon()).unwrap();
    a.send(SMALL, b"", &[], None, soon()).unwrap();
    a.send(LARGE, b"three", &[], None, soon()).unwrap();
    for (kind, payload) in [(SMALL, &b"one"[..]), (SMALL, b""), (LARGE, b"three")] {
        let frame = receive(&mut b).unwrap();
        assert_eq!((frame.kind, &frame.payload[..]), (kind, payload));
    }
    assert!(b.try_receive().unwrap().is_none());
}

#[test]
fn a_frame_larger_than_any_buffer_arrives_whole() {
    let (mut a, mut b) = pair();
    let payload: Vec<u8> = (0..8u32 << 20).map(|i| (i * 7) as u8).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| a.send(LARGE, &payload, &[], None, soon()).unwrap());
        assert_eq!(receive(&mut b).unwrap().payload, payload);
    });
}

#[test]
fn a_frame_that_comes_byte_by_byte_is_complete_only_with_its_last() {
    let (mut channel, mut peer) = raw();
    let bytes = [3, 0, 0, 0, SMALL, b'a', b'b', b'c'];
    for byte in &bytes[..7] {
        peer.write_all(&[*byte]).unwrap();
        assert!(channel.try_receive().unwrap().is_none());
    }
    peer.write_all(&bytes[7..]).unwrap();
    assert_eq!(channel.try_receive().unwrap().unwrap().payload, b"abc");
}

#[test]
fn a_hang_up_is_told_even_in_the_middle_of_a_frame() {
    for sent in 0..5 {
        let (mut channel, mut peer) = raw();
        peer.write_all(&[3, 0, 0, 0, SMALL][..sent]).unwrap();
        drop(peer);
        assert!(
            matches!(channel.try_receive(), Err(ChannelError::HungUp { .. })),
            "{sent}"
        );
    }
}

#[test]
fn what_was_sent_before_a_hang_up_is_still_received() {
    let (mut a, mut b) = pair();
    // Unread data makes the kernel report a reset as well.
    b.send(SMALL, b"unread", &[], None, soon()).unwrap();
    a.send(SMALL, b"last", &[], None, soon()).unwrap();
    drop(a);
    assert_eq!(receive(&mut b).unwrap().payload, b"last");
    assert!(matches!(receive(&mut b), Err(ChannelError::HungUp { .. })));
    assert!(matches!(
        b.send(SMALL, b"", &[], None, soon()),
        Err(ChannelError::HungUp { .. })
    ));
}

#[test]
fn a_frame_too_long_or_of_unknown_kind_is_refused_before_its_payload_comes() {
    let (mut channel, mut peer) = raw();
    peer.write_all(&[17, 0, 0, 0, SMALL]).unwrap();
    assert!(matches!(
        channel.try_receive(),
        Err(ChannelError::TooLong {
            length: 17,
            limit: 16,
            ..
        })
    ));
    let (mut channel, mut peer) = raw();
    peer.write_all(&[0xff, 0xff, 0xff, 0xff, 9]).unwrap();
    assert!(matches!(
        channel.try_receive(),
        Err(ChannelError::UnknownKind { kind: 9, .. })
    ));
}

#[test]
fn nothing_too_long_is_sent() {
    let (mut a, _b) = pair();
    let error = a.send(SMALL, &[0; 17], &[], None, soon()).unwrap_err();
    assert!(matches!(error, ChannelError::TooLong { .. }));
}

#[test]
fn many_descriptors_arrive_with_their_frame_close_on_exec() {
    let (mut a, mut b) = pair();
    let (reader, writer) = std::io::pipe().unwrap();
    let fds = vec![writer.as_fd(); MAX_FDS_PER_FRAME];
    a.send(LARGE, b"fds", &fds, None, soon()).unwrap();
    a.send(SMALL, b"none", &[], None, soon()).unwrap();
    drop(writer);

    let frame = receive(&mut b).unwrap();
    assert_eq!(frame.fds.len(), MAX_FDS_PER_FRAME);
    for fd in &frame.fds {
        let flags = nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETFD).unwrap();
        assert_eq!(flags & nix::libc::FD_CLOEXEC, nix::libc::FD_CLOEXEC);
    }
    File::from(frame.fds.into_iter().next().unwrap())
        .write_all(b"x")
        .unwrap();
    assert!(receive(&mut b).unwrap().fds.is_empty());
    let mut text = String::new();
    { reader }.read_to_string(&mut text).unwrap();
    assert_eq!(text, "x");
}

#[test]
fn descriptors_with_a_frame_that_may_have_none_are_refused_and_closed() {
    let (mut channel, peer) = raw();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let bytes = [std::io::IoSlice::new(&[0, 0, 0, 0, SMALL])];
    rights::send(peer.as_fd(), &bytes, &[writer.as_fd()]).unwrap();
    drop(writer);
    assert!(matches!(
        channel.try_receive(),
        Err(ChannelError::TooManyFds {
            found: 1,
            limit: 0,
            ..
        })
    ));
    drop(channel);
    // The end of the pipe comes only if no writer is open any more.
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
}

#[test]
fn descriptors_cut_off_by_the_kernel_are_noticed_and_the_rest_is_closed() {
    let (a, b) = UnixStream::pair().unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let fds = [writer.as_fd(); 3];
    rights::send(a.as_fd(), &[std::io::IoSlice::new(b"x")], &fds).unwrap();
    drop(writer);
    // Room for two descriptors: the third does not fit.
    let received = rights::receive_with(b.as_fd(), &mut [0; 8], 24).unwrap();
    assert!(received.cut);
    assert_eq!(received.fds.len(), 2);
    drop(received);
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
}

#[test]
fn sending_to_a_peer_that_does_not_read_ends_at_the_deadline() {
    let (mut a, _b) = pair();
    let payload = vec![0; 8 << 20];
    let error = a.send(
        LARGE,
        &payload,
        &[],
        None,
        Deadline::after(Duration::from_millis(20)),
    );
    assert!(matches!(error, Err(ChannelError::TimedOut { .. })));
}

#[test]
fn sending_to_a_peer_that_does_not_read_ends_when_it_is_stopped() {
    let (mut a, _b) = pair();
    let (stop, mut signal) = UnixStream::pair().unwrap();
    signal.write_all(b"x").unwrap();
    let error = a.send(LARGE, &vec![0; 8 << 20], &[], Some(stop.as_fd()), soon());
    assert!(matches!(error, Err(ChannelError::Interrupted { .. })));
}

#[test]
fn a_unix_socket_is_connected_accepted_and_removed() {
    let path = TempPath::new("unix");
    let mut listener = Listener::bind(path.endpoint()).unwrap();
    assert!(listener.try_accept("test", bounds).unwrap().is_none());
    let mut a = path.endpoint().connect("test", bounds, soon()).unwrap();
    let mut b = listener.accept("test", bounds, soon()).unwrap();
    a.send(SMALL, b"hello", &[], None, soon()).unwrap();
    assert_eq!(receive(&mut b).unwrap().payload, b"hello");
    drop(listener);
    assert!(!path.0.exists());
}

#[test]
fn a_socket_left_behind_is_replaced_and_one_in_use_is_not() {
    let path = TempPath::new("stale");
    drop(UnixListener::bind(&path.0).unwrap());
    let listener = Listener::bind(path.endpoint()).unwrap();
    assert!(matches!(
        Listener::bind(path.endpoint()),
        Err(ChannelError::InUse { .. })
    ));
    drop(listener);
    std::fs::write(&path.0, "precious").unwrap();
    assert!(matches!(
        Listener::bind(path.endpoint()),
        Err(ChannelError::NotASocket { .. })
    ));
    assert_eq!(std::fs::read(&path.0).unwrap(), b"precious");
}

#[test]
fn a_listener_does_not_remove_the_socket_of_its_successor() {
    let path = TempPath::new("successor");
    let listener = Listener::bind(path.endpoint()).unwrap();
    let moved = path.0.with_extension("old");
    std::fs::rename(&path.0, &moved).unwrap();
    let _successor = UnixListener::bind(&path.0).unwrap();
    drop(listener);
    assert!(path.0.exists());
}

#[test]
fn tcp_listens_on_any_address_and_connects_to_this_host() {
    let inet = |port: u16| InetAddress {
        host: "0".into(),
        port: port.to_string(),
    };
    // The kernel chooses a free port; the listener that is passed on by descriptor has it.
    let chosen = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = chosen.local_addr().unwrap().port();
    let mut listener = Listener::bind(Endpoint::Fd(chosen.into())).unwrap();
    let mut a = Endpoint::Tcp(inet(port))
        .connect("test", bounds, soon())
        .unwrap();
    let mut b = listener.accept("test", bounds, soon()).unwrap();
    a.send(SMALL, b"hello", &[], None, soon()).unwrap();
    assert_eq!(receive(&mut b).unwrap().payload, b"hello");
    let nodelay = nix::sys::socket::getsockopt(&b, nix::sys::socket::sockopt::TcpNoDelay).unwrap();
    assert!(nodelay);
}

#[test]
fn a_tcp_listener_binds_where_it_is_told() {
    let inet = InetAddress {
        host: String::new(),
        port: "0".into(),
    };
    let listener = Listener::bind(Endpoint::Tcp(inet)).unwrap();
    assert_eq!(listener.address(), "tcp::0");
    let bad = InetAddress {
        host: String::new(),
        port: "http-alt".into(),
    };
    assert!(matches!(
        Listener::bind(Endpoint::Tcp(bad)),
        Err(ChannelError::Listen { .. })
    ));
}

#[test]
fn connecting_where_nobody_listens_fails_and_says_what_to_do() {
    let path = TempPath::new("nobody");
    let error = path.endpoint().connect("test", bounds, soon()).unwrap_err();
    let text = crate::error_chain(&error);
    assert!(text.contains("start the target first"), "{text}");
    assert!(text.contains(path.0.to_str().unwrap()), "{text}");
}

#[test]
fn connecting_to_a_full_queue_ends_at_the_deadline() {
    let path = TempPath::new("full");
    let listener = UnixListener::bind(&path.0).unwrap();
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
    let mut held = Vec::new();
    let error = loop {
        match path
            .endpoint()
            .connect("test", bounds, Deadline::after(Duration::from_millis(20)))
        {
            Ok(channel) => held.push(channel),
            Err(error) => break error,
        }
        assert!(held.len() < 10);
    };
    assert!(matches!(error, ChannelError::Connect { .. }), "{error}");
}

#[test]
fn a_connected_descriptor_is_a_channel_and_is_accepted_once() {
    let (a, b) = UnixStream::pair().unwrap();
    let mut a = Endpoint::Fd(a.into())
        .connect("test", bounds, soon())
        .unwrap();
    let mut listener = Listener::bind(Endpoint::Fd(b.into())).unwrap();
    let mut b = listener.try_accept("test", bounds).unwrap().unwrap();
    assert!(listener.try_accept("test", bounds).unwrap().is_none());
    assert!(listener.exhausted());
    a.send(SMALL, b"x", &[], None, soon()).unwrap();
    assert_eq!(receive(&mut b).unwrap().payload, b"x");
}

#[test]
fn a_listening_descriptor_cannot_be_connected_and_a_file_cannot_be_either() {
    let path = TempPath::new("listening");
    let listener = UnixListener::bind(&path.0).unwrap();
    for fd in [
        OwnedFd::from(listener),
        File::open("/dev/null").unwrap().into(),
    ] {
        assert!(matches!(
            Endpoint::Fd(fd).connect("test", bounds, soon()),
            Err(ChannelError::Connect { .. })
        ));
    }
    let file = File::open("/dev/null").unwrap();
    assert!(matches!(
        Listener::bind(Endpoint::Fd(file.into())),
        Err(ChannelError::Listen { .. })
    ));
}

#[test]
fn an_fd_address_is_resolved_by_the_host() {
    let null = |name: &str| -> Result<OwnedFd, crate::HostError> {
        match name {
            "7" => Ok(File::open("/dev/null")?.into()),
            other => Err(format!("File descriptor named '{other}' not found").into()),
        }
    };
    let fd = |str: &str| SocketAddress::Fd { str: str.into() };
    assert!(matches!(
        Endpoint::resolve(&fd("7"), &null),
        Ok(Endpoint::Fd(_))
    ));
    let text = crate::error_chain(&Endpoint::resolve(&fd("x"), &null).unwrap_err());
    assert!(
        text.contains("File descriptor named 'x' not found"),
        "{text}"
    );
    let vsock = SocketAddress::Vsock {
        cid: "3".into(),
        port: "1".into(),
    };
    assert!(matches!(
        Endpoint::resolve(&vsock, &null),
        Err(ChannelError::Unsupported { .. })
    ));
}
