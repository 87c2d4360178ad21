//! A line becomes a command with its arguments. What is wrong is told in QEMU's words.

use std::collections::BTreeMap;

use super::table::{self, Entry, Kind};

/// A command with its arguments, by their names.
pub(super) struct Said {
    pub(super) entry: &'static Entry,
    values: BTreeMap<&'static str, String>,
}

impl Said {
    /// An argument, if it was said.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// Whether a flag was said, or a switch is `on`.
    pub(super) fn is_on(&self, name: &str) -> bool {
        self.get(name) == Some("on")
    }
}

/// The command that `line` is, or nothing for a blank one.
pub(super) fn parse(line: &str) -> Result<Option<Said>, String> {
    let line = line.trim_matches(is_space);
    let Some((mut entry, mut rest)) = named(table::COMMANDS, line, line)? else {
        return Ok(None);
    };
    let group = entry.group();
    if let Some((inner, after)) = named(group, rest, line)? {
        (entry, rest) = (inner, after);
    }
    match values(entry, rest) {
        Ok(values) => Ok(Some(Said { entry, values })),
        Err(reason) => {
            let path = line[..line.len() - rest.len()].trim_end_matches(is_space);
            Err(format!(
                "{reason}\nTry \"help {path}\" for more information\n"
            ))
        }
    }
}

/// The entry that `text` begins with, and what follows. Nothing if there are no entries, or no text.
fn named<'a>(
    entries: &'static [Entry],
    text: &'a str,
    line: &str,
) -> Result<Option<(&'static Entry, &'a str)>, String> {
    if text.is_empty() || entries.is_empty() {
        return Ok(None);
    }
    let (name, rest) = text.split_at(text.find(is_space).unwrap_or(text.len()));
    match table::find(entries, name) {
        Some(entry) => Ok(Some((entry, rest.trim_start_matches(is_space)))),
        None => {
            let said = &line[..line.len() - rest.len()];
            Err(format!("unknown command: '{said}'\n"))
        }
    }
}

fn values(entry: &'static Entry, mut rest: &str) -> Result<BTreeMap<&'static str, String>, String> {
    let mut values = BTreeMap::new();
    let names = entry.names;
    let flags: Vec<(char, &'static str)> = entry
        .arguments
        .iter()
        .filter_map(|argument| match argument.kind {
            Kind::Flag(letter) => Some((letter, argument.name)),
            _ => None,
        })
        .collect();
    while !flags.is_empty()
        && let Some(flag) = rest.strip_prefix('-')
    {
        let letter = flag.chars().next();
        let Some((letter, name)) = flags.iter().find(|(known, _)| Some(*known) == letter) else {
            let letter = letter.unwrap_or(' ');
            return Err(format!("{names}: unsupported option -{letter}"));
        };
        values.insert(*name, "on".to_owned());
        rest = flag[letter.len_utf8()..].trim_start_matches(is_space);
    }
    for argument in entry.arguments {
        let missing = || format!("{names}: string expected");
        let value = match argument.kind {
            Kind::Flag(_) => continue,
            Kind::OptionalWord | Kind::OptionalRest if rest.is_empty() => continue,
            Kind::Word | Kind::OptionalWord => {
                let (word, after) = word(rest)
                    .map_err(|reason| format!("{reason}{}", missing()))?
                    .ok_or_else(missing)?;
                rest = after;
                word
            }
            Kind::Rest | Kind::OptionalRest => {
                let all = std::mem::take(&mut rest);
                if all.is_empty() {
                    return Err(missing());
                }
                all.to_owned()
            }
            Kind::Switch => {
                let (word, after) = rest.split_at(rest.find(is_space).unwrap_or(rest.len()));
                if !matches!(word, "on" | "off") {
                    return Err("Expected 'on' or 'off'".to_owned());
                }
                rest = after;
                word.to_owned()
            }
        };
        values.insert(argument.name, value);
        rest = rest.trim_start_matches(is_space);
    }
    match rest {
        "" => Ok(values),
        _ => Err(format!("{names}: extraneous characters at the end of line")),
    }
}

/// The word at the front and what follows; nothing if there is none. A word in double quotes may have
/// spaces and escapes. The error is a whole line.
fn word(text: &str) -> Result<Option<(String, &str)>, String> {
    let Some(quoted) = text.strip_prefix('"') else {
        let (word, rest) = text.split_at(text.find(is_space).unwrap_or(text.len()));
        return Ok(Some((word.to_owned(), rest)).filter(|(word, _)| !word.is_empty()));
    };
    let mut word = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok(Some((word, &quoted[at + 1..]))),
            '\\' => match chars.next().map(|(_, c)| c) {
                Some('n') => word.push('\n'),
                Some('r') => word.push('\r'),
                Some(c @ ('\\' | '\'' | '"')) => word.push(c),
                Some(c) => return Err(format!("unsupported escape code: '\\{c}'\n")),
                None => break,
            },
            _ => word.push(c),
        }
    }
    Err("unterminated string\n".to_owned())
}

/// As C has it.
pub(super) fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c')
}
