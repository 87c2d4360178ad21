//! The source's decisions, without any I/O.
//!
//! The driver carries out an [`Action`] and answers with the [`Input`] that came of it; the machine
//! decides what is next. Every pair of state and input has an answer, and every way out of a begun
//! handover goes through [`Action::Reclaim`], so that the guest is resumed or given up only by what
//! the claim says.

/// What the target said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    Ready,
    Attached,
    Loaded,
    Started,
    /// It cannot go on; its own words.
    Failed(String),
    /// A message that only a source may send; its name.
    Other(&'static str),
}

/// What came of an action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Input {
    /// It was carried out.
    Done,
    /// It could not be carried out here; why.
    Failed(String),
    /// The target said something.
    Peer(Reply),
    /// The target is gone.
    HungUp,
    /// The target did not answer in time.
    TimedOut,
    /// An operator wants the guest to stay.
    Cancelled,
    /// [`Action::Commit`] found that the target has claimed the guest already.
    TargetWasFirst,
    /// [`Action::Reclaim`] took the guest back.
    Reclaimed,
    /// [`Action::Reclaim`] found that the target has claimed the guest.
    TargetStarted,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Send HELLO, FDS and PREVIEW.
    Offer,
    /// Wait for READY.
    AwaitReady,
    /// Wait for the operator's word to go on; the guest runs.
    Pause,
    /// Connect the main channel and send ATTACH.
    Attach,
    /// Wait for ATTACHED.
    AwaitAttached,
    /// Stop the guest and save it: the blackout begins.
    StopAndSave,
    /// Send STATE.
    SendState,
    /// Wait for LOADED.
    AwaitLoaded,
    /// Commit the claim and send COMMIT.
    Commit,
    /// Wait for STARTED.
    AwaitStarted,
    /// Take the guest back if the target has not claimed it.
    Reclaim,
    /// The end.
    Finish {
        /// What the end is.
        end: End,
        /// Whether the guest was stopped and must be resumed here.
        resume: bool,
    },
}

/// How a handover ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// The guest is the target's.
    Completed,
    /// The guest is here, as an operator wanted.
    Cancelled,
    /// The guest is here; why.
    Failed(String),
    /// The target claimed the guest and does not have it any more, as far as is known; why.
    Lost(String),
}

/// Why the claim is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Why {
    /// The target says that it started: the claim must say so too.
    Confirm,
    /// The operator.
    Cancelled,
    /// The target failed or is gone.
    PeerGone(String),
    /// Anything else: the target may well be alive.
    Failed(String),
}

/// Where the handover is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Offering,
    Preparing,
    Pausing,
    Connecting,
    Attaching,
    Stopping,
    Sending,
    Loading,
    Committing,
    Starting,
    Reclaiming(Why),
    Ended,
}

/// The source's state machine.
#[derive(Debug)]
pub(super) struct Machine {
    state: State,
    /// Whether the operator says when to go on.
    pause: bool,
    /// Whether the guest was stopped.
    blackout: bool,
    /// Whether the target has got the state, without which it can claim the guest only by mistake.
    sent: bool,
}

impl Machine {
    /// The machine and its first action; with `pause` it waits for the operator once the target is
    /// ready.
    pub(super) fn new(pause: bool) -> (Self, Action) {
        (
            Self {
                state: State::Offering,
                pause,
                blackout: false,
                sent: false,
            },
            Action::Offer,
        )
    }

    /// What the target is doing, for people.
    fn phase(&self) -> &'static str {
        match self.state {
            State::Offering => "the descriptors were sent to it",
            State::Preparing => "it prepared",
            State::Pausing => "the operator's word was waited for",
            State::Connecting | State::Attaching => "the main channel was opened",
            State::Stopping => "the guest was stopped here",
            State::Sending => "the state was sent to it",
            State::Loading => "it loaded the state",
            State::Committing | State::Starting => "it started the guest",
            State::Reclaiming(_) | State::Ended => "the handover ended",
        }
    }

    /// The next action after `input`.
    pub(super) fn step(&mut self, input: Input) -> Action {
        let action = self.next(input);
        self.blackout |= action == Action::StopAndSave;
        self.sent |= action == Action::AwaitLoaded;
        action
    }

    fn next(&mut self, input: Input) -> Action {
        use Input::{Cancelled, Done, Failed, HungUp, Peer, TargetWasFirst, TimedOut};

        if let State::Reclaiming(why) = &self.state {
            let why = why.clone();
            return self.reclaimed(&why, &input);
        }
        match (&self.state, input) {
            (State::Offering, Done) => self.go(State::Preparing, Action::AwaitReady),
            (State::Preparing, Peer(Reply::Ready)) if self.pause => {
                self.go(State::Pausing, Action::Pause)
            }
            (State::Preparing, Peer(Reply::Ready)) | (State::Pausing, Done) => {
                self.go(State::Connecting, Action::Attach)
            }
            (State::Connecting, Done) => self.go(State::Attaching, Action::AwaitAttached),
            (State::Attaching, Peer(Reply::Attached)) => {
                self.go(State::Stopping, Action::StopAndSave)
            }
            (State::Stopping, Done) => self.go(State::Sending, Action::SendState),
            (State::Sending, Done) => self.go(State::Loading, Action::AwaitLoaded),
            (State::Loading, Peer(Reply::Loaded)) => self.go(State::Committing, Action::Commit),
            (State::Committing, Done) => self.go(State::Starting, Action::AwaitStarted),
            (State::Committing | State::Starting, TargetWasFirst | Peer(Reply::Started)) => {
                self.reclaim(Why::Confirm)
            }

            // The end was reached: whatever comes changes nothing.
            (State::Ended, _) => Action::Finish {
                end: End::Failed("the handover has ended".into()),
                resume: false,
            },
            // Too late to cancel: the target may have started.
            (State::Starting, Cancelled) => Action::AwaitStarted,

            (_, Cancelled) => self.reclaim(Why::Cancelled),
            (_, Failed(reason)) => self.reclaim(Why::Failed(reason)),
            (_, Peer(Reply::Failed(reason))) => {
                self.reclaim(Why::PeerGone(format!("The target failed: {reason}")))
            }
            (_, HungUp) => {
                let reason = format!(
                    "The target hung up while {}; its own log says why",
                    self.phase()
                );
                self.reclaim(Why::PeerGone(reason))
            }
            (_, TimedOut) => {
                let reason = format!("The target did not answer in time while {}", self.phase());
                self.reclaim(Why::Failed(reason))
            }
            (_, Peer(reply)) => {
                let reason = format!(
                    "The target sent {reply:?} out of order while {}",
                    self.phase()
                );
                self.reclaim(Why::Failed(reason))
            }
            (_, input @ (Done | TargetWasFirst | Input::Reclaimed | Input::TargetStarted)) => {
                let reason = format!("The handover got {input:?} while {}", self.phase());
                self.reclaim(Why::Failed(reason))
            }
        }
    }

    fn go(&mut self, state: State, action: Action) -> Action {
        self.state = state;
        action
    }

    fn reclaim(&mut self, why: Why) -> Action {
        self.go(State::Reclaiming(why), Action::Reclaim)
    }

    /// What the claim's answer means.
    fn reclaimed(&mut self, why: &Why, input: &Input) -> Action {
        let won = match input {
            Input::Reclaimed => true,
            Input::TargetStarted => false,
            // Only the claim's own answer ends this.
            _ => return Action::Reclaim,
        };
        self.state = State::Ended;
        if won {
            let end = match why {
                Why::Confirm => End::Failed(
                    "The target said that it started the guest, but never claimed it; use builds \
                     of Baton that fit together"
                        .to_owned(),
                ),
                Why::Cancelled => End::Cancelled,
                Why::PeerGone(reason) | Why::Failed(reason) => End::Failed(reason.clone()),
            };
            return Action::Finish {
                end,
                resume: self.blackout,
            };
        }
        let mistake = "The target claimed the guest before it had its state";
        let end = match why {
            // The guest was never stopped and goes on.
            _ if !self.blackout => End::Failed(mistake.to_owned()),
            _ if !self.sent => End::Lost(format!(
                "{mistake}; the guest is not resumed here, since the target could run it"
            )),
            Why::PeerGone(reason) => End::Lost(format!(
                "{reason}. It had claimed the guest, which therefore is not resumed here; look \
                 whether the target still runs it"
            )),
            // The target runs the guest, whatever was wanted or went wrong here.
            Why::Confirm | Why::Cancelled | Why::Failed(_) => End::Completed,
        };
        Action::Finish { end, resume: false }
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
