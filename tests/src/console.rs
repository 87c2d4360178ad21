//! A person, or a program, at the other end of the guest's serial line.

use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::wait::{PATIENCE, wait_for};

/// How many lines may be on their way: the guest has room for 256 bytes.
const AHEAD: usize = 4;

/// A connection to the guest's serial line.
pub struct Console {
    file: File,
    /// What was read and is no line yet.
    partial: Vec<u8>,
}

impl Console {
    /// Connects to a UNIX socket, once somebody listens there.
    ///
    /// # Errors
    /// When nobody does.
    pub fn connect(path: &Path) -> Result<Self> {
        let stream = wait_for("a console to connect to", PATIENCE, || {
            Ok(UnixStream::connect(path).ok())
        })?;
        Ok(Self::on(stream))
    }

    /// Opens a terminal, once it is there.
    ///
    /// # Errors
    /// When it does not come.
    pub fn open(path: &Path) -> Result<Self> {
        let mut options = File::options();
        options.read(true).write(true);
        options.custom_flags(nix::libc::O_NOCTTY);
        let file = wait_for("a terminal to open", PATIENCE, || {
            Ok(options.open(path).ok())
        })?;
        let partial = Vec::new();
        Ok(Self { file, partial })
    }

    /// On a connection that is there.
    pub fn on(fd: impl Into<OwnedFd>) -> Self {
        Self {
            file: File::from(fd.into()),
            partial: Vec::new(),
        }
    }

    /// Says this, as it is.
    ///
    /// # Errors
    /// When nobody is connected any more.
    pub fn say(&mut self, text: &str) -> Result<()> {
        self.file
            .write_all(text.as_bytes())
            .with_context(|| format!("Cannot say {text:?} to the guest"))
    }

    /// The next line, without its end.
    ///
    /// # Errors
    /// When none comes, or the connection is at its end.
    pub fn line(&mut self) -> Result<String> {
        loop {
            if let Some(end) = self.partial.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.partial.drain(..=end).collect();
                let line = String::from_utf8_lossy(&line);
                return Ok(line.trim_end().to_owned());
            }
            let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::POLLIN)];
            let timeout = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX);
            ensure!(
                poll(&mut fds, timeout).context("Cannot wait for the guest's words")? > 0,
                "The guest says nothing more on its console, the last was '{}'",
                String::from_utf8_lossy(&self.partial)
            );
            let mut bytes = [0; 4096];
            let read = self.file.read(&mut bytes);
            let read = read.context("The console cannot be read")?;
            ensure!(read > 0, "The console was disconnected");
            self.partial.extend_from_slice(&bytes[..read]);
        }
    }

    /// Reads until a line that begins with `start`, and gives it.
    ///
    /// # Errors
    /// As [`Self::line`].
    pub fn wait_line(&mut self, start: &str) -> Result<String> {
        loop {
            let line = self.line()?;
            if line.starts_with(start) {
                return Ok(line);
            }
        }
    }

    /// Talks to the guest on a thread until it is stopped: everything said must be echoed once and in
    /// order, with nothing in between.
    ///
    /// # Errors
    /// When there is no thread.
    pub fn talk(mut self) -> Result<Talk> {
        let end = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&end);
        let thread = std::thread::Builder::new().name("console".into());
        let body = move || {
            let (mut said, mut heard) = (0, 0);
            while heard < said || !ended.load(Ordering::SeqCst) {
                while said < heard + AHEAD && !ended.load(Ordering::SeqCst) {
                    self.say(&format!("line {said}\n"))?;
                    said += 1;
                }
                if heard < said {
                    let line = self.line()?;
                    let expected = format!("echo: line {heard}");
                    ensure!(line == expected, "'{line}' instead of '{expected}'");
                    heard += 1;
                }
            }
            Ok((self, heard))
        };
        let thread = thread.spawn(body).context("There is no thread")?;
        Ok(Talk { thread, end })
    }
}

/// A conversation that goes on.
pub struct Talk {
    thread: JoinHandle<Result<(Console, usize)>>,
    end: Arc<AtomicBool>,
}

impl Talk {
    /// Ends it; gives the console and the number of lines.
    ///
    /// # Errors
    /// What went wrong in it.
    pub fn stop(self) -> Result<(Console, usize)> {
        self.end.store(true, Ordering::SeqCst);
        self.thread
            .join()
            .unwrap_or_else(|_| Err(anyhow::anyhow!("The conversation panicked")))
    }
}
