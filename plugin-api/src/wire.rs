//! MessagePack on both sides of the ABI, and for vmstate.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// A value as a MessagePack map with field names.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    rmp_serde::to_vec_named(value)
        .map_err(|e| Error::state(format!("Cannot encode a message: {e}")))
}

/// The value in `bytes`, all of them.
pub fn decode<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T> {
    let mut rest = bytes;
    let value = rmp_serde::from_read(&mut rest)
        .map_err(|e| Error::state(format!("Cannot read {what}: {e}")))?;
    if rest.is_empty() {
        Ok(value)
    } else {
        Err(Error::state(format!(
            "Cannot read {what}: {} bytes too many",
            rest.len()
        )))
    }
}
