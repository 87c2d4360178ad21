//! Whether a value is of a type. The errors are those of QEMU's `qapi/qobject-input-visitor.c`.

use serde_json::{Map, Value};

use super::{Enum, Member, Object, Type};

/// Refuses a value that is not of type `of`. Errors call it `name`.
pub fn check(of: &Type, value: &Value, name: &str) -> Result<(), String> {
    let expects = |is: bool, expected: &str| match is {
        true => Ok(()),
        false => Err(format!(
            "Invalid parameter type for '{name}', expected: {expected}"
        )),
    };
    match of {
        Type::Str => expects(value.is_string(), "string"),
        Type::Bool => expects(value.is_boolean(), "boolean"),
        Type::Int => expects(value.is_i64(), "integer"),
        Type::Number => expects(value.is_number(), "number"),
        Type::Null => expects(value.is_null(), "null"),
        Type::Any => Ok(()),
        Type::Uint8 => unsigned(value, name, u8::MAX.into(), "uint8_t"),
        Type::Uint16 => unsigned(value, name, u16::MAX.into(), "uint16_t"),
        Type::Uint32 => unsigned(value, name, u32::MAX.into(), "uint32_t"),
        Type::Uint64 | Type::Size => uint64(value, name),
        Type::List(of) => {
            let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
            expects(value.is_array(), "array")?;
            list.iter()
                .enumerate()
                .try_for_each(|(at, item)| check(of, item, &format!("{name}[{at}]")))
        }
        Type::Enum(of) => match value.as_str() {
            Some(word) => check_word(of, word, name),
            None => expects(false, "string"),
        },
        Type::Object(of) => match value.as_object() {
            Some(members) => check_members(of, members, &format!("{name}.")),
            None => expects(false, "object"),
        },
        Type::Alternate(of) => {
            let one = of.of.iter().find(|of| of.may_be(value));
            one.map_or_else(|| expects(false, of.name), |of| check(of, value, name))
        }
    }
}

/// Refuses members that are missing, wrong or not known. Errors put `prefix` before their names.
pub fn check_members(
    of: &Object,
    members: &Map<String, Value>,
    prefix: &str,
) -> Result<(), String> {
    of.in_effect(members)
        .try_for_each(|known| match members.get(known.name) {
            Some(value) => check(&known.of, value, &format!("{prefix}{}", known.name)),
            None if known.optional => Ok(()),
            None => Err(format!("Parameter '{prefix}{}' is missing", known.name)),
        })?;
    let unknown = |name: &&String| of.in_effect(members).all(|known| known.name != *name);
    match members.keys().find(unknown) {
        Some(name) if !of.open => Err(format!("Parameter '{prefix}{name}' is unexpected")),
        _ => Ok(()),
    }
}

/// QEMU takes a negative number for a large one, here and only here; what it is used for says
/// whether it is too large.
fn uint64(value: &Value, name: &str) -> Result<(), String> {
    match value.is_u64() || value.is_i64() {
        true => Ok(()),
        false => Err(format!("Parameter '{name}' expects uint64")),
    }
}

fn unsigned(value: &Value, name: &str, max: u64, c_type: &str) -> Result<(), String> {
    uint64(value, name)?;
    match value.as_u64() {
        Some(value) if value <= max => Ok(()),
        _ => Err(format!("Parameter '{name}' expects {c_type}")),
    }
}

/// A word that does not exist is named by its own key alone, as in QEMU.
fn check_word(of: &Enum, word: &str, name: &str) -> Result<(), String> {
    if of.values.contains(&word) {
        return Ok(());
    }
    let key = name.rsplit('.').next().unwrap_or(name);
    Err(format!("Parameter '{key}' does not accept value '{word}'"))
}

impl Object {
    /// The members that an object with these values has: a union's depend on its tag.
    fn in_effect<'a>(
        &'a self,
        values: &Map<String, Value>,
    ) -> Box<dyn Iterator<Item = &'a Member> + 'a> {
        let variant = self.variants.as_ref().and_then(|variants| {
            let tag = values.get(variants.tag)?.as_str()?;
            variants.cases.iter().find(|(case, _)| *case == tag)
        });
        match variant {
            // A variant may be a union itself.
            Some((_, object)) => Box::new(self.members.iter().chain(object.in_effect(values))),
            None => Box::new(self.members.iter()),
        }
    }
}

impl Type {
    /// Whether a value of this type has the JSON type of `value`.
    fn may_be(&self, value: &Value) -> bool {
        match self {
            Self::Str | Self::Enum(_) => value.is_string(),
            Self::Bool => value.is_boolean(),
            Self::Null => value.is_null(),
            Self::List(_) => value.is_array(),
            Self::Object(_) => value.is_object(),
            Self::Any => true,
            Self::Alternate(of) => of.of.iter().any(|of| of.may_be(value)),
            Self::Int | Self::Number => value.is_number(),
            Self::Uint8 | Self::Uint16 | Self::Uint32 | Self::Uint64 | Self::Size => {
                value.is_number()
            }
        }
    }
}
