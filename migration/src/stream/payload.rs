//! Payloads: MessagePack maps with field names.
//!
//! A state type derives `Serialize` and `Deserialize` with `#[serde(deny_unknown_fields)]`, so that
//! a field this build does not know is an error and not a silent loss.

use std::io::Cursor;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::StreamError;

/// The payload of `value`; `section` is only for the error.
pub fn encode<T: Serialize + ?Sized>(section: &str, value: &T) -> Result<Vec<u8>, StreamError> {
    rmp_serde::to_vec_named(value).map_err(|source| StreamError::Encode {
        name: section.to_owned(),
        source,
    })
}

/// The value of a payload; bytes after it are refused. `section` is only for the error.
pub fn decode<T: DeserializeOwned>(section: &str, payload: &[u8]) -> Result<T, StreamError> {
    let mut deserializer = rmp_serde::Deserializer::new(Cursor::new(payload));
    let value = T::deserialize(&mut deserializer).map_err(|source| StreamError::Decode {
        name: section.to_owned(),
        source,
    })?;
    let extra = payload.len() as u64 - deserializer.position();
    if extra > 0 {
        return Err(StreamError::TrailingBytes {
            name: section.to_owned(),
            extra,
        });
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Small {
        divisor: u16,
    }

    #[derive(Serialize)]
    struct Grown {
        divisor: u16,
        fifo: u8,
    }

    #[test]
    fn a_payload_reads_back_and_carries_field_names() {
        let bytes = encode("serial", &Small { divisor: 12 }).unwrap();
        assert!(bytes.windows(7).any(|w| w == b"divisor"));
        assert_eq!(
            decode::<Small>("serial", &bytes).unwrap(),
            Small { divisor: 12 }
        );
    }

    #[test]
    fn an_unknown_field_is_refused_and_the_section_is_named() {
        let bytes = encode(
            "serial",
            &Grown {
                divisor: 1,
                fifo: 2,
            },
        )
        .unwrap();
        let error = decode::<Small>("0000:00:01.0/serial", &bytes).unwrap_err();
        let text = crate::error_chain(&error);
        assert!(text.contains("0000:00:01.0/serial"), "{text}");
        assert!(text.contains("unknown field `fifo`"), "{text}");
    }

    #[test]
    fn a_missing_field_is_refused() {
        #[derive(Serialize)]
        struct Empty {}
        let bytes = encode("serial", &Empty {}).unwrap();
        let text = crate::error_chain(&decode::<Small>("serial", &bytes).unwrap_err());
        assert!(text.contains("missing field `divisor`"), "{text}");
    }

    #[test]
    fn bytes_after_the_value_are_refused() {
        let mut bytes = encode("serial", &Small { divisor: 12 }).unwrap();
        bytes.push(0xc0);
        let error = decode::<Small>("serial", &bytes).unwrap_err();
        assert!(
            matches!(error, StreamError::TrailingBytes { extra: 1, .. }),
            "{error}"
        );
    }

    #[test]
    fn a_payload_cut_short_is_refused() {
        let bytes = encode("serial", &Small { divisor: 12 }).unwrap();
        for end in 0..bytes.len() {
            decode::<Small>("serial", &bytes[..end]).unwrap_err();
        }
    }
}
