//! What Tab offers.

use serde_json::Value;

use super::arguments::is_space;
use super::info::rows;
use super::run::ask;
use super::table::{self, Entry, Kind, Values};
use crate::monitor::server::Control;

/// What the last word may become.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Choices {
    /// The word as far as it is typed.
    pub(super) begun: String,
    /// Whole words that begin with it, sorted.
    pub(super) words: Vec<String>,
}

/// What the last word of `text` may become. May block, as [`Control::execute`] may.
pub(super) fn complete(control: &dyn Control, text: &str) -> Choices {
    let mut words: Vec<&str> = text
        .split(is_space)
        .filter(|word| !word.is_empty())
        .collect();
    let begun = match text.ends_with(is_space) {
        true => "",
        false => words.pop().unwrap_or_default(),
    };
    let mut words = offered(control, &words, begun);
    words.retain(|word| word.starts_with(begun));
    words.sort_unstable();
    words.dedup();
    Choices {
        begun: begun.to_owned(),
        words,
    }
}

/// What may follow the words `before`.
fn offered(control: &dyn Control, before: &[&str], begun: &str) -> Vec<String> {
    let Some((first, mut after)) = before.split_first() else {
        return names(table::COMMANDS);
    };
    let Some(mut entry) = table::find(table::COMMANDS, first) else {
        return Vec::new();
    };
    if !entry.group().is_empty() {
        let Some((topic, rest)) = after.split_first() else {
            return names(entry.group());
        };
        let Some(inner) = table::find(entry.group(), topic) else {
            return Vec::new();
        };
        (entry, after) = (inner, rest);
    }
    let is_flag = |word: &&str| word.starts_with('-');
    if begun.starts_with('-') {
        return flags(entry);
    }
    let said: Vec<&str> = after.iter().copied().skip_while(is_flag).collect();
    let mut arguments = entry
        .arguments
        .iter()
        .filter(|argument| !matches!(argument.kind, Kind::Flag(_)));
    match arguments.nth(said.len()) {
        Some(argument) => values(control, argument.values, &said),
        // The last one may take what is left of the line.
        None => match entry.arguments.last() {
            Some(last) if last.values == Values::Commands => values(control, last.values, &said),
            _ => Vec::new(),
        },
    }
}

fn names(entries: &'static [Entry]) -> Vec<String> {
    entries
        .iter()
        .flat_map(Entry::each_name)
        .map(str::to_owned)
        .collect()
}

fn flags(entry: &Entry) -> Vec<String> {
    let flag = |argument: &table::Argument| match argument.kind {
        Kind::Flag(letter) => Some(format!("-{letter}")),
        _ => None,
    };
    entry.arguments.iter().filter_map(flag).collect()
}

/// What an argument may be, after the arguments `said`.
fn values(control: &dyn Control, values: Values, said: &[&str]) -> Vec<String> {
    let query = |name| ask(control, name, Value::Null).unwrap_or_default();
    let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    match values {
        Values::Any => Vec::new(),
        Values::Words(words) => owned(words),
        Values::Commands => match said {
            [] => names(table::COMMANDS),
            [first] => {
                table::find(table::COMMANDS, first).map_or_else(Vec::new, |e| names(e.group()))
            }
            _ => Vec::new(),
        },
        Values::Devices => members(&query("query-devices"), "id"),
        Values::Drives => members(&query("query-block"), "device"),
        Values::Drivers => rows(&query("query-plugins"))
            .flat_map(|plugin| rows(&plugin["devices"]))
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect(),
        Values::Capabilities => members(&query("query-migrate-capabilities"), "capability"),
        Values::Parameters => {
            let all = query("query-migrate-parameters");
            all.as_object()
                .into_iter()
                .flat_map(|all| all.keys().cloned())
                .collect()
        }
        Values::OfParameter => match said {
            ["mode"] => baton_migration::Mode::ALL
                .map(|mode| mode.as_str().to_owned())
                .into(),
            ["zero-page-detection"] => owned(&["legacy", "multifd", "none"]),
            [name] if query("query-migrate-parameters")[name].is_boolean() => owned(&["on", "off"]),
            _ => Vec::new(),
        },
    }
}

/// A member of each row of a list.
fn members(list: &Value, member: &str) -> Vec<String> {
    let texts = rows(list).filter_map(|row| row[member].as_str());
    texts.map(str::to_owned).collect()
}
