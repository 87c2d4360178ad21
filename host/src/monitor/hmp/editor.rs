//! Edits a line for a terminal that sends every key as it is struck and shows what it is sent.
//!
//! No crate edits lines over any stream of bytes, is told what to offer for Tab by somebody who has to
//! be waited for, and can be taken apart in the middle of a line to go on in another process; hence
//! this one. It moves no byte itself: keys go in, and what the terminal is to show comes out.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::complete::Choices;
use super::session::LINE_MAX;

/// What every line begins with. Programs that drive a monitor wait for it.
pub(super) const PROMPT: &str = "(qemu) ";
/// How many lines are remembered.
const HISTORY: usize = 64;
/// The longest key, in bytes.
const KEY_MAX: usize = 16;
/// How wide a terminal is taken to be that does not say it.
const COLUMNS: usize = 80;
/// Columns between choices.
const GAP: usize = 2;

/// A line that is being edited, and those that were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Editor {
    line: Vec<char>,
    cursor: usize,
    /// Bytes of a key that is not complete.
    begun: Vec<u8>,
    /// The last key was CR: LF directly after it belongs to it.
    after_return: bool,
    history: VecDeque<String>,
    /// The line of the history that is shown, and the one that was typed before.
    recalled: Option<(usize, Vec<char>)>,
    columns: usize,
}

/// All of an editor, to go on with it elsewhere.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(in crate::monitor) struct EditorState {
    line: String,
    /// The cursor's place, in characters.
    cursor: usize,
    /// Bytes of a key that is not complete.
    #[serde(with = "serde_bytes")]
    begun: Vec<u8>,
    after_return: bool,
    /// The lines before, oldest first.
    history: VecDeque<String>,
    /// The line of the history that is shown, and the one that was typed before.
    recalled: Option<(usize, String)>,
}

/// What a key asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// Nothing more.
    Nothing,
    /// Carry out this line.
    Line(String),
    /// Say what the last word of this may become.
    Choices(String),
}

/// A key, by what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Char(char),
    Enter,
    Tab,
    Backspace,
    Delete,
    Left,
    Right,
    Home,
    End,
    Up,
    Down,
    DropBefore,
    DropAfter,
    DropWord,
    Redraw,
}

impl EditorState {
    /// Whether an editor can be in this state.
    pub(super) fn is_possible(&self) -> bool {
        let typed = self.recalled.as_ref().map(|(_, typed)| typed);
        let mut lines = self.history.iter().chain([&self.line]).chain(typed);
        let place = self
            .recalled
            .as_ref()
            .is_none_or(|(at, _)| *at < self.history.len());
        self.history.len() <= HISTORY
            && self.begun.len() < KEY_MAX
            && place
            && lines.all(|line| line.len() <= LINE_MAX)
    }
}

impl Editor {
    /// Goes on with what [`Self::into_state`] gave.
    pub(super) fn resumed(state: EditorState) -> Self {
        let line: Vec<char> = state.line.chars().collect();
        Self {
            cursor: state.cursor.min(line.len()),
            line,
            begun: state.begun,
            after_return: state.after_return,
            history: state.history,
            recalled: state
                .recalled
                .map(|(at, typed)| (at, typed.chars().collect())),
            columns: COLUMNS,
        }
    }

    /// All of it, but for the terminal's width.
    pub(super) fn into_state(self) -> EditorState {
        EditorState {
            line: self.line.iter().collect(),
            cursor: self.cursor,
            begun: self.begun,
            after_return: self.after_return,
            history: self.history,
            recalled: self
                .recalled
                .map(|(at, typed)| (at, typed.iter().collect())),
        }
    }

    /// The terminal has this many columns; 0 is not known.
    pub(super) fn set_columns(&mut self, columns: usize) {
        self.columns = if columns == 0 { COLUMNS } else { columns };
    }

    /// Takes a byte of a key. What is to be shown is added to `out`.
    pub(super) fn take(&mut self, byte: u8, out: &mut String) -> Asked {
        let follows_return = std::mem::replace(&mut self.after_return, byte == b'\r');
        if follows_return && byte == b'\n' {
            return Asked::Nothing;
        }
        self.begun.push(byte);
        let key = match decode(&self.begun) {
            Decoded::More if self.begun.len() < KEY_MAX => return Asked::Nothing,
            Decoded::More | Decoded::Unknown => None,
            Decoded::Key(key) => Some(key),
        };
        self.begun.clear();
        key.map_or(Asked::Nothing, |key| self.act(key, out))
    }

    fn act(&mut self, key: Key, out: &mut String) -> Asked {
        match key {
            Key::Enter => {
                out.push_str("\r\n");
                return Asked::Line(self.finish());
            }
            Key::Tab => return Asked::Choices(self.line[..self.cursor].iter().collect()),
            Key::Char(c) => self.insert(c, out),
            Key::Backspace if self.cursor > 0 => {
                self.cursor -= 1;
                self.line.remove(self.cursor);
                self.redraw(out);
            }
            Key::Delete if self.cursor < self.line.len() => {
                self.line.remove(self.cursor);
                self.redraw(out);
            }
            Key::Backspace | Key::Delete => {}
            Key::Left => self.move_to(self.cursor.saturating_sub(1), out),
            Key::Right => self.move_to(self.cursor + 1, out),
            Key::Home => self.move_to(0, out),
            Key::End => self.move_to(self.line.len(), out),
            Key::Up => self.recall(true, out),
            Key::Down => self.recall(false, out),
            Key::DropBefore => self.drop_from(0, out),
            Key::DropAfter => {
                self.line.truncate(self.cursor);
                self.redraw(out);
            }
            Key::DropWord => {
                let before = &self.line[..self.cursor];
                let end = before
                    .iter()
                    .rposition(|c| *c != ' ')
                    .map_or(0, |at| at + 1);
                let start = before[..end]
                    .iter()
                    .rposition(|c| *c == ' ')
                    .map_or(0, |at| at + 1);
                self.drop_from(start, out);
            }
            Key::Redraw => {
                out.push_str("\x1b[H\x1b[2J");
                self.redraw(out);
            }
        }
        Asked::Nothing
    }

    /// Takes the whole line, and remembers it.
    fn finish(&mut self) -> String {
        let line: String = self.line.drain(..).collect();
        self.cursor = 0;
        self.recalled = None;
        if !line.trim().is_empty() {
            self.history.retain(|known| *known != line);
            self.history.push_back(line.clone());
            while self.history.len() > HISTORY {
                self.history.pop_front();
            }
        }
        line
    }

    fn insert(&mut self, c: char, out: &mut String) {
        // The bell: there is no room.
        if self.line.len() >= LINE_MAX / 4 {
            out.push('\x07');
            return;
        }
        self.line.insert(self.cursor, c);
        self.cursor += 1;
        if self.cursor == self.line.len() && self.line.len() <= self.width() {
            out.push(c);
        } else {
            self.redraw(out);
        }
    }

    fn move_to(&mut self, cursor: usize, out: &mut String) {
        self.cursor = cursor.min(self.line.len());
        self.redraw(out);
    }

    /// Drops what is between `start` and the cursor.
    fn drop_from(&mut self, start: usize, out: &mut String) {
        self.line.drain(start..self.cursor);
        self.cursor = start;
        self.redraw(out);
    }

    /// Shows the line of the history before or after the one that is shown.
    fn recall(&mut self, older: bool, out: &mut String) {
        let last = self.history.len();
        let at = match (&self.recalled, older) {
            (None, true) => last.checked_sub(1),
            (Some((at, _)), true) => at.checked_sub(1),
            (Some((at, _)), false) => at.checked_add(1),
            (None, false) => None,
        };
        let Some(at) = at else { return };
        let typed = match self.recalled.take() {
            Some((_, typed)) => typed,
            None => std::mem::take(&mut self.line),
        };
        match self.history.get(at) {
            Some(line) => {
                self.line = line.chars().collect();
                self.recalled = Some((at, typed));
            }
            None => self.line = typed,
        }
        self.cursor = self.line.len();
        self.redraw(out);
    }

    /// Offers choices for the word before the cursor, or puts in what all of them have in common.
    pub(super) fn offer(&mut self, choices: &Choices, out: &mut String) {
        let Some(first) = choices.words.first() else {
            return;
        };
        let common = choices
            .words
            .iter()
            .skip(1)
            .fold(first.as_str(), |common, word| {
                let same = common.char_indices().zip(word.chars());
                let end = same.take_while(|((_, a), b)| a == b).last();
                end.map_or("", |((at, c), _)| &common[..at + c.len_utf8()])
            });
        let rest: Vec<char> = common.chars().skip(choices.begun.chars().count()).collect();
        let alone = choices.words.len() == 1;
        if rest.is_empty() && !alone {
            self.list(&choices.words, out);
        }
        for c in rest.into_iter().chain(alone.then_some(' ')) {
            self.insert(c, out);
        }
    }

    fn list(&self, words: &[String], out: &mut String) {
        let width = words
            .iter()
            .map(|word| word.chars().count())
            .max()
            .unwrap_or(0)
            + GAP;
        let per_row = (self.columns / width).max(1);
        out.push_str("\r\n");
        for row in words.chunks(per_row) {
            let cells: String = row.iter().map(|word| format!("{word:width$}")).collect();
            out.push_str(cells.trim_end());
            out.push_str("\r\n");
        }
        self.redraw(out);
    }

    /// Shows prompt and line, at the beginning of a row.
    pub(super) fn prompt(&self, out: &mut String) {
        match self.line.is_empty() {
            true => out.push_str(PROMPT),
            false => self.redraw(out),
        }
    }

    /// How many columns there are for the line; the last one stays free, since terminals differ in
    /// what they do after it.
    fn width(&self) -> usize {
        self.columns.saturating_sub(PROMPT.len() + 1).max(1)
    }

    /// Shows prompt and line again in the row where the cursor is: as much of the line around it as
    /// there is room for.
    fn redraw(&self, out: &mut String) {
        let start = self.cursor.saturating_sub(self.width());
        let end = self.line.len().min(start + self.width());
        out.push('\r');
        out.push_str(PROMPT);
        out.extend(&self.line[start..end]);
        out.push_str("\x1b[K");
        if self.cursor < end {
            let column = PROMPT.len() + self.cursor - start;
            out.push_str(&format!("\r\x1b[{column}C"));
        }
    }
}

enum Decoded {
    /// It may become a key.
    More,
    /// It is none that does anything.
    Unknown,
    Key(Key),
}

/// The key that these bytes are: ECMA-48 sequences, UTF-8, and the control keys of Emacs and QEMU.
fn decode(bytes: &[u8]) -> Decoded {
    match bytes {
        [] | [0x1b] | [0x1b, b'[' | b'O'] => Decoded::More,
        [0x1b, b'[', parameters @ .., last] => match last {
            0x40..=0x7e => sequence(parameters, *last),
            _ => Decoded::More,
        },
        [0x1b, b'O', last] => sequence(&[], *last),
        [0x1b, ..] => Decoded::Unknown,
        [byte] if byte.is_ascii() => control(*byte),
        _ => match std::str::from_utf8(bytes) {
            Ok(text) => match text.chars().next() {
                Some(c) if !c.is_control() => Decoded::Key(Key::Char(c)),
                _ => Decoded::Unknown,
            },
            Err(e) if e.error_len().is_none() => Decoded::More,
            Err(_) => Decoded::Unknown,
        },
    }
}

fn sequence(parameters: &[u8], last: u8) -> Decoded {
    Decoded::Key(match (parameters, last) {
        (_, b'A') => Key::Up,
        (_, b'B') => Key::Down,
        (_, b'C') => Key::Right,
        (_, b'D') => Key::Left,
        (_, b'H') | (b"1" | b"7", b'~') => Key::Home,
        (_, b'F') | (b"4" | b"8", b'~') => Key::End,
        (b"3", b'~') => Key::Delete,
        _ => return Decoded::Unknown,
    })
}

fn control(byte: u8) -> Decoded {
    const fn ctrl(letter: u8) -> u8 {
        letter & 0x1f
    }
    const A: u8 = ctrl(b'A');
    const B: u8 = ctrl(b'B');
    const D: u8 = ctrl(b'D');
    const E: u8 = ctrl(b'E');
    const F: u8 = ctrl(b'F');
    const K: u8 = ctrl(b'K');
    const L: u8 = ctrl(b'L');
    const N: u8 = ctrl(b'N');
    const P: u8 = ctrl(b'P');
    const U: u8 = ctrl(b'U');
    const W: u8 = ctrl(b'W');
    Decoded::Key(match byte {
        b'\r' | b'\n' => Key::Enter,
        b'\t' => Key::Tab,
        0x08 | 0x7f => Key::Backspace,
        A => Key::Home,
        B => Key::Left,
        D => Key::Delete,
        E => Key::End,
        F => Key::Right,
        K => Key::DropAfter,
        L => Key::Redraw,
        N => Key::Down,
        P => Key::Up,
        U => Key::DropBefore,
        W => Key::DropWord,
        byte if !byte.is_ascii_control() => Key::Char(char::from(byte)),
        _ => return Decoded::Unknown,
    })
}
