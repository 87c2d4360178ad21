//! Carries out what the target's machine decides.

use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::PollFlags;

use super::machine::{Action, End, Input, Request};
use super::offer::judged;
use super::{Main, TargetHandover, TargetOutcome};
use crate::address::ChannelType;
use crate::channel::{Channel, ChannelError, Deadline, Listener, wait};
use crate::claim::{ClaimState, Moment};
use crate::handover::link::{Event, LinkError};
use crate::handover::protocol::{self, Message, kind};
use crate::handover::{StartError, TargetHost, advance};
use crate::status::MigrationStatus;
use crate::{HostError, caught, error_chain, fault};

/// How long a connection to the main channel may take to show that it is the source's, before the
/// next one is looked at. The guest runs meanwhile.
const STRANGER: Duration = Duration::from_secs(2);

/// How long a last word to the source may take.
const FAREWELL: Duration = Duration::from_secs(1);

impl TargetHandover {
    /// Carries out actions until the end or until one that `pause` wants.
    pub(super) fn drive(
        &mut self,
        host: &mut (impl TargetHost + ?Sized),
        pause: fn(&Action) -> bool,
    ) {
        while !matches!(self.action, Action::Finish { .. }) && !pause(&self.action) {
            tracing::debug!(action = ?self.action, "handover, target");
            let input = caught(|| {
                fault::before("target", &self.action)?;
                Ok(self.carry_out(host))
            });
            let input = input.unwrap_or_else(|error| self.failed(error_chain(&*error)));
            tracing::debug!(?input, "handover, target");
            self.action = self.machine.step(input);
        }
    }

    /// What a step that went wrong means for the guest: the claim knows.
    fn failed(&self, reason: String) -> Input {
        let source = self.source.as_ref();
        match (&self.action, source.map(|source| source.watch.state())) {
            (Action::Start, Some(ClaimState::Started)) => Input::StartedAndFailed(reason),
            _ => Input::Failed(reason),
        }
    }

    fn carry_out(&mut self, host: &mut (impl TargetHost + ?Sized)) -> Input {
        match &self.action {
            Action::AwaitHello | Action::AwaitFds | Action::AwaitPreview => {
                self.await_request(self.timeouts.message, host)
            }
            Action::Prepare => done(self.prepare(host)),
            Action::OpenMain => match self.open_main() {
                Ok(()) => self.send(ChannelType::Cpr, kind::READY),
                Err(error) => Input::Failed(error_chain(&*error)),
            },
            Action::AwaitAttach => self.await_attach(host),
            Action::WelcomeSource => {
                let input = self.send(ChannelType::Main, kind::ATTACHED);
                // The source stops its guest meanwhile.
                advance(&self.tracker, MigrationStatus::Active);
                input
            }
            Action::AwaitState => self.await_request(self.timeouts.state, host),
            Action::Load => done(self.load(host)),
            Action::ReportLoaded => self.send(ChannelType::Main, kind::LOADED),
            Action::AwaitCommit => self.await_request(self.timeouts.commit, host),
            Action::Start => self.start(host),
            Action::ReportStarted => self.send(ChannelType::Main, kind::STARTED),
            Action::Finish { .. } => Input::Done,
        }
    }

    fn await_request(&mut self, time: Duration, host: &mut (impl TargetHost + ?Sized)) -> Input {
        let event = self.link.wait(None, Deadline::after(time));
        self.received(event, host)
    }

    /// Keeps what came with a message; the machine judges whether it was its turn.
    pub(super) fn received(
        &mut self,
        event: Result<Event, LinkError>,
        host: &mut (impl TargetHost + ?Sized),
    ) -> Input {
        let message = match event {
            Ok(Event::Message(message)) => message,
            Ok(Event::HungUp) => return Input::HungUp,
            Ok(Event::TimedOut | Event::Stopped) => return Input::TimedOut,
            Err(error) => return Input::Failed(error_chain(&error)),
        };
        match message {
            Message::Hello(hello, claim) if self.source.is_none() => {
                let request = Request::Hello(hello.fds);
                judged(request, self.greet(*hello, claim, host))
            }
            Message::Fds(fds) => {
                let request = Request::Fds(fds.len() as u32);
                judged(request, self.keep_fds(fds))
            }
            Message::Preview(stream) => judged(Request::Preview, self.keep_preview(&stream)),
            Message::State(stream) => {
                self.state = stream;
                Input::Peer(Request::State)
            }
            Message::Commit => Input::Peer(Request::Commit),
            Message::Abort(abort) => Input::Peer(Request::Abort(abort.reason)),
            other => Input::Peer(Request::Other(other.name())),
        }
    }

    fn open_main(&mut self) -> Result<(), HostError> {
        // Everything that could want one has been built by now.
        self.fds.all_claimed()?;
        match std::mem::replace(&mut self.main, Main::Unknown) {
            Main::Known(endpoint) => self.main = Main::Open(Listener::bind(endpoint)?),
            _ => return Err("The main channel has no address".into()),
        }
        Ok(())
    }

    /// Waits for the source on the main channel.
    fn await_attach(&mut self, host: &mut (impl TargetHost + ?Sized)) -> Input {
        let pauses = self.source.as_ref().is_some_and(|source| source.pauses);
        let deadline = Deadline::after_or_never((!pauses).then_some(self.timeouts.state));
        loop {
            match self.link.poll() {
                Ok(None) => {}
                Ok(Some(event)) => return self.received(Ok(event), host),
                Err(error) => return Input::Failed(error_chain(&error)),
            }
            let Main::Open(listener) = &mut self.main else {
                return Input::Failed("The main channel is not open".to_owned());
            };
            match listener.try_accept("main", protocol::bounds) {
                Err(error) => return Input::Failed(error_chain(&error)),
                Ok(Some(channel)) => {
                    let only = listener.exhausted();
                    match self.look_at(channel, only, deadline, host) {
                        Some(input) => return input,
                        None => continue,
                    }
                }
                Ok(None) => {}
            }
            let input = |fd| (fd, PollFlags::POLLIN);
            let fds = [Some(input(listener.as_fd())), self.link.cpr_fd().map(input)];
            match wait(fds, deadline) {
                Ok([false, false]) => return Input::TimedOut,
                Ok(_) => {}
                Err(error) => return Input::Failed(format!("Cannot wait for the source: {error}")),
            }
        }
    }

    /// Takes a connection to the main channel if it is the source's: somebody else may have made it,
    /// by mistake or on purpose, and only the source knows the token. `None` if it was somebody
    /// else's and another (it is not the `only` one) may come.
    fn look_at(
        &mut self,
        channel: Channel,
        only: bool,
        deadline: Deadline,
        host: &mut (impl TargetHost + ?Sized),
    ) -> Option<Input> {
        self.link.attach(channel);
        let stranger = Deadline::after(STRANGER.min(self.timeouts.message));
        match self.link.wait(None, if only { deadline } else { stranger }) {
            Ok(Event::Message(Message::Attach(token))) if self.knows(&token) => {
                // Nobody else may connect from here on.
                self.main = Main::Attached;
                Some(Input::Peer(Request::Attach))
            }
            event @ Ok(Event::Message(Message::Abort(_))) => Some(self.received(event, host)),
            event if only => Some(match self.received(event, host) {
                input @ (Input::HungUp | Input::TimedOut | Input::Failed(_)) => input,
                _ => Input::Failed("The main channel is not connected to the source".to_owned()),
            }),
            _ => {
                tracing::warn!("somebody else connected to the main channel");
                self.link.detach();
                None
            }
        }
    }

    fn knows(&self, token: &protocol::Token) -> bool {
        self.source
            .as_ref()
            .is_some_and(|source| source.token == *token)
    }

    fn load(&mut self, host: &mut (impl TargetHost + ?Sized)) -> Result<(), HostError> {
        let stream = std::mem::take(&mut self.state);
        let mut image = self.image(&stream)?;
        self.stamp(Moment::Received);
        host.load(&mut image)?;
        image.all_taken()?;
        self.stamp(Moment::Loaded);
        Ok(())
    }

    fn start(&mut self, host: &mut (impl TargetHost + ?Sized)) -> Input {
        let Some(source) = &mut self.source else {
            return Input::Failed("There is no source".to_owned());
        };
        let Some(claim) = source.claim.take() else {
            return Input::Failed("The guest was started already".to_owned());
        };
        match host.start(claim) {
            Ok(_started) => Input::Started,
            Err(StartError::Reclaimed(_)) => Input::Reclaimed,
            Err(StartError::Host(error)) => {
                let reason = format!("The guest cannot be started: {}", error_chain(&*error));
                self.failed(reason)
            }
        }
    }

    fn stamp(&self, moment: Moment) {
        if let Some(source) = &self.source {
            source.watch.stamp(moment);
        }
    }

    fn send(&mut self, to: ChannelType, kind: u8) -> Input {
        let deadline = Deadline::after(self.timeouts.message);
        match self.link.send(to, kind, &[], &[], None, deadline) {
            Ok(()) => Input::Done,
            // A source that gives up says so on the cpr channel before it hangs up.
            Err(ChannelError::HungUp { .. }) => match self.link.poll() {
                Ok(Some(Event::Message(Message::Abort(abort)))) => {
                    Input::Peer(Request::Abort(abort.reason))
                }
                _ => Input::HungUp,
            },
            Err(ChannelError::TimedOut { .. }) => Input::TimedOut,
            Err(error) => Input::Failed(error_chain(&error)),
        }
    }

    /// Tells host, source and operator how it ended.
    pub(super) fn finish(mut self, host: &mut (impl TargetHost + ?Sized)) -> TargetOutcome {
        // An error is too late to be one.
        let _ = caught(|| fault::before("target", &self.action));
        let Action::Finish { end, tell } = self.action.clone() else {
            return TargetOutcome::Abandoned {
                reason: "The handover has not ended".to_owned(),
            };
        };
        let (End::Abandoned(reason) | End::Lost(reason)) = &end else {
            let blackout = self
                .source
                .as_ref()
                .and_then(|source| source.watch.blackout());
            self.tracker.note_blackout(blackout);
            advance(&self.tracker, MigrationStatus::Completed);
            return TargetOutcome::Running;
        };
        tracing::warn!("incoming migration failed: {reason}");
        // First, since the source's guest may be waiting.
        if tell {
            self.tell(reason);
        }
        host.abandon(reason);
        self.tracker.note_error(reason);
        advance(&self.tracker, MigrationStatus::Failed);
        match end {
            End::Lost(reason) => TargetOutcome::Lost { reason },
            End::Abandoned(reason) => TargetOutcome::Abandoned { reason },
            End::Running => TargetOutcome::Running,
        }
    }

    fn tell(&mut self, reason: &str) {
        let Ok(failed) = protocol::encode_failed(reason) else {
            return;
        };
        let deadline = Deadline::after(FAREWELL);
        let sent = self
            .link
            .send(ChannelType::Cpr, kind::FAILED, &failed, &[], None, deadline);
        if let Err(error) = sent {
            tracing::debug!("the source was not told why: {error}");
        }
    }
}

fn done(result: Result<(), HostError>) -> Input {
    match result {
        Ok(()) => Input::Done,
        Err(error) => Input::Failed(error_chain(&*error)),
    }
}
