//! Parts of a function's BARs that are memory of a descriptor, and none of the plugin's to answer for.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use baton_plugin_api::{Error, Result};

use crate::machine::memory_slots::{MemorySlots, Slot};

const PAGE: u64 = 4096;
/// The most that one function may have, so that it leaves slots to others.
const MOST: usize = 32;

/// A part of a BAR.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    /// The BAR.
    pub bar: u32,
    /// Where it begins there.
    pub offset: u64,
    /// Its bytes.
    pub size: u64,
}

impl Part {
    /// Whether a BAR of `bar_size` bytes has such a part.
    fn check(&self, bar_size: u64) -> Result<()> {
        let Self { bar, offset, size } = *self;
        let end = offset.checked_add(size);
        let pages = size != 0 && (offset | size).is_multiple_of(PAGE);
        if pages && end.is_some_and(|end| end <= bar_size) {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "{size:#x} bytes at {offset:#x} are no pages of BAR {bar}, which has {bar_size:#x} bytes"
        )))
    }
}

/// The parts of one function.
pub struct BarParts {
    slots: Arc<MemorySlots>,
    parts: BTreeMap<(u32, u64), (u64, Slot)>,
}

impl BarParts {
    /// None yet.
    pub fn new(slots: Arc<MemorySlots>) -> Self {
        Self {
            slots,
            parts: BTreeMap::new(),
        }
    }

    /// Adds a part of a memory BAR of `bar_size` bytes that decodes at `at`. One that is there takes the
    /// new one's place.
    pub fn add(
        &mut self,
        part: Part,
        bar_size: u64,
        at: Option<u64>,
        memory: (OwnedFd, u64),
    ) -> Result<()> {
        part.check(bar_size)?;
        let Part { bar, offset, size } = part;
        let (fd, fd_offset) = memory;
        if !fd_offset.is_multiple_of(PAGE) {
            return Err(Error::invalid(format!(
                "{fd_offset:#x} is not where a page of the descriptor begins"
            )));
        }
        let known = self.parts.get(&(bar, offset)).is_some_and(|k| k.0 == size);
        let overlaps = |(&(_, other), (other_size, _)): (&(u32, u64), &(u64, Slot))| {
            other < offset + size && offset < other + other_size
        };
        if !known && self.parts.range((bar, 0)..=(bar, u64::MAX)).any(overlaps) {
            return Err(Error::invalid(format!(
                "{size:#x} bytes at {offset:#x} of BAR {bar} overlap with others that are mapped"
            )));
        }
        if !known && self.parts.len() >= MOST {
            return Err(Error::invalid(format!(
                "A function has at most {MOST} mapped parts"
            )));
        }
        let slot = self.slots.take(fd, fd_offset, size)?;
        // The one that was there ends before the other is placed.
        drop(self.parts.remove(&(bar, offset)));
        self.parts.insert((bar, offset), (size, slot));
        self.place(bar, at);
        Ok(())
    }

    /// A BAR decodes at `at`, or not at all. A part that cannot be there, such as in the midst of RAM, is
    /// the plugin's to answer for meanwhile.
    pub fn place(&mut self, bar: u32, at: Option<u64>) {
        for ((_, offset), (_, slot)) in self.parts.range_mut((bar, 0)..=(bar, u64::MAX)) {
            let address = at.and_then(|at| at.checked_add(*offset));
            if let Err(e) = slot.place(address) {
                tracing::warn!("accesses to BAR {bar} at {offset:#x} are slow: {e}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::memory_slots::tests::{Told, memory};

    const SIZE: u64 = 0x8000;
    const AT: u64 = 0xd000_0000;

    fn parts() -> (Arc<Told>, BarParts) {
        let told = Arc::new(Told::default());
        let slots = MemorySlots::new(Arc::clone(&told) as _, 100);
        (told, BarParts::new(slots))
    }

    fn part(bar: u32, offset: u64, size: u64) -> Part {
        Part { bar, offset, size }
    }

    fn add(parts: &mut BarParts, part: Part, at: Option<u64>) -> Result<()> {
        parts.add(part, SIZE, at, (memory(SIZE), 0))
    }

    #[test]
    fn a_part_is_where_its_bar_is_and_nowhere_while_that_does_not_decode() {
        let (told, mut parts) = parts();
        add(&mut parts, part(0, 0, 0x1000), None).unwrap();
        add(&mut parts, part(0, 0x3000, 0x2000), None).unwrap();
        add(&mut parts, part(2, 0x1000, 0x1000), Some(AT + SIZE)).unwrap();
        assert_eq!(told.places(), [(AT + SIZE + 0x1000, 0x1000)]);
        parts.place(0, Some(AT));
        assert_eq!(
            told.places(),
            [
                (AT, 0x1000),
                (AT + 0x3000, 0x2000),
                (AT + SIZE + 0x1000, 0x1000)
            ]
        );
        parts.place(0, None);
        assert_eq!(told.places(), [(AT + SIZE + 0x1000, 0x1000)]);
        drop(parts);
        assert!(told.places().is_empty());
    }

    #[test]
    fn what_is_no_part_of_the_bar_is_refused_and_nothing_is_lost() {
        let (told, mut parts) = parts();
        add(&mut parts, part(1, 0x2000, 0x2000), Some(AT)).unwrap();
        let wrong = [
            (0, 0),
            (0, 0x800),
            (0x800, 0x1000),
            (0, SIZE + 0x1000),
            (SIZE, 0x1000),
            (u64::MAX - 0xfff, 0x1000),
            (0x1000, 0x2000),
            (0x3000, 0x1000),
            (0x2000, 0x1000),
            (0, SIZE),
        ];
        for (offset, size) in wrong {
            assert!(add(&mut parts, part(1, offset, size), Some(AT)).is_err());
        }
        let odd = parts.add(part(1, 0, 0x1000), SIZE, None, (memory(SIZE), 0x800));
        assert!(odd.is_err());
        // The file is too short: what was there stays.
        let short = parts.add(part(1, 0x2000, 0x2000), SIZE, Some(AT), (memory(0x1000), 0));
        assert!(short.is_err());
        assert_eq!(told.places(), [(AT + 0x2000, 0x2000)]);
        // Beside it, and in another BAR, there is room.
        add(&mut parts, part(1, 0x4000, 0x1000), None).unwrap();
        add(&mut parts, part(3, 0x2000, 0x2000), None).unwrap();
    }

    #[test]
    fn the_same_part_again_takes_its_place() {
        let (told, mut parts) = parts();
        for _ in 0..2 {
            add(&mut parts, part(0, 0, 0x1000), Some(AT)).unwrap();
            assert_eq!(told.places(), [(AT, 0x1000)]);
        }
    }

    #[test]
    fn a_function_has_only_so_many_parts() {
        let (_, mut parts) = parts();
        for bar in 0..4 {
            for page in 0..8 {
                add(&mut parts, part(bar, page * 0x1000, 0x1000), None).unwrap();
            }
        }
        assert!(add(&mut parts, part(4, 0, 0x1000), None).is_err());
        // One that is there is no more.
        add(&mut parts, part(0, 0, 0x1000), None).unwrap();
    }
}
