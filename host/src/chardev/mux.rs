//! The keys of a multiplexer: Ctrl-A and another (QEMU's chardev/char-mux.c).

use std::time::Instant;

/// The key before the others.
const ESCAPE: u8 = 0x01;

const HELP: &str = "\n\r\
    C-a h    print this help\n\r\
    C-a x    exit emulator\n\r\
    C-a s    save disk data back to file (here it always is)\n\r\
    C-a t    toggle console timestamps\n\r\
    C-a b    send break (magic sysrq); no device here takes one\n\r\
    C-a c    switch between console and monitor\n\r\
    C-a C-a  sends C-a\n\r";

/// What a key means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// It is input.
    Input(u8),
    /// Nothing yet, or nothing at all.
    Nothing,
    /// Text for the person who pressed it.
    Say(&'static str),
    /// The next user gets the input.
    Switch,
    /// The process shall end.
    Exit,
}

/// Where the keys and the lines of output stand.
#[derive(Default)]
pub(super) struct Mux {
    /// The key before was the escape.
    pub(super) escape: bool,
    /// When time stamps were switched on and the first line began.
    timestamps: Option<Option<Instant>>,
    /// The next byte of output is the first of a line.
    line_begins: bool,
}

impl Mux {
    /// One more key.
    pub(super) fn press(&mut self, key: u8) -> Key {
        if !std::mem::take(&mut self.escape) {
            self.escape = key == ESCAPE;
            return match self.escape {
                true => Key::Nothing,
                false => Key::Input(key),
            };
        }
        match key {
            ESCAPE => Key::Input(key),
            b'h' | b'?' => Key::Say(HELP),
            b'x' => Key::Exit,
            b'c' => Key::Switch,
            // Every write of a guest goes to its image.
            b's' => Key::Nothing,
            b'b' => Key::Say("\n\rNo device here takes a break\n\r"),
            b't' => {
                self.timestamps = match self.timestamps {
                    Some(_) => None,
                    None => Some(None),
                };
                self.line_begins = false;
                Key::Nothing
            }
            _ => Key::Nothing,
        }
    }

    /// Whether lines get time stamps.
    pub(super) fn stamps(&self) -> bool {
        self.timestamps.is_some()
    }

    /// Lines get them, or do not, from here on.
    pub(super) fn set_stamps(&mut self, on: bool) {
        self.timestamps = on.then_some(None);
    }

    /// How much of `output` can be written as it is, and the time stamp to write before it.
    pub(super) fn cut(&mut self, output: &[u8], now: Instant) -> (Option<String>, usize) {
        let Some(since) = &mut self.timestamps else {
            return (None, output.len());
        };
        let stamp = std::mem::take(&mut self.line_begins).then(|| {
            let since = *since.get_or_insert(now);
            let ms = now.saturating_duration_since(since).as_millis();
            let (s, ms) = (ms / 1000, ms % 1000);
            let (h, m, s) = (s / 3600, s / 60 % 60, s % 60);
            format!("[{h:02}:{m:02}:{s:02}.{ms:03}] ")
        });
        let line = output.iter().position(|b| *b == b'\n').map(|at| at + 1);
        (stamp, line.unwrap_or(output.len()))
    }

    /// This was written.
    pub(super) fn written(&mut self, bytes: &[u8]) {
        if self.stamps() && bytes.last() == Some(&b'\n') {
            self.line_begins = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_escape_and_a_key_are_an_order_and_the_escape_twice_is_input() {
        let mut mux = Mux::default();
        assert_eq!(mux.press(b'c'), Key::Input(b'c'));
        assert_eq!(mux.press(1), Key::Nothing);
        assert!(mux.escape);
        assert_eq!(mux.press(b'c'), Key::Switch);
        assert!(!mux.escape);
        for (key, means) in [
            (1, Key::Input(1)),
            (b'x', Key::Exit),
            (b'h', Key::Say(HELP)),
            (b's', Key::Nothing),
            (b'q', Key::Nothing),
        ] {
            mux.press(1);
            assert_eq!(mux.press(key), means);
        }
        assert_eq!(mux.press(b'x'), Key::Input(b'x'));
    }

    #[test]
    fn lines_get_time_stamps_while_they_are_on() {
        let mut mux = Mux::default();
        let begin = Instant::now();
        assert_eq!(mux.cut(b"a\nb", begin), (None, 3));
        mux.press(1);
        mux.press(b't');
        // The line that has begun has none.
        assert_eq!(mux.cut(b"c\nd", begin), (None, 2));
        mux.written(b"c\n");
        let stamp = Some("[00:00:00.000] ".to_owned());
        assert_eq!(mux.cut(b"d", begin), (stamp, 1));
        mux.written(b"d");
        assert_eq!(mux.cut(b"\n", begin), (None, 1));
        mux.written(b"\n");
        let later = begin + Duration::from_millis(3_723_004);
        let stamp = Some("[01:02:03.004] ".to_owned());
        assert_eq!(mux.cut(b"e", later), (stamp, 1));
        mux.press(1);
        mux.press(b't');
        assert_eq!(mux.cut(b"f\ng", later), (None, 3));
    }
}
