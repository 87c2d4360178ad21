//! Keys and lines as they come in, and what is shown for them.

use super::complete::complete;
use super::run::{Speaker, run};
use super::session::{LINE_MAX, Wanted};
use super::*;
use crate::monitor::command::Command;
use crate::monitor::error::QmpError;
use crate::monitor::fds::Caller;
use crate::monitor::server::Control;

/// Nothing is known of it.
struct Nothing;

impl Control for Nothing {
    fn execute(&self, _: Command, _: &Caller) -> Result<serde_json::Value, QmpError> {
        Err(QmpError::generic("there is no VM"))
    }
}

/// Takes bytes, and does what is wanted; gives what is shown.
fn say(session: &mut Session, bytes: &[u8]) -> String {
    let mut out = String::new();
    session.push(bytes);
    while let Some(wanted) = session.next(&mut out) {
        match wanted {
            Wanted::Line(line) => {
                let outcome = run(
                    &Nothing,
                    &line,
                    Speaker {
                        waits: true,
                        cpu: 0,
                    },
                );
                session.answer(&outcome, &mut out);
            }
            Wanted::Choices(text) => session.offer(&complete(&Nothing, &text), &mut out),
        }
    }
    out
}

fn terminal() -> Session {
    Session::new(true)
}

/// What a terminal of 80 columns has in its last row after `shown`, and where its cursor is.
fn last_row(shown: &str) -> (String, usize) {
    let (mut row, mut at) = (Vec::new(), 0);
    let mut rest = shown;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match c {
            '\r' => at = 0,
            '\n' => row.clear(),
            '\x1b' => {
                let end = rest.find(|c: char| c.is_ascii_alphabetic()).unwrap();
                let number = rest[1..end].parse().unwrap_or(1);
                match &rest[end..=end] {
                    "C" => at += number,
                    "K" => row.truncate(at),
                    "J" => (row.clear(), at = 0).1,
                    "H" => at = 0,
                    other => panic!("{other} is no sequence that is sent"),
                }
                rest = &rest[end + 1..];
            }
            '\x07' => {}
            c => {
                row.resize(row.len().max(at), ' ');
                row.truncate(row.len().max(at + 1));
                match row.get_mut(at) {
                    Some(cell) => *cell = c,
                    None => row.push(c),
                }
                at += 1;
            }
        }
        assert!(at < 80 && row.len() < 80, "a row overflows: {shown:?}");
    }
    (row.into_iter().collect(), at)
}

/// The line that `keys` make, and the cursor's place in it, as they are shown.
fn edited(keys: &str) -> (String, usize) {
    let shown = Session::greeting() + &say(&mut terminal(), keys.as_bytes());
    let (row, at) = last_row(&shown);
    let line = row
        .strip_prefix("(qemu) ")
        .unwrap_or_else(|| panic!("{row:?}"));
    (line.to_owned(), at - "(qemu) ".len())
}

#[test]
fn the_greeting_is_qemus() {
    assert_eq!(
        Session::greeting(),
        "QEMU 10.2.0 monitor - type 'help' for more information\r\n(qemu) "
    );
}

#[test]
fn a_line_that_is_typed_is_shown_as_it_is_typed() {
    let mut session = terminal();
    assert_eq!(say(&mut session, b"help q"), "help q");
    assert_eq!(
        say(&mut session, b"\r"),
        "\r\nquit|q  -- quit the emulator\r\n(qemu) "
    );
    assert_eq!(say(&mut session, b"\r\n"), "\r\n(qemu) ");
    assert_eq!(say(&mut session, b"\n"), "\r\n(qemu) ");
}

#[test]
fn keys_edit_the_line() {
    for (keys, line, cursor) in [
        ("abc\x02\x02x", "axbc", 2),
        ("abc\x1b[D\x1b[Dx", "axbc", 2),
        ("abc\x01x", "xabc", 1),
        ("abc\x1b[Hx\x1b[Fy", "xabcy", 5),
        ("abc\x1b[1~x\x1b[4~y", "xabcy", 5),
        ("abc\x1bOHx\x1bOFy", "xabcy", 5),
        ("abc\x7f\x08d", "ad", 2),
        ("abc\x01\x04", "bc", 0),
        ("abc\x01\x1b[3~", "bc", 0),
        ("abc\x01\x06\x0b", "a", 1),
        ("abc\x02\x15", "c", 0),
        ("one two  \x17x", "one x", 5),
        ("one\x17", "", 0),
        ("\x7f\x04\x02\x06\x15\x0b\x17", "", 0),
        ("abc\x1b[5~d\x1b[200~e", "abcde", 5),
        ("gr\u{fc}n\x02\x7fu", "grun", 3),
        ("abc\x0c", "abc", 3),
        ("a\x00\x1cb\u{9f}c", "abc", 3),
    ] {
        assert_eq!(edited(keys), (line.to_owned(), cursor), "{keys:?}");
    }
}

#[test]
fn earlier_lines_come_back_and_the_one_begun_too() {
    for (keys, line) in [
        ("one\rtwo\rthr\x1b[A", "two"),
        ("one\rtwo\rthr\x1b[A\x1b[A\x1b[A", "one"),
        ("one\rtwo\rthr\x10\x10\x0e", "two"),
        ("one\rtwo\rthr\x10\x0e", "thr"),
        ("one\rtwo\rthr\x0e", "thr"),
        ("one\rtwo\rone\r\x10\x10", "two"),
        ("  \r\x10", ""),
        ("one\r\x10x\r\x10", "onex"),
        ("one\r\x10x\x10\x0e", ""),
    ] {
        assert_eq!(edited(keys).0, line, "{keys:?}");
    }
    let many: String = (0..100).map(|at| format!("{at}\r")).collect();
    assert_eq!(edited(&(many + &"\x10".repeat(100))).0, "36");
}

#[test]
fn a_line_that_is_wider_than_the_terminal_is_shown_around_the_cursor() {
    let letters: String = ('a'..='z').cycle().take(200).collect();
    let (row, cursor) = edited(&letters);
    assert!(letters.ends_with(&row) && cursor == row.len(), "{row}");
    let (row, cursor) = edited(&format!("{letters}\x01"));
    assert!(
        letters.starts_with(&row) && row.len() == 72 && cursor == 0,
        "{row}"
    );
}

#[test]
fn tab_completes_or_lists() {
    assert_eq!(edited("info sta\t").0, "info status ");
    assert_eq!(edited("migrate_s\t").0, "migrate_set_");
    assert_eq!(edited("nope\t").0, "nope");
    let mut session = terminal();
    let shown = say(&mut session, b"migrate_set_\t");
    assert_eq!(
        shown,
        "migrate_set_\r\nmigrate_set_capability  migrate_set_parameter\r\n\r(qemu) migrate_set_\
         \x1b[K"
    );
}

#[test]
fn lines_are_answered_without_being_shown() {
    let mut session = Session::new(false);
    assert_eq!(say(&mut session, b"help q"), "");
    let help = "quit|q  -- quit the emulator\r\n(qemu) ";
    assert_eq!(say(&mut session, b"\n"), help);
    assert_eq!(
        say(&mut session, b"help q\r\n\nhelp q\n"),
        format!("{help}(qemu) {help}")
    );
    assert_eq!(
        say(&mut session, b"\xff\n"),
        "Error: The line is not UTF-8; it is ignored\r\n(qemu) "
    );
}

#[test]
fn a_line_without_end_is_refused_and_not_kept() {
    let mut session = Session::new(false);
    let refused = say(&mut session, &vec![b'x'; LINE_MAX + 1]);
    assert_eq!(
        refused,
        "Error: The line is longer than 65536 bytes; it is ignored\r\n(qemu) "
    );
    assert_eq!(say(&mut session, &vec![b'x'; LINE_MAX]), "");
    assert_eq!(session.unread(), 0);
    assert_eq!(say(&mut session, b"\n\n"), "(qemu) ");
    // A terminal is told by its bell.
    let mut session = terminal();
    assert!(say(&mut session, &vec![b'x'; LINE_MAX]).ends_with("\x07"));
    assert!(session.into_state().is_possible());
}

#[test]
fn a_prompt_that_waits_comes_when_the_migration_is_over() {
    let mut session = terminal();
    let mut out = String::new();
    let outcome = super::run::Outcome {
        next: super::run::Next::Migration,
        ..Default::default()
    };
    session.answer(&outcome, &mut out);
    assert!(session.waits() && out.is_empty());
    // What is typed meanwhile is not lost.
    assert_eq!(say(&mut session, b"help q\r"), "");
    session = carried(session);
    session.resume("Error: no\r\n", &mut out);
    assert_eq!(out, "Error: no\r\n(qemu) ");
    assert!(say(&mut session, b"").starts_with("help q\r\nquit|q"));
}

/// What arrives in another process.
fn carried(session: Session) -> Session {
    let bytes = rmp_serde::to_vec_named(&session.into_state()).unwrap();
    let state: State = rmp_serde::from_slice(&bytes).unwrap();
    assert!(state.is_possible());
    Session::resumed(state)
}

#[test]
fn a_conversation_goes_on_elsewhere_wherever_it_is_cut() {
    let keys = "one\rtw\x02\u{fc}\x10\x1b[D!\x1b[B\x1b[3~\r\ninfo sta\t\rhelp q\x10\x0e".as_bytes();
    let lines = "help q\nnope\r\n\n\u{fc}\n".as_bytes();
    for (terminal, said) in [(true, keys), (false, lines)] {
        let whole = say(&mut Session::new(terminal), said);
        for cut in 0..said.len() {
            let mut session = Session::new(terminal);
            let mut shown = say(&mut session, &said[..cut]);
            session = carried(session);
            shown += &say(&mut session, &said[cut..]);
            assert_eq!(shown, whole, "cut at {cut}");
        }
    }
}

#[test]
fn what_cannot_have_been_said_is_not_gone_on_with() {
    let possible = |state: serde_json::Value| {
        serde_json::from_value::<State>(state).is_ok_and(|state| state.is_possible())
    };
    use serde_json::json;
    assert!(possible(json!({})));
    let long = "x".repeat(LINE_MAX + 1);
    for editor in [
        json!({ "line": long }),
        json!({ "history": [long] }),
        json!({ "history": vec!["x"; 65] }),
        json!({ "recalled": [0, "x"] }),
        json!({ "begun": vec![27; 16] }),
    ] {
        assert!(!possible(json!({ "editor": editor })));
    }
    assert!(!possible(json!({ "unread": vec![0; LINE_MAX * 2] })));
    assert!(possible(
        json!({ "editor": { "line": "ab", "cursor": usize::MAX } })
    ));
}
