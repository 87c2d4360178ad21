//! Cuts a client's bytes into JSON values.
//!
//! A client may send a command over several lines, or several on one. What does not begin as an
//! object is an error up to the end of its line, after which the connection goes on. So is a message
//! up to a byte that no message may have, such as a line break within a string: a client that lost
//! its place finds it again.

use serde_json::Value;

use super::json;

/// The most bytes a command may have.
pub(super) const MESSAGE_MAX: usize = 1 << 20;

/// Something complete that a client has sent.
#[derive(Debug, PartialEq)]
pub(super) enum Frame {
    /// A JSON value.
    Value(Value),
    /// Text that is no JSON, in QEMU's words.
    Error(String),
}

/// What a client has sent and is not complete yet.
#[derive(Debug, Default)]
pub(super) struct Framing {
    buffer: Vec<u8>,
    /// Where the search for the end goes on.
    at: usize,
    depth: usize,
    /// The quote that ends the string the search is in.
    string: Option<u8>,
    escaped: bool,
    /// Whether the message has strings in single quotes, which JSON itself does not know.
    single_quotes: bool,
    /// A message was too long: what follows up to the end of the line is not looked at.
    skipping: bool,
}

impl Framing {
    /// Goes on with what [`Self::into_unread`] gave.
    pub(super) fn resumed(unread: Vec<u8>, skipping: bool) -> Self {
        Self {
            buffer: unread,
            skipping,
            ..Self::default()
        }
    }

    /// The bytes that belong to no value yet, and whether those that follow up to the end of the line
    /// are not to be looked at.
    pub(super) fn into_unread(self) -> (Vec<u8>, bool) {
        (self.buffer, self.skipping)
    }

    /// Whether nothing has begun that is not whole yet.
    pub(super) fn is_blank(&self) -> bool {
        !self.skipping && self.buffer.iter().all(u8::is_ascii_whitespace)
    }

    /// Takes more bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next complete value, if there is one.
    pub(super) fn next(&mut self) -> Option<Frame> {
        if self.skipping {
            let end = self.buffer.iter().position(|&b| b == b'\n');
            self.buffer
                .drain(..end.map_or(self.buffer.len(), |end| end + 1));
            end?;
            self.skipping = false;
        }
        if self.at == 0 {
            let blank = |b: &u8| b.is_ascii_whitespace();
            let start = self
                .buffer
                .iter()
                .position(|b| !blank(b))
                .unwrap_or(self.buffer.len());
            self.buffer.drain(..start);
        }
        let Some(end) = self.find_end() else {
            if self.buffer.len() > MESSAGE_MAX {
                self.restart();
                self.buffer.clear();
                self.skipping = true;
                return Some(Frame::Error(too_large()));
            }
            return None;
        };
        let frame = match end {
            End::Complete(end) => {
                let message: Vec<u8> = self.buffer.drain(..end).collect();
                match self.single_quotes {
                    _ if message.len() > MESSAGE_MAX => Err(too_large()),
                    true => json::parse(&json::double_quoted(&message)),
                    false => json::parse(&message),
                }
            }
            End::Stray(at) => {
                let stray = self.buffer[at].escape_ascii();
                self.buffer.drain(..=at);
                Err(format!("JSON parse error, stray '{stray}'"))
            }
        };
        self.restart();
        Some(frame.map_or_else(Frame::Error, Frame::Value))
    }

    fn restart(&mut self) {
        (self.at, self.depth) = (0, 0);
        (self.string, self.escaped, self.single_quotes) = (None, false, false);
    }

    /// Where the value at the front ends, if that is known yet.
    fn find_end(&mut self) -> Option<End> {
        let first = *self.buffer.first()?;
        if !matches!(first, b'{' | b'[') {
            let end = self.buffer.iter().position(|&b| b == b'\n')?;
            return Some(End::Complete(end + 1));
        }
        while let Some(&byte) = self.buffer.get(self.at) {
            let here = self.at;
            self.at += 1;
            // White space may stand between values; UTF-8 has no bytes above 0xfd.
            let between = self.string.is_none() && matches!(byte, b'\t' | b'\n' | b'\r');
            if (byte < b' ' && !between) || byte > 0xfd {
                return Some(End::Stray(here));
            }
            match (self.string, byte) {
                (Some(_), _) if self.escaped => self.escaped = false,
                (Some(_), b'\\') => self.escaped = true,
                (Some(quote), _) if byte == quote => self.string = None,
                (Some(_), _) => {}
                (None, b'"' | b'\'') => {
                    self.string = Some(byte);
                    self.single_quotes |= byte == b'\'';
                }
                (None, b'{' | b'[') => self.depth += 1,
                (None, b'}' | b']') => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return Some(End::Complete(self.at));
                    }
                }
                _ => {}
            }
        }
        None
    }
}

fn too_large() -> String {
    format!("JSON message is larger than {MESSAGE_MAX} bytes")
}

/// How the message at the front ends.
enum End {
    /// Before this byte.
    Complete(usize),
    /// At this byte, which no message may have.
    Stray(usize),
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn all(framing: &mut Framing) -> Vec<Frame> {
        std::iter::from_fn(|| framing.next()).collect()
    }

    #[test]
    fn values_come_out_however_the_bytes_are_cut() {
        let text = b"{\"a\": \"}\\\"{\"}\r\n [1]{\"b\":\n2} ";
        for size in 1..text.len() {
            let mut framing = Framing::default();
            let mut values = Vec::new();
            for part in text.chunks(size) {
                framing.push(part);
                values.extend(all(&mut framing));
            }
            let want = [json!({"a": "}\"{"}), json!([1]), json!({"b": 2})].map(Frame::Value);
            assert_eq!(values, want, "cut every {size} bytes");
        }
    }

    #[test]
    fn framing_goes_on_elsewhere_from_its_unread_bytes() {
        let text = b"{\"a\": \"}\\\"{'\"} ['}'] nonsense\n{\"b\":\n2} ";
        let mut whole = Framing::default();
        whole.push(text);
        let want = all(&mut whole);
        for cut in 0..text.len() {
            let mut framing = Framing::default();
            framing.push(&text[..cut]);
            let mut values = all(&mut framing);
            let (unread, skipping) = framing.into_unread();
            let mut framing = Framing::resumed(unread, skipping);
            framing.push(&text[cut..]);
            values.extend(all(&mut framing));
            assert_eq!(values, want, "cut at {cut}");
        }
    }

    #[test]
    fn text_that_is_no_json_is_an_error_and_the_next_line_is_read() {
        let mut framing = Framing::default();
        framing.push(b"nonsense\n{\"a\":}\n\xff\xfe\n{\"b\":1}\n");
        let frames = all(&mut framing);
        assert_eq!(frames.len(), 4);
        assert!(
            frames[..3].iter().all(|f| matches!(f, Frame::Error(_))),
            "{frames:?}"
        );
        assert_eq!(frames[3], Frame::Value(json!({"b": 1})));
    }

    #[test]
    fn a_string_or_message_that_is_cut_short_does_not_swallow_the_next() {
        let mut framing = Framing::default();
        for (bytes, text) in [
            (&b"{\"a\": \"b\n"[..], "JSON parse error, stray '\\n'"),
            (b"{\"a\": 1, \xff", "JSON parse error, stray '\\xff'"),
            (b"{\"a\": \x07", "JSON parse error, stray '\\x07'"),
        ] {
            framing.push(bytes);
            framing.push(b"{\"b\":1}");
            let want = [Frame::Error(text.to_owned()), Frame::Value(json!({"b": 1}))];
            assert_eq!(all(&mut framing), want);
        }
    }

    #[test]
    fn strings_may_have_single_quotes() {
        let mut framing = Framing::default();
        framing.push(b"{'a': '}\\'\"'} {\"b\": \"'\"}");
        let want = [json!({"a": "}'\""}), json!({"b": "'"})].map(Frame::Value);
        assert_eq!(all(&mut framing), want);
    }

    #[test]
    fn a_message_without_end_is_refused_and_not_kept() {
        let mut framing = Framing::default();
        framing.push(b"{\"a\":\"");
        framing.push(&vec![b'x'; MESSAGE_MAX]);
        assert!(matches!(framing.next(), Some(Frame::Error(_))));
        assert_eq!(framing.next(), None);
        let (unread, skipping) = framing.into_unread();
        let mut framing = Framing::resumed(unread, skipping);
        framing.push(b"still the same\"}\n{}");
        assert_eq!(framing.next(), Some(Frame::Value(json!({}))));
    }
}
