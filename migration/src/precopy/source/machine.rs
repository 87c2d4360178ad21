//! The source's decisions, without any I/O.
//!
//! The driver carries out an [`Action`] and answers with the [`Input`] that came of it; every pair of
//! state and input has an answer. The guest is resumed after any mishap before COMMIT was sent, and
//! after it only if the target says that the guest never ran there.

/// What the target said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    Ready,
    Loaded,
    Started,
    /// It cannot go on; its own words.
    Failed {
        reason: String,
        /// Whether the guest may have run there.
        ran: bool,
    },
    /// A message that only a source may send; its name.
    Other(&'static str),
}

/// What came of an action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Input {
    /// It was carried out.
    Done,
    /// [`Action::Copy`] has sent a round, and too much was written meanwhile to stop the guest.
    Again,
    /// It could not be carried out here; why.
    Failed(String),
    /// A mistake ended it, and nobody knows how far it came; which.
    Broken(String),
    /// The target said something.
    Peer(Reply),
    /// The target is gone.
    HungUp,
    /// The target did not answer in time.
    TimedOut,
    /// An operator wants the guest to stay.
    Cancelled,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Send HELLO.
    Offer,
    /// Wait for READY.
    AwaitReady,
    /// Send the pages that are noted as written, which are all at first.
    Copy,
    /// Wait for the operator's word to go on; the guest runs.
    Pause,
    /// Stop the guest and save it: the blackout begins.
    StopAndSave,
    /// Send the last pages and STATE.
    SendState,
    /// Wait for LOADED.
    AwaitLoaded,
    /// Send COMMIT.
    Commit,
    /// Wait for STARTED.
    AwaitStarted,
    /// The end.
    Finish {
        /// What the end is.
        end: End,
        /// Whether the guest was stopped and must be resumed here.
        resume: bool,
    },
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// The guest is the target's.
    Completed,
    /// The guest is here, as an operator wanted.
    Cancelled,
    /// The guest is here; why.
    Failed(String),
    /// The guest was given to the target, which may have it or have lost it; why.
    Lost(String),
}

/// Where the migration is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Offering,
    Preparing,
    Copying,
    Pausing,
    Stopping,
    Sending,
    Loading,
    Committing,
    /// COMMIT was sent.
    Starting,
    Ended,
}

/// The source's state machine.
#[derive(Debug)]
pub(super) struct Machine {
    state: State,
    /// Whether the operator has still to say when to go on.
    pause: bool,
}

impl Machine {
    /// The machine and its first action; with `pause` it waits for the operator before the guest is
    /// stopped.
    pub(super) fn new(pause: bool) -> (Self, Action) {
        let state = State::Offering;
        (Self { state, pause }, Action::Offer)
    }

    fn phase(&self) -> &'static str {
        match self.state {
            State::Offering => "it was connected",
            State::Preparing => "it built its machine",
            State::Copying | State::Pausing => "the guest's memory was copied",
            State::Stopping | State::Sending => "the guest's state was sent",
            State::Loading => "it loaded the guest's state",
            State::Committing | State::Starting | State::Ended => "it started the guest",
        }
    }

    /// Whether the guest was stopped.
    const fn blackout(&self) -> bool {
        matches!(
            self.state,
            State::Stopping | State::Sending | State::Loading | State::Committing | State::Starting
        )
    }

    /// The next action after `input`.
    pub(super) fn step(&mut self, input: Input) -> Action {
        use Input::{Again, Broken, Cancelled, Done, Failed, HungUp, Peer, TimedOut};

        match (self.state, input) {
            (State::Ended, _) => Action::Finish {
                end: End::Failed("the migration has ended".into()),
                resume: false,
            },
            (State::Starting, input) => self.committed(input),

            (State::Offering, Done) => self.go(State::Preparing, Action::AwaitReady),
            (State::Preparing, Peer(Reply::Ready)) => self.go(State::Copying, Action::Copy),
            (State::Copying, Again) => Action::Copy,
            (State::Copying, Done) if self.pause => self.go(State::Pausing, Action::Pause),
            (State::Copying, Done) => self.go(State::Stopping, Action::StopAndSave),
            // The guest has run meanwhile.
            (State::Pausing, Done) => {
                self.pause = false;
                self.go(State::Copying, Action::Copy)
            }
            (State::Stopping, Done) => self.go(State::Sending, Action::SendState),
            (State::Sending, Done) => self.go(State::Loading, Action::AwaitLoaded),
            (State::Loading, Peer(Reply::Loaded)) => self.go(State::Committing, Action::Commit),
            (State::Committing, Done) => self.go(State::Starting, Action::AwaitStarted),

            // It must not do so, but it could: it has the state.
            (
                State::Sending | State::Loading | State::Committing,
                Peer(Reply::Started | Reply::Failed { ran: true, .. }),
            ) => self.end(
                End::Lost(
                    "The target says that it started the guest before it was given to it; the \
                     guest is not resumed here, since the target could run it"
                        .to_owned(),
                ),
                false,
            ),
            // COMMIT may have been sent.
            (State::Committing, broken @ Broken(_)) => self.committed(broken),
            (_, Cancelled) => self.go_on(End::Cancelled),
            (_, Failed(reason) | Broken(reason)) => self.go_on(End::Failed(reason)),
            (_, Peer(Reply::Failed { reason, .. })) => {
                self.go_on(End::Failed(format!("The target failed: {reason}")))
            }
            (_, HungUp) => {
                let reason = format!(
                    "The target hung up while {}; its own log says why",
                    self.phase()
                );
                self.go_on(End::Failed(reason))
            }
            (_, TimedOut) => {
                let reason = format!("The target did not answer in time while {}", self.phase());
                self.go_on(End::Failed(reason))
            }
            (_, Peer(reply)) => {
                let reason = format!(
                    "The target sent {reply:?} out of order while {}",
                    self.phase()
                );
                self.go_on(End::Failed(reason))
            }
            (_, input @ (Done | Again)) => {
                let reason = format!("The migration got {input:?} while {}", self.phase());
                self.go_on(End::Failed(reason))
            }
        }
    }

    /// What `input` means once COMMIT was sent: from there on the target may run the guest.
    fn committed(&mut self, input: Input) -> Action {
        let lost = |what: String| {
            End::Lost(format!(
                "{what} after the guest was given to it, which therefore is not resumed here; look \
                 whether the target runs it"
            ))
        };
        let end = match input {
            // Too late.
            Input::Cancelled => return Action::AwaitStarted,
            Input::Peer(Reply::Started) => End::Completed,
            Input::Peer(Reply::Failed { reason, ran: false }) => {
                return self.go_on(End::Failed(format!(
                    "The target failed and gave the guest back: {reason}"
                )));
            }
            Input::Peer(Reply::Failed { reason, ran: true }) => {
                End::Lost(format!("The target has run the guest and failed: {reason}"))
            }
            Input::HungUp => lost("The target hung up".to_owned()),
            Input::TimedOut => lost("The target did not answer in time".to_owned()),
            Input::Failed(reason) => lost(format!("The target was not understood ({reason})")),
            Input::Broken(reason) => lost(format!("The migration broke off ({reason})")),
            Input::Peer(reply) => lost(format!("The target sent {reply:?} out of order")),
            input @ (Input::Done | Input::Again) => lost(format!("The migration got {input:?}")),
        };
        self.end(end, false)
    }

    fn go(&mut self, state: State, action: Action) -> Action {
        self.state = state;
        action
    }

    /// The guest goes on here.
    fn go_on(&mut self, end: End) -> Action {
        let resume = self.blackout();
        self.end(end, resume)
    }

    fn end(&mut self, end: End, resume: bool) -> Action {
        self.go(State::Ended, Action::Finish { end, resume })
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
