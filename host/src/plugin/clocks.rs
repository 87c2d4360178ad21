//! Clocks that the guest has set, until somebody asks.

use std::collections::BTreeMap;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::machine::events::MachineEvent;

/// Those of a machine. A guest may set its clock as often as it likes: what is kept is the last of each
/// device, and one message says so until it is taken.
#[derive(Debug, Clone)]
pub struct Clocks(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    set: Mutex<BTreeMap<String, i64>>,
    tell: Sender<MachineEvent>,
}

impl Clocks {
    /// None is set; `tell` hears of it.
    pub fn new(tell: Sender<MachineEvent>) -> Self {
        let set = Mutex::default();
        Self(Arc::new(Inner { set, tell }))
    }

    /// The clock of the device `id` is `ahead` of the host's now, in seconds.
    pub fn set(&self, id: &str, ahead: i64) {
        if self.lock().insert(id.to_owned(), ahead).is_none() {
            // Without a receiver the process is about to end.
            let _ = self.0.tell.send(MachineEvent::ClockSet);
        }
    }

    /// What was set since the last call, by device.
    pub fn take(&self) -> BTreeMap<String, i64> {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, i64>> {
        self.0.set.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_again_and_again_is_one_message_with_the_last_time() {
        let (tell, told) = std::sync::mpsc::channel();
        let clocks = Clocks::new(tell);
        for ahead in 0..1000 {
            clocks.set("rtc", ahead);
        }
        clocks.set("other", -5);
        assert_eq!(told.try_iter().count(), 2);
        assert_eq!(
            clocks.take(),
            [("other".to_owned(), -5), ("rtc".to_owned(), 999)].into()
        );
        assert!(clocks.take().is_empty());
        clocks.set("rtc", 1);
        assert_eq!(told.try_iter().count(), 1);
    }
}
