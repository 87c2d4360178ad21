//! Carries out one line.

use serde_json::{Map, Value};

use super::arguments::{self, Said};
use super::table::Run;
use crate::monitor::command::Command;
use crate::monitor::error::QmpError;
use crate::monitor::fds::Caller;
use crate::monitor::server::Control;

/// Who says the line.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Speaker {
    /// Whether it can be made to wait for a migration.
    pub(crate) waits: bool,
    /// The CPU that is meant where none is named.
    pub(crate) cpu: u64,
}

/// What came out of a line.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// What it prints. Lines end with CR LF, and nothing in it controls a terminal.
    pub(crate) text: String,
    pub(crate) next: Next,
}

/// What comes after a line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Next {
    /// The prompt.
    #[default]
    Prompt,
    /// The prompt once the migration that the line has begun is over.
    Migration,
    /// Nothing: the process ends.
    End,
}

/// What a command makes of its arguments.
#[derive(Default)]
pub(super) struct Done {
    pub(super) text: String,
    pub(super) next: Next,
}

/// What a command is carried out with.
pub(super) struct Context<'a> {
    pub(super) control: &'a dyn Control,
    pub(super) speaker: Speaker,
    pub(super) said: &'a Said,
}

impl Context<'_> {
    /// Asks the VM by the names of QMP.
    pub(super) fn ask(&self, name: &str, arguments: Value) -> Result<Value, QmpError> {
        ask(self.control, name, arguments)
    }

    /// A command of QMP without arguments and without a result.
    pub(super) fn done(&self, name: &str) -> Result<Done, QmpError> {
        self.done_with(name, Value::Null)
    }

    /// A command of QMP without a result.
    pub(super) fn done_with(&self, name: &str, arguments: Value) -> Result<Done, QmpError> {
        self.ask(name, arguments).map(|_| Done::default())
    }

    /// An argument, empty if it was left out.
    pub(super) fn word(&self, name: &str) -> &str {
        self.said.get(name).unwrap_or_default()
    }
}

/// Asks the VM by the names of QMP; arguments are an object, or nothing.
pub(super) fn ask(control: &dyn Control, name: &str, arguments: Value) -> Result<Value, QmpError> {
    let arguments = match arguments {
        Value::Object(arguments) => arguments,
        _ => Map::new(),
    };
    control.execute(Command::parse(name, arguments)?, &Caller::default())
}

/// Carries out `line`. May block, as [`Control::execute`] may.
pub(crate) fn run(control: &dyn Control, line: &str, speaker: Speaker) -> Outcome {
    let said = match arguments::parse(line) {
        Ok(Some(said)) => said,
        Ok(None) => return Outcome::default(),
        Err(text) => return printed(&text, Next::Prompt),
    };
    let context = Context {
        control,
        speaker,
        said: &said,
    };
    let done = match said.entry.run {
        Run::Command(run) => run(&context),
        Run::Text(text) => text(&context).map(Done::from),
        Run::Group(_) => Ok(super::commands::help_of(said.entry.names).into()),
    };
    match done {
        Ok(done) => printed(&done.text, done.next),
        Err(e) => failed(&e),
    }
}

/// What comes out of a line that could not be carried out.
pub(super) fn failed(error: &QmpError) -> Outcome {
    printed(&error_line(error), Next::Prompt)
}

/// Carries out `line` for somebody who cannot be made to wait; gives what it prints, for
/// `human-monitor-command`. May block, as [`Control::execute`] may.
pub(crate) fn print(control: &dyn Control, line: &str, cpu: u64) -> String {
    run(control, line, Speaker { waits: false, cpu }).text
}

impl From<String> for Done {
    fn from(text: String) -> Self {
        Self {
            text,
            next: Next::default(),
        }
    }
}

/// An error as the monitor tells it.
pub(super) fn error_line(error: &QmpError) -> String {
    format!("Error: {}\n", error.desc)
}

fn printed(text: &str, next: Next) -> Outcome {
    Outcome {
        text: harmless(text),
        next,
    }
}

/// The text as it is sent: names and reasons may come from files, plugins and guests, and must not
/// control the terminal they are shown on.
pub(super) fn harmless(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\r\n"),
            '\t' => out.push('\t'),
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out
}
