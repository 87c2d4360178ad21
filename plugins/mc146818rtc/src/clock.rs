//! The chip between the guest and the host's clock. vCPUs and the device's thread share it.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use baton_plugin_api::vmm_sys_util::eventfd::EventFd;
use baton_plugin_api::{Error, Readiness, Result, Waiter};
use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::chip::{Chip, SECOND};
use crate::state::RtcSection;

/// The offset of the index port; the data port is the next.
const INDEX_PORT: u64 = 0;

/// A clock.
pub(crate) struct Clock {
    shared: Mutex<Shared>,
    /// On the host's clock of the day, which the guest's follows, and told when that is set.
    timer: TimerFd,
    irq: EventFd,
}

struct Shared {
    chip: Chip,
    /// When the timer will expire: setting it anew for every access would cost a system call.
    armed: Option<i128>,
}

/// What the host's clock shows, in nanoseconds since 1970.
pub(crate) fn now() -> i128 {
    match SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => since.as_nanos() as i128,
        Err(e) => -(e.duration().as_nanos() as i128),
    }
}

impl Clock {
    pub(crate) fn new(chip: Chip, irq: EventFd) -> Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_REALTIME, flags)
            .map_err(|e| Error::io("Cannot make a timer", &e.into()))?;
        Ok(Self {
            shared: Mutex::new(Shared { chip, armed: None }),
            timer,
            irq,
        })
    }

    /// The guest reads ports. Only the data port can be read.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let (1.., [byte]) = (offset, data) {
            self.access(|chip, now| *byte = chip.read(now));
        }
    }

    /// The guest writes ports; two bytes at once are the index and the data. If that has set the time,
    /// the seconds that it is ahead of the host's by now.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) -> Option<i64> {
        let mut set = None;
        self.access(|chip, now| {
            let before = chip.offset;
            for (port, &byte) in (offset..=INDEX_PORT + 1).zip(data) {
                match port {
                    INDEX_PORT => chip.select(byte),
                    _ => chip.write(byte, now),
                }
            }
            // Less than a second is what it takes to let the clock go on at an exact moment.
            if (chip.offset - before).abs() >= SECOND {
                let ahead = (chip.offset + SECOND / 2).div_euclid(SECOND);
                set = i64::try_from(ahead).ok();
            }
        });
        set
    }

    /// Back to power-on, but for what the battery keeps.
    pub(crate) fn reset(&self) {
        self.shared().chip.reset();
    }

    /// When the alarm goes off next.
    pub(crate) fn alarm_time(&self) -> Option<SystemTime> {
        let at = self.shared().chip.alarm_time()?;
        let since = u64::try_from(at.max(0)).unwrap_or(u64::MAX);
        Some(SystemTime::UNIX_EPOCH + Duration::from_nanos(since))
    }

    pub(crate) fn save(&self) -> RtcSection {
        RtcSection::new(&self.shared().chip)
    }

    pub(crate) fn load(&self, chip: Chip) {
        self.shared().chip = chip;
    }

    /// The guest runs: it gets the interrupt that was pending where the state came from, and any
    /// that came due since.
    pub(crate) fn start(&self) -> Result<()> {
        let mut shared = self.shared();
        // The timer may have expired while nobody was there to see it.
        shared.armed = None;
        let now = now();
        shared.chip.settle(now);
        self.after_access(&mut shared, now)
    }

    /// The device's thread: it sleeps until an interrupt is due.
    pub(crate) fn serve(&self, waiter: &Waiter) -> Result<()> {
        let timer = self.timer.as_fd().as_raw_fd();
        while waiter
            .wait([Some((&timer, Readiness::Readable))])?
            .is_some()
        {
            match self.timer.wait() {
                // Cancelled: the host's clock was set, and what was armed is a wrong time now.
                Ok(()) | Err(Errno::EAGAIN | Errno::ECANCELED) => {}
                Err(e) => return Err(Error::io("Cannot read a timer", &e.into())),
            }
            let mut shared = self.shared();
            shared.armed = None;
            let now = now();
            shared.chip.settle(now);
            self.after_access(&mut shared, now)?;
        }
        Ok(())
    }

    fn access(&self, access: impl FnOnce(&mut Chip, i128)) {
        let mut shared = self.shared();
        let now = now();
        access(&mut shared.chip, now);
        // The kernel refuses neither for a reason that would be news to a guest.
        let _ = self.after_access(&mut shared, now);
    }

    fn after_access(&self, shared: &mut Shared, mut now: i128) -> Result<()> {
        loop {
            if shared.chip.take_interrupt() {
                self.irq
                    .write(1)
                    .map_err(|e| Error::io("Cannot raise the interrupt", &e))?;
            }
            let due = shared.chip.next_interrupt(now);
            if due == shared.armed {
                return Ok(());
            }
            match self.arm(due) {
                Ok(()) => shared.armed = due,
                // The host's clock was set since `now`.
                Err(Errno::ECANCELED) => {
                    now = self::now();
                    shared.chip.settle(now);
                }
                Err(e) => return Err(Error::io("Cannot set a timer", &e.into())),
            }
        }
    }

    fn arm(&self, due: Option<i128>) -> nix::Result<()> {
        let Some(due) = due else {
            return self.timer.unset();
        };
        // A time of 0 would switch the timer off.
        let due = due.max(1);
        let at = TimeSpec::new((due / SECOND) as _, (due % SECOND) as _);
        let flags =
            TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
        self.timer.set(Expiration::OneShot(at), flags)
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        // A panic is caught and told further up; registers are valid at every point.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
