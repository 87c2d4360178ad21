//! Carries out what the source's machine decides.

use std::time::Duration;

use super::machine::{Action, End, Input, Machine, Reply};
use super::offer::OfferError;
use super::{SourceHandover, SourceOutcome};
use crate::address::ChannelType;
use crate::channel::{ChannelError, Deadline};
use crate::claim::{ClaimState, Moment};
use crate::handover::link::{Event, LinkError};
use crate::handover::protocol::{self, Message, kind};
use crate::handover::{SourceHost, advance};
use crate::status::MigrationStatus;
use crate::stream::SectionWriter;
use crate::{HostError, MigrationEvent, caught, error_chain, fault};

/// How long a last word to the target may take: it is for its log only.
const FAREWELL: Duration = Duration::from_secs(1);

impl SourceHandover {
    /// Hands the guest over, or goes on with it. Takes as long as the target needs to get ready;
    /// call it on a thread of its own, from which all calls of `host` come.
    pub fn run(mut self, host: &mut (impl SourceHost + ?Sized)) -> SourceOutcome {
        let (mut machine, mut action) = Machine::new(self.pause);
        loop {
            tracing::debug!(?action, "handover, source");
            let input = caught(|| {
                fault::before("source", &action)?;
                Ok(self.carry_out(&action, &mut *host))
            });
            if let Action::Finish { end, resume } = action {
                return self.finish(host, end, resume);
            }
            let input = input.unwrap_or_else(|error| Input::Failed(error_chain(&*error)));
            tracing::debug!(?input, "handover, source");
            action = machine.step(input);
        }
    }

    fn carry_out(&mut self, action: &Action, host: &mut (impl SourceHost + ?Sized)) -> Input {
        match action {
            Action::Offer => match self.offer(host) {
                Ok(()) => Input::Done,
                Err(OfferError::Channel(error)) => self.send_failed(&error),
                Err(error) => Input::Failed(error_chain(&error)),
            },
            Action::AwaitReady => self.await_reply(Deadline::after_or_never(self.timeouts.ready)),
            Action::Pause => self.await_operator(),
            Action::Attach => self.attach(),
            Action::AwaitAttached => self.await_reply(Deadline::after(self.timeouts.message)),
            Action::StopAndSave => match self.stop_and_save(host) {
                Ok(()) => Input::Done,
                Err(error) => Input::Failed(error_chain(&*error)),
            },
            Action::SendState => self.send_state(),
            Action::AwaitLoaded => self.await_reply(Deadline::after(self.timeouts.load)),
            Action::Commit => self.commit(),
            // Cancelling is too late now, so it is not even looked at.
            Action::AwaitStarted => {
                let event = self.link.wait(None, Deadline::after(self.timeouts.start));
                answer(event)
            }
            Action::Reclaim => match self.claim.reclaim() {
                Ok(proof) => {
                    self.reclaimed = Some(proof);
                    Input::Reclaimed
                }
                Err(_) => Input::TargetStarted,
            },
            Action::Finish { .. } => Input::Done,
        }
    }

    /// Waits for the target's answer or for a cancellation, which counts even if the answer has come
    /// too: what an operator wanted before the guest was let go is done.
    fn await_reply(&mut self, deadline: Deadline) -> Input {
        let stop = Some(self.tracker.cancel_fd());
        let event = self.link.wait(stop, deadline);
        if self.tracker.cancelled() {
            Input::Cancelled
        } else {
            answer(event)
        }
    }

    /// Waits for the word to go on, or for anything that ends the handover instead: the target has
    /// nothing to say now.
    fn await_operator(&mut self) -> Input {
        advance(&self.tracker, MigrationStatus::Active);
        advance(&self.tracker, MigrationStatus::PreSwitchover);
        let stop = Some(self.tracker.cancel_fd());
        let event = self.link.wait(stop, Deadline::never());
        if self.tracker.cancelled() {
            Input::Cancelled
        } else if matches!(event, Ok(Event::Stopped)) && self.tracker.may_proceed() {
            Input::Done
        } else {
            answer(event)
        }
    }

    fn attach(&mut self) -> Input {
        let Some(main) = self.main.take() else {
            return Input::Failed("The main channel was connected already".to_owned());
        };
        let deadline = Deadline::after(self.timeouts.connect);
        match main.connect("main", protocol::bounds, deadline) {
            Ok(channel) => self.link.attach(channel),
            // A target that died or failed since it was ready is the likely reason.
            Err(error) => return self.refusal().unwrap_or(Input::Failed(error_chain(&error))),
        }
        let token = self.token;
        self.send_main(kind::ATTACH, &token)
    }

    /// Nothing but the host's own work and one buffer between the first and the last moment: status
    /// events wait until the target has something to do.
    fn stop_and_save(&mut self, host: &mut (impl SourceHost + ?Sized)) -> Result<(), HostError> {
        if !self.pause {
            advance(&self.tracker, MigrationStatus::Active);
        }
        let header = self.header();
        host.settle();
        self.claim.stamp(Moment::Stop);
        host.stop_and_quiesce()?;
        self.claim.stamp(Moment::Quiesced);
        let mut state = std::mem::take(&mut self.state);
        let mut writer = SectionWriter::new(&mut state, &header)?;
        host.save(&mut writer)?;
        writer.finish()?;
        self.state = state;
        self.claim.stamp(Moment::Saved);
        Ok(())
    }

    fn send_state(&mut self) -> Input {
        let state = std::mem::take(&mut self.state);
        let input = self.send_main(kind::STATE, &state);
        advance(&self.tracker, MigrationStatus::Device);
        input
    }

    fn commit(&mut self) -> Input {
        match self.claim.commit() {
            Ok(()) => self.send_main(kind::COMMIT, &[]),
            Err(ClaimState::Started) => Input::TargetWasFirst,
            Err(state) => Input::Failed(format!(
                "The claim cannot be committed: its word is {state:?}"
            )),
        }
    }

    fn send_main(&mut self, kind: u8, payload: &[u8]) -> Input {
        let stop = (kind != kind::COMMIT).then(|| self.tracker.cancel_fd());
        let deadline = Deadline::after(self.timeouts.message);
        match self
            .link
            .send(ChannelType::Main, kind, payload, &[], stop, deadline)
        {
            Ok(()) => Input::Done,
            Err(error) => self.send_failed(&error),
        }
    }

    /// What it means that something could not be sent: a target that fails says why and hangs up,
    /// whatever was being sent to it.
    fn send_failed(&mut self, error: &ChannelError) -> Input {
        match error {
            ChannelError::Interrupted { .. } => Input::Cancelled,
            ChannelError::TimedOut { .. } => Input::TimedOut,
            ChannelError::HungUp { .. } => self.refusal().unwrap_or(Input::HungUp),
            _ => Input::Failed(error_chain(error)),
        }
    }

    /// The target's own words, if it said why it gives up.
    fn refusal(&mut self) -> Option<Input> {
        while let Ok(Some(Event::Message(message))) = self.link.poll() {
            if let Message::Failed(reason) = message {
                return Some(Input::Peer(Reply::Failed(reason)));
            }
        }
        None
    }

    fn finish(
        mut self,
        host: &mut (impl SourceHost + ?Sized),
        end: End,
        resume: bool,
    ) -> SourceOutcome {
        if let Some(proof) = self.reclaimed.take()
            && resume
        {
            host.resume(proof);
        }
        match end {
            End::Completed => {
                self.tracker.note_blackout(self.claim.blackout());
                tell(host, MigrationEvent::Done);
                host.postmigrate();
                advance(&self.tracker, MigrationStatus::Completed);
                SourceOutcome::Completed
            }
            End::Cancelled => {
                advance(&self.tracker, MigrationStatus::Cancelling);
                self.farewell("the migration was cancelled", true);
                tell(host, MigrationEvent::Cancelled);
                advance(&self.tracker, MigrationStatus::Cancelled);
                SourceOutcome::Cancelled
            }
            End::Failed(reason) => {
                self.farewell(&reason, false);
                tell(host, MigrationEvent::Failed);
                self.fail(&reason);
                SourceOutcome::Failed { reason }
            }
            End::Lost(reason) => {
                self.tracker.note_blackout(self.claim.blackout());
                tell(host, MigrationEvent::Done);
                host.postmigrate();
                self.fail(&reason);
                SourceOutcome::Lost { reason }
            }
        }
    }

    /// Tells the target why the guest stays. It is no matter if that does not arrive: the claim says
    /// so as well.
    fn farewell(&mut self, reason: &str, cancelled: bool) {
        let Ok(abort) = protocol::encode_abort(reason, cancelled) else {
            return;
        };
        let deadline = Deadline::after(FAREWELL);
        let sent = self
            .link
            .send(ChannelType::Cpr, kind::ABORT, &abort, &[], None, deadline);
        if let Err(error) = sent {
            tracing::debug!("the target was not told that the guest stays: {error}");
        }
    }

    fn fail(&self, reason: &str) {
        tracing::warn!("migration failed: {reason}");
        self.tracker.note_error(reason);
        advance(&self.tracker, MigrationStatus::Failed);
    }
}

/// The machine's input for what came from the target.
fn answer(event: Result<Event, LinkError>) -> Input {
    let message = match event {
        Ok(Event::Message(message)) => message,
        Ok(Event::HungUp) => return Input::HungUp,
        Ok(Event::TimedOut) => return Input::TimedOut,
        Ok(Event::Stopped) => return Input::Cancelled,
        Err(error) => return Input::Failed(error_chain(&error)),
    };
    Input::Peer(match message {
        Message::Ready => Reply::Ready,
        Message::Attached => Reply::Attached,
        Message::Loaded => Reply::Loaded,
        Message::Started => Reply::Started,
        Message::Failed(reason) => Reply::Failed(reason),
        other => Reply::Other(other.name()),
    })
}

/// Notifies the devices where an error changes nothing.
pub(crate) fn tell(host: &mut (impl SourceHost + ?Sized), event: MigrationEvent) {
    if let Err(error) = host.notify(event) {
        tracing::warn!(
            "a device did not take the event {event:?}: {}",
            error_chain(&*error)
        );
    }
}
