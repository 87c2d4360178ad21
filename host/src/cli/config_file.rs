//! `-readconfig`: QEMU's configuration files (docs/config, `util/qemu-config.c`).
//!
//! ```text
//! # a comment
//! [device "disk0"]
//!   driver = "virtio-blk-pci"
//!   drive = "d0"
//! ```
//!
//! A section is an option, and its lines are the option's properties. What it says is checked as if
//! it had been said on the command line.

use std::fs::File;
use std::io::Read;

use super::definition;
use super::error::CliError;
use super::nearest::hint;
use super::said::Word;

/// Longest file, in bytes.
const LONGEST_FILE: u64 = 1 << 20;
/// Longest line, in bytes; QEMU's.
const LONGEST_LINE: usize = 1022;
/// Longest name of a section, id or property, in bytes; QEMU's.
const LONGEST_NAME: usize = 63;
/// Most properties of a section.
const MOST_PROPERTIES: usize = 256;

/// The options that are in the file at `path`.
pub(super) fn read(path: &str) -> Result<Vec<Word>, CliError> {
    let origin = format!("-readconfig {path}");
    let cannot =
        |e: std::io::Error| CliError::new(origin.as_str(), format!("Cannot read config file: {e}"));
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(LONGEST_FILE + 1).read_to_end(&mut text))
        .map_err(cannot)?;
    if text.len() as u64 > LONGEST_FILE {
        let reason = format!("the file has more than {LONGEST_FILE} bytes; is it the right one?");
        return Err(CliError::new(origin, reason));
    }
    let text = String::from_utf8(text)
        .map_err(|_| CliError::new(origin, "the file is not UTF-8; is it the right one?"))?;
    parse(path, &text)
}

/// The options in `text`, which is called `name`.
pub(super) fn parse(name: &str, text: &str) -> Result<Vec<Word>, CliError> {
    let mut words = Vec::new();
    let mut section: Option<Section> = None;
    for (at, line) in text.lines().enumerate() {
        let origin = format!("{name}:{}", at + 1);
        let content = match line.len() > LONGEST_LINE {
            true => Err(format!("the line has more than {LONGEST_LINE} bytes")),
            false => Line::parse(line.trim()),
        };
        match content.map_err(|reason| CliError::new(origin.as_str(), reason))? {
            Line::Nothing => {}
            Line::Section { group, id } => {
                words.extend(section.take().map(Section::word));
                let begun = Section::begin(group, id, &origin);
                section = Some(begun.map_err(|reason| CliError::new(origin, reason))?);
            }
            Line::Property { key, value } => {
                let added = match section.as_mut() {
                    Some(section) => section.add(key, value),
                    // QEMU's text.
                    None => Err("no group defined; begin with a line such as [machine]".to_owned()),
                };
                added.map_err(|reason| CliError::new(origin, reason))?;
            }
        }
    }
    words.extend(section.map(Section::word));
    Ok(words)
}

/// What a line says.
enum Line<'a> {
    Nothing,
    Section { group: &'a str, id: Option<&'a str> },
    Property { key: &'a str, value: &'a str },
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Result<Self, String> {
        let wrong = || {
            // QEMU's text, and what it leaves open.
            "parse error; write [GROUP], [GROUP \"ID\"], KEY = \"VALUE\" or # COMMENT".to_owned()
        };
        if line.is_empty() || line.starts_with('#') {
            return Ok(Self::Nothing);
        }
        if let Some(rest) = line.strip_prefix('[') {
            let inner = rest.strip_suffix(']').ok_or_else(wrong)?;
            let (group, id) = match inner.split_once(char::is_whitespace) {
                None => (inner, None),
                Some((group, id)) => (group, Some(quoted(id.trim()).ok_or_else(wrong)?)),
            };
            named(group)?;
            return Ok(Self::Section { group, id });
        }
        let (key, value) = line.split_once('=').ok_or_else(wrong)?;
        let (key, value) = (key.trim(), quoted(value.trim()).ok_or_else(wrong)?);
        named(key)?;
        Ok(Self::Property { key, value })
    }
}

/// What is between two quotes; there is no way to write one within.
fn quoted(text: &str) -> Option<&str> {
    let inner = text.strip_prefix('"')?.strip_suffix('"')?;
    (!inner.contains('"')).then_some(inner)
}

/// A name that stands for itself where properties are put together.
fn named(name: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > LONGEST_NAME || !name.chars().all(plain) {
        return Err(format!(
            "'{name}' is no name: letters, digits, '-', '_' and '.', at most {LONGEST_NAME}"
        ));
    }
    Ok(())
}

/// A section as far as it was read.
struct Section {
    option: &'static str,
    /// `key=value,...` as on a command line.
    value: String,
    properties: usize,
    origin: String,
}

impl Section {
    fn begin(group: &str, id: Option<&str>, origin: &str) -> Result<Self, String> {
        let sections = || definition::options().filter_map(|one| Some((one.section?, one.name)));
        let found = sections().find(|(section, _)| *section == group);
        let Some((_, option)) = found else {
            let near = hint(group, sections().map(|(section, _)| section));
            // QEMU's text.
            return Err(format!("There is no option group '{group}'{near}"));
        };
        let said = match id {
            Some(id) => format!("[{group} \"{id}\"]"),
            None => format!("[{group}]"),
        };
        let mut section = Self {
            option,
            value: String::new(),
            properties: 0,
            origin: format!("{origin} {said}"),
        };
        if let Some(id) = id {
            section.add("id", id)?;
        }
        Ok(section)
    }

    fn add(&mut self, key: &str, value: &str) -> Result<(), String> {
        if self.properties == MOST_PROPERTIES {
            return Err(format!(
                "the section has more than {MOST_PROPERTIES} properties"
            ));
        }
        if self.properties > 0 {
            self.value.push(',');
        }
        self.properties += 1;
        self.value.push_str(key);
        self.value.push('=');
        self.value.push_str(&value.replace(',', ",,"));
        Ok(())
    }

    fn word(self) -> Word {
        Word {
            option: self.option,
            value: self.value,
            origin: self.origin,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Result<Vec<(String, String)>, String> {
        let words = parse("vm.conf", text).map_err(|error| error.to_string())?;
        let said = |word: Word| (word.origin, format!("-{} {}", word.option, word.value));
        Ok(words.into_iter().map(said).collect())
    }

    #[test]
    fn a_section_is_an_option() {
        let text = "\
# QEMU's example, more or less
[machine]
  type = \"baton\"
  memory-backend = \"ram0\"

[memory]
size=\"1G\"
[device \"disk0\"]
  driver = \"virtio-blk-pci\"
  drive = \"a,b=c\"
[name]
";
        let expected = [
            (
                "vm.conf:2 [machine]",
                "-machine type=baton,memory-backend=ram0",
            ),
            ("vm.conf:6 [memory]", "-m size=1G"),
            (
                "vm.conf:8 [device \"disk0\"]",
                "-device id=disk0,driver=virtio-blk-pci,drive=a,,b=c",
            ),
            ("vm.conf:11 [name]", "-name "),
        ];
        let expected = expected.map(|(origin, said)| (origin.to_owned(), said.to_owned()));
        assert_eq!(words(text).unwrap(), expected);
        assert_eq!(words("").unwrap(), []);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let wrong = "parse error; write [GROUP], [GROUP \"ID\"], KEY = \"VALUE\" or # COMMENT";
        let long = "x".repeat(64);
        let many = "a = \"1\"\n".repeat(257);
        for (text, line, reason) in [
            (
                "\n[devcie \"a\"]",
                2,
                "There is no option group 'devcie'; did you mean 'device'?",
            ),
            ("[xyzzy]", 1, "There is no option group 'xyzzy'"),
            (
                "a = \"1\"",
                1,
                "no group defined; begin with a line such as [machine]",
            ),
            ("[machine]\ntype = baton", 2, wrong),
            ("[machine]\ntype", 2, wrong),
            ("[machine]\ntype = \"a\" b", 2, wrong),
            ("[machine]\ntype = \"a\"b\"", 2, wrong),
            ("[machine", 1, wrong),
            ("[device disk0]", 1, wrong),
            (
                "[machine]\na,b = \"1\"",
                2,
                "'a,b' is no name: letters, digits, '-', '_' and '.', at most 63",
            ),
            (
                "[]",
                1,
                "'' is no name: letters, digits, '-', '_' and '.', at most 63",
            ),
            (
                &format!("[machine]\n{long} = \"\""),
                2,
                &format!("'{long}' is no name: letters, digits, '-', '_' and '.', at most 63"),
            ),
            (&"#".repeat(1023), 1, "the line has more than 1022 bytes"),
            (
                &format!("[machine]\n{many}"),
                258,
                "the section has more than 256 properties",
            ),
        ] {
            assert_eq!(
                words(text).unwrap_err(),
                format!("vm.conf:{line}: {reason}")
            );
        }
    }
}
