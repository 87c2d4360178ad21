//! Numbers that look like chance and are the same every time.

/// Marsaglia's xorshift64.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// From the beginning.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }

    /// Any number but 0.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `end`, or 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}
