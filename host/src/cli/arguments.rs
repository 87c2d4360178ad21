//! QEMU's way to write options: one dash or two, the value in the next argument or after `=`.

use std::ffi::OsString;

use super::config_file;
use super::definition;
use super::error::CliError;
use super::nearest::hint;
use super::said::Word;

/// The options that `arguments` are.
///
/// A value is taken as it is, even if it begins with a dash, as QEMU does.
pub(super) fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Vec<Word>, CliError> {
    let mut arguments = arguments.into_iter().map(text).peekable();
    let mut words = Vec::new();
    while let Some(argument) = arguments.next() {
        let argument = argument?;
        let Some(rest) = argument.strip_prefix('-').filter(|rest| !rest.is_empty()) else {
            return Err(CliError::new(
                argument,
                "this is no option; a disk image is given with -drive file=PATH,if=virtio",
            ));
        };
        let rest = rest.strip_prefix('-').unwrap_or(rest);
        let (name, attached) = match rest.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (rest, None),
        };
        let Some(option) = definition::option(name) else {
            return Err(CliError::new(format!("-{name}"), unknown(name)));
        };
        let value = match (option.value, attached) {
            (Some(_), Some(value)) => Some(value),
            (Some(_), None) => {
                let is_option = |next: &Result<String, _>| {
                    next.as_ref().is_ok_and(|next| next.starts_with('-'))
                };
                match option.bare {
                    Some(bare) if arguments.peek().is_none_or(is_option) => Some(bare.to_owned()),
                    _ => {
                        let missing = || CliError::new(format!("-{name}"), "requires an argument");
                        Some(arguments.next().ok_or_else(missing)??)
                    }
                }
            }
            (None, None) => None,
            (None, Some(value)) => {
                return Err(CliError::new(
                    format!("-{name}={value}"),
                    "takes no value; leave it out",
                ));
            }
        };
        match (option.name, &value) {
            // As if what the file says had been said here.
            ("readconfig", Some(file)) => words.extend(config_file::read(file)?),
            _ => words.push(Word::new(option, value)),
        }
    }
    Ok(words)
}

/// Why there is no option of this name.
fn unknown(name: &str) -> String {
    if let Some(instead) = definition::refused(name) {
        return format!("not supported: {instead}");
    }
    // One letter is as close to every other.
    let names = definition::options()
        .flat_map(|option| option.aliases.iter().copied().chain([option.name]))
        .filter(|name| name.len() > 1);
    match hint(name, names) {
        none if none.is_empty() => "invalid option; see -help".to_owned(),
        near => format!("invalid option{}", near.replace("mean '", "mean '-")),
    }
}

fn text(argument: OsString) -> Result<String, CliError> {
    argument.into_string().map_err(|argument| {
        CliError::new(
            argument.to_string_lossy(),
            "the argument is not UTF-8; rename the file it names",
        )
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    /// What was understood, as `-name value`.
    fn normal(arguments: &[&str]) -> Result<Vec<String>, String> {
        let words = read(arguments.iter().map(OsString::from));
        let words = words.map_err(|error| error.to_string())?;
        Ok(words.into_iter().map(|word| word.origin).collect())
    }

    #[test]
    fn options_have_one_dash_or_two_and_values_after_a_space_or_an_equals_sign() {
        assert_eq!(
            normal(&[
                "-m", "4G", "--name", "a", "-M=baton", "-S", "-append", "-x --y"
            ])
            .unwrap(),
            ["-m 4G", "-name a", "-machine baton", "-S", "-append -x --y"]
        );
    }

    #[test]
    fn the_value_of_some_may_be_left_out() {
        for (arguments, expected) in [
            (&["-only-migratable"][..], &["-only-migratable normal"][..]),
            (
                &["-only-migratable", "-S"],
                &["-only-migratable normal", "-S"],
            ),
            (
                &["-only-migratable", "cpr-exec,normal", "-S"],
                &["-only-migratable cpr-exec,normal", "-S"],
            ),
            (
                &["--only-migratable=cpr-exec"],
                &["-only-migratable cpr-exec"],
            ),
        ] {
            assert_eq!(normal(arguments).unwrap(), expected);
        }
    }

    #[test]
    fn what_is_no_option_is_refused() {
        for (arguments, text) in [
            (
                &["disk.img"][..],
                "disk.img: this is no option; a disk image is given with \
                 -drive file=PATH,if=virtio",
            ),
            (
                &["-"],
                "-: this is no option; a disk image is given with -drive file=PATH,if=virtio",
            ),
            (
                &["-devcie", "x"],
                "-devcie: invalid option; did you mean '-device'?",
            ),
            (
                &["-vnc", ":0"],
                "-vnc: not supported: there is no display: use the serial line",
            ),
            (
                &["-hda", "a"],
                "-hda: not supported: there is no IDE: say -drive file=PATH,if=virtio",
            ),
            (&["-xyzzy"], "-xyzzy: invalid option; see -help"),
            (&["-x"], "-x: invalid option; see -help"),
            (&["-m"], "-m: requires an argument"),
            (&["-S=on"], "-S=on: takes no value; leave it out"),
        ] {
            assert_eq!(normal(arguments).unwrap_err(), text);
        }
        let bytes = OsString::from_vec(b"-m\xff\n".to_vec());
        assert_eq!(
            read([bytes]).unwrap_err().to_string(),
            "-m\u{fffd}\\n: the argument is not UTF-8; rename the file it names"
        );
    }
}
