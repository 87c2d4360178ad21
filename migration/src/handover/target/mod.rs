//! The target's side of a handover.

mod driver;
mod machine;
mod offer;

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::link::{Event, Link};
use super::protocol::{self, Message, Token};
use super::{HandoverError, TargetHost, Timeouts};
use crate::channel::{Deadline, Endpoint, Listener};
use crate::claim::{ClaimWatch, TargetClaim};
use crate::error_chain;
use crate::fds::FdTable;
use crate::fingerprint::MachineFingerprint;
use crate::status::Tracker;
use crate::stream::StateImage;
use machine::{Action, Machine};

/// With what a target receives a guest.
#[derive(Debug, Clone)]
pub struct TargetOptions {
    /// Status; cancelling does nothing on a target.
    pub tracker: Arc<Tracker>,
    /// How long to wait.
    pub timeouts: Timeouts,
}

/// How an incoming handover ended. The host was told already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetOutcome {
    /// The guest is here.
    Running,
    /// The guest is the source's; end the process.
    Abandoned {
        /// Why.
        reason: String,
    },
    /// The guest was claimed here and could not be run: it runs nowhere.
    Lost {
        /// Why.
        reason: String,
    },
}

/// A machine that is built and waits to be given its guest.
#[must_use = "the source waits until `run` or `abandon` is called"]
pub struct TargetHandover {
    link: Link,
    machine: Machine,
    /// What the machine wants done next.
    action: Action,
    /// Where the state will come.
    main: Main,
    fds: Arc<FdTable>,
    source: Option<Source>,
    /// The preview, between its receipt and the host.
    preview: Option<StateImage>,
    /// The state, between its receipt and the host.
    state: Vec<u8>,
    tracker: Arc<Tracker>,
    timeouts: Timeouts,
}

/// The main channel's way to the link.
enum Main {
    Unknown,
    Known(Endpoint),
    Open(Listener),
    Attached,
}

/// What HELLO brought.
struct Source {
    fingerprint: MachineFingerprint,
    token: Token,
    /// Whether it waits for its operator before it opens the main channel.
    pauses: bool,
    watch: ClaimWatch,
    /// Given to the host when it may start.
    claim: Option<TargetClaim>,
}

impl TargetHandover {
    /// Waits for a source on the cpr channel, receives its offer and lets the host build its machine.
    ///
    /// Call it before anything else can talk to this process. Waiting for a source to connect has no
    /// end; a connection that closes without a word only asked whether somebody listens.
    pub fn receive(
        mut listener: Listener,
        options: TargetOptions,
        host: &mut (impl TargetHost + ?Sized),
    ) -> Result<Self, HandoverError> {
        let TargetOptions { tracker, timeouts } = options;
        let (link, first) = loop {
            let cpr = listener.accept("cpr", protocol::bounds, Deadline::never())?;
            let mut link = Link::new(cpr);
            match link.wait(None, Deadline::after(timeouts.message)) {
                Ok(Event::HungUp) if !listener.exhausted() => {}
                first => break (link, first),
            }
        };
        drop(listener);
        tracker.begin()?;

        let (machine, action) = Machine::new();
        let mut target = Self {
            link,
            machine,
            action,
            main: Main::Unknown,
            fds: Arc::new(FdTable::new()),
            source: None,
            preview: None,
            state: Vec::new(),
            tracker,
            timeouts,
        };
        let input = target.received(first, host);
        target.action = target.machine.step(input);
        target.drive(host, |action| matches!(action, Action::OpenMain));
        match target.action {
            Action::OpenMain => Ok(target),
            _ => match target.finish(host) {
                TargetOutcome::Abandoned { reason } | TargetOutcome::Lost { reason } => {
                    Err(HandoverError::Abandoned(reason))
                }
                TargetOutcome::Running => Err(HandoverError::Abandoned("never opened".into())),
            },
        }
    }

    /// Opens the main channel, tells the source that all is ready, and sees the handover through.
    ///
    /// All calls of `host` come from the calling thread.
    pub fn run(mut self, main: Endpoint, host: &mut (impl TargetHost + ?Sized)) -> TargetOutcome {
        self.main = Main::Known(main);
        self.drive(host, |_| false);
        self.finish(host)
    }

    /// The descriptors that came, for a device that comes before the handover goes on.
    pub fn fds(&self) -> &Arc<FdTable> {
        &self.fds
    }

    /// Readable when [`Self::gave_up`] has an answer: to watch while `migrate-incoming` is waited
    /// for.
    pub fn watch_fd(&self) -> Option<BorrowedFd<'_>> {
        self.link.cpr_fd()
    }

    /// Whether the source has given up, and why, without waiting; call [`Self::abandon`] then.
    pub fn gave_up(&mut self) -> Option<String> {
        match self.link.poll() {
            Ok(None) => None,
            Ok(Some(Event::Message(Message::Abort(abort)))) => Some(format!(
                "The source goes on with the guest: {}",
                abort.reason
            )),
            Ok(Some(Event::Message(other))) => {
                Some(format!("The source sent {} out of order", other.name()))
            }
            Ok(Some(_)) => Some("The source hung up".to_owned()),
            Err(error) => Some(error_chain(&error)),
        }
    }

    /// Gives up before [`Self::run`], telling the source why.
    pub fn abandon(mut self, reason: &str, host: &mut (impl TargetHost + ?Sized)) -> TargetOutcome {
        self.action = self.machine.step(machine::Input::Failed(reason.to_owned()));
        self.finish(host)
    }
}
