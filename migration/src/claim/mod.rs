//! The claim: one word of shared memory that decides which process runs the guest.
//!
//! ```text
//!     OPEN ----commit----> COMMITTED ----start----> STARTED      the target runs the guest
//!      |  \__________________  |  ______________________^
//!      |        start        \ | /      (start of a target whose source died before it committed)
//!      |                      \|/
//!      +-------reclaim------> RECLAIMED <---reclaim--- COMMITTED  the source runs the guest
//! ```
//!
//! The source makes the page, holds a [`SourceClaim`] and sends the page's descriptor with its first
//! message; the target adopts it as a [`TargetClaim`]. Once a blackout began the source resumes the
//! guest only with a [`Reclaimed`] and the target enters the guest only with a [`Started`]. Each comes
//! out of one compare-and-swap on the same word and at most one of the two succeeds, so no order of
//! deaths, hang-ups and time-outs can make two processes run the guest.
//!
//! Both processes can write the page: it guards against accidents, not against a peer that writes
//! the word without asking. The page lives as long as either process.

mod page;
mod times;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;

use page::Page;
pub use times::{Blackout, Moment};

/// What the word says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimState {
    /// The source has not let go of the guest.
    Open,
    /// The source has let go: the target may start.
    Committed,
    /// The target runs the guest, or ran it.
    Started,
    /// The source took the guest back for good.
    Reclaimed,
    /// Neither side wrote this.
    Unknown(u32),
}

impl ClaimState {
    const fn from_word(word: u32) -> Self {
        match word {
            0 => Self::Open,
            1 => Self::Committed,
            2 => Self::Started,
            3 => Self::Reclaimed,
            other => Self::Unknown(other),
        }
    }

    const fn word(self) -> u32 {
        match self {
            Self::Open => 0,
            Self::Committed => 1,
            Self::Started => 2,
            Self::Reclaimed => 3,
            Self::Unknown(word) => word,
        }
    }
}

/// Why a claim could not be made or adopted.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// A system call failed.
    #[error("Cannot {what} the page that decides which process runs the guest")]
    System {
        /// What was being done.
        what: &'static str,
        /// The kernel's reason.
        #[source]
        source: Errno,
    },
    /// The descriptor is not a claim page.
    #[error(
        "The descriptor that came as the claim page is not one: {0}; source and target must be \
         builds of Baton that fit together"
    )]
    NotAClaim(String),
}

/// The target has claimed the guest: the source must not run it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("The target has claimed the guest (claim word: {0:?}); it is not resumed here")]
pub struct TargetStarted(pub ClaimState);

/// The source has taken the guest back: the target must not run it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("The source has taken the guest back (claim word: {0:?}); it is not started here")]
pub struct SourceReclaimed(pub ClaimState);

/// Proof that the source, and nobody else, may run the guest.
#[derive(Debug)]
#[must_use = "it stands for the right to resume the guest"]
pub struct Reclaimed(());

impl Reclaimed {
    /// For a guest whose state nobody else has or ever had whole, so that there is nothing to take
    /// back: [`crate::checkpoint`].
    pub(crate) fn never_let_go() -> Self {
        Self(())
    }

    /// For a guest that is not let go of in the claim's way but by a message, which was not sent, or
    /// whose receiver has said that the guest never ran there: [`crate::precopy`].
    pub(crate) fn not_given() -> Self {
        Self(())
    }
}

/// Proof that the target, and nobody else, may run the guest.
#[derive(Debug)]
#[must_use = "it stands for the right to enter the guest"]
pub struct Started {
    page: Arc<Page>,
}

impl Started {
    /// Notes that the vCPUs enter the guest now, where that is later than the claim. Before the source
    /// is told that the guest was started, since it reads the times then.
    pub fn entered(&self) {
        self.page.stamp(Moment::FirstRun);
    }
}

/// The source's side of the claim.
#[derive(Debug)]
pub struct SourceClaim {
    page: Page,
    fd: OwnedFd,
}

impl SourceClaim {
    /// Makes the page, in state [`ClaimState::Open`].
    pub fn create() -> Result<Self, ClaimError> {
        let fd = page::create()?;
        Ok(Self {
            page: Page::map(&fd)?,
            fd,
        })
    }

    /// The page's descriptor, for the target.
    pub fn fd(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.fd.as_fd()
    }

    /// What the word says now.
    pub fn state(&self) -> ClaimState {
        self.page.state()
    }

    /// Lets go of the guest: from here the target may start.
    pub fn commit(&self) -> Result<(), ClaimState> {
        self.page.change(ClaimState::Open, ClaimState::Committed)
    }

    /// Takes the guest back, unless the target has started it. Doing it again is harmless.
    pub fn reclaim(&self) -> Result<Reclaimed, TargetStarted> {
        match self.page.leave(ClaimState::Reclaimed) {
            Ok(()) | Err(ClaimState::Reclaimed) => Ok(Reclaimed(())),
            Err(state) => Err(TargetStarted(state)),
        }
    }

    /// Notes that a moment of the blackout is now. One thread at a time per moment.
    pub fn stamp(&self, moment: Moment) {
        self.page.stamp(moment);
    }

    /// How long each part of the blackout took, once the target has started.
    pub fn blackout(&self) -> Option<Blackout> {
        self.page.blackout()
    }
}

/// The target's side of the claim: whoever holds it may start the guest once.
#[derive(Debug)]
pub struct TargetClaim {
    page: Arc<Page>,
}

impl TargetClaim {
    /// Checks and maps the page that came from the source.
    pub fn adopt(fd: &OwnedFd) -> Result<(Self, ClaimWatch), ClaimError> {
        page::verify(fd)?;
        let page = Arc::new(Page::map(fd)?);
        page.verify_magic()?;
        Ok((
            Self {
                page: Arc::clone(&page),
            },
            ClaimWatch { page },
        ))
    }

    /// Claims the guest, unless the source has taken it back. Call it right before the first
    /// `KVM_RUN`, with everything else done: from here the source never resumes the guest, and the
    /// blackout counts as over. Any thread may call it.
    pub fn start(self) -> Result<Started, SourceReclaimed> {
        // Noted first: once the word says STARTED, the source may read the time.
        self.page.stamp(Moment::FirstRun);
        match self.page.leave(ClaimState::Started) {
            Ok(()) => Ok(Started { page: self.page }),
            Err(state) => Err(SourceReclaimed(state)),
        }
    }
}

/// Reads the word and notes moments on the target, without any right to start.
#[derive(Debug, Clone)]
pub struct ClaimWatch {
    page: Arc<Page>,
}

impl ClaimWatch {
    /// What the word says now. It is one atomic load.
    pub fn state(&self) -> ClaimState {
        self.page.state()
    }

    /// Notes that a moment of the blackout is now.
    pub fn stamp(&self, moment: Moment) {
        self.page.stamp(moment);
    }

    /// Whether a moment has been.
    pub fn noted(&self, moment: Moment) -> bool {
        self.page.at(moment) != 0
    }

    /// How long each part of the blackout took, once the guest was started.
    pub fn blackout(&self) -> Option<Blackout> {
        self.page.blackout()
    }
}

#[cfg(test)]
mod tests;
