//! The channels between source and target, as one thing that messages come out of.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::poll::PollFlags;

use super::protocol::{Message, ProtocolError};
use crate::address::ChannelType;
use crate::channel::{Channel, ChannelError, Deadline, wait};

/// What waiting for the peer can bring.
#[derive(Debug)]
pub(super) enum Event {
    /// A message.
    Message(Message),
    /// The peer is gone, and every message it sent before has been received.
    HungUp,
    /// The deadline has passed.
    TimedOut,
    /// The caller's own signal came.
    Stopped,
}

/// Why the peer cannot be listened to any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    #[error("Cannot wait for the peer")]
    Wait(#[source] io::Error),
}

/// The cpr channel and, once it is there, the main channel.
///
/// A channel that was hung up is dropped. Both carry what the peer sent before it died, so the peer
/// counts as gone when the main channel is, or the cpr channel while there is no other.
#[derive(Debug)]
pub(super) struct Link {
    cpr: Option<Channel>,
    main: Option<Channel>,
    attached: bool,
}

impl Link {
    pub(super) fn new(cpr: Channel) -> Self {
        Self {
            cpr: Some(cpr),
            main: None,
            attached: false,
        }
    }

    /// Adds the main channel.
    pub(super) fn attach(&mut self, main: Channel) {
        self.main = Some(main);
        self.attached = true;
    }

    /// Drops a main channel that turned out to be somebody else's.
    pub(super) fn detach(&mut self) {
        self.main = None;
        self.attached = false;
    }

    /// Sends on one channel; see [`Channel::send`].
    pub(super) fn send(
        &mut self,
        to: ChannelType,
        kind: u8,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
        stop: Option<BorrowedFd<'_>>,
        deadline: Deadline,
    ) -> Result<(), ChannelError> {
        let (channel, name) = match to {
            ChannelType::Cpr => (&mut self.cpr, "cpr"),
            ChannelType::Main => (&mut self.main, "main"),
        };
        match channel {
            Some(channel) => channel.send(kind, payload, fds, stop, deadline),
            None => Err(ChannelError::HungUp { channel: name }),
        }
    }

    /// Waits for a message.
    pub(super) fn wait(
        &mut self,
        stop: Option<BorrowedFd<'_>>,
        deadline: Deadline,
    ) -> Result<Event, LinkError> {
        let mut stopped = false;
        loop {
            // A message that came before the signal or the deadline is not thrown away.
            if let Some(event) = self.poll()? {
                return Ok(event);
            }
            if stopped {
                return Ok(Event::Stopped);
            }
            // Asked here and not of poll(2), so that a peer that sends byte by byte cannot hold us.
            if deadline.passed() {
                return Ok(Event::TimedOut);
            }
            let input = |fd| (fd, PollFlags::POLLIN);
            [stopped, _, _] = wait(
                [
                    stop.map(input),
                    self.main.as_ref().map(|channel| input(channel.as_fd())),
                    self.cpr.as_ref().map(|channel| input(channel.as_fd())),
                ],
                deadline,
            )
            .map_err(LinkError::Wait)?;
        }
    }

    /// What has come already, without waiting.
    ///
    /// The main channel is asked first: a state, or a message that it was started, that came whole
    /// before the peer died counts. The cpr channel is asked before a hang-up of the main channel is
    /// believed, since a peer that fails says why before it hangs up.
    pub(super) fn poll(&mut self) -> Result<Option<Event>, LinkError> {
        if let Some(message) = receive(&mut self.main, ChannelType::Main)? {
            return Ok(Some(Event::Message(message)));
        }
        if let Some(message) = receive(&mut self.cpr, ChannelType::Cpr)? {
            return Ok(Some(Event::Message(message)));
        }
        let last = if self.attached { &self.main } else { &self.cpr };
        Ok(last.is_none().then_some(Event::HungUp))
    }

    /// The cpr channel's descriptor, to wait on together with others; it is readable when
    /// [`Self::poll`] has something.
    pub(super) fn cpr_fd(&self) -> Option<BorrowedFd<'_>> {
        self.cpr.as_ref().map(Channel::as_fd)
    }
}

/// The next message of a channel, which becomes `None` when it is hung up.
fn receive(
    channel: &mut Option<Channel>,
    which: ChannelType,
) -> Result<Option<Message>, LinkError> {
    let Some(open) = channel else { return Ok(None) };
    match open.try_receive() {
        Ok(None) => Ok(None),
        Ok(Some(frame)) => Ok(Some(Message::decode(which, frame)?)),
        Err(ChannelError::HungUp { .. }) => {
            *channel = None;
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}
