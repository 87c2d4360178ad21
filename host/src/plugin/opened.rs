//! Children of devices that the guest uses, such as ports that a program in it has opened.

use std::collections::BTreeSet;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::machine::events::MachineEvent;

/// Those of a machine, by the child's id. A guest may open and close as often as it likes: what is
/// kept is how it is now, and one message says that something has changed until somebody asks.
#[derive(Debug, Clone)]
pub struct Opened(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    tell: Sender<MachineEvent>,
}

#[derive(Debug, Default)]
struct State {
    open: BTreeSet<String>,
    changed: BTreeSet<String>,
}

impl Opened {
    /// Nothing is open; `tell` hears of what changes.
    pub fn new(tell: Sender<MachineEvent>) -> Self {
        let state = Mutex::default();
        Self(Arc::new(Inner { state, tell }))
    }

    /// The guest has begun or ceased to use the child `id`.
    pub fn set(&self, id: &str, open: bool) {
        let mut state = self.lock();
        let changes = match open {
            true => state.open.insert(id.to_owned()),
            false => state.open.remove(id),
        };
        if changes && state.changed.insert(id.to_owned()) && state.changed.len() == 1 {
            // Without a receiver the process is about to end.
            let _ = self.0.tell.send(MachineEvent::GuestOpened);
        }
    }

    /// Whether the guest uses it.
    pub fn is_open(&self, id: &str) -> bool {
        self.lock().open.contains(id)
    }

    /// The child has gone, which nobody needs to be told.
    pub fn forget(&self, id: &str) {
        let mut state = self.lock();
        state.open.remove(id);
        state.changed.remove(id);
    }

    /// What has changed since the last call, and how it is now.
    pub fn take(&self) -> Vec<(String, bool)> {
        let mut state = self.lock();
        let changed = std::mem::take(&mut state.changed);
        let now = |id: String| (state.open.contains(&id), id);
        let all = changed.into_iter().map(now);
        all.map(|(open, id)| (id, open)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_opens_and_closes_again_and_again_is_one_message_with_the_last_state() {
        let (tell, told) = std::sync::mpsc::channel();
        let opened = Opened::new(tell);
        for _ in 0..1000 {
            opened.set("a", true);
            opened.set("a", false);
        }
        opened.set("b", true);
        opened.set("b", true);
        assert_eq!(told.try_iter().count(), 1);
        assert_eq!(opened.take(), [("a".into(), false), ("b".into(), true)]);
        assert_eq!(opened.take(), []);
        opened.forget("b");
        assert!(!opened.is_open("b"));
        opened.set("a", true);
        assert_eq!(told.try_iter().count(), 1);
        assert!(opened.is_open("a"));
    }
}
