//! The target's decisions, without any I/O.
//!
//! As on the source, the driver carries out an [`Action`] and answers with an [`Input`]. The guest is
//! started after COMMIT and on no other ground: a source that is gone before it has the guest.

/// What the source said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Request {
    Hello,
    State,
    Commit,
    /// It goes on with the guest; its own words.
    Abort(String),
    /// Any other message; its name.
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
    /// [`Action::Start`] failed after the guest may have run; why.
    RanAndFailed(String),
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Wait for HELLO.
    AwaitHello,
    /// Build the machine.
    Build,
    /// Send READY.
    ReportReady,
    /// Put pages into RAM until something else comes.
    Receive,
    /// Load the state.
    Load,
    /// Send LOADED.
    ReportLoaded,
    /// Wait for COMMIT.
    AwaitCommit,
    /// Let the guest run.
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

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// The guest runs here.
    Running,
    /// The guest is the source's; why.
    Abandoned(String),
    /// The guest was run here and cannot go on; why.
    Lost(String),
}

/// Where the migration is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Greeting,
    Building,
    Answering,
    Receiving,
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
        let state = State::Greeting;
        (Self { state }, Action::AwaitHello)
    }

    fn phase(&self) -> &'static str {
        match self.state {
            State::Greeting => "it introduced itself",
            State::Building | State::Answering => "the machine was built here",
            State::Receiving => "the guest's memory was received",
            State::Loading => "the state was loaded",
            State::Reporting | State::Committing => "its commitment was waited for",
            State::Starting | State::Started | State::Ended => "the guest was started here",
        }
    }

    /// The next action after `input`.
    pub(super) fn step(&mut self, input: Input) -> Action {
        use Input::{Done, Failed, HungUp, Peer, RanAndFailed, TimedOut};

        match (self.state, input) {
            // Whether the source hears it makes no difference to the guest.
            (State::Started, _) => self.end(End::Running, false),
            (State::Ended, _) => {
                let end = End::Abandoned("the migration has ended".to_owned());
                Action::Finish { end, tell: false }
            }

            (State::Greeting, Peer(Request::Hello)) => self.go(State::Building, Action::Build),
            (State::Building, Done) => self.go(State::Answering, Action::ReportReady),
            (State::Answering, Done) => self.go(State::Receiving, Action::Receive),
            (State::Receiving, Peer(Request::State)) => self.go(State::Loading, Action::Load),
            (State::Loading, Done) => self.go(State::Reporting, Action::ReportLoaded),
            (State::Reporting, Done) => self.go(State::Committing, Action::AwaitCommit),
            (State::Committing, Peer(Request::Commit)) => self.go(State::Starting, Action::Start),
            (State::Starting, Done) => self.go(State::Started, Action::ReportStarted),
            (State::Starting, RanAndFailed(reason)) => self.end(End::Lost(reason), true),

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
            (_, input @ (Done | RanAndFailed(_))) => {
                let reason = format!("The migration got {input:?} while {}", self.phase());
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
