//! The guest's disk, compared with what the guest says it wrote. See `guest/report.h` for a block.

use anyhow::{Context, Result, bail, ensure};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::report::{self, BLOCK_IN_FLIGHT, Operation, Report};

const BLOCK: usize = 4096;
const WORDS: usize = BLOCK / 8;
const SECTOR_WORDS: usize = 64;
const SECTORS: u64 = (WORDS / SECTOR_WORDS) as u64;
const MAGIC: u64 = u64::from_le_bytes(*b"BATONBLK");
const PATTERN: u64 = 0xa5a5_a5a5_5a5a_5a5a;

/// What was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Blocks that hold what the guest had acknowledged.
    pub blocks: u64,
    /// Of these, blocks with a write in flight, which hold the old or the new.
    pub in_flight: u64,
}

/// Compares every block that the guest has had acknowledged. The guest must be stopped.
///
/// # Errors
/// Names the first block that is wrong, and how.
pub fn check(report: &Report, image: &Path) -> Result<Checked> {
    let about = || format!("Cannot read the disk {}", image.display());
    let file = File::open(image).with_context(about)?;
    let run = report.get(report::BLK_RUN);
    let blocks = report.get(report::BLK_BLOCKS);
    ensure!(
        blocks <= report::BLOCK_LIMIT as u64,
        "The guest reports {blocks} blocks, more than it can use"
    );
    let slots = report.blk_slots();
    let mut checked = Checked::default();
    let mut block = [0; BLOCK];
    for number in 0..blocks {
        let entry = report.entry(report::BLK_SEQUENCE, number as usize);
        let acknowledged = entry & !BLOCK_IN_FLIGHT;
        if acknowledged == 0 {
            continue;
        }
        let in_flight = entry & BLOCK_IN_FLIGHT != 0;
        let writing = slots
            .iter()
            .find(|slot| slot.operation == Operation::Write && u64::from(slot.block) == number);
        file.read_exact_at(&mut block, number * BLOCK as u64)
            .with_context(about)?;
        let found = sequence(&block, number, run).with_context(|| format!("Block {number}"))?;
        let new = writing
            .filter(|_| in_flight)
            .map(|slot| u64::from(slot.sequence));
        if found != acknowledged && Some(found) != new {
            bail!(
                "Block {number} holds write {found}; write {acknowledged} was acknowledged{}",
                new.map(|new| format!(", and {new} was in flight"))
                    .unwrap_or_default()
            );
        }
        checked.blocks += 1;
        checked.in_flight += u64::from(in_flight);
    }
    Ok(checked)
}

/// Which write a block holds.
fn sequence(block: &[u8; BLOCK], number: u64, run: u64) -> Result<u64> {
    let word = |index: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&block[index * 8..][..8]);
        u64::from_le_bytes(bytes)
    };
    ensure!(
        word(0) == MAGIC,
        "holds no block of the guest's, but {:#x}",
        word(0)
    );
    ensure!(
        word(1) == number * SECTORS,
        "holds what belongs to block {}",
        word(1) / SECTORS
    );
    ensure!(word(3) == run, "holds a write of an earlier boot");
    let checksum = fnv1a64(&block[..32]);
    ensure!(word(4) == checksum, "has a wrong checksum");
    for index in 5..WORDS {
        let last = index % SECTOR_WORDS == SECTOR_WORDS - 1;
        let expected = if last {
            checksum
        } else {
            PATTERN ^ index as u64
        };
        ensure!(
            word(index) == expected,
            "is torn: at byte {} it holds {:#x} in place of {expected:#x}",
            index * 8,
            word(index)
        );
    }
    Ok(word(2))
}

fn fnv1a64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;
    use std::path::PathBuf;

    const RUN: u64 = 77;

    fn written(number: u64, sequence: u64, run: u64) -> [u8; BLOCK] {
        let mut words: Vec<u64> = (0..WORDS as u64).map(|index| PATTERN ^ index).collect();
        words[..4].copy_from_slice(&[MAGIC, number * SECTORS, sequence, run]);
        let header: Vec<u8> = words[..4]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        words[4] = fnv1a64(&header);
        for sector in 0..SECTORS as usize {
            words[(sector + 1) * SECTOR_WORDS - 1] = words[4];
        }
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.try_into().unwrap()
    }

    /// A guest with 4 blocks that says of block 2 what `entry` is, with `slot` in flight there.
    struct Guest {
        ram: Vec<u64>,
        image: PathBuf,
        _scratch: Scratch,
    }

    impl Guest {
        fn new(entry: u64, slot: Option<u64>, block: &[u8; BLOCK]) -> Self {
            let mut ram = vec![0; (report::ADDRESS as usize + report::SIZE) / 8];
            let page = report::ADDRESS as usize / 8;
            ram[page + report::BLK_BLOCKS.offset / 8] = 4 << 32;
            ram[page + report::BLK_RUN.offset / 8] = RUN;
            ram[page + report::BLK_SEQUENCE.offset / 8 + 1] = entry;
            if let Some(sequence) = slot {
                ram[page + report::BLK_SLOT.offset / 8] = 2 | 2 << 32;
                ram[page + report::BLK_SLOT.offset / 8 + 1] = sequence;
            }
            let scratch = Scratch::new().unwrap();
            let image = scratch.join("disk");
            let mut disk = vec![0; 4 * BLOCK];
            disk[2 * BLOCK..3 * BLOCK].copy_from_slice(block);
            std::fs::write(&image, disk).unwrap();
            Self {
                ram,
                image,
                _scratch: scratch,
            }
        }

        #[allow(unsafe_code)]
        fn check(&mut self) -> Result<Checked> {
            // SAFETY: the vector is as long as the mapping must be, and outlives the report.
            let report = unsafe { Report::new(self.ram.as_mut_ptr().cast()) };
            check(&report, &self.image)
        }
    }

    #[test]
    fn a_block_holds_what_was_acknowledged() {
        let good = written(2, 9, RUN);
        assert_eq!(Guest::new(9, None, &good).check().unwrap().blocks, 1);
        let error = Guest::new(10, None, &good).check().unwrap_err().to_string();
        assert_eq!(error, "Block 2 holds write 9; write 10 was acknowledged");
    }

    #[test]
    fn a_block_with_a_write_in_flight_holds_the_old_or_the_new() {
        for found in [9, 12] {
            let block = written(2, found, RUN);
            let checked = Guest::new(9 | BLOCK_IN_FLIGHT, Some(12), &block)
                .check()
                .unwrap();
            assert_eq!(
                checked,
                Checked {
                    blocks: 1,
                    in_flight: 1
                }
            );
        }
        let between = written(2, 11, RUN);
        assert!(
            Guest::new(9 | BLOCK_IN_FLIGHT, Some(12), &between)
                .check()
                .is_err()
        );
        assert!(
            Guest::new(9, Some(12), &written(2, 12, RUN))
                .check()
                .is_err()
        );
    }

    #[test]
    fn a_block_that_was_never_acknowledged_may_hold_anything() {
        let garbage = [0x5a; BLOCK];
        assert_eq!(
            Guest::new(0, None, &garbage).check().unwrap(),
            Checked::default()
        );
        let checked = Guest::new(BLOCK_IN_FLIGHT, Some(1), &garbage)
            .check()
            .unwrap();
        assert_eq!(checked, Checked::default());
    }

    #[test]
    fn a_torn_a_misplaced_and_an_old_block_are_told_apart() {
        let mut torn = written(2, 9, RUN);
        torn[2048..].copy_from_slice(&written(2, 8, RUN)[2048..]);
        for (block, reason) in [
            (torn, "is torn"),
            (written(3, 9, RUN), "holds what belongs to block 3"),
            (written(2, 9, 76), "holds a write of an earlier boot"),
            ([0; BLOCK], "holds no block of the guest's"),
        ] {
            let error = format!("{:#}", Guest::new(9, None, &block).check().unwrap_err());
            assert!(
                error.starts_with("Block 2: ") && error.contains(reason),
                "{error}"
            );
        }
    }
}
