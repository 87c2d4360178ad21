//! Cuts a client's bytes into JSON values.
//!
//! A client may send a command over several lines, or several on one. What does not begin as an
//! object is an error up to the end of its line, after which the connection goes on.

use serde_json::Value;

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
    in_string: bool,
    escaped: bool,
    /// A message was too long: what follows up to the end of the line is not looked at.
    skipping: bool,
}

impl Framing {
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
                return Some(Frame::Error(format!(
                    "JSON message is larger than {MESSAGE_MAX} bytes"
                )));
            }
            return None;
        };
        let message: Vec<u8> = self.buffer.drain(..end).collect();
        self.restart();
        Some(match serde_json::from_slice(&message) {
            Ok(value) => Frame::Value(value),
            Err(_) => Frame::Error("JSON parse error, expecting value".to_owned()),
        })
    }

    fn restart(&mut self) {
        (self.at, self.depth, self.in_string, self.escaped) = (0, 0, false, false);
    }

    /// Where the value at the front ends, if all of it is there.
    fn find_end(&mut self) -> Option<usize> {
        let first = *self.buffer.first()?;
        if !matches!(first, b'{' | b'[') {
            return self
                .buffer
                .iter()
                .position(|&b| b == b'\n')
                .map(|end| end + 1);
        }
        while let Some(&byte) = self.buffer.get(self.at) {
            self.at += 1;
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return Some(self.at);
                    }
                }
                _ => {}
            }
        }
        None
    }
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
    fn a_message_without_end_is_refused_and_not_kept() {
        let mut framing = Framing::default();
        framing.push(b"{\"a\":\"");
        framing.push(&vec![b'x'; MESSAGE_MAX]);
        assert!(matches!(framing.next(), Some(Frame::Error(_))));
        assert_eq!(framing.next(), None);
        framing.push(b"still the same\"}\n{}");
        assert_eq!(framing.next(), Some(Frame::Value(json!({}))));
    }
}
