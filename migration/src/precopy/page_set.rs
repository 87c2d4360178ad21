//! A set of pages of RAM.

use std::ops::Range;

/// Bytes of a page, on both sides.
pub const PAGE: u64 = 4096;

/// Pages of RAM, by their number counted without the gaps in the guest's address space.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PageSet {
    words: Vec<u64>,
    /// How many pages RAM has.
    pages: u64,
}

impl PageSet {
    /// None of the pages of RAM of `size` bytes.
    pub fn none_of(size: u64) -> Self {
        let pages = size / PAGE;
        Self {
            words: vec![0; pages.div_ceil(64) as usize],
            pages,
        }
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|w| u64::from(w.count_ones())).sum()
    }

    /// Adds those that a range of bytes touches, as far as RAM has them.
    pub fn add(&mut self, bytes: Range<u64>) {
        let last = bytes.end.div_ceil(PAGE).min(self.pages);
        let mut page = bytes.start / PAGE;
        while page < last {
            let bit = page % 64;
            let many = (64 - bit).min(last - page);
            self.words[(page / 64) as usize] |= (u64::MAX >> (64 - many)) << bit;
            page += many;
        }
    }

    /// Adds a bitmap with the lowest bit of its first word for the page that begins at `offset`.
    pub fn add_bitmap(&mut self, offset: u64, bitmap: impl IntoIterator<Item = u64>) {
        let first = offset / PAGE;
        for (nth, word) in bitmap
            .into_iter()
            .enumerate()
            .filter(|(_, word)| *word != 0)
        {
            let at = first + nth as u64 * 64;
            let (index, shift) = ((at / 64) as usize, at % 64);
            self.or(index, word << shift);
            if shift > 0 {
                self.or(index + 1, word >> (64 - shift));
            }
        }
    }

    fn or(&mut self, index: usize, word: u64) {
        let left = self.pages.saturating_sub(index as u64 * 64);
        let mask = match left {
            0 => return,
            1..64 => u64::MAX >> (64 - left),
            _ => u64::MAX,
        };
        self.words[index] |= word & mask;
    }

    /// Takes the first run of neighbours at or behind byte `from` out of it, at most `most` bytes:
    /// where it begins and ends in bytes.
    pub fn take_run(&mut self, from: u64, most: u64) -> Option<Range<u64>> {
        let first = self.next(from / PAGE, true)?;
        let end = self.next(first, false).unwrap_or(self.pages);
        let end = end.min(first + (most / PAGE).max(1));
        let mut page = first;
        while page < end {
            let bit = page % 64;
            let many = (64 - bit).min(end - page);
            self.words[(page / 64) as usize] &= !((u64::MAX >> (64 - many)) << bit);
            page += many;
        }
        Some(first * PAGE..end * PAGE)
    }

    /// The first page from `page` on that is in it, or is not.
    fn next(&self, page: u64, member: bool) -> Option<u64> {
        let mut index = (page / 64) as usize;
        let mut mask = u64::MAX << (page % 64);
        while let Some(word) = self.words.get(index) {
            let word = if member { *word } else { !*word } & mask;
            if word != 0 {
                let found = index as u64 * 64 + u64::from(word.trailing_zeros());
                return (found < self.pages).then_some(found);
            }
            index += 1;
            mask = u64::MAX;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const PAGES: u64 = 300;

    fn drain(set: &mut PageSet, most: u64) -> Vec<u64> {
        let mut pages = Vec::new();
        let mut from = 0;
        while let Some(run) = set.take_run(from, most) {
            assert!(run.start >= from && run.end - run.start <= most.max(PAGE));
            pages.extend(run.start / PAGE..run.end / PAGE);
            from = run.end;
        }
        pages
    }

    proptest! {
        #[test]
        fn what_was_added_is_taken_once_and_in_order(
            ranges in prop::collection::vec((0..PAGES + 20, 0..80u64), 0..12),
            bitmaps in prop::collection::vec((0..PAGES, any::<u64>()), 0..6),
            most in 1..100u64,
        ) {
            let mut set = PageSet::none_of(PAGES * PAGE);
            let mut wanted = BTreeSet::new();
            for (first, many) in ranges {
                // A range need not begin at a page.
                set.add(first * PAGE + 1..(first + many) * PAGE + 1);
                wanted.extend((first..=first + many).filter(|page| *page < PAGES));
            }
            for (first, word) in bitmaps {
                set.add_bitmap(first * PAGE, [word]);
                let bits = (0..64).filter(|bit| word >> bit & 1 == 1);
                wanted.extend(bits.map(|bit| first + bit).filter(|page| *page < PAGES));
            }
            prop_assert_eq!(set.count(), wanted.len() as u64);
            let taken = drain(&mut set, most * PAGE);
            prop_assert_eq!(taken, wanted.into_iter().collect::<Vec<_>>());
            prop_assert_eq!(set.count(), 0);
        }
    }
}
