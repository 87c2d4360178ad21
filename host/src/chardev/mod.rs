//! Character devices: where the guest's serial lines and the like go to and come from.
//!
//! A device gets plain descriptors. Of standard streams, files and pipes these are the things
//! themselves. Of what is shared, can be left and come back, or is memory, a device gets one end of
//! a pair of sockets (`frontend.rs`), and a thread (`service.rs`) moves the bytes (`relay.rs`) to
//! and from the outer end (`link.rs`).
//!
//! All descriptors belong to the host, which hands them over, so that a terminal or a client stays
//! connected. Bytes on their way are in the kernel's buffers of what is handed over, the little that
//! is not goes along in a memfd (`carried.rs`), and neither process moves any while it is not clear
//! who has the guest.

mod carried;
mod config;
mod frontend;
mod link;
mod mux;
mod open;
mod pty;
pub mod qapi;
mod relay;
mod ring;
mod service;
mod socket;
pub mod terminal;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use baton_migration::Mode;
use baton_migration::fds::{FdKey, FdTable};
use baton_migration::handover::OutgoingFd;

use serde::Serialize;

use frontend::Frontend;
use open::Kind;
use relay::{Begin, Relay, Wish};
use service::{Wake, Watch};

use crate::monitor::MonitorMode;

pub use config::{Chardev, ChardevAddress, ChardevBackend, ChardevSocket, SocketRole};
pub use ring::RINGBUF_MAX;

/// The owner of their descriptors in a handover.
const OWNER: &str = "chardev";
/// How long the end of the process waits for a peer to read what is left.
const FLUSH: Duration = Duration::from_secs(1);

/// Input and output of a character device, as far as it has them.
pub type Descriptors = (Option<OwnedFd>, Option<OwnedFd>);

/// All character devices of the process, by id. Any thread may use them.
pub struct Chardevs {
    shared: Arc<Shared>,
}

/// What the thread knows as well.
struct Shared {
    state: Mutex<State>,
    wake: Wake,
    /// What to do when somebody at a multiplexer's keys wants the process to end.
    exit: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

/// Serves a monitor's session: its mode, its end, and whether a terminal sends keys as they are
/// struck.
type Serve = dyn Fn(MonitorMode, UnixStream, bool) -> bool + Send + Sync;

struct State {
    all: BTreeMap<String, Entry>,
    /// What was handed over and is not taken yet.
    preserved: Option<Arc<FdTable>>,
    /// A handover is under way: connections neither begin nor are accepted, since the other process
    /// could not have them.
    frozen: bool,
    /// Ids of the command line's that were removed.
    gone: Vec<String>,
    /// Those that come beside the command line's when that is opened.
    later: Vec<Chardev>,
    serving: bool,
    wake: Wake,
    wish: Option<Wish>,
    /// Who serves monitors, once somebody does.
    monitors: Option<Arc<Serve>>,
}

/// How the character devices differ from those of the command line.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Changes {
    /// Those that have come.
    pub come: Vec<Chardev>,
    /// The ids of those that have gone.
    pub gone: Vec<String>,
}

struct Entry {
    config: Chardev,
    /// It has come since the process was started.
    added: bool,
    /// Who uses it, and how often it was asked for.
    users: BTreeMap<String, u32>,
    kind: Kind,
    /// Its descriptors were offered to another process.
    offered: bool,
}

/// What `query-chardev` tells of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ChardevInfo {
    /// Its id.
    pub label: String,
    /// What it is, in QEMU's words.
    pub filename: String,
    /// Whether somebody uses it.
    pub frontend_open: bool,
}

impl Chardevs {
    /// None at all.
    pub fn new() -> std::io::Result<Self> {
        let wake = Wake::new()?;
        let state = State {
            all: BTreeMap::new(),
            preserved: None,
            frozen: false,
            gone: Vec::new(),
            later: Vec::new(),
            serving: false,
            wake: wake.clone(),
            wish: None,
            monitors: None,
        };
        Ok(Self {
            shared: Arc::new(Shared {
                state: Mutex::new(state),
                wake,
                exit: OnceLock::new(),
            }),
        })
    }

    /// What to do when somebody at a multiplexer's keys wants the process to end; said once.
    pub fn on_exit(&self, exit: impl Fn() + Send + Sync + 'static) {
        // A second one has nothing to add.
        let _ = self.shared.exit.set(Box::new(exit));
    }

    /// Monitors on character devices are served from here on. `serve` tells whether it serves: if not
    /// it is asked again, at the next call of this at the latest.
    pub fn serve_monitors(
        &self,
        serve: impl Fn(MonitorMode, UnixStream, bool) -> bool + Send + Sync + 'static,
    ) {
        self.state().monitors = Some(Arc::new(serve));
        self.shared.wake.signal();
    }

    /// Opens every one of `configs`, or takes what was handed over for it, without touching it. With
    /// `restoring`, what a guest has written to a file before stays there. Waits for clients that are
    /// to be waited for. The error is one line.
    pub fn open(
        &self,
        configs: &[Chardev],
        preserved: Option<&Arc<FdTable>>,
        restoring: bool,
    ) -> Result<(), String> {
        let (gone, later) = {
            let mut state = self.state();
            (state.gone.clone(), std::mem::take(&mut state.later))
        };
        let said = configs.iter().map(|config| (config, false));
        let said = said.filter(|(config, _)| !gone.iter().any(|id| id == config.id.as_str()));
        for (config, added) in said.chain(later.iter().map(|config| (config, true))) {
            // Nobody else is held up while a client is waited for.
            let kind = open::open(config, preserved.map(|table| &**table), restoring)
                .map_err(|e| format!("Character device '{}': {e}", config.id))?;
            self.insert(config, kind, added)?;
        }
        self.state().preserved = preserved.cloned();
        Ok(())
    }

    fn insert(&self, config: &Chardev, kind: Kind, added: bool) -> Result<(), String> {
        let mut state = self.state();
        if state.all.contains_key(config.id.as_str()) {
            return Err(format!("Chardev with id '{}' already exists", config.id));
        }
        if matches!(kind, Kind::Relayed(_)) && !state.serving {
            service::start(&self.shared)
                .map_err(|e| format!("The thread of character devices cannot be started: {e}"))?;
            state.serving = true;
        }
        let entry = Entry {
            config: config.clone(),
            added,
            users: BTreeMap::new(),
            kind,
            offered: false,
        };
        state.all.insert(config.id.to_string(), entry);
        drop(state);
        self.shared.wake.signal();
        Ok(())
    }

    /// The command `chardev-add`. Tells the path of a new pseudo-terminal.
    pub fn add(&self, config: &Chardev) -> Result<Option<String>, String> {
        if let ChardevBackend::Socket(socket) = &config.backend
            && socket.role == (SocketRole::Server { wait: true })
        {
            return Err("'wait' would stop the guest until a client comes; say wait false".into());
        }
        {
            let state = self.state();
            if state.all.contains_key(config.id.as_str()) {
                return Err(format!("Chardev with id '{}' already exists", config.id));
            }
            if state.frozen {
                return Err("There's a migration process in progress".to_owned());
            }
            let stdio = |entry: &Entry| entry.config.backend.is_stdio();
            if config.backend.is_stdio() && state.all.values().any(stdio) {
                return Err("cannot use stdio by multiple character devices".to_owned());
            }
        }
        let kind = open::open(config, None, false)?;
        let pty = match &kind {
            Kind::Relayed(relayed) => relayed.pty().map(|path| path.display().to_string()),
            Kind::Direct(_) => None,
        };
        self.insert(config, kind, true)?;
        Ok(pty)
    }

    /// The command `chardev-remove`.
    pub fn remove(&self, id: &str) -> Result<(), String> {
        let mut state = self.state();
        let entry = state
            .all
            .get(id)
            .ok_or_else(|| format!("Chardev '{id}' not found"))?;
        if entry.is_used() {
            return Err(format!("Chardev '{id}' is busy"));
        }
        if state.frozen {
            return Err("There's a migration process in progress".to_owned());
        }
        if !entry.added {
            state.gone.push(id.to_owned());
        }
        state.all.remove(id);
        drop(state);
        self.shared.wake.signal();
        Ok(())
    }

    /// Duplicates of the descriptors of `id`, for `user`, which may ask again.
    pub fn descriptors(&self, id: &str, user: &str) -> Result<Descriptors, String> {
        let mut state = self.state();
        let preserved = state.preserved.clone();
        let entry = state
            .all
            .get_mut(id)
            .ok_or_else(|| format!("There is no character device '{id}'"))?;
        if !entry.users.contains_key(user) && entry.users.len() >= entry.config.users_max() {
            return Err(format!(
                "Character device '{id}' is in use; give the device another, or say mux=on"
            ));
        }
        let failed = |e: std::io::Error| format!("Character device '{id}' cannot be used: {e}");
        let descriptors = match &mut entry.kind {
            Kind::Direct(direct) => direct.duplicate().map_err(failed)?,
            Kind::Relayed(relayed) => {
                let far = relayed
                    .attach(id, user, preserved.as_deref())
                    .map_err(failed)?;
                let copy = far.try_clone().map_err(failed)?;
                (Some(far), Some(copy))
            }
        };
        *entry.users.entry(user.to_owned()).or_default() += 1;
        drop(state);
        self.shared.wake.signal();
        Ok(descriptors)
    }

    /// `user` has let go of `id` once for each time it has asked.
    pub fn release(&self, id: &str, user: &str) {
        let mut state = self.state();
        let Some(entry) = state.all.get_mut(id) else {
            return;
        };
        let Some(times) = entry.users.get_mut(user) else {
            return;
        };
        *times -= 1;
        if *times == 0 {
            entry.users.remove(user);
            if let Kind::Relayed(relayed) = &mut entry.kind {
                relayed.relay.detach(user, Instant::now());
            }
        }
    }

    /// What has come and gone since the command line was opened.
    pub fn changes(&self) -> Changes {
        let state = self.state();
        let come = state.all.values().filter(|entry| entry.added);
        Changes {
            come: come.map(|entry| entry.config.clone()).collect(),
            gone: state.gone.clone(),
        }
    }

    /// Has [`Self::open`] make these changes, which another process's devices had.
    pub fn expect(&self, changes: Changes) {
        let mut state = self.state();
        (state.later, state.gone) = (changes.come, changes.gone);
    }

    /// What the character devices are that there are now.
    pub fn configs(&self) -> Vec<Chardev> {
        let state = self.state();
        let all = state.all.values();
        all.map(|entry| entry.config.clone()).collect()
    }

    /// The command `query-chardev`.
    pub fn query(&self) -> Vec<ChardevInfo> {
        let state = self.state();
        let mut all = Vec::new();
        for (label, entry) in &state.all {
            let mut add = |label: String, filename: String, frontend_open| {
                all.push(ChardevInfo {
                    label,
                    filename,
                    frontend_open,
                });
            };
            let used = entry.is_used();
            let filename = entry.kind.filename(&entry.config);
            if entry.config.mux {
                // As QEMU, in which a multiplexer is a character device of its own.
                add(label.clone(), "mux".to_owned(), used);
                add(format!("{label}-base"), filename, true);
            } else {
                add(label.clone(), filename, used);
            }
        }
        all
    }

    /// The command `ringbuf-read`: the oldest bytes, at most `most`.
    pub fn ringbuf_read(&self, id: &str, most: usize) -> Result<Vec<u8>, String> {
        self.with_ring(id, |relay| relay.ring().map(|ring| ring.take(most)))
    }

    /// The command `ringbuf-write`.
    pub fn ringbuf_write(&self, id: &str, bytes: &[u8]) -> Result<(), String> {
        self.with_ring(id, |relay| relay.ring().map(|ring| ring.push(bytes)))
    }

    fn with_ring<T>(&self, id: &str, f: impl FnOnce(&mut Relay) -> Option<T>) -> Result<T, String> {
        let mut state = self.state();
        let entry = state
            .all
            .get_mut(id)
            .ok_or_else(|| format!("Device '{id}' not found"))?;
        let result = match &mut entry.kind {
            Kind::Relayed(relayed) => {
                // What the guest wrote before is there before.
                if !relayed.relay.held {
                    relayed.relay.send(Instant::now());
                }
                f(&mut relayed.relay)
            }
            Kind::Direct(_) => None,
        };
        result.ok_or_else(|| format!("{id} is not a ringbuf device"))
    }

    /// A handover begins: the connections stay as they are until [`Self::thaw`].
    pub fn freeze(&self) {
        self.state().frozen = true;
    }

    /// It has ended here.
    pub fn thaw(&self) {
        let mut state = self.state();
        state.frozen = false;
        state.all.values_mut().for_each(|e| e.offered = false);
        drop(state);
        self.shared.wake.signal();
    }

    /// Duplicates of all descriptors, to hand over in `mode`.
    pub fn handover(&self, mode: Mode) -> std::io::Result<Vec<OutgoingFd>> {
        let mut all = Vec::new();
        if !mode.preserves_fds() {
            return Ok(all);
        }
        for (id, entry) in &mut self.state().all {
            // What only monitors use is each process's own, as they are.
            let own = entry.users.is_empty() && !entry.config.monitors.is_empty();
            if own && mode != Mode::CprExec {
                continue;
            }
            entry.offered = true;
            for (name, instance, fd) in entry.kind.offer(id, mode)? {
                let key = FdKey::new(OWNER, &name, instance);
                all.push(OutgoingFd { key, fd });
            }
        }
        Ok(all)
    }

    /// The guest has stopped: what was offered is not touched until [`Self::resume`].
    pub fn hold(&self) -> Result<(), String> {
        let mut state = self.state();
        for (id, entry) in &mut state.all {
            if let (true, Kind::Relayed(relayed)) = (entry.offered, &mut entry.kind) {
                let held = relayed.relay.hold();
                held.map_err(|e| format!("Character device '{id}': {e}"))?;
            }
        }
        Ok(())
    }

    /// The guest stays here.
    pub fn resume(&self) {
        for entry in self.state().all.values_mut() {
            if let Kind::Relayed(relayed) = &mut entry.kind {
                relayed.relay.held = false;
            }
        }
        self.shared.wake.signal();
    }

    /// The guest is another process's, and what it was given is not used here any more.
    pub fn let_go(&self) {
        let mut state = self.state();
        let (offered, kept) = std::mem::take(&mut state.all)
            .into_iter()
            .partition(|(_, entry)| entry.offered);
        state.all = kept;
        state.frozen = false;
        let mut offered: BTreeMap<_, Entry> = offered;
        for entry in offered.values_mut() {
            if let Kind::Relayed(relayed) = &mut entry.kind {
                relayed.relay.give_up();
            }
        }
        drop(state);
        self.shared.wake.signal();
    }

    /// Takes the rest of what was handed over, whose guest has stopped in the other process.
    pub fn load(&self) -> Result<(), String> {
        let mut state = self.state();
        for (id, entry) in &mut state.all {
            if let Kind::Relayed(relayed) = &mut entry.kind
                && relayed.relay.held
            {
                let ring = match entry.config.backend {
                    ChardevBackend::Ringbuf { size } => size,
                    _ => 0,
                };
                let loaded = relayed.relay.load(ring);
                loaded.map_err(|e| format!("Character device '{id}': {e}"))?;
            }
        }
        Ok(())
    }

    /// The guest is this process's: what was handed over is used from here on.
    pub fn serve(&self) {
        let now = Instant::now();
        let mut state = self.state();
        state.preserved = None;
        for entry in state.all.values_mut() {
            if let Kind::Relayed(relayed) = &mut entry.kind
                && relayed.relay.held
            {
                relayed.relay.own(now);
            }
        }
        drop(state);
        self.shared.wake.signal();
    }

    /// The guest does not come: what was handed over is closed.
    pub fn abandon(&self) {
        let mut state = self.state();
        state.preserved = None;
        state.all.retain(|_, entry| match &entry.kind {
            Kind::Relayed(relayed) => !relayed.relay.held,
            Kind::Direct(_) => true,
        });
    }

    /// The process ends: lets peers read what is left, for a moment, and removes what it has made.
    pub fn finish(&self) {
        let end = Instant::now() + FLUSH;
        loop {
            let mut state = self.state();
            state.pump();
            let left = state.all.values().any(|entry| match &entry.kind {
                Kind::Relayed(relayed) => relayed.relay.has_output(),
                Kind::Direct(_) => false,
            });
            if !left || Instant::now() >= end {
                state.all.clear();
                return;
            }
            let (watches, _) = state.watches();
            drop(state);
            service::wait_a_moment(&watches);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }
}

impl Drop for Chardevs {
    fn drop(&mut self) {
        // The thread sees that nobody is left.
        self.shared.wake.signal();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic leaves bytes where they were.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Acts on what somebody at the keys wants.
    fn fulfil(&self, wish: Option<Wish>) {
        if let (Some(Wish::Exit), Some(exit)) = (wish, self.exit.get()) {
            exit();
        }
    }
}

impl Entry {
    fn is_used(&self) -> bool {
        !self.users.is_empty() || !self.config.monitors.is_empty()
    }
}

impl State {
    /// Moves what can be moved now.
    fn pump(&mut self) {
        let now = Instant::now();
        let serve = self.monitors.clone();
        for entry in self.all.values_mut() {
            let Kind::Relayed(relayed) = &mut entry.kind else {
                continue;
            };
            let monitors = &entry.config.monitors;
            let begin = |number: usize, end, keys| match (&serve, monitors.get(number)) {
                (Some(serve), Some(mode)) => serve(*mode, end, keys),
                _ => false,
            };
            let begin = serve.as_ref().map(|_| &begin as Begin<'_>);
            let wish = relayed.relay.pump(now, self.frozen, &self.wake, begin);
            self.wish = self.wish.or(wish);
        }
    }

    /// What to wait for, and how long.
    fn watches(&self) -> (Vec<Watch>, Option<Instant>) {
        let mut watches = Vec::new();
        let mut deadline: Option<Instant> = None;
        for entry in self.all.values() {
            if let Kind::Relayed(relayed) = &entry.kind {
                relayed.relay.watch(self.frozen, &mut watches);
                let at = relayed.relay.deadline(self.frozen);
                deadline = deadline.into_iter().chain(at).min();
            }
        }
        (watches, deadline)
    }
}
