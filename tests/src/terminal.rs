//! A process at a terminal, and somebody who types there and reads what it shows.
// Between fork and exec only a raw hook runs, and a terminal is made the controlling one by an ioctl.
#![allow(unsafe_code)]

use anyhow::{Context, Result, ensure};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
use nix::unistd::{Pid, setsid};
use std::fs::File;
use std::io::{Read, Write};
use std::ops::{Deref, DerefMut};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::process;
use crate::wait::{PATIENCE, wait_for};

nix::ioctl_none_bad!(set_controlling_terminal, nix::libc::TIOCSCTTY);

/// What a monitor for people shows when it waits for a line.
pub const PROMPT: &str = "(qemu) ";

/// A terminal of 80 columns, with somebody who types and reads there.
pub struct Tty {
    keyboard: File,
    /// Kept open, so that the terminal outlives the process and can be asked for its mode.
    side: OwnedFd,
    screen: Arc<Mutex<Screen>>,
}

/// The process and its terminal. The process is killed when this is dropped.
pub struct Terminal {
    child: Child,
    tty: Tty,
}

impl Tty {
    /// Makes a terminal, which is the standard input and output of what `command` starts.
    ///
    /// # Errors
    /// When there is none.
    pub fn of(command: &mut Command) -> Result<Self> {
        let size = Winsize {
            ws_row: 24,
            ws_col: 80,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = openpty(&size, None).context("Cannot open a terminal")?;
        command
            .stdin(pty.slave.try_clone()?)
            .stdout(pty.slave.try_clone()?);
        // SAFETY: the hook makes two system calls and touches no memory of the parent's.
        unsafe {
            command.pre_exec(|| {
                setsid()?;
                set_controlling_terminal(0)?;
                Ok(())
            })
        };
        let screen = Arc::new(Mutex::new(Screen::default()));
        let (shown, mut output) = (Arc::clone(&screen), File::from(pty.master.try_clone()?));
        std::thread::Builder::new()
            .name("terminal".into())
            .spawn(move || {
                let mut bytes = [0; 4096];
                while let Ok(read) = output.read(&mut bytes)
                    && read > 0
                {
                    locked(&shown).show(&bytes[..read]);
                }
            })
            .context("Cannot start a thread to read from the terminal")?;
        Ok(Self {
            keyboard: File::from(pty.master),
            side: pty.slave,
            screen,
        })
    }

    /// Types.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn types(&mut self, keys: &str) -> Result<()> {
        self.keyboard
            .write_all(keys.as_bytes())
            .context("Cannot type")
    }

    /// Everything that is shown, without spaces at ends of rows.
    pub fn shown(&self) -> String {
        locked(&self.screen).text()
    }

    /// Waits until what is shown ends with `text`, but for white space.
    ///
    /// # Errors
    /// When it does not come to that.
    pub fn wait_shown(&self, text: &str) -> Result<()> {
        let what = format!("{text:?} at the terminal");
        let waited = wait_for(&what, PATIENCE, || {
            let shown = self.shown();
            Ok(shown.trim_end().ends_with(text.trim_end()).then_some(()))
        });
        waited.with_context(|| format!("It shows {:?}", self.shown()))
    }

    /// Types a line, and waits for the next prompt.
    ///
    /// # Errors
    /// When there is none.
    pub fn line(&mut self, line: &str) -> Result<()> {
        let prompts = self.prompts();
        self.types(&format!("{line}\r"))?;
        self.wait_prompts(prompts + 1)
    }

    fn prompts(&self) -> usize {
        let text = self.shown();
        text.lines()
            .filter(|row| row.starts_with(PROMPT.trim_end()))
            .count()
    }

    /// Waits until so many prompts were shown.
    ///
    /// # Errors
    /// When it does not come to that.
    pub fn wait_prompts(&self, count: usize) -> Result<()> {
        let waited = wait_for("a prompt", PATIENCE, || {
            Ok((self.prompts() >= count).then_some(()))
        });
        waited.with_context(|| format!("It shows {:?}", self.shown()))
    }

    /// Whether the terminal shows keys itself and gives lines to the process, as it does for a shell.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn gives_lines(&self) -> Result<bool> {
        let mode = tcgetattr(&self.side).context("Cannot ask for the terminal's mode")?;
        Ok(mode
            .local_flags
            .contains(LocalFlags::ICANON | LocalFlags::ECHO))
    }

    /// Makes it do so, as a shell does.
    ///
    /// # Errors
    /// When that is not possible.
    pub fn give_lines(&self) -> Result<()> {
        let mut mode = tcgetattr(&self.side).context("Cannot ask for the terminal's mode")?;
        mode.local_flags
            .insert(LocalFlags::ICANON | LocalFlags::ECHO);
        tcsetattr(&self.side, SetArg::TCSANOW, &mode).context("Cannot set the terminal's mode")
    }

    /// Types the lines of `printed` that have a prompt, and checks that all it shows after its greeting
    /// is what is printed. Lines that begin with `#` are what happens in between: `happens` waits for
    /// it.
    ///
    /// # Errors
    /// When it shows something else, or `happens` fails.
    pub fn replay(
        &mut self,
        printed: &str,
        mut happens: impl FnMut(&str) -> Result<()>,
    ) -> Result<()> {
        self.wait_prompts(1)?;
        let lines: Vec<_> = printed
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        for line in &lines {
            if let Some(event) = line.strip_prefix("# ") {
                happens(event)?;
            } else if *line == "(qemu) quit" {
                self.types("quit\r")?;
                self.wait_shown(line)?;
            } else if let Some(typed) = line.strip_prefix(PROMPT) {
                self.line(typed)?;
            }
        }
        let shows: Vec<_> = lines
            .into_iter()
            .filter(|line| !line.starts_with('#'))
            .collect();
        let text = self.shown();
        let (greeting, shown) = text.split_once('\n').unwrap_or_default();
        ensure!(
            greeting.starts_with("QEMU ")
                && greeting.ends_with(" monitor - type 'help' for more information"),
            "{greeting:?}"
        );
        let shown = shown.trim_end().trim_end_matches("\n(qemu)");
        ensure!(
            shown == shows.join("\n"),
            "{shown}\nis not\n{}",
            shows.join("\n")
        );
        Ok(())
    }
}

impl Terminal {
    /// Starts `command` at a terminal.
    ///
    /// # Errors
    /// When there is no terminal, or the process cannot be started.
    pub fn start(mut command: Command) -> Result<Self> {
        let tty = Tty::of(&mut command)?;
        let child = process::spawn(&mut command)?;
        Ok(Self { child, tty })
    }

    /// The process's number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends the process a signal.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.child.id() as i32), signal).context("Cannot send a signal")
    }

    /// Waits for the process's end, which leaves the terminal as it was.
    ///
    /// # Errors
    /// When it does not end, or leaves it otherwise.
    pub fn wait_end(mut self) -> Result<ExitStatus> {
        let status = wait_for("the process's end", PATIENCE, || {
            Ok(self.child.try_wait()?)
        })?;
        ensure!(self.gives_lines()?, "the terminal is left in another mode");
        Ok(status)
    }
}

impl Deref for Terminal {
    type Target = Tty;

    fn deref(&self) -> &Tty {
        &self.tty
    }
}

impl DerefMut for Terminal {
    fn deref_mut(&mut self) -> &mut Tty {
        &mut self.tty
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn locked(screen: &Mutex<Screen>) -> MutexGuard<'_, Screen> {
    screen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is shown, as far as editing a line needs it: rows of any width, none of them lost.
#[derive(Debug, Default)]
struct Screen {
    rows: Vec<Vec<char>>,
    column: usize,
    /// Bytes that belong to something that is not complete.
    begun: Vec<u8>,
}

impl Screen {
    fn show(&mut self, bytes: &[u8]) {
        self.begun.extend(bytes);
        let begun = std::mem::take(&mut self.begun);
        let mut rest = &begun[..];
        while let Some(used) = self.take(rest) {
            rest = &rest[used..];
        }
        self.begun = rest.to_vec();
    }

    /// Shows what the bytes begin with; gives how many that were, if that is known yet.
    fn take(&mut self, bytes: &[u8]) -> Option<usize> {
        if self.rows.is_empty() {
            self.rows.push(Vec::new());
        }
        let row = self.rows.last_mut()?;
        match bytes {
            [] | [0x1b] => None,
            [0x1b, b'[', rest @ ..] => {
                let length = rest.iter().position(u8::is_ascii_alphabetic)?;
                let number = std::str::from_utf8(&rest[..length]).ok()?.parse();
                match rest[length] {
                    b'C' => self.column += number.unwrap_or(1),
                    b'D' => self.column = self.column.saturating_sub(number.unwrap_or(1)),
                    b'K' => row.truncate(self.column),
                    _ => {}
                }
                Some(2 + length + 1)
            }
            [b'\r', ..] => {
                self.column = 0;
                Some(1)
            }
            [b'\n', ..] => {
                self.rows.push(Vec::new());
                Some(1)
            }
            [byte, ..] if byte.is_ascii_control() => Some(1),
            _ => {
                let chunk = bytes.utf8_chunks().next()?;
                let Some(c) = chunk.valid().chars().next() else {
                    return (bytes.len() > 4).then_some(1);
                };
                if row.len() <= self.column {
                    row.resize(self.column + 1, ' ');
                }
                row[self.column] = c;
                self.column += 1;
                Some(c.len_utf8())
            }
        }
    }

    fn text(&self) -> String {
        let row = |row: &Vec<char>| row.iter().collect::<String>().trim_end().to_owned();
        self.rows.iter().map(row).collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_shown_as_it_was_edited() {
        let mut screen = Screen::default();
        for part in [
            "one\r\ntwoo",
            "\x1b[D\x1b",
            "[K\x1b[2Dhr\x1b[1Cx\r\r\n",
            "gr\u{fc}n ",
        ] {
            screen.show(part.as_bytes());
        }
        screen.show(&"\u{fc}".as_bytes()[..1]);
        screen.show(&"\u{fc}".as_bytes()[1..]);
        assert_eq!(screen.text(), "one\nthr x\ngr\u{fc}n \u{fc}");
    }
}
