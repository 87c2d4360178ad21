//! Which addresses can keep a guest.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::HostError;
use crate::address::{MigrationAddress, SocketAddress};
use crate::channel::ResolveFd;

/// Where a guest is kept or comes from.
#[derive(Debug)]
pub enum Place {
    /// A file, or a device.
    File {
        /// Its path.
        path: PathBuf,
        /// Where in it, in bytes; 0 for a plain file is all of it.
        offset: u64,
    },
    /// A command that keeps what it reads, or writes what was kept.
    Exec(Vec<String>),
    /// A descriptor of a file or of a pipe.
    Fd {
        /// As it was named.
        name: String,
        /// A duplicate.
        fd: File,
    },
}

impl Place {
    /// The place that an address of `migrate` or `-incoming` names. One that keeps nothing is
    /// refused.
    pub fn of(address: &MigrationAddress, resolve_fd: ResolveFd<'_>) -> Result<Self, HostError> {
        match address {
            MigrationAddress::File { filename, offset } => Ok(Self::File {
                path: filename.into(),
                offset: *offset,
            }),
            MigrationAddress::Exec { args } if args.first().is_none_or(String::is_empty) => {
                Err("exec: the command is missing; write exec:COMMAND".into())
            }
            MigrationAddress::Exec { args } => Ok(Self::Exec(args.clone())),
            MigrationAddress::Socket(SocketAddress::Fd { str }) => {
                let fd = File::from(resolve_fd(str)?);
                match fd.metadata()?.file_type().is_socket() {
                    true => Err(streams(address)),
                    false => Ok(Self::Fd {
                        name: str.clone(),
                        fd,
                    }),
                }
            }
            other => Err(streams(other)),
        }
    }
}

fn streams(address: &MigrationAddress) -> HostError {
    format!(
        "'{address}' cannot be used with cpr-reboot: it would stream the state to another process \
         and not keep it; use file:PATH (or exec: with a command that keeps all it reads)"
    )
    .into()
}

/// What can be done with an open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Written and read anywhere; can grow.
    Regular,
    /// Written and read anywhere.
    Block,
    /// Written or read in order.
    Pipe,
}

/// What `file` is; anything that does not keep what is written is refused.
pub(super) fn kind(file: &File) -> Result<Kind, HostError> {
    let found = file.metadata()?.file_type();
    if found.is_file() {
        return Ok(Kind::Regular);
    }
    if found.is_block_device() {
        return Ok(Kind::Block);
    }
    if found.is_fifo() {
        return Ok(Kind::Pipe);
    }
    let what = match () {
        () if found.is_dir() => "a directory",
        () if found.is_socket() => "a socket",
        () => "a character device",
    };
    Err(format!("it is {what}, which keeps nothing; name a file").into())
}

/// Refuses a descriptor that cannot be written anywhere, or not read.
pub(super) fn check_flags(fd: &impl AsFd, writing: bool) -> Result<(), HostError> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    let access = flags & OFlag::O_ACCMODE;
    match writing {
        true if access == OFlag::O_RDONLY => {
            Err("it is open for reading only; open it for writing".into())
        }
        true if flags.contains(OFlag::O_APPEND) => {
            Err("it is open for appending; open it without O_APPEND".into())
        }
        false if access == OFlag::O_WRONLY => {
            Err("it is open for writing only; open it for reading".into())
        }
        _ => Ok(()),
    }
}

/// A duplicate of a descriptor, closed on exec.
pub(super) fn duplicate(file: &File) -> Result<File, HostError> {
    let fd: OwnedFd = file.as_fd().try_clone_to_owned()?;
    Ok(File::from(fd))
}
