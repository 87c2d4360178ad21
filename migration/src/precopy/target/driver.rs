//! Carries out what the target's machine decides.

use std::time::{Duration, Instant};

use super::machine::{Action, End, Input, Machine, Request};
use super::{Coming, Incoming, IncomingOptions, IncomingOutcome};
use crate::channel::{ChannelError, Deadline};
use crate::handover::advance;
use crate::precopy::link::{Event, Link, LinkError};
use crate::precopy::pages::{self, Bytes};
use crate::precopy::protocol::{self, Message, kind};
use crate::precopy::{IncomingHost, StartFailure};
use crate::status::MigrationStatus;
use crate::stream::StateImage;
use crate::{HostError, Mode, caught, error_chain, fault};

/// How long a last word to the source may take.
const FAREWELL: Duration = Duration::from_secs(1);

impl Incoming {
    /// Waits for a source, without end, and sees its migration through. All calls of `host` come from
    /// the calling thread.
    ///
    /// A connection that closes without a word only asked whether somebody listens.
    pub fn run(mut self, host: &mut (impl IncomingHost + ?Sized)) -> IncomingOutcome {
        let connected = self.accept();
        // Nobody else may connect from here on.
        self.listener = None;
        let begun = connected.and_then(|accepted| {
            self.options.tracker.begin().map_err(|e| e.to_string())?;
            Ok(accepted)
        });
        match begun {
            Ok((link, first)) => Coming::new(link, self.options).run(first, host),
            Err(reason) => {
                host.abandon(&reason);
                IncomingOutcome::Abandoned { reason }
            }
        }
    }

    fn accept(&mut self) -> Result<(Link, Result<Event, LinkError>), String> {
        let listener = self.listener.as_mut().ok_or("Nobody listens")?;
        loop {
            let channel = listener
                .accept("main", protocol::bounds, Deadline::never())
                .map_err(|error| error_chain(&error))?;
            let mut link = Link::new(channel);
            match link.wait(None, Deadline::after(self.options.timeouts.message)) {
                Ok(Event::HungUp) if !listener.exhausted() => {}
                first => return Ok((link, first)),
            }
        }
    }
}

impl Coming {
    fn new(link: Link, options: IncomingOptions) -> Self {
        Self {
            link,
            options,
            hello: None,
            ram: None,
            state: Vec::new(),
            load_us: 0,
        }
    }

    fn run(
        mut self,
        first: Result<Event, LinkError>,
        host: &mut (impl IncomingHost + ?Sized),
    ) -> IncomingOutcome {
        let (mut machine, _) = Machine::new();
        let mut input = self.received(first);
        loop {
            tracing::debug!(?input, "migration, target");
            let action = machine.step(input);
            tracing::debug!(?action, "migration, target");
            if let Action::Finish { end, tell } = action {
                return self.finish(host, end, tell);
            }
            let may_begin = caught(|| fault::before("target", &action));
            let done = may_begin.map(|()| caught(|| Ok(self.carry_out(&action, &mut *host))));
            input = match done {
                Ok(Ok(input)) => input,
                // Nobody knows how far it came.
                Ok(Err(error)) if action == Action::Start => {
                    Input::RanAndFailed(error_chain(&*error))
                }
                Ok(Err(error)) | Err(error) => Input::Failed(error_chain(&*error)),
            };
        }
    }

    fn carry_out(&mut self, action: &Action, host: &mut (impl IncomingHost + ?Sized)) -> Input {
        match action {
            Action::AwaitHello => {
                self.await_request(Deadline::after(self.options.timeouts.message))
            }
            Action::Build => done(self.build(host)),
            Action::ReportReady => {
                let input = self.send(kind::READY, &[]);
                advance(&self.options.tracker, MigrationStatus::Active);
                input
            }
            Action::Receive => self.receive(),
            Action::Load => done(self.load(host)),
            Action::ReportLoaded => match protocol::encode_loaded(self.load_us) {
                Ok(loaded) => self.send(kind::LOADED, &loaded),
                Err(error) => Input::Failed(error_chain(&error)),
            },
            Action::AwaitCommit => {
                self.await_request(Deadline::after(self.options.timeouts.commit))
            }
            Action::Start => match host.start() {
                Ok(()) => Input::Done,
                Err(StartFailure { ran, error }) => {
                    let reason = format!("The guest cannot be started: {}", error_chain(&*error));
                    match ran {
                        true => Input::RanAndFailed(reason),
                        false => Input::Failed(reason),
                    }
                }
            },
            Action::ReportStarted => self.send(kind::STARTED, &[]),
            Action::Finish { .. } => Input::Done,
        }
    }

    /// Compares the machines and builds the one here.
    fn build(&mut self, host: &mut (impl IncomingHost + ?Sized)) -> Result<(), HostError> {
        let hello = self
            .hello
            .as_ref()
            .ok_or("The source did not introduce itself")?;
        if hello.mode != Mode::Normal {
            let mode = hello.mode;
            return Err(format!("The source migrates in mode {mode}, not in mode normal").into());
        }
        let mismatches = host
            .fingerprint(&hello.fingerprint)?
            .compare(&hello.fingerprint);
        if !mismatches.is_empty() {
            let list: Vec<String> = mismatches.iter().map(ToString::to_string).collect();
            let list = list.join("; ");
            return Err(format!("The machine here is not the source's: {list}").into());
        }
        tracing::info!("taking over from {}", hello.producer);
        let ram = host.build(&hello.fingerprint, hello.ram_file.as_deref())?;
        let size = hello.fingerprint.ram.iter().map(|region| region.size).sum();
        self.ram = Some((ram, size));
        Ok(())
    }

    /// Puts pages into RAM. There is no hurry: the guest runs in the source, for as long as an
    /// operator there wants.
    fn receive(&mut self) -> Input {
        loop {
            let event = self.link.wait(None, Deadline::never());
            let Ok(Event::Message(Message::Pages(payload))) = event else {
                return self.received(event);
            };
            if let Err(error) = self.put(&payload) {
                return Input::Failed(error_chain(&*error));
            }
        }
    }

    fn put(&self, payload: &[u8]) -> Result<(), HostError> {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        let (ram, size) = self.ram.as_ref().ok_or("The machine is not built")?;
        for run in pages::runs(payload, *size)? {
            match run.bytes {
                Bytes::These(bytes) => ram.write(run.offset, bytes)?,
                Bytes::Zeros(length) => {
                    let (mut at, end) = (run.offset, run.offset + length);
                    while at < end {
                        let piece = (end - at).min(ZEROS.len() as u64);
                        ram.write(at, &ZEROS[..piece as usize])?;
                        at += piece;
                    }
                }
            }
        }
        Ok(())
    }

    fn load(&mut self, host: &mut (impl IncomingHost + ?Sized)) -> Result<(), HostError> {
        let began = Instant::now();
        let stream = std::mem::take(&mut self.state);
        let mut image = StateImage::read(&stream[..])?;
        let introduced = self.hello.as_ref().map(|hello| &hello.fingerprint);
        if introduced != Some(&image.header().fingerprint) {
            return Err(
                "The state is of another machine than the one the source introduced".into(),
            );
        }
        host.load(&mut image)?;
        image.all_taken()?;
        self.load_us = began.elapsed().as_micros() as u64;
        Ok(())
    }

    fn await_request(&mut self, deadline: Deadline) -> Input {
        let event = self.link.wait(None, deadline);
        self.received(event)
    }

    /// Keeps what came with a message; the machine judges whether it was its turn.
    fn received(&mut self, event: Result<Event, LinkError>) -> Input {
        let message = match event {
            Ok(Event::Message(message)) => message,
            Ok(Event::HungUp) => return Input::HungUp,
            Ok(Event::TimedOut | Event::Stopped) => return Input::TimedOut,
            Err(error) => return Input::Failed(error_chain(&error)),
        };
        Input::Peer(match message {
            Message::Hello(hello) if self.hello.is_none() => {
                self.hello = Some(*hello);
                Request::Hello
            }
            Message::State(stream) => {
                self.state = stream;
                Request::State
            }
            Message::Commit => Request::Commit,
            Message::Abort(abort) => Request::Abort(abort.reason),
            other => Request::Other(other.name()),
        })
    }

    fn send(&mut self, kind: u8, payload: &[u8]) -> Input {
        let deadline = Deadline::after(self.options.timeouts.message);
        match self.link.send(kind, payload, None, deadline) {
            Ok(()) => Input::Done,
            // A source that gives up says so before it hangs up.
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
    fn finish(
        mut self,
        host: &mut (impl IncomingHost + ?Sized),
        end: End,
        tell: bool,
    ) -> IncomingOutcome {
        let tracker = &self.options.tracker;
        let (reason, ran) = match end {
            End::Running => {
                advance(tracker, MigrationStatus::Completed);
                return IncomingOutcome::Running;
            }
            End::Abandoned(reason) => (reason, false),
            End::Lost(reason) => (reason, true),
        };
        tracing::warn!("incoming migration failed: {reason}");
        // First, since the source's guest may be waiting.
        if tell && let Ok(failed) = protocol::encode_failed(&reason, ran) {
            let deadline = Deadline::after(FAREWELL);
            if let Err(error) = self.link.send(kind::FAILED, &failed, None, deadline) {
                tracing::debug!("the source was not told why: {error}");
            }
        }
        self.ram = None;
        host.abandon(&reason);
        tracker.note_error(&reason);
        advance(tracker, MigrationStatus::Failed);
        match ran {
            true => IncomingOutcome::Lost { reason },
            false => IncomingOutcome::Abandoned { reason },
        }
    }
}

fn done(result: Result<(), HostError>) -> Input {
    match result {
        Ok(()) => Input::Done,
        Err(error) => Input::Failed(error_chain(&*error)),
    }
}
