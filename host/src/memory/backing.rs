//! The file behind guest RAM.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{shm_open, shm_unlink};
use nix::sys::stat::Mode;

use crate::cli::{BackendKind, HugePages, MemoryBackend};
use crate::fdset::{self, Access};
use crate::systemd;

use super::Lasting;

/// Opens or creates what `config` describes; nothing for anonymous private memory. The error says
/// what is wrong and what to do.
pub(super) fn open(config: &MemoryBackend) -> Result<Option<File>, String> {
    match &config.kind {
        BackendKind::File { path, .. } => file(path, config.size).map(Some),
        BackendKind::Memfd { hugetlb, seal, .. } => {
            if let Some(Lasting::Store(name)) = super::lasting(config) {
                store_is_free(&name)?;
            }
            memfd(&config.id.to_string(), config.size, hugetlb.as_ref(), *seal).map(Some)
        }
        BackendKind::Shm => shm(config.size).map(Some),
        BackendKind::Ram if config.share => {
            memfd(&config.id.to_string(), config.size, None, true).map(Some)
        }
        BackendKind::Ram => Ok(None),
    }
}

/// Whether there is a store, and no guest in it that memory made anew would push out.
fn store_is_free(name: &str) -> Result<(), String> {
    systemd::store_has_room().map_err(|e| format!("{e}, or leave fdstore=on out"))?;
    match systemd::is_stored(name) {
        true => Err(format!(
            "the service manager's store has '{name}', the RAM of a guest that was kept; load that \
             with -incoming, or give it up with 'systemctl clean --what=fdstore UNIT'"
        )),
        false => Ok(()),
    }
}

/// Opens the file that a guest was left in; nothing is made.
pub(super) fn in_place(config: &MemoryBackend) -> Result<File, String> {
    match super::lasting(config) {
        Some(Lasting::File(path)) => left_in_file(path, config.size),
        Some(Lasting::Store(name)) => left_in_store(&name, config.size),
        None => Err(
            "the guest's RAM stayed where it was, and this backend has no such place; use the \
             memory-backend-file,share=on or memory-backend-memfd,fdstore=on it had"
                .to_owned(),
        ),
    }
}

fn left_in_store(name: &str, size: u64) -> Result<File, String> {
    let stored = systemd::stored(name).ok_or_else(|| {
        format!(
            "the guest stayed in '{name}' of the service manager's store, and this process was not \
             given that; start it as the same service, which must not have been stopped meanwhile \
             unless it has FileDescriptorStorePreserve=yes"
        )
    })?;
    let file = File::from(stored.map_err(|e| format!("cannot be duplicated: {e}"))?);
    match length(&file)? {
        held if held != size => Err(format!(
            "the guest stayed in '{name}' of the service manager's store, which has {held} bytes \
             and not {size}; give the backend the size it had"
        )),
        _ => Ok(file),
    }
}

fn left_in_file(path: &Path, size: u64) -> Result<File, String> {
    let shown = path.display();
    let opened = fdset::open(path, Access::READ_WRITE).unwrap_or_else(|| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_CLOEXEC)
            .open(path)
    });
    let file = opened.map_err(|e| {
        format!(
            "cannot open '{shown}', which the guest stayed in: {e}; name the file it was saved \
                 with"
        )
    })?;
    match length(&file)? {
        held if held < size => Err(format!(
            "'{shown}', which the guest stayed in, holds {held} bytes and not {size}; name the file \
             it was saved with"
        )),
        _ => Ok(file),
    }
}

/// Takes a file that another process has mapped; it must hold `size` bytes.
pub(super) fn adopt(fd: OwnedFd, size: u64) -> Result<File, String> {
    let file = File::from(fd);
    let held = length(&file)?;
    if held < size {
        return Err(format!(
            "was handed over with {held} bytes, and {size} are asked for"
        ));
    }
    Ok(file)
}

fn file(path: &Path, size: u64) -> Result<File, String> {
    let shown = path.display();
    // A file in a folder is made there and has no name afterwards.
    if path.is_dir() {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_TMPFILE | libc::O_CLOEXEC)
            .open(path)
            .map_err(|e| format!("cannot make a file in '{shown}': {e}"))?;
        return grow(file, size, &shown.to_string());
    }
    let opened = fdset::open(path, Access::READ_WRITE).unwrap_or_else(|| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(libc::O_CLOEXEC)
            .mode(0o644)
            .open(path)
    });
    let file = opened.map_err(|e| format!("cannot open '{shown}': {e}"))?;
    match length(&file)? {
        0 => grow(file, size, &shown.to_string()),
        held if held < size => Err(format!(
            "'{shown}' holds {held} bytes, size= asks for {size}; make it larger, or remove it to \
             have it made anew"
        )),
        _ => Ok(file),
    }
}

fn grow(file: File, size: u64, shown: &str) -> Result<File, String> {
    file.set_len(size)
        .map_err(|e| format!("'{shown}' cannot hold {size} bytes: {e}"))?;
    let room = nix::sys::statvfs::fstatvfs(&file)
        .map(|fs| fs.blocks().saturating_mul(fs.fragment_size()))
        .unwrap_or(u64::MAX);
    if room < size {
        // The file has just been made and holds nothing.
        let _ = file.set_len(0);
        return Err(format!(
            "'{shown}' cannot hold {size} bytes: its file system has {room} in all; use a larger \
             one, or less memory"
        ));
    }
    Ok(file)
}

fn memfd(name: &str, size: u64, huge: Option<&HugePages>, seal: bool) -> Result<File, String> {
    let mut flags = MFdFlags::MFD_CLOEXEC;
    if seal {
        flags |= MFdFlags::MFD_ALLOW_SEALING;
    }
    match huge {
        None => {}
        Some(HugePages::Default) => flags |= MFdFlags::MFD_HUGETLB,
        Some(HugePages::Of(bytes)) => {
            // The size is given as its logarithm in the upper bits: memfd_create(2).
            let shift = bytes.trailing_zeros() << libc::MFD_HUGE_SHIFT;
            flags |= MFdFlags::MFD_HUGETLB | MFdFlags::from_bits_retain(shift);
        }
    }
    let name = CString::new(name).map_err(|_| "its id has a zero byte in it".to_owned())?;
    let file = File::from(
        memfd_create(name.as_c_str(), flags).map_err(|e| format!("cannot be created: {e}"))?,
    );
    file.set_len(size)
        .map_err(|e| format!("cannot hold {size} bytes: {e}"))?;
    if seal {
        // Nobody who gets the descriptor can take the memory away from under the guest.
        let seals = SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).map_err(|e| format!("cannot be sealed: {e}"))?;
    }
    Ok(file)
}

fn shm(size: u64) -> Result<File, String> {
    let name = format!("/baton-{}-{size:x}", std::process::id());
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let fd = shm_open(name.as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)
        .map_err(|e| format!("cannot create shared memory '{name}': {e}"))?;
    // It lives on by its descriptor; a name would outlive a process that is killed.
    shm_unlink(name.as_str()).map_err(|e| format!("cannot unlink '{name}': {e}"))?;
    let file = File::from(fd);
    file.set_len(size)
        .map_err(|e| format!("cannot hold {size} bytes: {e}"))?;
    Ok(file)
}

/// Bytes in a file or DAX device.
fn length(file: &File) -> Result<u64, String> {
    let meta = file
        .metadata()
        .map_err(|e| format!("cannot be examined: {e}"))?;
    if meta.file_type().is_char_device() {
        use std::os::unix::fs::MetadataExt;
        let (major, minor) = (libc::major(meta.rdev()), libc::minor(meta.rdev()));
        let path = format!("/sys/dev/char/{major}:{minor}/size");
        return std::fs::read_to_string(&path)
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .ok_or_else(|| format!("is a device that tells no size in '{path}'"));
    }
    Ok(meta.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_too_small_for_the_memory_is_refused_and_left_alone() {
        let dir = std::env::temp_dir().join(format!("baton-backing-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("ram");
        std::fs::write(&path, [1; 4096]).unwrap();
        let error = file(&path, 8192).unwrap_err();
        assert!(
            error.contains("holds 4096 bytes, size= asks for 8192"),
            "{error}"
        );
        assert_eq!(std::fs::read(&path).unwrap(), [1; 4096]);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_memfd_cannot_be_shrunk_under_the_guest() {
        let file = memfd("test", 8192, None, true).unwrap();
        assert!(file.set_len(4096).is_err());
    }
}
