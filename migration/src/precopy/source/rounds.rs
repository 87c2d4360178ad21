//! Copying RAM, round by round.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::HostError;
use crate::precopy::pace::{Brake, Estimate, Round};
use crate::precopy::page_set::{PAGE, PageSet};
use crate::precopy::pages::{MAX_DATA, Payload};
use crate::precopy::{LiveRam, PrecopyHost};
use crate::status::{MigrationStats, Tracker};

/// RAM on its way, and what is known of that.
pub(super) struct Rounds {
    ram: Arc<dyn LiveRam>,
    /// Noted as written and not sent since.
    pending: PageSet,
    /// Where the round has come to, in bytes.
    at: u64,
    payload: Payload,
    buffer: Vec<u8>,
    find_zeros: bool,
    pub(super) brake: Brake,
    estimate: Estimate,
    stats: MigrationStats,
    began: Instant,
    /// What was sent when the round began.
    sent_before: u64,
    pages_before: u64,
    round_began: Instant,
}

impl Rounds {
    /// Before the first round, of all of `ram` that may not be zero: written pages are noted already.
    pub(super) fn new(ram: Arc<dyn LiveRam>, find_zeros: bool) -> Result<Self, HostError> {
        let size = ram.size();
        let mut pending = PageSet::none_of(size);
        for range in ram.filled()? {
            pending.add(range);
        }
        let now = Instant::now();
        let stats = MigrationStats {
            total: size,
            page_size: PAGE,
            // What is not filled is zero, and the target's RAM is so at first.
            duplicate: size / PAGE - pending.count(),
            remaining: pending.count() * PAGE,
            ..MigrationStats::default()
        };
        Ok(Self {
            ram,
            pending,
            at: 0,
            payload: Payload::new(),
            buffer: vec![0; MAX_DATA],
            find_zeros,
            brake: Brake::new(now),
            estimate: Estimate::default(),
            stats,
            began: now,
            sent_before: 0,
            pages_before: 0,
            round_began: now,
        })
    }

    /// Begins a round with the pages that are pending.
    pub(super) fn begin(&mut self, tracker: &Tracker) {
        self.at = 0;
        self.round_began = Instant::now();
        self.sent_before = self.stats.transferred;
        self.pages_before = self.stats.normal + self.stats.duplicate;
        self.stats.dirty_sync_count += 1;
        tracker.note_ram(&self.stats);
        tracker.pass(self.stats.dirty_sync_count);
    }

    /// The next message of the round; nothing if all pages were in one. [`Self::sent`] follows.
    pub(super) fn next(&mut self) -> Result<Option<&[u8]>, HostError> {
        self.payload.clear();
        while !self.payload.is_full() {
            let Some(run) = self.pending.take_run(self.at, MAX_DATA as u64) else {
                break;
            };
            self.at = run.end;
            let bytes = &mut self.buffer[..(run.end - run.start) as usize];
            self.ram.read(run.start, bytes)?;
            let mut at = 0;
            while at < bytes.len() {
                let (zeros, length) = alike(&bytes[at..], self.find_zeros);
                let (offset, pages) = (run.start + at as u64, (length as u64) / PAGE);
                if !zeros {
                    self.payload.data(offset, &bytes[at..at + length]);
                    self.stats.normal += pages;
                } else {
                    self.stats.duplicate += pages;
                    // The target's RAM is zero until something else was put there.
                    if self.stats.dirty_sync_count > 1 {
                        self.payload.zeros(offset, length as u64);
                    }
                }
                at += length;
            }
        }
        Ok((!self.payload.is_empty()).then(|| self.payload.finish()))
    }

    /// A message of so many bytes was sent.
    pub(super) fn sent(&mut self, bytes: u64, stopped: bool, tracker: &Tracker) {
        let stats = &mut self.stats;
        stats.transferred += bytes;
        match stopped {
            true => stats.downtime_bytes += bytes,
            false => stats.precopy_bytes += bytes,
        }
        stats.normal_bytes = stats.normal * PAGE;
        stats.remaining = self.pending.count() * PAGE;
        let seconds = self.round_began.elapsed().as_secs_f64().max(1e-3);
        stats.mbps = (stats.transferred - self.sent_before) as f64 * 8.0 / seconds / 1e6;
        let pages = stats.normal + stats.duplicate - self.pages_before;
        stats.pages_per_second = (pages as f64 / seconds) as u64;
        tracker.note_ram(stats);
    }

    /// The round is over: asks what was written meanwhile, and estimates how long that would take.
    pub(super) fn end(
        &mut self,
        host: &mut (impl PrecopyHost + ?Sized),
        tracker: &Tracker,
    ) -> Result<Duration, HostError> {
        let time = self.round_began.elapsed();
        self.collect(host)?;
        let left = self.pending.count();
        self.stats.remaining = left * PAGE;
        self.stats.dirty_pages_rate = (left as f64 / time.as_secs_f64().max(1e-3)) as u64;
        let rest = self.estimate.after(Round {
            sent: self.stats.transferred - self.sent_before,
            time,
            left: left * PAGE,
        });
        tracker.note_ram(&self.stats);
        tracker.note_expected_downtime(Some(rest));
        Ok(rest)
    }

    /// Asks what was written.
    pub(super) fn collect(
        &mut self,
        host: &mut (impl PrecopyHost + ?Sized),
    ) -> Result<(), HostError> {
        host.written(&mut self.pending)
    }

    /// How long the round has lasted.
    pub(super) fn lasted(&self) -> Duration {
        self.round_began.elapsed()
    }

    /// All is over: rates are those of the whole.
    pub(super) fn finish(&mut self, tracker: &Tracker) {
        let seconds = self.began.elapsed().as_secs_f64().max(1e-3);
        let pages = self.stats.normal + self.stats.duplicate;
        self.stats.remaining = 0;
        self.stats.mbps = self.stats.transferred as f64 * 8.0 / seconds / 1e6;
        self.stats.pages_per_second = (pages as f64 / seconds) as u64;
        tracker.note_ram(&self.stats);
        tracker.note_expected_downtime(None);
    }
}

/// The first pages that are all zero, or of which none is: whether they are, and how many bytes.
fn alike(bytes: &[u8], find_zeros: bool) -> (bool, usize) {
    const ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];
    if !find_zeros {
        return (false, bytes.len());
    }
    let mut pages = bytes
        .chunks(PAGE as usize)
        .map(|page| page == &ZEROS[..page.len()]);
    let first = pages.next().unwrap_or_default();
    let many = 1 + pages.take_while(|zero| *zero == first).count();
    (first, (many * PAGE as usize).min(bytes.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_told_from_the_rest() {
        let mut bytes = vec![0; 5 * 4096];
        bytes[2 * 4096 + 4095] = 1;
        bytes[3 * 4096] = 1;
        assert_eq!(alike(&bytes, true), (true, 2 * 4096));
        assert_eq!(alike(&bytes[2 * 4096..], true), (false, 2 * 4096));
        assert_eq!(alike(&bytes[4 * 4096..], true), (true, 4096));
        assert_eq!(alike(&bytes, false), (false, 5 * 4096));
    }
}
