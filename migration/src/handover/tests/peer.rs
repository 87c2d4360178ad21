//! A hand-driven end of both channels.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::poll::PollFlags;
use nix::sys::socket::{MsgFlags, send};

use super::fakes::{SECTIONS, fingerprint};
use super::rig::Rig;
use crate::Mode;
use crate::address::ChannelType;
use crate::channel::{Channel, ChannelError, Deadline, Frame, Listener, wait};
use crate::handover::protocol::{self, Hello, kind};
use crate::stream::{Header, SectionWriter};

pub(super) fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

/// The channels a peer has; dropping it is its death.
pub(super) struct Peer {
    pub(super) cpr: Channel,
    pub(super) main: Option<Channel>,
}

impl Peer {
    pub(super) fn accept(mut cpr: Listener) -> Self {
        Self {
            cpr: cpr.accept("cpr", protocol::bounds, soon()).unwrap(),
            main: None,
        }
    }

    pub(super) fn connect(rig: &Rig) -> Self {
        Self {
            cpr: rig.cpr().connect("cpr", protocol::bounds, soon()).unwrap(),
            main: None,
        }
    }

    pub(super) fn channel(&mut self, which: ChannelType) -> Option<&mut Channel> {
        match which {
            ChannelType::Cpr => Some(&mut self.cpr),
            ChannelType::Main => self.main.as_mut(),
        }
    }

    /// Sends, if the channel is there and the other side still listens.
    pub(super) fn send(
        &mut self,
        to: ChannelType,
        kind: u8,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) {
        if let Some(channel) = self.channel(to) {
            let _ = channel.send(kind, payload, fds, None, soon());
        }
    }

    /// Sends bytes that are no frame.
    pub(super) fn send_raw(&mut self, to: ChannelType, bytes: &[u8]) {
        if let Some(channel) = self.channel(to) {
            let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
            let _ = send(channel.as_fd().as_raw_fd(), bytes, flags);
        }
    }

    /// The next frame; `None` when the other side has hung up.
    pub(super) fn receive(&mut self, from: ChannelType) -> Option<Frame> {
        let channel = self.channel(from)?;
        loop {
            match channel.try_receive() {
                Ok(Some(frame)) => return Some(frame),
                Ok(None) => {}
                Err(ChannelError::HungUp { .. }) => return None,
                Err(error) => panic!("{error}"),
            }
            let ready = wait([Some((channel.as_fd(), PollFlags::POLLIN))], soon()).unwrap();
            assert_eq!(
                ready,
                [true],
                "the other side says nothing and does not hang up"
            );
        }
    }

    /// Accepts the main channel, unless the other side gives up first.
    pub(super) fn accept_main(&mut self, listener: &mut Listener) -> Option<()> {
        loop {
            if let Some(channel) = listener.try_accept("main", protocol::bounds).unwrap() {
                self.main = Some(channel);
                return Some(());
            }
            let input = |fd| Some((fd, PollFlags::POLLIN));
            let ready = wait([input(listener.as_fd()), input(self.cpr.as_fd())], soon()).unwrap();
            match ready {
                [true, _] => {}
                [false, true] => return None,
                [false, false] => panic!("the other side neither connects nor hangs up"),
            }
        }
    }

    /// The next frame, which must be of this kind.
    pub(super) fn expect(&mut self, from: ChannelType, kind: u8) -> Frame {
        let frame = self.receive(from).expect("a message");
        assert_eq!(frame.kind, kind);
        frame
    }

    /// Keeps the channels open, reads and says nothing, until the other side hangs up.
    pub(super) fn silent(&mut self) {
        while self.receive(ChannelType::Main).is_some() {}
        while self.receive(ChannelType::Cpr).is_some() {}
    }
}

pub(super) const TOKEN: protocol::Token = [7; 16];

pub(super) fn hello(fds: u32) -> Hello {
    Hello {
        mode: Mode::CprTransfer,
        producer: "scripted source".into(),
        fingerprint: fingerprint(),
        fds,
        token: TOKEN,
        pauses: false,
    }
}

/// A stream as a source would send it.
pub(super) fn stream() -> Vec<u8> {
    let mut bytes = Vec::new();
    let header = Header {
        producer: "scripted source".into(),
        fingerprint: fingerprint(),
    };
    let mut writer = SectionWriter::new(&mut bytes, &header).unwrap();
    for (name, state) in SECTIONS {
        writer.put(name, 0, 1, state).unwrap();
    }
    writer.finish().unwrap();
    bytes
}

/// Something that is wrong to send, whenever it is not due.
pub(super) struct Lie {
    pub(super) channel: ChannelType,
    pub(super) what: LieKind,
}

pub(super) enum LieKind {
    Frame(u8, Vec<u8>),
    Raw(Vec<u8>),
}

/// Every message with a right content, some with a wrong one, and garbage, on both channels.
pub(super) fn lies() -> Vec<Lie> {
    let mut lies = Vec::new();
    for channel in [ChannelType::Cpr, ChannelType::Main] {
        let mut add = |what| lies.push(Lie { channel, what });
        for (kind, payload) in [
            (kind::HELLO, protocol::encode_hello(&hello(0)).unwrap()),
            (kind::HELLO, b"garbage".to_vec()),
            (kind::FDS, protocol::encode_fds(&[]).unwrap()),
            (kind::FDS, vec![0xc1]),
            (kind::PREVIEW, stream()),
            (kind::PREVIEW, vec![]),
            (kind::READY, vec![]),
            (kind::ATTACH, TOKEN.to_vec()),
            (kind::ATTACH, vec![0; 16]),
            (kind::ATTACH, vec![0; 3]),
            (kind::ATTACHED, vec![]),
            (kind::STATE, stream()),
            (kind::STATE, stream()[..100].to_vec()),
            (kind::LOADED, vec![]),
            (kind::COMMIT, vec![]),
            (kind::STARTED, vec![]),
            (kind::FAILED, protocol::encode_failed("a lie").unwrap()),
            (kind::FAILED, vec![0xc1]),
            (kind::ABORT, protocol::encode_abort("a lie", false).unwrap()),
        ] {
            add(LieKind::Frame(kind, payload));
        }
        // An unknown kind, a payload too long, half a header, half a frame.
        for raw in [
            &[0, 0, 0, 0, 77][..],
            &[1, 0, 0, 0, kind::READY],
            &[1, 0],
            &[9, 0, 0, 0, kind::FAILED, 1],
        ] {
            add(LieKind::Raw(raw.to_vec()));
        }
    }
    lies
}

impl Peer {
    pub(super) fn lie(&mut self, lie: &Lie) {
        match &lie.what {
            LieKind::Frame(kind, payload) => self.send(lie.channel, *kind, payload, &[]),
            LieKind::Raw(bytes) => self.send_raw(lie.channel, bytes),
        }
    }
}
