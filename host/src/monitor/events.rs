//! Events on their way from the machine to the clients.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use tokio::sync::broadcast;

use super::table;

/// How many events a client may be behind before it loses the oldest.
pub(super) const BEHIND: usize = 1024;

/// How often an event is sent whose number the table limits.
const INTERVAL: Duration = Duration::from_secs(1);

/// How many bytes of events are kept for clients that are not served.
pub(super) const BEHIND_BYTES: usize = 8 << 20;

/// Where events are emitted. Cheap to clone; never waits for a client.
///
/// While no monitor serves, from the beginning until one does and from [`super::Monitor::detach`] to
/// [`super::Monitor::attach`], events are held for the clients that were kept.
#[derive(Clone)]
pub struct Events(Arc<Inner>);

struct Inner {
    sender: broadcast::Sender<Arc<str>>,
    /// The lock orders events with the change from held to served.
    held: Mutex<Option<Held>>,
    /// What was sent less than an interval ago, with the latest that has come since.
    limited: Mutex<BTreeMap<String, Option<Arc<str>>>>,
    interval: Duration,
}

/// Events that nobody is there to take yet, oldest first. Beyond [`BEHIND`] the oldest are lost.
#[derive(Debug, Default)]
pub(super) struct Held {
    lines: VecDeque<Arc<str>>,
    bytes: usize,
    lost: u64,
}

impl Held {
    pub(super) fn push(&mut self, line: Arc<str>) {
        self.bytes += line.len();
        self.lines.push_back(line);
        while self.lines.len() > BEHIND || self.bytes > BEHIND_BYTES {
            let oldest = self.lines.pop_front();
            self.bytes -= oldest.map_or(0, |line| line.len());
            self.lost = self.lost.saturating_add(1);
        }
    }

    /// Adds what was emitted later.
    pub(super) fn append(&mut self, later: Self) {
        self.lose(later.lost);
        later.lines.into_iter().for_each(|line| self.push(line));
    }

    /// Counts events as lost.
    pub(super) fn lose(&mut self, events: u64) {
        self.lost = self.lost.saturating_add(events);
    }

    pub(super) fn lines(&self) -> impl ExactSizeIterator<Item = &Arc<str>> {
        self.lines.iter()
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost
    }
}

impl Default for Events {
    fn default() -> Self {
        Self::new()
    }
}

impl Events {
    /// A sink with no client yet.
    pub fn new() -> Self {
        Self::with_interval(INTERVAL)
    }

    fn with_interval(interval: Duration) -> Self {
        Self(Arc::new(Inner {
            sender: broadcast::channel(BEHIND).0,
            held: Mutex::new(Some(Held::default())),
            limited: Mutex::default(),
            interval,
        }))
    }

    /// Sends an event to every client that has finished negotiation. Any thread may call it.
    /// What is sent is in the table of events.
    pub fn emit(&self, name: &str, data: Option<Value>) {
        // The monitor's own tests number their events.
        debug_assert!(
            cfg!(test) || table::fits(name, data.as_ref()),
            "{name} {data:?}"
        );
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let mut event = Map::new();
        event.insert(
            "timestamp".into(),
            json!({ "seconds": now.as_secs(), "microseconds": now.subsec_micros() }),
        );
        event.insert("event".into(), name.into());
        if let Some(data) = data {
            event.insert("data".into(), data);
        }
        let limit = table::limit(name, event.get("data"));
        let line: Arc<str> = super::json::line(&Value::Object(event)).into();
        match limit {
            Some(what) => self.send_limited(&what, line),
            None => self.send(line),
        }
    }

    /// Sends the first at once, and of all that come within an interval the last at its end.
    fn send_limited(&self, what: &str, line: Arc<str>) {
        let mut limited = self.limited();
        if let Some(later) = limited.get_mut(what) {
            *later = Some(line);
            return;
        }
        self.send(line);
        limited.insert(what.to_owned(), None);
        let (events, about) = (self.clone(), what.to_owned());
        let thread = std::thread::Builder::new().name("events".to_owned());
        if thread.spawn(move || events.send_later(&about)).is_err() {
            // Rather too many of them than none.
            limited.remove(what);
        }
    }

    /// A thread, until an interval has passed in which none has come.
    fn send_later(&self, what: &str) {
        loop {
            std::thread::sleep(self.0.interval);
            let mut limited = self.limited();
            match limited.get_mut(what).and_then(Option::take) {
                Some(line) => self.send(line),
                None => {
                    limited.remove(what);
                    return;
                }
            }
        }
    }

    fn limited(&self) -> MutexGuard<'_, BTreeMap<String, Option<Arc<str>>>> {
        self.0
            .limited
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, line: Arc<str>) {
        match &mut *self.held() {
            Some(held) => held.push(line),
            None => {
                // An error means that nobody listens.
                let _ = self.0.sender.send(line);
            }
        }
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<Arc<str>> {
        self.0.sender.subscribe()
    }

    /// From now on events are held. Those that were emitted before are in the receivers.
    pub(super) fn hold(&self) {
        self.held().get_or_insert_default();
        // Whoever goes on with the clients will not know of what waits.
        let waiting: Vec<_> = self
            .limited()
            .values_mut()
            .filter_map(Option::take)
            .collect();
        waiting.into_iter().for_each(|line| self.send(line));
    }

    /// What is held until now. If events are held, they are from now on as well.
    pub(super) fn take_held(&self) -> Held {
        self.held().as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// From now on events go to receivers. Gives what was held, and a receiver for each of `clients`
    /// that misses nothing that comes after.
    pub(super) fn release(&self, clients: usize) -> (Held, Vec<broadcast::Receiver<Arc<str>>>) {
        let mut held = self.held();
        let receivers = (0..clients).map(|_| self.subscribe()).collect();
        (held.take().unwrap_or_default(), receivers)
    }

    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(events: &Events, clock: &str, offset: i64) {
        let data = json!({ "offset": offset, "qom-path": clock });
        events.emit("RTC_CHANGE", Some(data));
    }

    fn offsets(lines: impl Iterator<Item = Arc<str>>) -> Vec<i64> {
        let offset = |line: Arc<str>| {
            let event: Value = serde_json::from_str(&line).unwrap();
            event["data"]["offset"].as_i64().unwrap()
        };
        lines.map(offset).collect()
    }

    #[test]
    fn of_many_the_first_is_sent_at_once_and_the_last_later() {
        let events = Events::with_interval(Duration::from_millis(50));
        let (_, mut receivers) = events.release(1);
        let mut receiver = receivers.pop().unwrap();
        for offset in 0..1000 {
            clock(&events, "/rtc", offset);
            clock(&events, "/other", 5000 + offset);
        }
        // However slow this thread was, what is sent is less than what was said, and the last is in it.
        let mut sent = Vec::new();
        while !(sent.contains(&999) && sent.contains(&5999)) {
            sent.extend(offsets([receiver.blocking_recv().unwrap()].into_iter()));
        }
        assert_eq!(sent[..2], [0, 5000]);
        assert!(sent.len() < 500, "{sent:?}");
    }

    #[test]
    fn what_waits_is_not_lost_when_nobody_serves_any_more() {
        let events = Events::with_interval(Duration::from_secs(600));
        let _receivers = events.release(1);
        for offset in 0..3 {
            clock(&events, "/rtc", offset);
        }
        events.hold();
        let held = events.take_held();
        assert_eq!(offsets(held.lines().cloned()), [2]);
    }
}
