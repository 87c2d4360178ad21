//! Character devices: where the guest's serial lines go to and come from.
//!
//! A device gets plain descriptors of it. They belong to the host, which hands them over, so that
//! the guest's output goes on in the same place without being opened again.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use baton_migration::Mode;
use baton_migration::fds::{FdKey, FdTable};
use baton_migration::handover::OutgoingFd;

use crate::cli::{Chardev, ChardevBackend};

/// The owner of their descriptors in a handover.
const OWNER: &str = "chardev";

struct Open {
    input: Option<OwnedFd>,
    output: Option<OwnedFd>,
    /// Standard streams are each process's own: a successor was started with the ones it shall
    /// use.
    hand_over: bool,
}

/// All character devices of the process, by id.
#[derive(Default)]
pub struct Chardevs(BTreeMap<String, Open>);

impl Chardevs {
    /// Opens every one of `configs`, or takes what was handed over for it. What a restored guest has
    /// written to a file before stays there. The error is one line.
    pub fn open(
        configs: &[Chardev],
        preserved: Option<&FdTable>,
        restoring: Option<Mode>,
    ) -> Result<Self, String> {
        let mut all = BTreeMap::new();
        for config in configs {
            let id = config.id.to_string();
            let open = open_one(&id, &config.backend, preserved, restoring)
                .map_err(|e| format!("Character device '{id}': {e}"))?;
            all.insert(id, open);
        }
        Ok(Self(all))
    }

    /// Duplicates of the descriptors of `id`: input, output.
    pub fn descriptors(&self, id: &str) -> Result<(Option<OwnedFd>, Option<OwnedFd>), String> {
        let open = self
            .0
            .get(id)
            .ok_or_else(|| format!("There is no character device '{id}'"))?;
        let copy = |fd: &Option<OwnedFd>| {
            fd.as_ref()
                .map(|fd| fd.try_clone())
                .transpose()
                .map_err(|e| format!("Character device '{id}' cannot be duplicated: {e}"))
        };
        Ok((copy(&open.input)?, copy(&open.output)?))
    }

    /// Duplicates of all descriptors, to hand over in `mode`.
    pub fn handover(&self, mode: Mode) -> std::io::Result<Vec<OutgoingFd>> {
        let mut all = Vec::new();
        if !mode.preserves_fds() {
            return Ok(all);
        }
        for (id, open) in self.0.iter().filter(|(_, open)| open.hand_over) {
            for (instance, fd) in [(INPUT, &open.input), (OUTPUT, &open.output)] {
                if let Some(fd) = fd {
                    all.push(OutgoingFd {
                        key: FdKey::new(OWNER, id, instance),
                        fd: fd.as_fd().try_clone_to_owned()?,
                    });
                }
            }
        }
        Ok(all)
    }
}

const INPUT: u32 = 0;
const OUTPUT: u32 = 1;

fn open_one(
    id: &str,
    backend: &ChardevBackend,
    preserved: Option<&FdTable>,
    restoring: Option<Mode>,
) -> Result<Open, String> {
    if let Some(table) = preserved {
        let take = |instance| {
            table
                .has(OWNER, id, instance)
                .then(|| table.take(OWNER, id, instance))
                .transpose()
        };
        let open = Open {
            input: take(INPUT).map_err(|e| e.to_string())?,
            output: take(OUTPUT).map_err(|e| e.to_string())?,
            hand_over: true,
        };
        if open.input.is_some() || open.output.is_some() {
            return Ok(open);
        }
    }
    match backend {
        ChardevBackend::Null => Ok(Open {
            input: None,
            output: None,
            hand_over: true,
        }),
        ChardevBackend::Stdio => {
            let copy = |fd: std::os::fd::BorrowedFd<'_>| {
                fd.try_clone_to_owned()
                    .map_err(|e| format!("standard streams are closed: {e}"))
            };
            Ok(Open {
                input: Some(copy(std::io::stdin().as_fd())?),
                output: Some(copy(std::io::stdout().as_fd())?),
                hand_over: false,
            })
        }
        ChardevBackend::File { path, append } => {
            let append = *append || restoring.is_some();
            let file: File = OpenOptions::new()
                .append(append)
                .write(true)
                .create(true)
                .truncate(!append)
                .custom_flags(nix::libc::O_CLOEXEC)
                .open(path)
                .map_err(|e| format!("cannot open '{}': {e}", path.display()))?;
            Ok(Open {
                input: None,
                output: Some(file.into()),
                hand_over: true,
            })
        }
    }
}
