//! What a hostile client reaches: framing, JSON, negotiation, arguments.

use serde_json::Value;

use super::framing::{Frame, Framing, MESSAGE_MAX};
use super::json;
use super::session::{Said, Session};

/// Says `data` all at once and byte by byte: what is understood must be the same.
pub(crate) fn fuzz(data: &[u8]) {
    let mut whole = Framing::default();
    whole.push(data);
    let frames: Vec<Frame> = std::iter::from_fn(|| whole.next()).collect();
    let mut single = Framing::default();
    let mut again = Vec::new();
    for byte in data {
        single.push(&[*byte]);
        again.extend(std::iter::from_fn(|| single.next()));
    }
    assert_eq!(frames, again);
    let (left, _) = whole.into_unread();
    assert!(left.len() <= MESSAGE_MAX);
    let mut session = Session::default();
    for frame in frames {
        let Frame::Value(value) = frame else { continue };
        // What another program goes on with is the same.
        let text = value.to_string();
        assert!(json::parse(text.as_bytes()).is_ok(), "{text}");
        let _ = session.is_oob(&value);
        if let Said::Answer(answer) = session.take(value) {
            let line = json::line(&answer);
            assert!(line.is_ascii() && line.ends_with("\r\n"));
            assert!(serde_json::from_str::<Value>(&line).is_ok(), "{line}");
        }
    }
}
