//! Lists of `key=value` pairs, as most options take them.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::nearest::hint;
use super::number;

/// The pairs of an option's value that were not taken yet, and the keys that were asked for.
///
/// Whoever reads an option takes each key it knows and then calls [`Pairs::finish`], which refuses
/// what is left: nothing that was said is passed over.
#[derive(Default)]
pub(super) struct Pairs {
    left: Vec<(String, String)>,
    known: Vec<&'static str>,
}

impl Pairs {
    /// Splits `text` at single commas; `,,` stands for a comma in a value. If `implied` is given,
    /// the first pair may be a value only, and that is its key.
    pub(super) fn parse(text: &str, implied: Option<&str>) -> Result<Self, String> {
        Self::split(text, implied, |word| {
            Err(format!("Expected '=' after parameter '{word}'"))
        })
    }

    /// The same, where a key alone switches something on and with `no` before it off.
    pub(super) fn parse_with_flags(text: &str) -> Result<Self, String> {
        Self::split(text, None, flag)
    }

    /// The pairs of an option that may also be a JSON object.
    pub(super) fn parse_or_json(text: &str, implied: &str) -> Result<Self, String> {
        match text.starts_with('{') {
            true => Self::parse_json(text),
            false => Self::parse(text, Some(implied)),
        }
    }

    /// The same, where a key alone is a switch.
    pub(super) fn parse_or_json_with_flags(text: &str, implied: &str) -> Result<Self, String> {
        match text.starts_with('{') {
            true => Self::parse_json(text),
            false => Self::split(text, Some(implied), flag),
        }
    }

    fn parse_json(text: &str) -> Result<Self, String> {
        let object: Map<String, Value> =
            serde_json::from_str(text).map_err(|error| format!("JSON parse error, {error}"))?;
        Self::from_json(object)
    }

    /// The members of a JSON object, as text.
    pub(super) fn from_json(object: Map<String, Value>) -> Result<Self, String> {
        let mut left = Vec::new();
        flatten("", object.into_iter().collect(), &mut left)?;
        let mut keys = BTreeSet::new();
        if let Some((twice, _)) = left.iter().find(|(key, _)| !keys.insert(key)) {
            return Err(format!("Parameter '{twice}' is given twice"));
        }
        Ok(Self {
            left,
            known: Vec::new(),
        })
    }

    fn split(
        text: &str,
        implied: Option<&str>,
        lone: impl Fn(&str) -> Result<(String, String), String>,
    ) -> Result<Self, String> {
        let mut left: Vec<(String, String)> = Vec::new();
        let mut rest = Some(text).filter(|text| !text.is_empty());
        while let Some(text) = rest {
            let pair = match text.find(['=', ',']) {
                Some(at) if text.as_bytes()[at] == b'=' => {
                    let (value, after) = value(&text[at + 1..]);
                    rest = after;
                    (text[..at].to_owned(), value)
                }
                _ => {
                    let (word, after) = value(text);
                    rest = after;
                    match implied {
                        Some(key) if left.is_empty() => (key.to_owned(), word),
                        _ => lone(&word)?,
                    }
                }
            };
            if pair.0.is_empty() {
                return Err("Expected a parameter before '='".to_owned());
            }
            if left.iter().any(|(key, _)| *key == pair.0) {
                return Err(format!("Parameter '{}' is given twice", pair.0));
            }
            left.push(pair);
        }
        Ok(Self {
            left,
            known: Vec::new(),
        })
    }

    /// The value of `key`, if it was said.
    pub(super) fn take(&mut self, key: &'static str) -> Option<String> {
        self.known.push(key);
        let at = self.left.iter().position(|(name, _)| name == key)?;
        Some(self.left.remove(at).1)
    }

    /// Text.
    pub(super) fn text(&mut self, key: &'static str) -> Result<Option<String>, String> {
        Ok(self.take(key))
    }

    /// The pairs whose keys begin with `name` and a dot, without these; `None` if there are none.
    pub(super) fn split_off(&mut self, name: &str) -> Option<Self> {
        let part = |key: &str| Some(key.strip_prefix(name)?.strip_prefix('.')?.to_owned());
        let mut parts = Vec::new();
        self.left.retain(|(key, value)| match part(key) {
            Some(key) => {
                parts.push((key, value.clone()));
                false
            }
            None => true,
        });
        (!parts.is_empty()).then_some(Self {
            left: parts,
            known: Vec::new(),
        })
    }

    /// The value of `key`, which must be said and hold something.
    pub(super) fn require(&mut self, key: &'static str) -> Result<String, String> {
        self.take(key)
            .filter(|value| !value.is_empty())
            .ok_or_else(|| format!("Parameter '{key}' is missing"))
    }

    /// A switch.
    pub(super) fn switch(&mut self, key: &'static str) -> Result<Option<bool>, String> {
        self.take(key)
            .map(|text| {
                number::switch(&text)
                    .ok_or_else(|| format!("Parameter '{key}' expects 'on' or 'off'"))
            })
            .transpose()
    }

    /// A size in bytes.
    pub(super) fn size(&mut self, key: &'static str) -> Result<Option<u64>, String> {
        self.take(key)
            .map(|text| {
                number::size(&text, 0)
                    .ok_or_else(|| format!("Parameter '{key}' expects a size, such as 2M or 4G"))
            })
            .transpose()
    }

    /// Forgets which keys were asked for so far, so that errors do not suggest them.
    pub(super) fn forget_known(&mut self) {
        self.known.clear();
    }

    /// Everything that was not taken, in the order said.
    pub(super) fn rest(self) -> Vec<(String, String)> {
        self.left
    }

    /// Refuses what was not taken. `owner` is the name that errors put before a key, with its dot.
    pub(super) fn finish(self, owner: &str) -> Result<(), String> {
        match self.left.first() {
            None => Ok(()),
            Some((key, _)) => Err(format!(
                "Property '{owner}{key}' not found{}",
                hint(key, self.known)
            )),
        }
    }
}

/// A key that is said alone.
fn flag(word: &str) -> Result<(String, String), String> {
    let (key, value) = match word.strip_prefix("no") {
        Some(key) => (key, "off"),
        None => (word, "on"),
    };
    Ok((key.to_owned(), value.to_owned()))
}

/// The pairs of a JSON object, whose objects and arrays within become dotted keys, as in QEMU.
fn flatten(
    prefix: &str,
    object: Vec<(String, Value)>,
    into: &mut Vec<(String, String)>,
) -> Result<(), String> {
    for (key, value) in object {
        let key = format!("{prefix}{key}");
        match value {
            Value::String(text) => into.push((key, text)),
            Value::Number(number) => into.push((key, number.to_string())),
            Value::Bool(on) => into.push((key, if on { "on" } else { "off" }.to_owned())),
            Value::Object(inner) => {
                flatten(&format!("{key}."), inner.into_iter().collect(), into)?;
            }
            Value::Array(items) => {
                let numbered = items.into_iter().enumerate();
                let numbered = numbered.map(|(at, item)| (at.to_string(), item));
                flatten(&format!("{key}."), numbered.collect(), into)?;
            }
            Value::Null => {
                return Err(format!(
                    "Parameter '{key}' expects a string, a number, true or false"
                ));
            }
        }
    }
    Ok(())
}

/// Reads a value up to a single comma: the value, and what follows the comma. A comma at the very
/// end is allowed, as in QEMU.
fn value(text: &str) -> (String, Option<&str>) {
    let mut value = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(',') {
        value.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        match rest.strip_prefix(',') {
            Some(after) => {
                value.push(',');
                rest = after;
            }
            None => return (value, Some(rest).filter(|rest| !rest.is_empty())),
        }
    }
    value.push_str(rest);
    (value, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str, implied: Option<&str>) -> Vec<(String, String)> {
        Pairs::parse(text, implied).unwrap().rest()
    }

    fn expected(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn two_commas_stand_for_one_in_a_value() {
        assert_eq!(
            pairs("a=x,,y=,b=,c=1,,", None),
            expected(&[("a", "x,y="), ("b", ""), ("c", "1,")])
        );
        assert_eq!(
            pairs("x,,y,b=1", Some("n")),
            expected(&[("n", "x,y"), ("b", "1")])
        );
        assert_eq!(pairs("b=1,", Some("n")), expected(&[("b", "1")]));
        assert_eq!(pairs("", Some("n")), expected(&[]));
    }

    #[test]
    fn a_key_alone_is_a_switch_only_where_that_is_said() {
        assert_eq!(
            Pairs::parse_with_flags("server,nowait").unwrap().rest(),
            expected(&[("server", "on"), ("wait", "off")])
        );
        assert_eq!(
            Pairs::parse("a=1,server", None).err().unwrap(),
            "Expected '=' after parameter 'server'"
        );
    }

    #[test]
    fn an_option_may_be_a_json_object() {
        let json = r#"{"driver": "a", "n": 5, "b": true, "c": false, "s": "x,y"}"#;
        let pairs = Pairs::parse_or_json(json, "driver").unwrap().rest();
        let said = [
            ("b", "on"),
            ("c", "off"),
            ("driver", "a"),
            ("n", "5"),
            ("s", "x,y"),
        ];
        assert_eq!(pairs, expected(&said));
        for (json, reason) in [
            (
                r#"{"a": null}"#,
                "Parameter 'a' expects a string, a number, true or false",
            ),
            (
                r#"{"a.b": 1, "a": {"b": 2}}"#,
                "Parameter 'a.b' is given twice",
            ),
            (
                r#"{"a": 1"#,
                "JSON parse error, EOF while parsing an object at line 1 column 7",
            ),
        ] {
            assert_eq!(Pairs::parse_or_json(json, "driver").err().unwrap(), reason);
        }
    }

    #[test]
    fn what_is_within_json_becomes_dotted_keys_and_these_can_be_split_off() {
        let json = r#"{"file": {"driver": "file", "l": ["x", {"y": 1}]}, "filename": "n"}"#;
        let mut pairs = Pairs::parse_or_json(json, "driver").unwrap();
        let file = pairs.split_off("file").unwrap().rest();
        assert_eq!(
            file,
            expected(&[("driver", "file"), ("l.0", "x"), ("l.1.y", "1")])
        );
        assert!(pairs.split_off("file").is_none());
        assert_eq!(pairs.rest(), expected(&[("filename", "n")]));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (text, reason) in [
            ("a=1,a=2", "Parameter 'a' is given twice"),
            ("=1", "Expected a parameter before '='"),
        ] {
            assert_eq!(Pairs::parse(text, None).err().unwrap(), reason);
        }
        let mut some = Pairs::parse("share=maybe,size=big,ide=1", None).unwrap();
        assert_eq!(
            some.switch("share").unwrap_err(),
            "Parameter 'share' expects 'on' or 'off'"
        );
        assert_eq!(
            some.size("size").unwrap_err(),
            "Parameter 'size' expects a size, such as 2M or 4G"
        );
        assert_eq!(some.require("id").unwrap_err(), "Parameter 'id' is missing");
        assert_eq!(
            some.finish("x.").unwrap_err(),
            "Property 'x.ide' not found; did you mean 'id'?"
        );
    }
}
