//! MessagePack as JSON, for people.

use std::fmt::{self, Write};

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Binary longer than this is cut down to [`SHOWN`] bytes, unless all of it is asked for.
const LONG: usize = 64;
const SHOWN: usize = 32;

/// The payload as JSON; `None` if it is not one MessagePack value.
pub(super) fn payload(bytes: &[u8], full: bool) -> Option<Value> {
    let mut rest = bytes;
    let mut decoder = rmp_serde::Deserializer::new(&mut rest);
    let value = Seed { full }.deserialize(&mut decoder).ok()?;
    rest.is_empty().then_some(value)
}

/// Bytes as `hex:` and their digits. Of many only the first are there, and how many there are.
pub(super) fn binary(bytes: &[u8], full: bool) -> Value {
    let cut = !full && bytes.len() > LONG;
    let shown = if cut { &bytes[..SHOWN] } else { bytes };
    let mut text = String::from("hex:");
    for byte in shown {
        let _ = write!(text, "{byte:02x}");
    }
    if cut {
        let _ = write!(text, "... ({} bytes)", bytes.len());
    }
    Value::String(text)
}

#[derive(Clone, Copy)]
struct Seed {
    full: bool,
}

impl<'de> DeserializeSeed<'de> for Seed {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, decoder: D) -> Result<Value, D::Error> {
        decoder.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a MessagePack value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        // JSON has no number for what is none.
        let number = Number::from_f64(value).map(Value::Number);
        Ok(number.unwrap_or_else(|| Value::String(value.to_string())))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_bytes<E>(self, value: &[u8]) -> Result<Value, E> {
        Ok(binary(value, self.full))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, decoder: D) -> Result<Value, D::Error> {
        self.deserialize(decoder)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(self)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut values = Map::new();
        while let Some(key) = map.next_key_seed(self)? {
            let key = match key {
                Value::String(text) => text,
                other => other.to_string(),
            };
            values.insert(key, map.next_value_seed(self)?);
        }
        Ok(Value::Object(values))
    }
}

#[cfg(test)]
mod tests {
    use serde::Serialize;
    use serde_json::json;

    use super::*;

    #[derive(Serialize)]
    struct Sample {
        number: u64,
        negative: i8,
        nothing: Option<u8>,
        pairs: Vec<(u32, bool)>,
        #[serde(with = "serde_bytes")]
        short: Vec<u8>,
        #[serde(with = "serde_bytes")]
        long: Vec<u8>,
    }

    fn sample() -> Vec<u8> {
        rmp_serde::to_vec_named(&Sample {
            number: u64::MAX,
            negative: -3,
            nothing: None,
            pairs: vec![(1, true)],
            short: vec![0, 255],
            long: vec![7; 65],
        })
        .unwrap()
    }

    #[test]
    fn a_payload_is_json_with_binary_in_digits_and_long_binary_cut() {
        let mut wanted = json!({
            "number": u64::MAX, "negative": -3, "nothing": null, "pairs": [[1, true]],
            "short": "hex:00ff",
            "long": format!("hex:{}... (65 bytes)", "07".repeat(32)),
        });
        assert_eq!(payload(&sample(), false), Some(wanted.clone()));
        wanted["long"] = json!(format!("hex:{}", "07".repeat(65)));
        assert_eq!(payload(&sample(), true), Some(wanted));
    }

    #[test]
    fn what_is_not_one_value_is_none() {
        let mut bytes = sample();
        assert_eq!(payload(&bytes[..bytes.len() - 1], false), None);
        bytes.push(0xc0);
        assert_eq!(payload(&bytes, false), None);
        assert_eq!(payload(&[], false), None);
    }
}
