//! The terminal on standard input: keys reach the guest as they are pressed, and the terminal is as
//! it was before when the process ends (QEMU's chardev/char-stdio.c).

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Mutex, PoisonError};

use nix::sys::termios::{
    ControlFlags, InputFlags, LocalFlags, OutputFlags, SetArg, SpecialCharacterIndices, Termios,
    tcgetattr, tcsetattr,
};
use nix::unistd::{getpgrp, isatty, tcgetpgrp};

nix::ioctl_read_bad!(window_size, nix::libc::TIOCGWINSZ, nix::libc::winsize);

/// What the terminal was like, if it was changed.
static BEFORE: Mutex<Option<Before>> = Mutex::new(None);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Before {
    flags: [u32; 4],
    characters: [u8; nix::libc::NCCS],
}

/// Whether keys are to go through as they are pressed, and then whether some send signals.
static WANTED: Mutex<Option<bool>> = Mutex::new(None);

/// How long what [`carried`] gives is, in bytes.
pub const CARRIED: usize = 16 + nix::libc::NCCS;

/// Keys go through as they are pressed; with `signal` those that send signals still do. Nothing
/// happens if standard input is no terminal, or another's at the moment.
pub fn begin(signal: bool) -> io::Result<()> {
    let input = io::stdin();
    let input = input.as_fd();
    if !isatty(input)? {
        return Ok(());
    }
    *WANTED.lock().unwrap_or_else(PoisonError::into_inner) = Some(signal);
    // A process in the background would be stopped.
    if tcgetpgrp(input) != Ok(getpgrp()) {
        return Ok(());
    }
    let mut terminal = tcgetattr(input)?;
    let mut before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner);
    before.get_or_insert_with(|| Before::of(&terminal));
    terminal.input_flags &= !(InputFlags::IGNBRK
        | InputFlags::BRKINT
        | InputFlags::PARMRK
        | InputFlags::ISTRIP
        | InputFlags::INLCR
        | InputFlags::IGNCR
        | InputFlags::ICRNL
        | InputFlags::IXON);
    terminal.output_flags |= OutputFlags::OPOST;
    terminal.local_flags &=
        !(LocalFlags::ECHO | LocalFlags::ECHONL | LocalFlags::ICANON | LocalFlags::IEXTEN);
    terminal.local_flags.set(LocalFlags::ISIG, signal);
    terminal.control_flags &= !(ControlFlags::CSIZE | ControlFlags::PARENB);
    terminal.control_flags |= ControlFlags::CS8;
    terminal.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
    terminal.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
    Ok(tcsetattr(input, SetArg::TCSANOW, &terminal)?)
}

/// The process goes on after it was stopped: a shell has had the terminal meanwhile, and has given it
/// back or not.
pub fn resumed() {
    let wanted = *WANTED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(signal) = wanted
        && let Err(e) = begin(signal)
    {
        tracing::warn!("the terminal's mode cannot be changed: {e}");
    }
}

/// How many columns the terminal has; 0 if that is not known.
#[allow(unsafe_code)]
pub fn columns() -> usize {
    let mut size = nix::libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the kernel fills in this structure, or tells that standard input is no terminal.
    let asked = unsafe { window_size(io::stdin().as_raw_fd(), &mut size) };
    asked.map_or(0, |_| size.ws_col.into())
}

/// The terminal is again as it was, if it was changed: at the end of the process.
pub fn restore() {
    *WANTED.lock().unwrap_or_else(PoisonError::into_inner) = None;
    let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
    let input = io::stdin();
    let input = input.as_fd();
    if let Some(before) = before
        && tcgetpgrp(input) == Ok(getpgrp())
        && let Ok(mut terminal) = tcgetattr(input)
    {
        before.apply(&mut terminal);
        // There is nobody left to tell.
        let _ = tcsetattr(input, SetArg::TCSANOW, &terminal);
    }
}

/// What the terminal was like, for the program that this process becomes.
pub fn carried() -> Option<Vec<u8>> {
    let before = (*BEFORE.lock().unwrap_or_else(PoisonError::into_inner))?;
    let flags = before.flags.iter().flat_map(|flag| flag.to_ne_bytes());
    Some(flags.chain(before.characters).collect())
}

/// What the program before this one found.
pub fn adopt(bytes: &[u8]) -> Result<(), String> {
    let before = Before::read(bytes).ok_or("the terminal's settings are damaged")?;
    *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
    Ok(())
}

impl Before {
    fn of(terminal: &Termios) -> Self {
        Self {
            flags: [
                terminal.input_flags.bits(),
                terminal.output_flags.bits(),
                terminal.control_flags.bits(),
                terminal.local_flags.bits(),
            ],
            characters: terminal.control_chars,
        }
    }

    fn apply(&self, terminal: &mut Termios) {
        let [input, output, control, local] = self.flags;
        terminal.input_flags = InputFlags::from_bits_retain(input);
        terminal.output_flags = OutputFlags::from_bits_retain(output);
        terminal.control_flags = ControlFlags::from_bits_retain(control);
        terminal.local_flags = LocalFlags::from_bits_retain(local);
        terminal.control_chars = self.characters;
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != CARRIED {
            return None;
        }
        let (flags, characters) = bytes.split_at(16);
        let mut all = [0; 4];
        for (flag, bytes) in all.iter_mut().zip(flags.chunks_exact(4)) {
            *flag = u32::from_ne_bytes(bytes.try_into().ok()?);
        }
        Some(Self {
            flags: all,
            characters: characters.try_into().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_was_like_reads_back() {
        let pty = nix::pty::openpty(None, None).unwrap();
        let mut terminal = tcgetattr(&pty.slave).unwrap();
        let before = Before::of(&terminal);
        let mut bytes: Vec<u8> = before.flags.iter().flat_map(|f| f.to_ne_bytes()).collect();
        bytes.extend(before.characters);
        assert_eq!(Before::read(&bytes), Some(before));
        assert_eq!(Before::read(&bytes[1..]), None);
        nix::sys::termios::cfmakeraw(&mut terminal);
        before.apply(&mut terminal);
        assert_eq!(Before::of(&terminal), before);
    }
}
