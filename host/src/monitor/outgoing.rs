//! What is on its way to one client.

use std::collections::VecDeque;
use std::sync::Arc;

use super::events::{BEHIND, BEHIND_BYTES};

/// One line. All of them are ASCII.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Line {
    pub(super) text: Arc<str>,
    /// Whether it may be lost by a client that does not read.
    pub(super) event: bool,
}

/// Lines in the order in which the client gets them.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    lines: VecDeque<Line>,
    /// How much of the first line is written.
    sent: usize,
}

impl Outgoing {
    pub(super) fn push(&mut self, line: Line) {
        self.lines.push_back(line);
    }

    /// An answer or the greeting.
    pub(super) fn answer(&mut self, text: String) {
        let text = text.into();
        self.push(Line { text, event: false });
    }

    pub(super) fn event(&mut self, text: Arc<str>) {
        self.push(Line { text, event: true });
    }

    /// The bytes to write next, if there are any.
    pub(super) fn next(&self) -> Option<&[u8]> {
        let line = self.lines.front()?;
        Some(&line.text.as_bytes()[self.sent..])
    }

    /// So many bytes of [`Self::next`] are written.
    pub(super) fn written(&mut self, bytes: usize) {
        self.sent += bytes;
        if self
            .lines
            .front()
            .is_some_and(|line| self.sent >= line.text.len())
        {
            self.lines.pop_front();
            self.sent = 0;
        }
    }

    /// Loses the oldest events until there are no more than a client may be behind. Returns how many
    /// were lost. A line that has begun is finished.
    pub(super) fn bound(&mut self) -> u64 {
        let begun = usize::from(self.sent > 0);
        let waiting = || self.lines.iter().skip(begun).filter(|line| line.event);
        let mut events = waiting().count();
        let mut bytes: usize = waiting().map(|line| line.text.len()).sum();
        let before = self.lines.len();
        let mut at = 0;
        self.lines.retain(|line| {
            let lose = at >= begun && line.event && (events > BEHIND || bytes > BEHIND_BYTES);
            at += 1;
            if lose {
                events -= 1;
                bytes -= line.text.len();
            }
            !lose
        });
        (before - self.lines.len()) as u64
    }

    /// What is left, with a line that has begun as one of its own.
    pub(super) fn into_lines(self) -> impl Iterator<Item = Line> {
        let mut lines = self.lines;
        if self.sent > 0
            && let Some(begun) = lines.front_mut()
        {
            *begun = Line {
                text: String::from_utf8_lossy(&begun.text.as_bytes()[self.sent..]).into(),
                event: false,
            };
        }
        lines.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(out: Outgoing) -> Vec<String> {
        out.into_lines().map(|line| line.text.to_string()).collect()
    }

    #[test]
    fn what_is_left_begins_where_writing_stopped() {
        let mut out = Outgoing::default();
        out.event("first".into());
        out.answer("second".into());
        out.written(2);
        assert_eq!(out.next(), Some(&b"rst"[..]));
        assert_eq!(texts(out), ["rst", "second"]);
        let mut out = Outgoing::default();
        out.answer("one".into());
        out.answer("two".into());
        out.written(3);
        assert_eq!(out.next(), Some(&b"two"[..]));
    }

    #[test]
    fn only_the_oldest_events_are_lost_and_no_begun_line() {
        let mut out = Outgoing::default();
        out.event("begun".into());
        out.answer("answer".into());
        for at in 0..BEHIND + 3 {
            out.event(at.to_string().into());
        }
        out.written(1);
        assert_eq!(out.bound(), 3);
        let left = texts(out);
        assert_eq!(left[..3], ["egun", "answer", "3"]);
        assert_eq!(left.len(), 2 + BEHIND);
    }

    #[test]
    fn events_are_bounded_in_bytes_as_well() {
        let mut out = Outgoing::default();
        for _ in 0..4 {
            out.event("x".repeat(BEHIND_BYTES / 2).into());
        }
        assert_eq!(out.bound(), 2);
    }
}
