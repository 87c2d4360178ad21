//! The log: to standard error, or to a file with `-D`.
//!
//! Warnings and errors are always there. `-d ITEM,...` adds all that parts of Baton have to say.

use std::fs::OpenOptions;
use std::io;
use std::path::PathBuf;
use std::sync::Mutex;

use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// The environment variable with the level of what `-d` does not name: `error`, `warn` (the
/// default), `info`, `debug`, `trace` or `off`.
const LEVEL: &str = "BATON_LOG";

/// The items of `-d`: name, what it is of, and the modules that it means.
pub(crate) const ITEMS: [(&str, &str, &[&str]); 8] = [
    (
        "migration",
        "the steps of every migration mode",
        &[
            "baton_migration",
            "baton::handover",
            "baton::exec",
            "baton::blockers",
        ],
    ),
    (
        "machine",
        "the machine: buses, interrupts, power",
        &["baton::machine", "baton::vm"],
    ),
    ("memory", "guest RAM", &["baton::memory"]),
    ("vcpu", "virtual CPUs", &["baton::vcpu"]),
    ("device", "what devices say, each with its id", &["plugin"]),
    (
        "plugin",
        "how plugins are found and loaded",
        &["baton::plugin"],
    ),
    (
        "monitor",
        "monitors and their clients",
        &["baton::monitor", "baton::control"],
    ),
    ("chardev", "character devices", &["baton::chardev"]),
];

/// What to log, and where.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// `-d`: names of items; all of them are known.
    pub items: Vec<&'static str>,
    /// `-D`: the file, which is appended to.
    pub file: Option<LogFile>,
}

/// The file of `-D`: `%d`, which may be there once, is the number of the process that logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFile(String);

impl LogFile {
    /// The file of this process, which is not the one that has read the command line when it goes on in
    /// the background.
    fn path(&self) -> PathBuf {
        self.0
            .replacen("%d", &std::process::id().to_string(), 1)
            .into()
    }
}

/// Starts logging; once a process.
pub(crate) fn start(options: &LogOptions) -> Result<(), String> {
    let filter = filter(options, level()?);
    // Without colours; a terminal is not asked what it can do.
    let format = tracing_subscriber::fmt::layer().with_ansi(false);
    match &options.file {
        None => init(format.with_writer(io::stderr), filter),
        Some(file) => {
            let path = file.path();
            let file = OpenOptions::new().append(true).create(true).open(&path);
            let file = file.map_err(|e| {
                format!(
                    "-D {}: cannot be opened: {e}; name a file that can be written",
                    path.display()
                )
            })?;
            init(format.with_writer(Mutex::new(file)), filter)
        }
    }
}

fn level() -> Result<LevelFilter, String> {
    match std::env::var(LEVEL) {
        Ok(text) => text.parse().map_err(|_| {
            format!("{LEVEL}={text}: is not one of off, error, warn, info, debug and trace")
        }),
        Err(_) => Ok(LevelFilter::WARN),
    }
}

fn filter(options: &LogOptions, level: LevelFilter) -> Targets {
    let named = ITEMS
        .iter()
        .filter(|(name, ..)| options.items.contains(name));
    let modules = named.flat_map(|(_, _, modules)| modules.iter());
    Targets::new()
        .with_default(level)
        .with_targets(modules.map(|module| (*module, LevelFilter::TRACE)))
}

fn init<L>(layer: L, filter: Targets) -> Result<(), String>
where
    L: tracing_subscriber::Layer<
            tracing_subscriber::layer::Layered<Targets, tracing_subscriber::Registry>,
        > + Send
        + Sync
        + 'static,
    tracing_subscriber::layer::Layered<
        L,
        tracing_subscriber::layer::Layered<Targets, tracing_subscriber::Registry>,
    >: Subscriber,
{
    tracing_subscriber::registry()
        .with(filter)
        .with(layer)
        .try_init()
        .map_err(|e| format!("The log cannot be started: {e}"))
}

/// Reads the value of one `-d`.
pub(crate) fn items(text: &str) -> Result<Vec<&'static str>, String> {
    let mut items = Vec::new();
    for word in text.split(',') {
        if word == "all" {
            items.extend(ITEMS.iter().map(|(name, ..)| *name));
            continue;
        }
        let found = ITEMS.iter().find(|(name, ..)| *name == word);
        let (name, ..) = found.ok_or_else(|| {
            let near = crate::cli::hint(word, ITEMS.iter().map(|(name, ..)| *name).chain(["all"]));
            match near.is_empty() {
                // QEMU's text, in one line.
                true => format!("Invalid parameter '{word}'; see -d help"),
                false => format!("Invalid parameter '{word}'{near}"),
            }
        })?;
        items.push(*name);
    }
    Ok(items)
}

/// Reads the value of `-D`.
pub(crate) fn file(text: &str) -> Result<LogFile, String> {
    if text.is_empty() {
        return Err("The file's name is missing".to_owned());
    }
    let rest = text.replacen("%d", "", 1);
    match rest.contains('%') {
        true => Err(format!(
            "Invalid logfile template '{text}': % may stand only once, before d"
        )),
        false => Ok(LogFile(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_baton_s_parts() {
        assert_eq!(items("vcpu,device"), Ok(vec!["vcpu", "device"]));
        assert_eq!(items("all").unwrap().len(), ITEMS.len());
        for (text, reason) in [
            ("vpcu", "Invalid parameter 'vpcu'; did you mean 'vcpu'?"),
            ("in_asm", "Invalid parameter 'in_asm'; see -d help"),
            ("", "Invalid parameter ''; see -d help"),
        ] {
            assert_eq!(items(text).unwrap_err(), reason);
        }
    }

    #[test]
    fn an_item_is_logged_whole_and_the_rest_from_warnings_on() {
        let options = LogOptions {
            items: vec!["memory"],
            file: None,
        };
        let filter = filter(&options, LevelFilter::WARN);
        let (trace, warn) = (tracing::Level::TRACE, tracing::Level::WARN);
        assert!(filter.would_enable("baton::memory::warm", &trace));
        assert!(!filter.would_enable("baton::machine", &trace));
        assert!(filter.would_enable("baton::machine", &warn));
    }

    #[test]
    fn the_file_may_be_named_after_the_process() {
        let id = std::process::id();
        let path = |text| file(text).map(|file| file.path());
        assert_eq!(path("a.log"), Ok("a.log".into()));
        assert_eq!(path("a-%d.log"), Ok(format!("a-{id}.log").into()));
        for text in ["a-%s", "%d%d", "100%"] {
            let reason =
                format!("Invalid logfile template '{text}': % may stand only once, before d");
            assert_eq!(file(text).unwrap_err(), reason);
        }
    }
}
