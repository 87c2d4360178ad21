//! `baton completions SHELL`: clap's completions, with options as QEMU spells them.
//!
//! clap gives every long option two dashes. Here their names begin with a mark, and what clap makes
//! of them is put right by it: `--@machine` becomes `-machine`.

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, Command, ValueHint};
use clap_complete::{Generator, Shell};

use super::definition;
use super::subcommand;
use super::table::{Completion, Opt};

/// The shells there is a script for.
pub(super) const SHELLS: [(&str, Shell); 3] = [
    ("bash", Shell::Bash),
    ("zsh", Shell::Zsh),
    ("fish", Shell::Fish),
];

/// Stands before the name of an option that has one dash.
const MARK: &str = "@";
/// Stands for the device types.
const DEVICES: &str = "@devices";

/// The script for `shell`.
pub(super) fn script(shell: Shell) -> String {
    let mut command = command();
    command.set_bin_name("baton");
    command.build();
    let mut script = Vec::new();
    shell.generate(&command, &mut script);
    let script = String::from_utf8_lossy(&script);
    match shell {
        Shell::Fish => fish(&script),
        Shell::Zsh => zsh(&script),
        _ => bash(&script),
    }
}

fn bash(script: &str) -> String {
    let devices = script.replace(DEVICES, "$(_baton_devices)");
    format!("{LIST_DEVICES}\n{}", devices.replace("--@", "-"))
}

fn zsh(script: &str) -> String {
    // Letters after one dash are one option, not several.
    let script = script
        .replace("(-s -S -C)", "(-S -C)")
        .replace("(-s -C)", "(-C)")
        .replace("(@devices)", "{compadd $(_baton_devices)}")
        .replace("--@", "-");
    // The first line must stay the first.
    match script.split_once('\n') {
        Some((first, rest)) => format!("{first}\n\n{LIST_DEVICES}\n{rest}"),
        None => script,
    }
}

fn fish(script: &str) -> String {
    // A subcommand is the first argument or there is none. fish's own parser does not know long
    // options with one dash.
    let script = script
        .replace(
            "    argparse -s (__fish_baton_global_optspecs) -- $cmd 2>/dev/null\n    or return\n",
            "",
        )
        .replace(
            "if set -q argv[1]",
            "if set -q cmd[1]; and not string match -q -- '-*' $cmd[1]",
        )
        .replace("echo $argv[1]", "echo $cmd[1]")
        .replace("\"@devices\\t''\"", "\"(__baton_devices)\"")
        .replace(" -l @", " -o ")
        .replace('@', "");
    format!("{LIST_DEVICES_FISH}\n{script}")
}

const LIST_DEVICES: &str = "\
_baton_devices() {
    baton -device help 2>/dev/null | sed -n 's/^  \\([^ ]*\\).*/\\1/p'
}
";

const LIST_DEVICES_FISH: &str = "\
function __baton_devices
    baton -device help 2>/dev/null | string replace -rf '^  (\\S+).*' '$1'
end
";

/// The whole command line, with marks.
fn command() -> Command {
    subcommand::command().args(definition::options().flat_map(|option| {
        let other = option.aliases.iter().copied();
        std::iter::once(option.name)
            .chain(other)
            .map(|name| argument(name, option))
    }))
}

fn argument(name: &'static str, option: &Opt) -> Arg {
    let arg = Arg::new(name)
        .long(format!("{MARK}{name}"))
        .help(option.help);
    let Some(value) = option.value else {
        return arg.action(ArgAction::Count);
    };
    // Not how it is written: zsh would take its colons for its own.
    let named = value.chars().all(|c| c.is_ascii_uppercase());
    let arg = arg
        .value_name(if named { value } else { "VALUE" })
        .action(ArgAction::Append);
    match option.completes {
        Completion::Nothing => arg.value_hint(ValueHint::Other),
        Completion::File => arg.value_hint(ValueHint::AnyPath),
        Completion::Words(words) => arg.value_parser(PossibleValuesParser::new(words)),
        Completion::Device => arg.value_parser(PossibleValuesParser::new([DEVICES])),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_table_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn every_option_is_there_with_one_dash_and_nothing_of_the_marks_is_left() {
        for (name, shell) in SHELLS {
            let script = script(shell);
            assert!(!script.contains(MARK.repeat(2).as_str()), "{name}");
            assert!(!script.contains("argparse -s"), "{name}");
            for mark in ["--@", " @", "@devices"] {
                assert!(!script.contains(mark), "{name}: {mark}");
            }
            for option in definition::options() {
                let spelled = match shell {
                    Shell::Fish => format!(" -o {} ", option.name),
                    Shell::Zsh if option.value.is_some() => format!("'*-{}=[", option.name),
                    Shell::Zsh => format!("'*-{}[", option.name),
                    _ => format!("-{} ", option.name),
                };
                assert!(script.contains(&spelled), "{name}: {spelled}");
            }
        }
    }

    /// What bash completes `words` to, the last of which is being typed.
    fn completed(words: &[&str]) -> Vec<String> {
        let (last, before) = words.split_last().unwrap();
        let ask = format!(
            "{}\nbaton() {{ printf 'Devices:\\n  virtio-rng-pci  virtio  entropy\\n'; }}\n\
             COMP_WORDS=({}); COMP_CWORD={}\n_baton baton '{last}' '{}' 2>/dev/null\n\
             printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            script(Shell::Bash),
            words.join(" "),
            before.len(),
            before.last().unwrap(),
        );
        let out = Command::new("bash").args(["-c", &ask]).output().unwrap();
        assert!(out.status.success(), "{out:?}");
        let text = String::from_utf8(out.stdout).unwrap();
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn bash_completes_options_values_devices_and_subcommands() {
        for (words, expected) in [
            (&["baton", "-mach"][..], &["-machine"][..]),
            (&["baton", "-S", "-display", ""], &["none"]),
            (
                &["baton", "-object", "memory-backend-m"],
                &["memory-backend-memfd"],
            ),
            (&["baton", "-M", "baton-"], &["baton-1.0"]),
            (&["baton", "-device", "virtio"], &["virtio-rng-pci"]),
            (&["baton", "state", "sh"], &["show"]),
            (&["baton", "completions", "f"], &["fish"]),
        ] {
            assert_eq!(completed(words), expected, "{words:?}");
        }
    }
}
