//! Carries out what the source's machine decides.

use std::time::{Duration, Instant};

use super::machine::{Action, End, Input, Machine, Reply};
use super::rounds::Rounds;
use super::{Precopy, PrecopyOutcome};
use crate::channel::{ChannelError, Deadline};
use crate::claim::{Blackout, Reclaimed};
use crate::handover::protocol::encode_abort;
use crate::handover::{advance, tell};
use crate::precopy::PrecopyHost;
use crate::precopy::link::{Event, LinkError};
use crate::precopy::protocol::{self, Hello, Message, kind};
use crate::status::MigrationStatus;
use crate::stream::{Header, SectionWriter};
use crate::{HostError, MigrationEvent, Mode, caught, error_chain, fault};

/// How long a last word to the target may take: it is for its log only.
const FAREWELL: Duration = Duration::from_secs(1);

/// The shortest round: what a guest writes all the time is not sent more often than this.
const SHORTEST_ROUND: Duration = Duration::from_millis(20);

/// After so long it is asked again how fast to go.
const LONGEST_REST: Duration = Duration::from_millis(100);

/// Bytes of a frame beside its payload.
const FRAME: u64 = 5;

/// What was done, or the machine's input for why it was not.
type Outcome<T = ()> = Result<T, Input>;

impl Precopy {
    /// Moves the guest, or goes on with it. Takes as long as RAM takes to be copied; call it on a
    /// thread of its own, from which all calls of `host` come.
    pub fn run(mut self, host: &mut (impl PrecopyHost + ?Sized)) -> PrecopyOutcome {
        let (mut machine, mut action) = Machine::new(self.pause);
        loop {
            tracing::debug!(?action, "migration, source");
            if let Action::Finish { end, resume } = action {
                return self.finish(host, end, resume);
            }
            let may_begin = caught(|| fault::before("source", &action));
            let done = may_begin.map(|()| caught(|| Ok(self.carry_out(&action, &mut *host))));
            let input = match done {
                Ok(Ok(Ok(input) | Err(input))) => input,
                Ok(Err(error)) => Input::Broken(error_chain(&*error)),
                Err(error) => error.into(),
            };
            tracing::debug!(?input, "migration, source");
            action = machine.step(input);
        }
    }

    fn carry_out(
        &mut self,
        action: &Action,
        host: &mut (impl PrecopyHost + ?Sized),
    ) -> Outcome<Input> {
        match action {
            Action::Offer => self.offer(host)?,
            Action::AwaitReady => {
                return Err(self.await_reply(Deadline::after_or_never(self.timeouts.ready)));
            }
            Action::Copy => return self.copy(host),
            Action::Pause => return Err(self.await_operator()),
            Action::StopAndSave => {
                self.cancelled()?;
                self.stop_and_save(host).map_err(Input::from)?;
            }
            Action::SendState => self.send_state()?,
            Action::AwaitLoaded => {
                // What was sent may still be on its way, for as long as the guest may stand still.
                let time = self.timeouts.load + host.limits().downtime;
                let input = self.await_reply(Deadline::after(time));
                self.times.loaded = Some(Instant::now());
                return Err(input);
            }
            // Cancelling is too late from here on, so that it is not even looked at.
            Action::Commit => {
                let deadline = Deadline::after(self.timeouts.message);
                let sent = self.link.send(kind::COMMIT, &[], None, deadline);
                sent.map_err(|error| self.send_failed(&error))?;
            }
            Action::AwaitStarted => {
                let event = self.link.wait(None, Deadline::after(self.timeouts.start));
                return Err(self.answer(event));
            }
            Action::Finish { .. } => {}
        }
        Ok(Input::Done)
    }

    fn offer(&mut self, host: &mut (impl PrecopyHost + ?Sized)) -> Outcome {
        let hello = protocol::encode_hello(&Hello {
            mode: Mode::Normal,
            producer: self.producer.clone(),
            fingerprint: self.fingerprint.clone(),
            ram_file: host.ram_file(),
        });
        self.send(
            kind::HELLO,
            &hello.map_err(|e| Input::from(HostError::from(e)))?,
        )
    }

    /// One round.
    fn copy(&mut self, host: &mut (impl PrecopyHost + ?Sized)) -> Outcome<Input> {
        if self.rounds.is_none() {
            advance(&self.tracker, MigrationStatus::Active);
            host.prepare().map_err(Input::from)?;
            let ram = host.track().map_err(Input::from)?;
            self.rounds = Some(Rounds::new(ram, self.find_zeros).map_err(Input::from)?);
        } else if self.tracker.status() == MigrationStatus::PreSwitchover {
            advance(&self.tracker, MigrationStatus::Active);
            // What was written in the pause.
            rounds(&mut self.rounds)?
                .collect(host)
                .map_err(Input::from)?;
        }
        rounds(&mut self.rounds)?.begin(&self.tracker);
        while let Some(bytes) = self.send_pages(false)? {
            rounds(&mut self.rounds)?.brake.sent(bytes);
            // At least once, to hear of a target that fails.
            loop {
                let rate = host.limits().max_bandwidth;
                let brake = &mut rounds(&mut self.rounds)?.brake;
                let wait = brake.wait(rate, Instant::now());
                self.rest(wait.min(LONGEST_REST))?;
                if wait <= LONGEST_REST {
                    break;
                }
            }
        }
        let rounds = rounds(&mut self.rounds)?;
        let left = rounds.end(host, &self.tracker).map_err(Input::from)?;
        if left <= host.limits().downtime {
            return Ok(Input::Done);
        }
        let wait = SHORTEST_ROUND.saturating_sub(rounds.lasted());
        self.rest(wait)?;
        Ok(Input::Again)
    }

    /// Sends the next message with pages, if there is one; gives its bytes.
    fn send_pages(&mut self, stopped: bool) -> Outcome<Option<u64>> {
        let rounds = rounds(&mut self.rounds)?;
        let Some(payload) = rounds.next().map_err(Input::from)? else {
            return Ok(None);
        };
        let bytes = payload.len() as u64 + FRAME;
        // A target that is slow is no matter while the guest runs.
        let time = match stopped {
            true => self.timeouts.message,
            false => self.timeouts.state,
        };
        let stop = Some(self.tracker.cancel_fd());
        let sent = self
            .link
            .send(kind::PAGES, payload, stop, Deadline::after(time));
        if let Err(error) = sent {
            return Err(self.send_failed(&error));
        }
        rounds.sent(bytes, stopped, &self.tracker);
        Ok(Some(bytes))
    }

    /// Lets time pass, unless something ends the migration meanwhile: the target has nothing to say.
    fn rest(&mut self, time: Duration) -> Outcome {
        let stop = Some(self.tracker.cancel_fd());
        let event = self.link.wait(stop, Deadline::after(time));
        self.cancelled()?;
        match event {
            Ok(Event::TimedOut) => Ok(()),
            event => Err(self.answer(event)),
        }
    }

    /// Waits for the word to go on, or for anything that ends the migration instead.
    fn await_operator(&mut self) -> Input {
        advance(&self.tracker, MigrationStatus::PreSwitchover);
        let stop = Some(self.tracker.cancel_fd());
        let event = self.link.wait(stop, Deadline::never());
        if self.tracker.cancelled() {
            Input::Cancelled
        } else if matches!(event, Ok(Event::Stopped)) && self.tracker.may_proceed() {
            Input::Done
        } else {
            self.answer(event)
        }
    }

    fn stop_and_save(&mut self, host: &mut (impl PrecopyHost + ?Sized)) -> Result<(), HostError> {
        let header = Header {
            producer: self.producer.clone(),
            fingerprint: self.fingerprint.clone(),
        };
        host.settle();
        self.times.stop = Some(Instant::now());
        host.stop_and_quiesce()?;
        self.times.quiesced = Some(Instant::now());
        let mut writer = SectionWriter::new(&mut self.state, &header)?;
        host.save(&mut writer)?;
        writer.finish()?;
        // Nobody writes any more, so that this is all.
        let rounds = self.rounds.as_mut().ok_or("RAM was not copied")?;
        rounds.collect(host)?;
        self.times.saved = Some(Instant::now());
        Ok(())
    }

    /// Sends the last pages and the state, as fast as it goes.
    fn send_state(&mut self) -> Outcome {
        advance(&self.tracker, MigrationStatus::Device);
        rounds(&mut self.rounds)?.begin(&self.tracker);
        while self.send_pages(true)?.is_some() {
            self.cancelled()?;
        }
        let state = std::mem::take(&mut self.state);
        self.send(kind::STATE, &state)
    }

    fn send(&mut self, kind: u8, payload: &[u8]) -> Outcome {
        let stop = Some(self.tracker.cancel_fd());
        let deadline = Deadline::after(self.timeouts.message);
        let sent = self.link.send(kind, payload, stop, deadline);
        sent.map_err(|error| self.send_failed(&error))
    }

    fn cancelled(&self) -> Outcome {
        match self.tracker.cancelled() {
            true => Err(Input::Cancelled),
            false => Ok(()),
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
            self.answer(event)
        }
    }

    /// What it means that something could not be sent: a target that fails says why and hangs up,
    /// whatever was being sent to it.
    fn send_failed(&mut self, error: &ChannelError) -> Input {
        match error {
            ChannelError::Interrupted { .. } => Input::Cancelled,
            ChannelError::TimedOut { .. } => Input::TimedOut,
            ChannelError::HungUp { .. } => match self.link.poll() {
                Ok(Some(event @ Event::Message(Message::Failed(_)))) => self.answer(Ok(event)),
                _ => Input::HungUp,
            },
            _ => Input::Failed(error_chain(error)),
        }
    }

    /// The machine's input for what came from the target.
    fn answer(&mut self, event: Result<Event, LinkError>) -> Input {
        let message = match event {
            Ok(Event::Message(message)) => message,
            Ok(Event::HungUp) => return Input::HungUp,
            Ok(Event::TimedOut) => return Input::TimedOut,
            Ok(Event::Stopped) => return Input::Cancelled,
            Err(error) => return Input::Failed(error_chain(&error)),
        };
        Input::Peer(match message {
            Message::Ready => Reply::Ready,
            Message::Loaded(loaded) => {
                self.times.load_us = loaded.microseconds;
                Reply::Loaded
            }
            Message::Started => Reply::Started,
            Message::Failed(protocol::Failed { reason, ran }) => Reply::Failed { reason, ran },
            other => Reply::Other(other.name()),
        })
    }

    fn finish(
        mut self,
        host: &mut (impl PrecopyHost + ?Sized),
        end: End,
        resume: bool,
    ) -> PrecopyOutcome {
        if matches!(end, End::Cancelled | End::Failed(_)) {
            // RAM is let go of before the guest goes on.
            self.tracker.note_expected_downtime(None);
            self.rounds = None;
            host.forget();
            if resume {
                host.resume(Reclaimed::not_given());
            }
        }
        match end {
            End::Completed => {
                self.let_go(host);
                advance(&self.tracker, MigrationStatus::Completed);
                PrecopyOutcome::Completed
            }
            End::Cancelled => {
                advance(&self.tracker, MigrationStatus::Cancelling);
                self.farewell("the migration was cancelled", true);
                tell(host, MigrationEvent::Cancelled);
                advance(&self.tracker, MigrationStatus::Cancelled);
                PrecopyOutcome::Cancelled
            }
            End::Failed(reason) => {
                self.farewell(&reason, false);
                tell(host, MigrationEvent::Failed);
                self.fail(&reason);
                PrecopyOutcome::Failed { reason }
            }
            End::Lost(reason) => {
                self.let_go(host);
                self.fail(&reason);
                PrecopyOutcome::Lost { reason }
            }
        }
    }

    /// The guest is not this process's any more.
    fn let_go(&mut self, host: &mut (impl PrecopyHost + ?Sized)) {
        self.tracker.note_blackout(self.blackout());
        if let Some(mut rounds) = self.rounds.take() {
            rounds.finish(&self.tracker);
        }
        tell(host, MigrationEvent::Done);
        host.postmigrate();
    }

    /// As this side has seen it: it ends with the message that the guest was started.
    fn blackout(&self) -> Option<Blackout> {
        let us = |from: Instant, to: Instant| to.duration_since(from).as_micros() as u64;
        let (stop, quiesced) = (self.times.stop?, self.times.quiesced?);
        let (saved, loaded) = (self.times.saved?, self.times.loaded?);
        let now = Instant::now();
        Some(Blackout {
            total_us: us(stop, now),
            quiesce_us: us(stop, quiesced),
            save_us: us(quiesced, saved),
            transfer_us: us(saved, loaded).saturating_sub(self.times.load_us),
            load_us: self.times.load_us,
            start_us: us(loaded, now),
        })
    }

    /// Tells the target why the guest stays. A hang-up says the same.
    fn farewell(&mut self, reason: &str, cancelled: bool) {
        let Ok(abort) = encode_abort(reason, cancelled) else {
            return;
        };
        let deadline = Deadline::after(FAREWELL);
        if let Err(error) = self.link.send(kind::ABORT, &abort, None, deadline) {
            tracing::debug!("the target was not told that the guest stays: {error}");
        }
    }

    fn fail(&self, reason: &str) {
        tracing::warn!("migration failed: {reason}");
        self.tracker.note_error(reason);
        advance(&self.tracker, MigrationStatus::Failed);
    }
}

fn rounds(rounds: &mut Option<Rounds>) -> Outcome<&mut Rounds> {
    rounds
        .as_mut()
        .ok_or_else(|| Input::Failed("RAM is not being copied".to_owned()))
}

impl From<HostError> for Input {
    fn from(error: HostError) -> Self {
        Self::Failed(error_chain(&*error))
    }
}
