//! What the source sends while the guest still runs: HELLO, FDS and PREVIEW.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};

use super::SourceHandover;
use crate::address::ChannelType;
use crate::channel::{ChannelError, Deadline, MAX_FDS_PER_FRAME};
use crate::fds::{FdKey, MAX_FD_NAME, valid};
use crate::handover::protocol::{self, Hello, MAX_FDS, ProtocolError, Token, kind};
use crate::handover::{OutgoingFd, SourceHost};
use crate::stream::{Header, SectionWriter, StreamError};
use crate::{HostError, Mode};

/// Why the offer could not be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum OfferError {
    #[error("The descriptors of the machine cannot be collected")]
    Fds(#[source] HostError),
    #[error("The machine has {0} descriptors to hand over; {MAX_FDS} are allowed")]
    TooMany(usize),
    #[error("Descriptor {0} needs an owner and a name of 1 to {MAX_FD_NAME} bytes")]
    BadName(FdKey),
    #[error("The preview of the machine's state cannot be written")]
    Preview(#[source] HostError),
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    #[error(transparent)]
    Channel(#[from] ChannelError),
}

/// 16 bytes nobody can guess.
pub(super) fn random_token() -> io::Result<Token> {
    let mut token = Token::default();
    File::open("/dev/urandom")?.read_exact(&mut token)?;
    Ok(token)
}

impl SourceHandover {
    /// Sends everything; a cancellation interrupts it.
    pub(super) fn offer(
        &mut self,
        host: &mut (impl SourceHost + ?Sized),
    ) -> Result<(), OfferError> {
        let fds = host.fds().map_err(OfferError::Fds)?;
        let count = u32::try_from(fds.len())
            .ok()
            .filter(|count| *count <= MAX_FDS);
        let count = count.ok_or(OfferError::TooMany(fds.len()))?;
        if let Some(bad) = fds
            .iter()
            .find(|fd| !valid(&fd.key.owner) || !valid(&fd.key.name))
        {
            return Err(OfferError::BadName(bad.key.clone()));
        }

        let hello = protocol::encode_hello(&Hello {
            mode: Mode::CprTransfer,
            producer: self.producer.clone(),
            fingerprint: self.fingerprint.clone(),
            fds: count,
            token: self.token,
            pauses: self.pause,
        })?;
        let claim =
            self.claim
                .fd()
                .try_clone_to_owned()
                .map_err(|source| ChannelError::System {
                    channel: "cpr",
                    what: "duplicate the claim for",
                    source,
                })?;
        self.send_offer(kind::HELLO, &hello, &[claim.as_fd()])?;

        for batch in fds.chunks(MAX_FDS_PER_FRAME) {
            let keys: Vec<&FdKey> = batch.iter().map(|fd| &fd.key).collect();
            let open: Vec<BorrowedFd<'_>> = batch.iter().map(|fd| fd.fd.as_fd()).collect();
            self.send_offer(kind::FDS, &protocol::encode_fds(&keys)?, &open)?;
        }
        drop::<Vec<OutgoingFd>>(fds);

        let mut preview = Vec::new();
        let mut writer = SectionWriter::new(&mut preview, &self.header())?;
        host.preview(&mut writer).map_err(OfferError::Preview)?;
        writer.finish()?;
        self.send_offer(kind::PREVIEW, &preview, &[])?;

        // The state is about as large; room made now need not be made in the blackout.
        self.state
            .reserve(preview.len() + preview.len() / 2 + (64 << 10));
        Ok(())
    }

    /// The header of both streams.
    pub(super) fn header(&self) -> Header {
        Header {
            producer: self.producer.clone(),
            fingerprint: self.fingerprint.clone(),
        }
    }

    fn send_offer(
        &mut self,
        kind: u8,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), ChannelError> {
        let stop = Some(self.tracker.cancel_fd());
        let deadline = Deadline::after(self.timeouts.message);
        self.link
            .send(ChannelType::Cpr, kind, payload, fds, stop, deadline)
    }
}
