//! A ring buffer: the last bytes of output (QEMU's chardev/char-ringbuf.c).

use std::collections::VecDeque;

/// The most bytes one may hold: it goes into a handover's state.
pub const RINGBUF_MAX: usize = 16 << 20;

/// The last bytes that were written.
pub(super) struct Ring {
    bytes: VecDeque<u8>,
    size: usize,
}

impl Ring {
    /// An empty one of `size` bytes.
    pub(super) fn new(size: usize) -> Self {
        Self {
            bytes: VecDeque::new(),
            size,
        }
    }

    /// Adds `bytes`; the oldest make room.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let kept = &bytes[bytes.len().saturating_sub(self.size)..];
        let over = (self.bytes.len() + kept.len()).saturating_sub(self.size);
        self.bytes.drain(..over);
        self.bytes.extend(kept);
    }

    /// Takes the oldest bytes, at most `most`.
    pub(super) fn take(&mut self, most: usize) -> Vec<u8> {
        self.bytes.drain(..most.min(self.bytes.len())).collect()
    }

    /// All there is.
    pub(super) fn bytes(&self) -> Vec<u8> {
        self.bytes.iter().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_bytes_make_room_and_are_read_first() {
        let mut ring = Ring::new(4);
        ring.push(b"abc");
        ring.push(b"de");
        assert_eq!(ring.bytes(), b"bcde");
        assert_eq!(ring.take(3), b"bcd");
        ring.push(b"0123456789");
        assert_eq!(ring.take(100), b"6789");
        assert_eq!(ring.take(1), b"");
    }
}
