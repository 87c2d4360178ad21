//! Takes the members of a JSON object one by one, with QAPI's error texts.

use serde_json::{Map, Value};

use super::AddressError;

/// The members of an object that were not taken yet.
pub(super) struct Members {
    /// The object's own name and a dot, or nothing at the top.
    prefix: String,
    left: Map<String, Value>,
}

impl Members {
    /// The members of `value`, which is called `name` in errors.
    pub(super) fn of(name: &str, value: Value) -> Result<Self, AddressError> {
        let prefix = if name.is_empty() {
            String::new()
        } else {
            format!("{name}.")
        };
        match value {
            Value::Object(left) => Ok(Self { prefix, left }),
            _ => Err(AddressError::MemberType {
                name: name.to_owned(),
                expected: "object",
            }),
        }
    }

    pub(super) fn string(&mut self, key: &str) -> Result<String, AddressError> {
        match self.take(key)? {
            Value::String(text) => Ok(text),
            _ => Err(self.bad_type(key, "string")),
        }
    }

    pub(super) fn strings(&mut self, key: &str) -> Result<Vec<String>, AddressError> {
        let Value::Array(values) = self.take(key)? else {
            return Err(self.bad_type(key, "array"));
        };
        let text = |value| match value {
            Value::String(text) => Ok(text),
            _ => Err(self.bad_type(key, "string")),
        };
        values.into_iter().map(text).collect()
    }

    /// A number; dotted keys have it as text.
    pub(super) fn uint64(&mut self, key: &str) -> Result<u64, AddressError> {
        let number = match self.take(key)? {
            Value::Number(number) => number.as_u64(),
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        number.ok_or_else(|| self.bad_type(key, "uint64"))
    }

    pub(super) fn object(&mut self, key: &str) -> Result<Members, AddressError> {
        let value = self.take(key)?;
        Members::of(&self.name(key), value)
    }

    /// Refuses members that nobody took.
    pub(super) fn finish(self) -> Result<(), AddressError> {
        match self.left.keys().next() {
            None => Ok(()),
            Some(key) => Err(AddressError::UnexpectedMember(self.name(key))),
        }
    }

    pub(super) fn bad_value(&self, key: &str, value: &str) -> AddressError {
        AddressError::MemberValue {
            name: self.name(key),
            value: value.to_owned(),
        }
    }

    fn take(&mut self, key: &str) -> Result<Value, AddressError> {
        self.left
            .remove(key)
            .ok_or_else(|| AddressError::MissingMember(self.name(key)))
    }

    fn bad_type(&self, key: &str, expected: &'static str) -> AddressError {
        AddressError::MemberType {
            name: self.name(key),
            expected,
        }
    }

    fn name(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }
}
