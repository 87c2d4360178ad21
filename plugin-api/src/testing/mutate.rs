//! Hostile input without a fuzzer: every seed as it is, then mutations of them, the same every time.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};

use super::random::Random;

/// Longest input, in bytes.
const LONGEST: usize = 1 << 16;

/// Numbers at which something may change.
const EDGES: [u32; 10] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    u32::MAX,
];

/// Calls `target` with each file of the folder `fuzz/seeds/NAME`, and with `rounds` mutations. What
/// it panics with is passed on, after the input was printed.
pub fn exercise(name: &str, rounds: u32, target: impl Fn(&[u8])) {
    let seeds = seeds(name);
    assert!(!seeds.is_empty(), "There are no seeds in fuzz/seeds/{name}");
    for (path, seed) in &seeds {
        run(&path.display().to_string(), seed, &target);
    }
    let mut random = Random::new();
    for round in 0..rounds {
        let mut input = random.of(&seeds).1.clone();
        for _ in 0..=random.below(4) {
            random.mutate(&mut input, &seeds);
        }
        input.truncate(LONGEST);
        run(&format!("mutation {round}"), &input, &target);
    }
}

fn run(what: &str, input: &[u8], target: &impl Fn(&[u8])) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(input))) {
        eprintln!("{what} did it: {}", input.escape_ascii());
        resume_unwind(panic);
    }
}

/// The folder is that of the workspace, whichever crate of it asks.
fn seeds(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/seeds")
        .join(name);
    let mut paths: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    let read = |path: PathBuf| (path.clone(), fs::read(path).unwrap());
    paths.into_iter().map(read).collect()
}

impl Random {
    fn of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }

    /// A range within `length` bytes, short ones more often.
    fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.below(length + 1);
        let most = (length - start).min(1 << self.below(10));
        start..start + self.below(most + 1)
    }

    fn mutate(&mut self, input: &mut Vec<u8>, seeds: &[(PathBuf, Vec<u8>)]) {
        let at = self.below(input.len());
        let range = self.range(input.len());
        match self.below(8) {
            0 if !input.is_empty() => input[at] ^= 1 << self.below(8),
            1 if !input.is_empty() => input[at] = self.next() as u8,
            2 if input.len() >= 4 => {
                let at = at.min(input.len() - 4);
                let edge = self
                    .of(&EDGES)
                    .wrapping_add(self.below(3) as u32)
                    .to_le_bytes();
                let width = *self.of(&[1, 2, 4]);
                input[at..at + width].copy_from_slice(&edge[..width]);
            }
            3 => drop(input.drain(range)),
            4 => {
                let copy = input[range].to_vec();
                input.splice(at..at, copy);
            }
            5 => {
                let new: Vec<_> = (0..self.below(16)).map(|_| self.next() as u8).collect();
                input.splice(at..at, new);
            }
            6 => input.truncate(at),
            _ => {
                let other = &self.of(seeds).1;
                let piece = other[self.range(other.len())].to_vec();
                input.splice(range, piece);
            }
        }
    }
}
