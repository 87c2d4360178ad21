//! The job `suspend`: a guest suspends itself to RAM, is woken, and is migrated in its sleep.

use super::super::{Vmm, inside};
use super::command_line::Guest;
use super::generation::Origin;
use super::life::{self, Life};
use super::migration::{self, RUNNING, SUSPENDED};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::time::Instant;

const RAM: &str = "/dev/shm/ram";
const STATE: &str = "/tmp/vm.state";
/// How often it is only woken again.
const CYCLES: u32 = 3;

/// Boots a guest, lets it sleep and wake, and lets it finish; gives the result line's numbers.
pub(crate) fn run(vmm: Vmm) -> Result<String> {
    let mut guest = Guest::new(vmm);
    guest.ram = Some(RAM.to_owned());
    let (life, boot) = Life::boot(guest)?;
    let mut sleeper = Sleeper {
        life,
        words: 0,
        asleep_ms: Vec::new(),
        awake_ms: Vec::new(),
    };
    for cycle in 1..=CYCLES {
        sleeper.sleep().with_context(|| format!("Sleep {cycle}"))?;
        sleeper.wake().with_context(|| format!("Sleep {cycle}"))?;
    }
    sleeper.nap().context("A sleep that the alarm ends")?;
    // The example of QEMU's document, whose guest agent does the same.
    sleeper.sleep()?;
    let kept = sleeper.reboot().context("cpr-reboot, asleep")?;
    sleeper.wake().context("After cpr-reboot")?;
    sleeper.sleep()?;
    let moved = migration::transfer(&mut sleeper.life).context("cpr-transfer, asleep")?;
    sleeper.wake().context("After cpr-transfer")?;
    // In the process that got it asleep, as anywhere.
    sleeper.sleep()?;
    sleeper.wake()?;

    let numbers = sleeper.life.end()?;
    Ok(format!(
        "{} sleeps={} asleep_ms_max={} awake_ms_max={} reboot_downtime_ms={kept} transfer_downtime_ms={} {numbers}",
        life::heading(vmm, boot),
        sleeper.words,
        sleeper.asleep_ms.iter().max().unwrap_or(&0),
        sleeper.awake_ms.iter().max().unwrap_or(&0),
        moved.downtime,
    ))
}

struct Sleeper {
    life: Life,
    /// Words in the mailbox so far.
    words: u32,
    /// Milliseconds from the word to runstate `suspended`.
    asleep_ms: Vec<u128>,
    /// Milliseconds from `system_wakeup` to a guest at work.
    awake_ms: Vec<u128>,
}

impl Sleeper {
    fn tell(&mut self, word: &str) -> Result<()> {
        self.words += 1;
        let word = format!("{word}{}", self.words);
        life::tell_guest(&self.life.guest.disk, &word)
    }

    /// The guest suspends itself.
    fn sleep(&mut self) -> Result<()> {
        let start = Instant::now();
        self.tell(inside::SUSPEND)?;
        migration::has_guest(&mut self.life.now, SUSPENDED)?;
        self.asleep_ms.push(start.elapsed().as_millis());
        println!("LAB guest sleeps after {} ms", start.elapsed().as_millis());
        Ok(())
    }

    /// It is woken, and works.
    fn wake(&mut self) -> Result<()> {
        let start = Instant::now();
        let status = self.life.now.status()?;
        ensure!(status == SUSPENDED, "It is `{status}`");
        self.life.now.command("system_wakeup", &json!({}))?;
        migration::has_guest(&mut self.life.now, RUNNING)?;
        self.life.goes_on()?;
        self.awake_ms.push(start.elapsed().as_millis());
        println!("LAB guest works after {} ms", start.elapsed().as_millis());
        Ok(())
    }

    /// The guest suspends itself, and its clock's alarm wakes it.
    fn nap(&mut self) -> Result<()> {
        self.tell(inside::NAP)?;
        migration::has_guest(&mut self.life.now, SUSPENDED)?;
        migration::has_guest(&mut self.life.now, RUNNING)?;
        self.life.goes_on()?;
        println!("LAB guest works again after its alarm");
        Ok(())
    }

    /// Keeps the guest, whose RAM stays, and loads it in another process, where it sleeps on.
    fn reboot(&mut self) -> Result<u64> {
        let life = &mut self.life;
        let kept = migration::keep(&mut life.now, STATE, true)?;
        life.now = life.next(Origin::Incoming("defer"))?;
        let loaded = migration::load(&mut life.now, Some(STATE), true, SUSPENDED)?;
        Ok(kept + loaded)
    }
}
