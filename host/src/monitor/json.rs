//! JSON as QMP has it: keys are unique, strings may have single quotes, output is ASCII.

use std::fmt::{self, Write as _};

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// The value that `bytes` are, or an error that begins as QEMU's do.
pub(super) fn parse(bytes: &[u8]) -> Result<Value, String> {
    let parsed = std::str::from_utf8(bytes)
        .map_err(|_| "invalid UTF-8 sequence in string".to_owned())
        .and_then(|text| serde_json::from_str(text).map_err(|error| error.to_string()));
    match parsed {
        Ok(Unique(value)) => Ok(value),
        Err(reason) if reason.starts_with("expected value") => {
            Err("JSON parse error, expecting value".to_owned())
        }
        Err(reason) => Err(format!("JSON parse error, {reason}")),
    }
}

/// The same with double quotes around each string.
pub(super) fn double_quoted(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut quote = None;
    let mut bytes = bytes.iter().copied();
    while let Some(byte) = bytes.next() {
        match (quote, byte) {
            (Some(_), b'\\') => match bytes.next() {
                // JSON itself has no escape for a single quote.
                Some(b'\'') => out.push(b'\''),
                next => out.extend([b'\\'].into_iter().chain(next)),
            },
            (Some(open), _) if byte == open => {
                quote = None;
                out.push(b'"');
            }
            (Some(_), b'"') => out.extend(b"\\\""),
            (None, b'"' | b'\'') => {
                quote = Some(byte);
                out.push(b'"');
            }
            _ => out.push(byte),
        }
    }
    out
}

/// A message as it is sent: one line, ASCII alone.
pub(super) fn line(value: &Value) -> String {
    let mut line = String::new();
    for c in value.to_string().chars() {
        if c.is_ascii() {
            line.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a string cannot fail.
                let _ = write!(line, "\\u{unit:04x}");
            }
        }
    }
    line.push_str("\r\n");
    line
}

/// A value in which no object has a key twice; `serde_json` would take the last one.
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueVisitor).map(Self)
    }
}

struct UniqueVisitor;

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Unique(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some((key, Unique(value))) = members.next_entry::<String, _>()? {
            if map.insert(key, value).is_some() {
                return Err(de::Error::custom("duplicate key"));
            }
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_kind_of_value_is_read() {
        let value =
            json!({"a": [null, true, -1, 18446744073709551615_u64, 1.5, "\u{fc}"], "b": {}});
        assert_eq!(parse(value.to_string().as_bytes()), Ok(value));
    }

    #[test]
    fn what_is_no_json_is_told_in_the_words_of_qemu_where_it_has_any() {
        for (bytes, text) in [
            (&b"{\"a\":}"[..], "JSON parse error, expecting value"),
            (b"}", "JSON parse error, expecting value"),
            (
                b"{\"a\":1,\"a\":2}",
                "JSON parse error, duplicate key at line 1 column 13",
            ),
            (
                b"{\"a\":{\"b\":1,\"b\":1}}",
                "JSON parse error, duplicate key at line 1 column 18",
            ),
            (
                b"{\"\xff\":1}",
                "JSON parse error, invalid UTF-8 sequence in string",
            ),
            (
                b"[1 2]",
                "JSON parse error, expected `,` or `]` at line 1 column 4",
            ),
        ] {
            assert_eq!(parse(bytes).unwrap_err(), text);
        }
        let deep = "[".repeat(200) + &"]".repeat(200);
        assert_eq!(
            parse(deep.as_bytes()).unwrap_err(),
            "JSON parse error, recursion limit exceeded at line 1 column 128"
        );
    }

    #[test]
    fn single_quotes_become_double_ones() {
        for (single, double) in [
            ("{'a': 'b'}", r#"{"a": "b"}"#),
            (r#"{'a': 'say "x"'}"#, r#"{"a": "say \"x\""}"#),
            (r#"{'a': 'it\'s'}"#, r#"{"a": "it's"}"#),
            (
                r#"{"a": "it's", "b": "\"'\\"}"#,
                r#"{"a": "it's", "b": "\"'\\"}"#,
            ),
        ] {
            let out = double_quoted(single.as_bytes());
            assert_eq!(String::from_utf8(out).unwrap(), double);
        }
    }

    #[test]
    fn output_is_ascii() {
        assert_eq!(
            line(&json!("\u{fc}\u{1f980}")),
            "\"\\u00fc\\ud83e\\udd80\"\r\n"
        );
    }
}
