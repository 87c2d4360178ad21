//! The subcommand `update`.

use std::time::Duration;

use baton_migration::Mode;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::error::CliError;
use super::number;
use super::options::Invocation;
use crate::update::UpdateOptions;

/// Its name.
pub(super) const NAME: &str = "update";
/// How it is written.
pub(super) const USAGE: &str = "baton update --qmp SOCKET [--binary NEW] [--plugin-dir DIR] \
     [--mode cpr-transfer|cpr-exec] [--timeout S] [--log FILE] [--dry-run] [--json]";
/// What it does.
#[cfg(test)]
pub(super) const ABOUT: &str = "Replace the process of a running guest by another program, while the \
     guest goes on. It ends with status 0 when the guest runs in the new program and the old one is \
     gone, and with 1 and one line on standard error when the guest goes on in the old one; the line \
     says why.";
/// What its switches mean.
#[cfg(test)]
pub(super) const SWITCHES: [(&str, &str); 8] = [
    (
        "--qmp SOCKET",
        "Where the guest's process has its QMP monitor: the path of a UNIX socket, unix:PATH or \
         tcp:HOST:PORT. The new process is there afterwards.",
    ),
    (
        "--binary NEW",
        "The program that shall take the guest; the one that does the update if none is named.",
    ),
    (
        "--plugin-dir DIR",
        "Where it has its plugins, in place of what -plugin says in the guest's command line.",
    ),
    (
        "--mode MODE",
        "cpr-transfer, the default, starts a process beside the old one. cpr-exec lets the old \
         process become the new program, which keeps its PID and its terminal.",
    ),
    (
        "--timeout S",
        "How many seconds each of two things may take: that the new process is ready, and that the \
         guest goes over. 60 by default.",
    ),
    (
        "--log FILE",
        "Where the new process writes what it has to say; standard error of the old one if no file \
         is named. Not with cpr-exec.",
    ),
    (
        "--dry-run",
        "Change nothing: say what stands in the way, which versions of program and plugins are \
         there and which would come, and which state would not be understood. Status 1 if the update \
         could not succeed.",
    ),
    ("--json", "Print the result as JSON."),
];

/// The longest that can be waited for, in seconds.
const LONGEST: u64 = 24 * 3600;

pub(super) fn command() -> Command {
    let value = |name: &'static str| Arg::new(name).long(name).value_name("VALUE");
    let switch = |name: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue);
    Command::new(NAME)
        .disable_help_flag(true)
        .arg(value("qmp").required(true))
        .args(["binary", "plugin-dir", "mode", "timeout", "log"].map(value))
        .args([switch("dry-run"), switch("json")])
}

pub(super) fn read(matches: &ArgMatches) -> Result<Invocation, CliError> {
    let text = |name: &str| matches.get_one::<String>(name).cloned();
    let error = |name: &str, value: &str, reason: String| {
        CliError::new(format!("--{name} {value}"), reason)
    };
    let qmp = text("qmp").unwrap_or_default();
    let mode = match text("mode") {
        None => Mode::CprTransfer,
        Some(name) => match name.parse() {
            Ok(mode @ (Mode::CprTransfer | Mode::CprExec)) => mode,
            _ => {
                let reason = "is no mode of a live update; use cpr-transfer or cpr-exec";
                return Err(error("mode", &name, reason.into()));
            }
        },
    };
    let timeout = match text("timeout") {
        None => 60,
        Some(said) => number::digits(&said, 10)
            .filter(|seconds| (1..=LONGEST).contains(seconds))
            .ok_or_else(|| {
                let reason = format!("expects a number of seconds from 1 to {LONGEST}");
                error("timeout", &said, reason)
            })?,
    };
    let log = text("log").map(Into::into);
    if mode == Mode::CprExec && log.is_some() {
        let reason = "the process and its standard error stay in mode cpr-exec; leave it out";
        return Err(CliError::new("--log", reason));
    }
    Ok(Invocation::Update(Box::new(UpdateOptions {
        qmp: qmp.parse().map_err(|reason| error("qmp", &qmp, reason))?,
        binary: text("binary").map(Into::into),
        plugins: text("plugin-dir").map(Into::into),
        mode,
        timeout: Duration::from_secs(timeout),
        log,
        dry_run: matches.get_flag("dry-run"),
        json: matches.get_flag("json"),
    })))
}

#[cfg(test)]
mod tests {
    use super::super::{CliError, Invocation, parse};
    use super::*;

    fn update(words: &str) -> Result<UpdateOptions, CliError> {
        match parse(words.split(' ').map(Into::into))? {
            Invocation::Update(options) => Ok(*options),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_update_needs_a_monitor_and_has_defaults() {
        let options = update("update --qmp vm.sock").unwrap();
        assert_eq!(options.mode, Mode::CprTransfer);
        assert_eq!(options.timeout, Duration::from_secs(60));
        let options = update("update --qmp tcp:a:1 --mode cpr-exec --timeout 5 --json").unwrap();
        assert!(options.json && !options.dry_run && options.mode == Mode::CprExec);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (words, reason) in [
            ("update", "update: write baton update --qmp SOCKET"),
            ("update --qmp a --frob", "update: write baton update"),
            ("update --qmp tcp:1", "--qmp tcp:1: the port is missing"),
            (
                "update --qmp a --mode normal",
                "--mode normal: is no mode of a live update",
            ),
            (
                "update --qmp a --timeout 0",
                "--timeout 0: expects a number",
            ),
            (
                "update --qmp a --mode cpr-exec --log b",
                "--log: the process and its",
            ),
        ] {
            let error = update(words).unwrap_err().to_string();
            assert!(error.starts_with(reason), "{words}: {error}");
        }
    }

    #[test]
    fn every_switch_is_described() {
        let described: Vec<_> = SWITCHES
            .iter()
            .filter_map(|(text, _)| text.split(' ').next()?.strip_prefix("--"))
            .collect();
        for argument in command().get_arguments() {
            let name = argument.get_id().as_str();
            assert!(described.contains(&name) && USAGE.contains(name), "{name}");
        }
    }
}
