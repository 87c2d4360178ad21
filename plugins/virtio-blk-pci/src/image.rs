//! The image: opened, checked and locked, or taken over with its lock.

use std::fs::{self, File, FileType, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};

use baton_plugin_api::{Drive, Error, Host, Mode, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;

use crate::properties::Options;
use crate::syscalls;
use crate::transfer::Bounce;

/// An open image.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) file: File,
    /// As the user named it.
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) bytes: u64,
    /// With `cache.direct`: what memory, offsets and lengths must be multiples of.
    pub(crate) alignment: Option<usize>,
}

/// What the image is on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    BlockDevice,
}

impl Image {
    /// Opens and locks the image; with `restoring` in mode normal only opens it, since another process
    /// may be using it still.
    pub(crate) fn open(options: &Options, host: &Host) -> Result<Self> {
        let drive = &options.drive;
        let name = drive.file.as_str();
        let file = match host.passed_file(name, !drive.read_only, drive.direct)? {
            Some(fd) => File::from(fd),
            None => Self::open_file(drive)?,
        };
        let image = Self::check(file, options)?;
        if options.restoring != Some(Mode::Normal) {
            image.lock(drive)?;
        }
        Ok(image)
    }

    fn open_file(drive: &Drive) -> Result<File> {
        let name = drive.file.as_str();
        let found = fs::metadata(name).map_err(|e| not_opened(drive, &e))?;
        // Before it is opened: to open a pipe would wait for its other end.
        kind_of(name, found.file_type())?;
        OpenOptions::new()
            .read(true)
            .write(!drive.read_only)
            .custom_flags(if drive.direct { libc::O_DIRECT } else { 0 })
            .open(name)
            .map_err(|e| not_opened(drive, &e))
    }

    /// Takes over an open image. Its lock belongs to the open file and comes with it; the other
    /// process may still be using both, so nothing of them is changed.
    pub(crate) fn adopt(fd: OwnedFd, options: &Options) -> Result<Self> {
        let drive = &options.drive;
        let name = drive.file.as_str();
        let file = File::from(fd);
        let flags = fcntl(&file, FcntlArg::F_GETFL)
            .map_err(|e| Error::io(format!("Cannot ask how '{name}' was opened"), &e.into()))?;
        let flags = OFlag::from_bits_truncate(flags);
        let read_only = flags & OFlag::O_ACCMODE == OFlag::O_RDONLY;
        for (option, open, said) in [
            ("readonly", read_only, drive.read_only),
            (
                "cache.direct",
                flags.contains(OFlag::O_DIRECT),
                drive.direct,
            ),
        ] {
            if open != said {
                let word = if open { "on" } else { "off" };
                return Err(Error::state(format!(
                    "Image '{name}' was handed over with {option}={word}; say {option}={word} \
                     here too"
                )));
            }
        }
        Self::check(file, options)
    }

    fn check(file: File, options: &Options) -> Result<Self> {
        let name = options.drive.file.clone();
        let failed = |e: io::Error| Error::io(format!("Cannot ask the size of '{name}'"), &e);
        let metadata = file.metadata().map_err(failed)?;
        let kind = kind_of(&name, metadata.file_type())?;
        let bytes = match kind {
            Kind::File => metadata.len(),
            Kind::BlockDevice => syscalls::device_bytes(&file).map_err(failed)?,
        };
        let block = options.logical_block;
        let wrong_size = bytes == 0 || !bytes.is_multiple_of(u64::from(block));
        if wrong_size {
            return Err(Error::invalid(match kind {
                Kind::File if bytes == 0 => {
                    format!("Image '{name}' is empty; give it a size: truncate -s SIZE '{name}'")
                }
                Kind::File => format!(
                    "Image '{name}' has {bytes} bytes, which are not whole blocks of {block}; \
                     extend it: truncate -s {} '{name}'",
                    bytes.next_multiple_of(u64::from(block))
                ),
                Kind::BlockDevice => format!(
                    "Block device '{name}' has {bytes} bytes, which are not whole blocks of \
                     {block}; say another logical_block_size or another device"
                ),
            }));
        }
        let mut image = Self {
            file,
            name,
            kind,
            bytes,
            alignment: None,
        };
        if options.drive.direct {
            image.alignment = Some(image.probe_alignment(block as usize)?);
        }
        Ok(image)
    }

    /// Finds out what unbuffered transfers must be aligned to. No interface tells it for every
    /// file system, so that a read is tried with each size; a read harms nobody who uses the image.
    fn probe_alignment(&self, block: usize) -> Result<usize> {
        let mut bounce = Bounce::new();
        for alignment in [512, 1024, 2048, 4096] {
            match self.file.read_at(bounce.aligned(alignment), 0) {
                Ok(_) if alignment > block => {
                    return Err(Error::invalid(format!(
                        "Image '{}' with cache.direct=on takes multiples of {alignment} bytes; \
                         say logical_block_size={alignment},physical_block_size={alignment} or \
                         cache.direct=off",
                        self.name
                    )));
                }
                Ok(_) => return Ok(alignment),
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {}
                Err(e) => return Err(Error::io(format!("Cannot read '{}'", self.name), &e)),
            }
        }
        Err(Error::invalid(format!(
            "Image '{}' cannot be read unbuffered; say cache.direct=off",
            self.name
        )))
    }

    /// Locks the whole image for this open file, unless that is not wanted: shared for reading, alone
    /// for writing.
    pub(crate) fn lock(&self, drive: &Drive) -> Result<()> {
        match (drive.locking, drive.read_only) {
            (false, _) => Ok(()),
            (true, true) => self.set_lock(libc::F_RDLCK),
            (true, false) => self.set_lock(libc::F_WRLCK),
        }
    }

    /// Lets others lock it.
    pub(crate) fn unlock(&self, drive: &Drive) -> Result<()> {
        match drive.locking {
            true => self.set_lock(libc::F_UNLCK),
            false => Ok(()),
        }
    }

    fn set_lock(&self, kind: i32) -> Result<()> {
        let whole = libc::flock {
            l_type: kind as i16,
            l_whence: libc::SEEK_SET as i16,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        match fcntl(&self.file, FcntlArg::F_OFD_SETLK(&whole)) {
            Ok(_) => Ok(()),
            Err(Errno::EAGAIN | Errno::EACCES) => Err(Error::invalid(format!(
                "Cannot lock '{}': another process uses it; stop it, or say file.locking=off",
                self.name
            ))),
            Err(e) => Err(Error::invalid(format!(
                "Cannot lock '{}': {}; say file.locking=off",
                self.name,
                e.desc()
            ))),
        }
    }
}

fn kind_of(name: &str, found: FileType) -> Result<Kind> {
    if found.is_file() {
        return Ok(Kind::File);
    }
    if found.is_block_device() {
        return Ok(Kind::BlockDevice);
    }
    let what = if found.is_dir() {
        "a directory"
    } else {
        "neither a file nor a block device"
    };
    Err(Error::invalid(format!(
        "Image '{name}' is {what}; name a raw file or a block device"
    )))
}

fn not_opened(drive: &Drive, error: &io::Error) -> Error {
    let name = &drive.file;
    let why = Errno::from_raw(error.raw_os_error().unwrap_or(0)).desc();
    Error::invalid(match error.kind() {
        ErrorKind::NotFound => format!(
            "Image '{name}' does not exist; create it with truncate -s SIZE '{name}', or correct \
             its name"
        ),
        ErrorKind::PermissionDenied
        | ErrorKind::ReadOnlyFilesystem
        | ErrorKind::ExecutableFileBusy
            if !drive.read_only =>
        {
            format!(
                "Cannot open '{name}' for writing: {why}; let this user write it, or say \
                 readonly=on"
            )
        }
        ErrorKind::PermissionDenied => {
            format!("Cannot open '{name}': {why}; let this user read it")
        }
        ErrorKind::InvalidInput if drive.direct => format!(
            "Cannot open '{name}' unbuffered: its file system does not do that; say \
             cache.direct=off"
        ),
        _ => format!("Cannot open '{name}': {why}; name an image that can be opened"),
    })
}
