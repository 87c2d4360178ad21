//! What a hostile client reaches, without a stream and a VM.

use serde_json::Value;

use super::complete::complete;
use super::run::{Speaker, run};
use super::session::{Session, State, Wanted};
use crate::monitor::command::Command;
use crate::monitor::error::QmpError;
use crate::monitor::fds::Caller;
use crate::monitor::server::Control;

/// Refuses everything that was understood.
struct NoVm;

impl Control for NoVm {
    fn execute(&self, command: Command, _: &Caller) -> Result<Value, QmpError> {
        Err(QmpError::generic(format!("{command:?}")))
    }
}

/// Says something to a monitor for people, at once and cut in two with another process going on. The
/// first byte says whether at a terminal, the second where the cut is.
///
/// # Panics
/// When that makes a difference, a conversation could not be gone on with, or what is shown controls a
/// terminal otherwise than the editor does.
pub fn hmp(data: &[u8]) {
    let [terminal, cut, said @ ..] = data else {
        return;
    };
    let terminal = terminal % 2 == 1;
    let whole = say(&mut Session::new(terminal), said);
    let cut = usize::from(*cut) * said.len() / 256;
    let mut session = Session::new(terminal);
    let mut shown = say(&mut session, &said[..cut]);
    let state: State = session.into_state();
    assert!(state.is_possible(), "{state:?}");
    shown += &say(&mut Session::resumed(state), &said[cut..]);
    assert_eq!(shown, whole, "cut at {cut}");
    for (at, c) in whole.char_indices().filter(|(_, c)| c.is_control()) {
        let known = match c {
            '\r' | '\n' | '\x07' => true,
            '\x1b' => terminal && whole[at + 1..].starts_with('['),
            _ => false,
        };
        assert!(known, "{c:?} at {at} of {whole:?}");
    }
}

fn say(session: &mut Session, said: &[u8]) -> String {
    let mut out = String::new();
    session.push(said);
    while let Some(wanted) = session.next(&mut out) {
        match wanted {
            Wanted::Line(line) => {
                let outcome = run(&NoVm, &line, Speaker::default());
                session.answer(&outcome, &mut out);
            }
            Wanted::Choices(text) => session.offer(&complete(&NoVm, &text), &mut out),
        }
    }
    out
}

#[test]
fn a_hostile_conversation_can_be_cut_anywhere_and_controls_no_terminal() {
    baton_plugin_api::testing::exercise("hmp", 20_000, hmp);
}
