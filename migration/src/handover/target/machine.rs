//! The target's decisions, without any I/O.
//!
//! As on the source, the driver carries out an [`Action`] and answers with an [`Input`]. Until the
//! state is loaded every mishap ends the target, since the guest is the source's. From then on a
//! source that is gone leaves the guest to whoever claims it, which is what [`Action::Start`] does.

/// What the source said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Request {
    /// HELLO, with the number of descriptors that follow.
    Hello(u32),
    /// FDS, with the number it carried.
    Fds(u32),
    Preview,
    Attach,
    State,
    Commit,
    /// It takes the guest back; its own words.
    Abort(String),
    /// A message that only a target may send; its name.
    Other(&'static str),
}

/// What came of an action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Input {
    /// It was carried out.
    Done,
    /// It could not be carried out here; why.
    Failed(String),
    /// The source said something.
    Peer(Request),
    /// The source is gone.
    HungUp,
    /// The source did not answer in time.
    TimedOut,
    /// [`Action::Start`] claimed the guest and runs it.
    Started,
    /// [`Action::Start`] found that the source has taken the guest back.
    Reclaimed,
    /// [`Action::Start`] claimed the guest and could not run it; why.
    StartedAndFailed(String),
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Wait for HELLO.
    AwaitHello,
    /// Wait for FDS.
    AwaitFds,
    /// Wait for PREVIEW.
    AwaitPreview,
    /// Build the machine.
    Prepare,
    /// Listen on the main channel and send READY.
    OpenMain,
    /// Wait for ATTACH.
    AwaitAttach,
    /// Send ATTACHED.
    WelcomeSource,
    /// Wait for STATE.
    AwaitState,
    /// Load it.
    Load,
    /// Send LOADED.
    ReportLoaded,
    /// Wait for COMMIT.
    AwaitCommit,
    /// Claim the guest and run it.
    Start,
    /// Send STARTED.
    ReportStarted,
    /// The end.
    Finish {
        /// What the end is.
        end: End,
        /// Whether to tell the source with FAILED.
        tell: bool,
    },
}

/// How a handover ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// The guest runs here.
    Running,
    /// The guest is the source's; why.
    Abandoned(String),
    /// The guest was claimed here and does not run; why.
    Lost(String),
}

/// Where the handover is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Greeting,
    /// So many descriptors are still to come.
    Receiving(u32),
    Previewing,
    Preparing,
    Opening,
    Attaching,
    Welcoming,
    Receipt,
    Loading,
    Reporting,
    Committing,
    Starting,
    Started,
    Ended,
}

/// The target's state machine.
#[derive(Debug)]
pub(super) struct Machine {
    state: State,
}

impl Machine {
    /// The machine and its first action.
    pub(super) fn new() -> (Self, Action) {
        (
            Self {
                state: State::Greeting,
            },
            Action::AwaitHello,
        )
    }

    fn phase(&self) -> &'static str {
        match self.state {
            State::Greeting => "it introduced itself",
            State::Receiving(_) => "its descriptors were received",
            State::Previewing => "its preview was received",
            State::Preparing => "the machine was built here",
            State::Opening | State::Attaching | State::Welcoming => "the main channel was opened",
            State::Receipt => "the state was received",
            State::Loading => "the state was loaded",
            State::Reporting | State::Committing => "its commitment was waited for",
            State::Starting | State::Started | State::Ended => "the guest was started here",
        }
    }

    /// The next action after `input`.
    pub(super) fn step(&mut self, input: Input) -> Action {
        use Input::{Done, Failed, HungUp, Peer, Reclaimed, Started, StartedAndFailed, TimedOut};

        match (self.state, input) {
            (State::Greeting, Peer(Request::Hello(0))) => {
                self.go(State::Previewing, Action::AwaitPreview)
            }
            (State::Greeting, Peer(Request::Hello(fds))) => {
                self.go(State::Receiving(fds), Action::AwaitFds)
            }
            (State::Receiving(left), Peer(Request::Fds(came))) if (1..=left).contains(&came) => {
                match left - came {
                    0 => self.go(State::Previewing, Action::AwaitPreview),
                    left => self.go(State::Receiving(left), Action::AwaitFds),
                }
            }
            (State::Previewing, Peer(Request::Preview)) => {
                self.go(State::Preparing, Action::Prepare)
            }
            (State::Preparing, Done) => self.go(State::Opening, Action::OpenMain),
            (State::Opening, Done) => self.go(State::Attaching, Action::AwaitAttach),
            (State::Attaching, Peer(Request::Attach)) => {
                self.go(State::Welcoming, Action::WelcomeSource)
            }
            (State::Welcoming, Done) => self.go(State::Receipt, Action::AwaitState),
            (State::Receipt, Peer(Request::State)) => self.go(State::Loading, Action::Load),
            (State::Loading, Done) => self.go(State::Reporting, Action::ReportLoaded),
            (State::Reporting, Done) => self.go(State::Committing, Action::AwaitCommit),
            (State::Committing, Peer(Request::Commit)) => self.go(State::Starting, Action::Start),

            // The source is gone, or as good as gone, without having taken the guest back: all of
            // the guest is here, and the claim keeps it from running twice.
            (State::Reporting | State::Committing, HungUp | TimedOut) => {
                self.go(State::Starting, Action::Start)
            }

            (State::Starting, Started) => self.go(State::Started, Action::ReportStarted),
            (State::Starting, StartedAndFailed(reason)) => self.end(End::Lost(reason), true),
            (State::Starting, Reclaimed) => self.abandon(
                "The source has taken the guest back before it was started here".to_owned(),
                false,
            ),
            // Whether the source still hears it makes no difference to the guest.
            (State::Started, _) => self.end(End::Running, false),
            (State::Ended, _) => {
                let end = End::Abandoned("the handover has ended".to_owned());
                Action::Finish { end, tell: false }
            }

            (_, Peer(Request::Abort(reason))) => self.abandon(
                format!("The source goes on with the guest: {reason}"),
                false,
            ),
            (_, HungUp) => {
                let reason = format!("The source hung up while {}", self.phase());
                self.abandon(reason, false)
            }
            (_, TimedOut) => {
                let reason = format!("The source did not answer in time while {}", self.phase());
                self.abandon(reason, true)
            }
            (_, Failed(reason)) => self.abandon(reason, true),
            (_, Peer(request)) => {
                let reason = format!(
                    "The source sent {request:?} out of order while {}",
                    self.phase()
                );
                self.abandon(reason, true)
            }
            (_, input @ (Done | Started | Reclaimed | StartedAndFailed(_))) => {
                let reason = format!("The handover got {input:?} while {}", self.phase());
                self.abandon(reason, true)
            }
        }
    }

    fn go(&mut self, state: State, action: Action) -> Action {
        self.state = state;
        action
    }

    fn abandon(&mut self, reason: String, tell: bool) -> Action {
        self.end(End::Abandoned(reason), tell)
    }

    fn end(&mut self, end: End, tell: bool) -> Action {
        self.go(State::Ended, Action::Finish { end, tell })
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
