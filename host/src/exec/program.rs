//! Programs to execute, with everything `execve` needs ready beforehand.
// `execve` takes arrays of pointers.
#![allow(unsafe_code)]

use std::ffi::{CString, OsString};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::ptr;

use baton_migration::HostError;
use nix::errno::Errno;
use nix::libc;
use nix::unistd::{AccessFlags, access};
use serde_bytes::ByteBuf;

use super::OldProgram;

/// Names the handoff's descriptor.
pub(super) const STATE: &str = "BATON_CPR_EXEC_STATE";
/// Why the old program is executed again.
pub(super) const FAILED: &str = "BATON_CPR_EXEC_FAILED";
/// Longest reason that is passed on, in bytes.
pub(super) const LONGEST_REASON: usize = 1024;

/// What to execute.
enum File {
    Path(CString),
    Descriptor(RawFd),
}

/// A program with its arguments and environment. Executing it allocates nothing, so that a signal
/// handler may do it.
pub struct Program {
    file: File,
    arguments: Strings,
    environment: Strings,
    /// The last string of the environment, which a reason is written into.
    reason: Option<*mut u8>,
}

// SAFETY: the pointers lead into strings that `Strings` owns and that never move; the reason is
// written by whoever is about to execute the program.
unsafe impl Send for Program {}
// SAFETY: as above.
unsafe impl Sync for Program {}

impl Program {
    /// The command `line`, whose first string is looked for as a shell does. It is told of the
    /// handoff in `handoff`.
    pub fn command(line: &[String], handoff: RawFd) -> Result<Self, HostError> {
        let path = find(line)?;
        let arguments = line
            .iter()
            .map(|word| CString::new(word.as_bytes()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| "Parameter 'cpr-exec-command' has a zero byte in it")?;
        Ok(Self {
            file: File::Path(path),
            arguments: Strings::new(arguments),
            environment: environment(Some(handoff), None)?,
            reason: None,
        })
    }

    /// The old program again, which is told of the handoff and of a reason.
    pub fn old(old: &OldProgram, handoff: RawFd) -> Result<Self, HostError> {
        let arguments = old
            .arguments
            .iter()
            .map(|word| CString::new(word.to_vec()))
            .collect::<Result<Vec<_>, _>>()?;
        // Spaces make room for the reason; the end of the string is where it ends.
        let room = " ".repeat(LONGEST_REASON);
        let environment = environment(Some(handoff), Some(&room))?;
        let reason = environment.last(FAILED.len() + 1);
        Ok(Self {
            file: File::Descriptor(old.exe),
            arguments: Strings::new(arguments),
            environment,
            reason,
        })
    }

    /// Executes it in this process; returns only if that failed. Safe in a signal handler.
    pub fn execute(&self, reason: &[u8]) -> Errno {
        if let Some(room) = self.reason {
            let length = reason.len().min(LONGEST_REASON);
            // SAFETY: the string has LONGEST_REASON bytes and a zero from here on.
            unsafe {
                ptr::copy_nonoverlapping(reason.as_ptr(), room, length);
                room.add(length).write(0);
            }
        }
        let (arguments, environment) = (self.arguments.pointers(), self.environment.pointers());
        let empty = c"";
        // SAFETY: both arrays end with a null pointer, and all strings live.
        unsafe {
            match &self.file {
                File::Path(path) => libc::execve(path.as_ptr(), arguments, environment),
                File::Descriptor(fd) => libc::syscall(
                    libc::SYS_execveat,
                    *fd,
                    empty.as_ptr(),
                    arguments,
                    environment,
                    libc::AT_EMPTY_PATH,
                ) as i32,
            };
        }
        Errno::last()
    }
}

/// Strings as `execve` takes them.
struct Strings {
    /// Each ends with a zero.
    strings: Vec<Box<[u8]>>,
    /// Where they are, and a null pointer.
    pointers: Vec<*mut u8>,
}

impl Strings {
    fn new(strings: Vec<CString>) -> Self {
        let mut strings: Vec<Box<[u8]>> = strings
            .into_iter()
            .map(|string| string.into_bytes_with_nul().into_boxed_slice())
            .collect();
        let mut pointers: Vec<_> = strings.iter_mut().map(|s| s.as_mut_ptr()).collect();
        pointers.push(ptr::null_mut());
        Self { strings, pointers }
    }

    fn pointers(&self) -> *const *const libc::c_char {
        self.pointers.as_ptr().cast()
    }

    /// Where the last string goes on after `skip` bytes, if it does.
    fn last(&self, skip: usize) -> Option<*mut u8> {
        let at = self.strings.len().checked_sub(1)?;
        (self.strings[at].len() > skip + LONGEST_REASON).then(|| {
            // SAFETY: within the string, as was just seen.
            unsafe { self.pointers[at].add(skip) }
        })
    }
}

/// This process's environment, with what the next program is told.
fn environment(handoff: Option<RawFd>, reason: Option<&str>) -> Result<Strings, HostError> {
    let mut all = Vec::new();
    for (name, value) in std::env::vars_os() {
        if name == STATE || name == FAILED {
            continue;
        }
        let mut entry = name.into_vec();
        entry.push(b'=');
        entry.extend(value.into_vec());
        all.push(CString::new(entry)?);
    }
    if let Some(handoff) = handoff {
        all.push(CString::new(format!("{STATE}={handoff}"))?);
    }
    if let Some(reason) = reason {
        all.push(CString::new(format!("{FAILED}={reason}"))?);
    }
    Ok(Strings::new(all))
}

/// The file of a command.
fn find(line: &[String]) -> Result<CString, HostError> {
    let name = line
        .first()
        .filter(|name| !name.is_empty())
        .ok_or("cpr-exec mode requires setting cpr-exec-command")?;
    let paths: Vec<PathBuf> = if name.contains('/') {
        vec![PathBuf::from(name)]
    } else {
        let path = std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/bin:/usr/bin"));
        std::env::split_paths(&path)
            .map(|folder| folder.join(name))
            .collect()
    };
    let mut errno = Errno::ENOENT;
    for path in &paths {
        match executable(path) {
            Ok(()) => return Ok(CString::new(path.as_os_str().as_bytes())?),
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(e) => errno = e,
        }
    }
    Err(format!(
        "execvp {name} failed: {}; name a program in cpr-exec-command that is there",
        errno.desc()
    )
    .into())
}

fn executable(path: &Path) -> Result<(), Errno> {
    access(path, AccessFlags::X_OK)?;
    if path.is_dir() {
        return Err(Errno::EACCES);
    }
    Ok(())
}

/// This program, to be executed again: its file stays open, whatever happens to its path.
pub fn running() -> Result<(OwnedFd, Vec<ByteBuf>), HostError> {
    let exe = std::fs::File::open("/proc/self/exe")
        .map_err(|e| format!("Cannot open this program's own file: {e}"))?;
    let arguments = std::fs::read("/proc/self/cmdline")
        .map_err(|e| format!("Cannot read this program's own arguments: {e}"))?;
    let arguments = arguments.strip_suffix(b"\0").unwrap_or(&arguments);
    let arguments = arguments
        .split(|byte| *byte == 0)
        .map(ByteBuf::from)
        .collect();
    Ok((exe.into(), arguments))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(line: &[&str]) -> String {
        let line: Vec<String> = line.iter().map(ToString::to_string).collect();
        match Program::command(&line, 3) {
            Ok(_) => panic!("{line:?} is no command"),
            Err(e) => e.to_string(),
        }
    }

    #[test]
    fn a_command_that_is_not_there_is_refused_before_anything_happens() {
        assert_eq!(
            refusal(&["/nonexistent/baton"]),
            "execvp /nonexistent/baton failed: No such file or directory; name a program in \
             cpr-exec-command that is there"
        );
        assert!(refusal(&["no-such-program-anywhere"]).contains("No such file or directory"));
        assert!(refusal(&["/etc/passwd"]).contains("Permission denied"));
        assert!(refusal(&["/tmp"]).contains("Permission denied"));
        assert!(refusal(&[]).contains("requires setting cpr-exec-command"));
    }

    #[test]
    fn a_name_without_a_slash_is_looked_for_in_the_path() {
        let line = vec!["sh".to_owned(), "-c".to_owned()];
        assert!(Program::command(&line, 3).is_ok());
    }

    #[test]
    fn the_running_program_knows_its_arguments() {
        let (_, arguments) = running().unwrap();
        let expected: Vec<_> = std::env::args_os().map(OsStringExt::into_vec).collect();
        let arguments: Vec<_> = arguments.into_iter().map(ByteBuf::into_vec).collect();
        assert_eq!(arguments, expected);
    }
}
