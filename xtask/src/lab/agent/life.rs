//! A guest's life from boot to power-off, whatever happens to it in between.

use super::super::Vmm;
use super::super::inside;
use super::command_line::Guest;
use super::generation::{Generation, Origin};
use super::serial::Serial;
use anyhow::{Context, Result, bail};
use baton_testkit::terminal::Tty;
use baton_testkit::wait::wait_for;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const BOOT: Duration = Duration::from_secs(180);
const LIFE: Duration = Duration::from_secs(60);
const END: Duration = Duration::from_secs(180);
/// How long the guest may take to notice a device, or to let go of one.
const NOTICE: Duration = Duration::from_secs(60);
/// Ticks the guest must make before the first handover and after each: proof that it lives.
const TICKS_BETWEEN: usize = 10;

/// Seconds the guest's time of day may come to differ from L1's more than it did at first. L1 itself
/// knows only whole seconds when it starts.
const DRIFT: f64 = 2.0;
/// Ticks that are looked at for that: the one seen soonest counts.
const LOOKS: usize = 10;

/// A guest, the process that has it, and the arguments the next one is started with.
pub(crate) struct Life {
    pub guest: Guest,
    pub now: Generation,
    /// Of the newest process.
    number: u32,
    /// By how many seconds the guest's time of day is ahead of L1's, as it was at first.
    ahead: f64,
}

impl Life {
    /// Boots the guest and sees it work; gives the milliseconds until it did.
    pub(crate) fn boot(guest: Guest) -> Result<(Self, u128)> {
        let start = Instant::now();
        let now = Generation::start(guest.first, &guest.line(), Origin::Boot)?;
        Self::begin(guest, now, start)
    }

    /// The same with a person at a terminal.
    pub(crate) fn boot_at_terminal(guest: Guest) -> Result<(Self, u128, Tty)> {
        let start = Instant::now();
        let (now, tty) = Generation::at_terminal(guest.first, &guest.line(), Origin::Boot)?;
        let (life, boot) = Self::begin(guest, now, start)?;
        Ok((life, boot, tty))
    }

    fn begin(guest: Guest, now: Generation, start: Instant) -> Result<(Self, u128)> {
        let mut life = Self {
            number: guest.first,
            guest,
            now,
            ahead: 0.0,
        };
        life.wait_for_ticks(1, BOOT)?;
        let boot = start.elapsed().as_millis();
        println!("LAB guest works after {boot} ms");
        life.ahead = life.look_at_clock()?;
        Ok((life, boot))
    }

    /// Takes a guest up that `number` processes had before, and whose clock was `ahead`.
    pub(crate) fn resume(
        guest: Guest,
        number: u32,
        ahead: f64,
        origin: Origin<'_>,
    ) -> Result<Self> {
        let now = Generation::start(number, &guest.line(), origin)?;
        Ok(Self {
            guest,
            now,
            number,
            ahead,
        })
    }

    /// By how many seconds the guest's time of day was ahead of L1's at first.
    pub(crate) fn ahead(&self) -> f64 {
        self.ahead
    }

    /// Starts the next process, which gets the guest from where `origin` says.
    pub(crate) fn next(&mut self, origin: Origin<'_>) -> Result<Generation> {
        self.number += 1;
        Generation::start(self.number, &self.guest.line(), origin)
    }

    /// The same with a person at a terminal.
    pub(crate) fn next_at_terminal(&mut self, origin: Origin<'_>) -> Result<(Generation, Tty)> {
        self.number += 1;
        Generation::at_terminal(self.number, &self.guest.line(), origin)
    }

    /// Waits until the guest has made a few ticks more than it had before.
    pub(crate) fn goes_on(&mut self) -> Result<()> {
        let ticks = self.serial()?.ticks();
        self.wait_for_ticks(ticks + TICKS_BETWEEN, LIFE)
    }

    /// What the guest has said so far.
    pub(crate) fn serial(&self) -> Result<Serial> {
        Serial::read(&self.guest.serial)
    }

    /// How many lines that begin with `line` it has said.
    pub(crate) fn said(&self, line: &str) -> Result<usize> {
        Ok(self.serial()?.said(line))
    }

    /// Waits until that are so many.
    pub(crate) fn wait_said(&mut self, line: &str, times: usize) -> Result<()> {
        wait_for(&format!("the guest to say '{line}'"), NOTICE, || {
            let serial = self.serial_of_living()?;
            Ok((serial.said(line) >= times).then_some(()))
        })
    }

    fn serial_of_living(&mut self) -> Result<Serial> {
        self.now.alive()?;
        let serial = self.serial()?;
        if let Some(result) = serial.result() {
            bail!("The guest ended before it was told to: {result}");
        }
        Ok(serial)
    }

    fn wait_for_ticks(&mut self, ticks: usize, limit: Duration) -> Result<()> {
        wait_for(&format!("the guest's tick {ticks}"), limit, || {
            let serial = self.serial_of_living()?;
            Ok((serial.ticks() >= ticks).then_some(()))
        })
    }

    /// By how many seconds the guest's time of day is ahead of L1's.
    fn look_at_clock(&mut self) -> Result<f64> {
        let mut ahead = f64::NEG_INFINITY;
        let mut ticks = self.serial()?.ticks();
        for _ in 0..LOOKS {
            self.wait_for_ticks(ticks + 1, LIFE)?;
            let serial = self.serial()?;
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            let now = now.context("L1's clock is wrong")?.as_secs_f64();
            // What comes late is seen late, and never early.
            ahead = ahead.max(serial.date() - now);
            ticks = serial.ticks();
        }
        Ok(ahead)
    }

    /// Tells the guest to finish and looks at what it leaves; gives the numbers for the result.
    pub(crate) fn end(mut self) -> Result<String> {
        let drift = self.look_at_clock()? - self.ahead;
        if drift.abs() > DRIFT {
            bail!("The guest's time of day has changed by {drift:.3} s against the host's");
        }
        tell_guest(&self.guest.disk, inside::STOP)?;
        let said = wait_for("the guest's own verdict", END, || {
            Ok(self.serial()?.result().map(str::to_owned))
        })?;
        let Some(numbers) = said.strip_prefix("ok ") else {
            bail!("The guest found: {said}")
        };
        let status = self.now.ended(END).context("The guest powered off")?;
        if !status.success() {
            bail!("The guest powered off, but the VMM ended with {status}");
        }
        check_disk(&self.guest.disk)?;
        let serial = self.serial()?;
        Ok(format!(
            "gap_ms={} drift_ms={:.0} ticks={} {numbers}",
            serial.longest_gap(),
            drift * 1000.0,
            serial.ticks()
        ))
    }
}

/// The first words of a result.
pub(crate) fn heading(vmm: Vmm, boot: u128) -> String {
    format!("vmm={vmm} boot_ms={boot}")
}

/// Leaves a word in the mailbox of the guest with this disk.
pub(crate) fn tell_guest(disk: &str, word: &str) -> Result<()> {
    leave(disk, word, 0)
}

/// The same about a second disk.
pub(crate) fn tell_of_second_disk(disk: &str, word: &str) -> Result<()> {
    leave(disk, word, inside::SECOND_WORD)
}

fn leave(disk: &str, word: &str, at: u64) -> Result<()> {
    let mut letters = [0; 8];
    letters[..word.len()].copy_from_slice(word.as_bytes());
    OpenOptions::new()
        .write(true)
        .open(disk)
        .and_then(|disk| disk.write_all_at(&letters, inside::FILE_SYSTEM + at))
        .with_context(|| format!("Cannot write the guest's mailbox in {disk}"))
}

/// The guest's file system, looked at from outside once the guest is gone.
fn check_disk(disk: &str) -> Result<()> {
    let out = Command::new("e2fsck")
        .args(["-fn", disk])
        .output()
        .context("Cannot start e2fsck")?;
    if !out.status.success() {
        let text = String::from_utf8_lossy(&out.stdout).replace('\n', "; ");
        bail!("The guest's file system is damaged: {text}");
    }
    Ok(())
}
