//! What the target does with the source's HELLO, FDS and PREVIEW.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::machine::{Input, Request};
use super::{Source, TargetHandover};
use crate::claim::{ClaimError, TargetClaim};
use crate::fds::{FdError, FdKey};
use crate::fingerprint::Mismatch;
use crate::handover::TargetHost;
use crate::handover::protocol::{Hello, MAX_FDS};
use crate::stream::{StateImage, StreamError};
use crate::{HostError, Mode, error_chain};

/// Why a source cannot be taken over from.
#[derive(Debug, thiserror::Error)]
pub(super) enum OfferError {
    #[error("The source migrates in mode {0}; this target waits for cpr-transfer")]
    Mode(Mode),
    #[error("The source has {0} descriptors to hand over; {MAX_FDS} are allowed")]
    TooManyFds(u32),
    #[error("The source sent no claim page; use builds of Baton that fit together")]
    NoClaim,
    #[error(transparent)]
    Claim(#[from] ClaimError),
    #[error("The machine asked for here cannot be described")]
    Host(#[source] HostError),
    #[error("The machine here is not the source's: {}", join(.0))]
    Mismatch(Vec<Mismatch>),
    #[error(transparent)]
    Fd(#[from] FdError),
    #[error("The state of the source cannot be read")]
    Stream(#[from] StreamError),
    #[error("The state is of another machine than the one the source introduced")]
    OtherMachine,
}

fn join(mismatches: &[Mismatch]) -> String {
    mismatches
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}

/// The machine's input for what was done with a message.
pub(super) fn judged(request: Request, result: Result<(), OfferError>) -> Input {
    match result {
        Ok(()) => Input::Peer(request),
        Err(error) => Input::Failed(error_chain(&error)),
    }
}

impl TargetHandover {
    /// Compares the machines and adopts the claim.
    pub(super) fn greet(
        &mut self,
        hello: Hello,
        claim: Option<OwnedFd>,
        host: &mut (impl TargetHost + ?Sized),
    ) -> Result<(), OfferError> {
        if hello.mode != Mode::CprTransfer {
            return Err(OfferError::Mode(hello.mode));
        }
        if hello.fds > MAX_FDS {
            return Err(OfferError::TooManyFds(hello.fds));
        }
        let (claim, watch) = TargetClaim::adopt(&claim.ok_or(OfferError::NoClaim)?)?;
        let ours = host
            .fingerprint(&hello.fingerprint)
            .map_err(OfferError::Host)?;
        let mismatches = ours.compare(&hello.fingerprint);
        if !mismatches.is_empty() {
            return Err(OfferError::Mismatch(mismatches));
        }
        tracing::info!("taking over from {}", hello.producer);
        let Hello {
            fingerprint,
            token,
            pauses,
            ..
        } = hello;
        self.source = Some(Source {
            fingerprint,
            token,
            pauses,
            watch,
            claim: Some(claim),
        });
        Ok(())
    }

    pub(super) fn keep_fds(&mut self, fds: Vec<(FdKey, OwnedFd)>) -> Result<(), OfferError> {
        for (key, fd) in fds {
            self.fds.insert(key, fd)?;
        }
        Ok(())
    }

    pub(super) fn keep_preview(&mut self, stream: &[u8]) -> Result<(), OfferError> {
        self.preview = Some(self.image(stream)?);
        Ok(())
    }

    /// The sections of a stream, which must be of the machine that HELLO introduced.
    pub(super) fn image(&self, stream: &[u8]) -> Result<StateImage, OfferError> {
        let image = StateImage::read(stream)?;
        match &self.source {
            Some(source) if source.fingerprint == image.header().fingerprint => Ok(image),
            _ => Err(OfferError::OtherMachine),
        }
    }

    /// Lets the host build its machine.
    pub(super) fn prepare(
        &mut self,
        host: &mut (impl TargetHost + ?Sized),
    ) -> Result<(), HostError> {
        let preview = self.preview.take().ok_or("The source sent no preview")?;
        host.prepare(&Arc::clone(&self.fds), preview)
    }
}
