//! The subcommands: what Baton does beside running a guest.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::completions::SHELLS;
use super::error::CliError;
use super::number;
use super::options::Invocation;
use super::update;

/// The subcommands as clap knows them.
pub(super) fn command() -> Command {
    let file =
        |name: &'static str, value: &'static str| Arg::new(name).value_name(value).required(true);
    let switch = |name: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue);
    let info = Command::new("info").arg(file("file", "FILE"));
    let show = Command::new("show")
        .arg(file("file", "FILE"))
        .arg(Arg::new("offset").long("offset").value_name("N"))
        .args([switch("full"), switch("json")]);
    let check = Command::new("check")
        .args([file("old", "OLD"), file("new", "NEW")])
        .arg(switch("json"));
    let completions = Command::new("completions").disable_help_flag(true).arg(
        file("shell", "SHELL")
            .value_parser(PossibleValuesParser::new(SHELLS.map(|(name, _)| name))),
    );
    let group = |name| {
        Command::new(name)
            .disable_help_subcommand(true)
            .disable_help_flag(true)
            .subcommand_required(true)
    };
    Command::new("baton")
        .about("A virtual machine monitor for Linux/KVM that can be replaced under a running guest")
        .disable_help_flag(true)
        .disable_version_flag(true)
        .disable_help_subcommand(true)
        .subcommand(group("plugin").subcommand(info))
        .subcommand(group("state").subcommands([show, check]))
        .subcommand(completions)
        .subcommand(update::command())
}

/// The subcommands, and how they are written.
const USAGES: [(&str, &str); 4] = [
    ("plugin", "baton plugin info FILE"),
    (
        "state",
        "baton state show FILE [--offset N] [--full] or baton state check OLD NEW [--json]",
    ),
    ("completions", "baton completions bash, zsh or fish"),
    (update::NAME, update::USAGE),
];

/// The name of a subcommand and how it is written, if it is one.
pub(super) fn usage(name: &OsStr) -> Option<(&'static str, &'static str)> {
    USAGES.into_iter().find(|(own, _)| name == *own)
}

/// What `arguments` ask for, which begin with the subcommand of that name and usage.
pub(super) fn parse(
    (name, usage): (&str, &str),
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<Invocation, CliError> {
    let all = std::iter::once(OsString::from("baton")).chain(arguments);
    command()
        .try_get_matches_from(all)
        .ok()
        .and_then(|matches| read(&matches).transpose())
        .unwrap_or_else(|| Err(CliError::new(name, format!("write {usage}"))))
}

/// What a subcommand asks for; clap has seen to it that one comes with its arguments.
fn read(matches: &ArgMatches) -> Result<Option<Invocation>, CliError> {
    let Some((group, matches)) = matches.subcommand() else {
        return Ok(None);
    };
    if group == update::NAME {
        return update::read(matches).map(Some);
    }
    if let Some(name) = matches.try_get_one::<String>("shell").ok().flatten() {
        let found = SHELLS.into_iter().find(|(known, _)| known == name);
        return Ok(found.map(|(_, shell)| Invocation::Completions(shell)));
    }
    let Some((verb, matches)) = matches.subcommand() else {
        return Ok(None);
    };
    let path = |name| PathBuf::from(matches.get_one::<String>(name).cloned().unwrap_or_default());
    Ok(Some(match (group, verb) {
        ("plugin", "info") => Invocation::PluginInfo(path("file")),
        ("state", "show") => Invocation::StateShow {
            file: path("file"),
            offset: match matches.get_one::<String>("offset") {
                None => 0,
                Some(text) => number::size(text, 0).ok_or_else(|| {
                    let reason = "expects a number of bytes, such as 4096, 0x1000 or 4K";
                    CliError::new(format!("--offset {text}"), reason)
                })?,
            },
            full: matches.get_flag("full"),
        },
        ("state", "check") => Invocation::StateCheck {
            old: path("old"),
            new: path("new"),
            json: matches.get_flag("json"),
        },
        _ => return Ok(None),
    }))
}
