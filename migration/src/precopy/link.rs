//! The channel between source and target, as something that messages come out of.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::poll::PollFlags;

use super::protocol::{Message, PrecopyError};
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
    Protocol(#[from] PrecopyError),
    #[error("Cannot wait for the peer")]
    Wait(#[source] io::Error),
}

/// The channel.
#[derive(Debug)]
pub(super) struct Link {
    channel: Channel,
    /// Whether the peer has hung up.
    over: bool,
    /// Whether half a message may have gone, after which nothing can be said.
    torn: bool,
}

impl Link {
    pub(super) fn new(channel: Channel) -> Self {
        Self {
            channel,
            over: false,
            torn: false,
        }
    }

    /// Sends; see [`Channel::send`]. After an error nothing more is sent, so that the peer never gets
    /// the rest of that message.
    pub(super) fn send(
        &mut self,
        kind: u8,
        payload: &[u8],
        stop: Option<BorrowedFd<'_>>,
        deadline: Deadline,
    ) -> Result<(), ChannelError> {
        if self.torn {
            return Err(ChannelError::HungUp { channel: "main" });
        }
        let sent = self.channel.send(kind, payload, &[], stop, deadline);
        self.torn = sent.is_err();
        sent
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
            let fds = [stop.map(input), Some(input(self.channel.as_fd()))];
            [stopped, _] = wait(fds, deadline).map_err(LinkError::Wait)?;
        }
    }

    /// What has come already, without waiting.
    pub(super) fn poll(&mut self) -> Result<Option<Event>, LinkError> {
        if self.over {
            return Ok(Some(Event::HungUp));
        }
        match self.channel.try_receive() {
            Ok(None) => Ok(None),
            Ok(Some(frame)) => Ok(Some(Event::Message(Message::decode(frame)?))),
            Err(ChannelError::HungUp { .. }) => {
                self.over = true;
                Ok(Some(Event::HungUp))
            }
            Err(error) => Err(error.into()),
        }
    }
}
