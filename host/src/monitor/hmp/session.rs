//! One monitor's conversation, without its stream: bytes become lines to carry out, and what came out
//! of them becomes text.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::complete::Choices;
use super::editor::{Asked, Editor, EditorState, PROMPT};
use super::info;
use super::run::{Next, Outcome};
use crate::monitor::about;
use crate::monitor::client::READ;

/// The longest line, in bytes.
pub(super) const LINE_MAX: usize = 64 << 10;
/// The most bytes that are taken from a client before they are looked at.
pub(super) const UNREAD_MAX: usize = LINE_MAX + 2 * READ;

/// A conversation.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::monitor) struct Session {
    reader: Reader,
    /// What was said and nobody has looked at.
    unread: VecDeque<u8>,
    /// The prompt comes once a migration is over.
    waiting: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Reader {
    /// A terminal sends keys.
    Keys(Box<Editor>),
    /// Everything else sends lines.
    Lines(Lines),
}

/// A line that is not complete.
#[derive(Debug, Default, PartialEq, Eq)]
struct Lines {
    begun: Vec<u8>,
    /// It was too long: what follows up to its end is not looked at.
    skipping: bool,
}

/// What somebody has to do before the conversation goes on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Carry out this line, and say [`Session::answer`].
    Line(String),
    /// See what the last word of this may become, and say [`Session::offer`].
    Choices(String),
}

/// All of a conversation, to go on with it elsewhere.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(in crate::monitor) struct State {
    /// The line that is being edited and those before it, if the other side is a terminal.
    editor: Option<EditorState>,
    /// What was said and nobody has looked at.
    #[serde(with = "serde_bytes")]
    unread: Vec<u8>,
    /// The line was too long: what follows up to its end is not looked at.
    skipping: bool,
    /// The prompt comes once a migration is over.
    waiting: bool,
}

impl State {
    /// Whether a conversation can be in this state.
    pub(in crate::monitor) fn is_possible(&self) -> bool {
        self.unread.len() <= UNREAD_MAX && self.editor.as_ref().is_none_or(EditorState::is_possible)
    }
}

impl Session {
    /// A new one, with somebody at a terminal who sends keys, or with something that sends lines.
    pub(in crate::monitor) fn new(keys: bool) -> Self {
        let editor = keys.then(EditorState::default);
        Self::resumed(State {
            editor,
            ..State::default()
        })
    }

    /// Goes on with what [`Self::into_state`] gave.
    pub(in crate::monitor) fn resumed(state: State) -> Self {
        let skipping = state.skipping;
        let reader = match state.editor {
            Some(editor) => Reader::Keys(Box::new(Editor::resumed(editor))),
            None => Reader::Lines(Lines {
                begun: Vec::new(),
                skipping,
            }),
        };
        Self {
            reader,
            unread: state.unread.into(),
            waiting: state.waiting,
        }
    }

    /// All of it.
    pub(in crate::monitor) fn into_state(self) -> State {
        let (waiting, unread) = (self.waiting, self.unread.into());
        match self.reader {
            Reader::Keys(editor) => State {
                editor: Some(editor.into_state()),
                unread,
                skipping: false,
                waiting,
            },
            Reader::Lines(Lines { begun, skipping }) => {
                let unread = [begun, unread].concat();
                State {
                    editor: None,
                    unread,
                    skipping,
                    waiting,
                }
            }
        }
    }

    /// What it begins with.
    pub(super) fn greeting() -> String {
        let version = info::number(&about::version()["qemu"]);
        format!("QEMU {version} monitor - type 'help' for more information\r\n{PROMPT}")
    }

    /// The terminal has this many columns; 0 is not known.
    pub(super) fn set_columns(&mut self, columns: usize) {
        if let Reader::Keys(editor) = &mut self.reader {
            editor.set_columns(columns);
        }
    }

    /// Whether the other side is a terminal.
    pub(super) fn has_keys(&self) -> bool {
        matches!(self.reader, Reader::Keys(_))
    }

    /// Takes what was said.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.unread.extend(bytes);
    }

    /// How many bytes were said that nobody has looked at.
    pub(super) fn unread(&self) -> usize {
        self.unread.len()
    }

    /// Looks at what was said up to something that somebody has to do. What is to be shown meanwhile
    /// is added to `out`.
    pub(super) fn next(&mut self, out: &mut String) -> Option<Wanted> {
        if self.waiting {
            return None;
        }
        match &mut self.reader {
            Reader::Keys(editor) => loop {
                let byte = self.unread.pop_front()?;
                match editor.take(byte, out) {
                    Asked::Nothing => {}
                    Asked::Line(line) => return Some(Wanted::Line(line)),
                    Asked::Choices(text) => return Some(Wanted::Choices(text)),
                }
            },
            Reader::Lines(lines) => loop {
                let byte = self.unread.pop_front()?;
                if let Some(line) = lines.take(byte) {
                    match line {
                        Ok(line) => return Some(Wanted::Line(line)),
                        Err(reason) => {
                            out.push_str(&format!("Error: {reason}\r\n{PROMPT}"));
                        }
                    }
                }
            },
        }
    }

    /// What came out of a line.
    pub(super) fn answer(&mut self, outcome: &Outcome, out: &mut String) {
        out.push_str(&outcome.text);
        match outcome.next {
            Next::Prompt => self.prompt(out),
            Next::Migration => self.waiting = true,
            Next::End => {}
        }
    }

    /// What the last word may become.
    pub(super) fn offer(&mut self, choices: &Choices, out: &mut String) {
        if let Reader::Keys(editor) = &mut self.reader {
            editor.offer(choices, out);
        }
    }

    /// Whether the prompt waits for a migration to be over.
    pub(super) fn waits(&self) -> bool {
        self.waiting
    }

    fn prompt(&self, out: &mut String) {
        match &self.reader {
            Reader::Keys(editor) => editor.prompt(out),
            Reader::Lines(_) => out.push_str(PROMPT),
        }
    }

    /// The migration is over; this is said of it.
    pub(super) fn resume(&mut self, text: &str, out: &mut String) {
        self.waiting = false;
        out.push_str(text);
        self.prompt(out);
    }
}

impl Lines {
    /// Takes a byte, which may complete a line. CR before LF belongs to the end of the line.
    fn take(&mut self, byte: u8) -> Option<Result<String, String>> {
        if byte != b'\n' {
            if self.skipping {
                return None;
            }
            self.begun.push(byte);
            if self.begun.len() <= LINE_MAX {
                return None;
            }
            self.begun = Vec::new();
            self.skipping = true;
            return Some(Err(format!(
                "The line is longer than {LINE_MAX} bytes; it is ignored"
            )));
        }
        if std::mem::take(&mut self.skipping) {
            return None;
        }
        let mut line = std::mem::take(&mut self.begun);
        if line.ends_with(b"\r") {
            line.pop();
        }
        Some(String::from_utf8(line).map_err(|_| "The line is not UTF-8; it is ignored".to_owned()))
    }
}
