//! The monitor's thread: listeners and clients.

use std::fmt;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::{JoinError, JoinSet};

use super::client::lose;
use super::command::Command;
use super::error::QmpError;
use super::events::Events;
use super::fds::Caller;
use super::keep::Kept;
use super::listener::{
    Listening, MonitorAddress, MonitorError, MonitorMode, MonitorOption, OwnPath, Socket,
};
use super::served::{Client, Parked};
use super::stream::{Plain, Stream};
use crate::fdset::SETS;

/// How long a command may still run when the monitor is detached.
const PATIENCE: Duration = Duration::from_secs(1);

/// The VM behind a monitor.
pub trait Control: Send + Sync + 'static {
    /// Carries out a command of `caller`. May block, unless the command is one that may be said out
    /// of band: it is called on a thread of its own, one command of a client at a time.
    fn execute(&self, command: Command, caller: &Caller) -> Result<Value, QmpError>;

    /// Every listening socket was given to another process, and the last client has left: nobody can
    /// ask for anything any more.
    fn deserted(&self) {}
}

/// All monitors of the process, on one thread.
pub struct Monitor {
    thread: Option<JoinHandle<Option<Left>>>,
    end: watch::Sender<End>,
    newcomers: mpsc::UnboundedSender<Newcomer>,
    doors: watch::Sender<Doors>,
    events: Events,
    paths: Vec<OwnPath>,
    /// Where clients connect: duplicates of what the thread listens on.
    sockets: Vec<(MonitorAddress, OwnedFd)>,
}

/// Who takes clients that connect.
#[derive(Debug, Clone, Default)]
struct Doors {
    /// Nobody for now: they wait.
    shut: bool,
    /// Another process does, on these.
    given: Vec<MonitorAddress>,
}

impl Doors {
    fn are_given(&self, address: &MonitorAddress) -> bool {
        self.given.iter().any(|given| given.is_same_place(address))
    }
}

/// A client that comes by other ways than a listener: its mode, its connection, and whether it is a
/// terminal that sends keys as they are struck.
type Newcomer = (MonitorMode, UnixStream, bool);

/// Whether clients are served.
#[derive(Debug, Clone, Copy)]
pub(super) enum End {
    NotYet,
    /// Until then they may be sent what is left.
    By(Instant),
    /// They are kept. Until then commands that run may be finished.
    Keep(Instant),
}

/// What a detached monitor's thread gives back.
#[derive(Default)]
struct Left {
    listeners: Vec<Listening>,
    clients: Vec<Parked>,
}

/// A monitor that could not be attached. Nothing of what was kept is lost.
pub struct AttachError {
    /// Why.
    pub error: MonitorError,
    /// As it was given.
    pub kept: Box<Kept>,
}

impl fmt::Debug for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for AttachError {}

impl Monitor {
    /// Listens as all `options` say: when this returns they can be connected to, and those with `wait`
    /// have their first client.
    pub fn start(
        options: &[MonitorOption],
        control: Arc<dyn Control>,
        events: Events,
    ) -> Result<Self, MonitorError> {
        let mut bound = Kept::default();
        for option in options {
            bound.bind(option, option.address.waits())?;
        }
        Self::serve(bound, options, control, events).map_err(|e| e.error)
    }

    /// Serves what [`Self::detach`] kept, in this program or the next, and listens on those of
    /// `options` that are not among it; for a client of these nobody waits, since the guest has
    /// started long ago. What is not among `options` takes no more clients, and keeps those it has.
    ///
    /// Clients get what they still had to get, then the events that were emitted in between, then
    /// everything else.
    pub fn attach(
        mut kept: Kept,
        options: &[MonitorOption],
        control: Arc<dyn Control>,
        events: Events,
    ) -> Result<Self, AttachError> {
        let mut bound = Kept::default();
        for option in options {
            if !kept.listens_on(&option.address)
                && let Err(error) = bound.bind(option, false)
            {
                let kept = Box::new(kept);
                return Err(AttachError { error, kept });
            }
        }
        kept.merge(bound);
        Self::serve(kept, options, control, events)
    }

    /// Serves clients on a thread, and listens where one of `options` says so.
    pub(super) fn serve(
        mut kept: Kept,
        options: &[MonitorOption],
        control: Arc<dyn Control>,
        events: Events,
    ) -> Result<Self, AttachError> {
        let (end, ending) = watch::channel(End::NotYet);
        let (doors, at_doors) = watch::channel(Doors::default());
        let failed = |what: &str, e: io::Error| MonitorError {
            option: "The monitors".to_owned(),
            reason: format!("{what}: {e}"),
        };
        let mut sockets = match kept.sockets() {
            Ok(sockets) => sockets,
            Err(e) => {
                let error = failed("their sockets cannot be duplicated", e);
                let kept = Box::new(kept);
                return Err(AttachError { error, kept });
            }
        };
        let (thread, start) = match thread() {
            Ok(thread) => thread,
            Err(e) => {
                let error = failed("their thread cannot be started", e);
                let kept = Box::new(kept);
                return Err(AttachError { error, kept });
            }
        };
        // From here on nothing fails.
        kept.paths.iter_mut().for_each(OwnPath::serve);
        kept.retain(options);
        sockets.retain(|(address, _)| kept.listens_on(address));
        kept.catch_up();
        let Kept {
            listeners,
            mut clients,
            paths,
            mut held,
            sets,
            ..
        } = kept;
        SETS.put_back(sets);
        let (later, receivers) = events.release(clients.len());
        held.append(later);
        for out in clients.iter_mut().filter_map(Parked::hears_events) {
            held.lines().for_each(|line| out.event(Arc::clone(line)));
            lose(held.lost().saturating_add(out.bound()));
        }
        let shared = Shared {
            control,
            events: events.clone(),
            clients: Arc::default(),
            ending,
            doors: at_doors,
        };
        let (newcomers, come) = mpsc::unbounded_channel();
        let work = Work {
            come,
            listeners,
            clients: clients.into_iter().zip(receivers).collect(),
            shared,
        };
        // The thread waits for nothing else.
        let _ = start.send(work);
        Ok(Self {
            thread: Some(thread),
            end,
            newcomers,
            doors,
            events,
            paths,
            sockets,
        })
    }

    /// Serves a client that has come by other ways than a listener. With `keys` it is a terminal that
    /// sends keys as they are struck, and shows what it is sent.
    pub fn add(&self, mode: MonitorMode, stream: UnixStream, keys: bool) {
        // A monitor that has ended serves nobody.
        let _ = self.newcomers.send((mode, stream, keys));
    }

    /// Duplicates of the listening sockets, for another process.
    pub fn sockets(&self) -> io::Result<Vec<(MonitorAddress, OwnedFd)>> {
        let copy = |(address, fd): &(MonitorAddress, OwnedFd)| {
            fd.try_clone().map(|fd| (address.clone(), fd))
        };
        self.sockets.iter().map(copy).collect()
    }

    /// Whether clients that connect have to wait.
    pub fn shut(&self, shut: bool) {
        self.doors.send_modify(|doors| doors.shut = shut);
    }

    /// Another process takes the clients that connect to `addresses`, and their paths are its own.
    /// Those that have connected stay. [`Control::deserted`] is called once nothing is left.
    pub fn give_up(&mut self, addresses: &[MonitorAddress]) {
        let given = |address: &MonitorAddress| addresses.iter().any(|a| a.is_same_place(address));
        for own in std::mem::take(&mut self.paths) {
            match addresses.iter().any(|address| own.is_of(address)) {
                true => drop(own.give_up()),
                false => self.paths.push(own),
            }
        }
        self.sockets.retain(|(address, _)| !given(address));
        self.doors
            .send_modify(|doors| doors.given.extend_from_slice(addresses));
    }

    /// Lets clients have what is left for them, for at most `within`, and ends the monitors.
    pub fn shutdown(mut self, within: Duration) {
        self.finish(End::By(Instant::now() + within));
    }

    /// Stops serving, and keeps listeners and clients as they are: not a byte of what they say or are
    /// to be told is lost or doubled. Events are held from now on.
    ///
    /// A command that is running is waited for, for at most a second; then its client is told that it
    /// was interrupted. So this must not be called by a command itself.
    pub fn detach(mut self) -> Kept {
        let left = self
            .finish(End::Keep(Instant::now() + PATIENCE))
            .unwrap_or_default();
        // It was done between what was emitted for clients and what was not, if the thread lives.
        self.events.hold();
        let paths = std::mem::take(&mut self.paths);
        let events = self.events;
        Kept::new(left.listeners, left.clients, paths, SETS.take_all(), events)
    }

    fn finish(&mut self, end: End) -> Option<Left> {
        self.end.send_replace(end);
        let left = self.thread.take()?.join();
        left.unwrap_or_else(|_| {
            tracing::error!("the monitor's thread panicked");
            None
        })
    }
}

/// What the monitor's thread does.
struct Work {
    come: mpsc::UnboundedReceiver<Newcomer>,
    listeners: Vec<Listening>,
    clients: Vec<(Parked, broadcast::Receiver<Arc<str>>)>,
    shared: Shared,
}

/// What every client needs.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) control: Arc<dyn Control>,
    pub(super) events: Events,
    /// How many clients there are.
    pub(super) clients: Arc<AtomicUsize>,
    ending: watch::Receiver<End>,
    doors: watch::Receiver<Doors>,
}

/// A thread that waits for its work, so that nothing is lost if it cannot be started.
fn thread() -> io::Result<(JoinHandle<Option<Left>>, Sender<Work>)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()?;
    let (start, work) = channel();
    let thread = std::thread::Builder::new()
        .name("monitor".into())
        .spawn(move || {
            let left = work
                .recv()
                .ok()
                .and_then(|work| runtime.block_on(serve_all(work)));
            // A command that still runs must not keep the process.
            runtime.shutdown_background();
            left
        })?;
    Ok((thread, start))
}

async fn serve_all(work: Work) -> Option<Left> {
    let Work {
        mut come,
        listeners,
        clients,
        shared,
    } = work;
    let mut all: JoinSet<Group> = JoinSet::new();
    for (client, events) in clients {
        match Client::resume(client, events, &shared) {
            Ok(client) => {
                let ending = shared.ending.clone();
                all.spawn(async move {
                    let clients = client.run(ending).await.into_iter().collect();
                    (None, clients)
                });
            }
            Err(e) => tracing::error!("a monitor client cannot be served: {e}"),
        }
    }
    for listening in listeners {
        all.spawn(listen(listening, shared.clone()));
    }
    let mut ending = shared.ending.clone();
    let mut groups = Vec::new();
    let mut all_left = false;
    let end = loop {
        tokio::select! {
            biased;
            end = over(&mut ending) => break end,
            Some(newcomer) = come.recv() => welcome(newcomer, &shared, &mut all),
            // Listeners end before clients are told to only when they are given away.
            () = all_ended(&mut all, &mut groups), if !all_left => {
                all_left = true;
                if !shared.doors.borrow().given.is_empty() {
                    shared.control.deserted();
                }
            }
        }
    };
    let End::Keep(_) = end else {
        let by = match end {
            End::By(by) => by,
            _ => Instant::now(),
        };
        let finished = async { while all.join_next().await.is_some() {} };
        let _ = tokio::time::timeout_at(by.into(), finished).await;
        return None;
    };
    // Those too that have come since.
    while let Ok(newcomer) = come.try_recv() {
        welcome(newcomer, &shared, &mut all);
    }
    let mut left = Left::default();
    let mut clients = Vec::new();
    all_ended(&mut all, &mut groups).await;
    for group in groups {
        match group {
            Ok((listening, of_it)) => {
                left.listeners.extend(listening);
                clients.extend(of_it);
            }
            Err(e) => tracing::error!("a monitor was lost: {e}"),
        }
    }
    // No command runs any more, so that none has events that come after its answer.
    shared.events.hold();
    left.clients = clients.into_iter().filter_map(Client::park).collect();
    Some(left)
}

/// Serves a newcomer.
fn welcome((mode, stream, keys): Newcomer, shared: &Shared, all: &mut JoinSet<Group>) {
    match Stream::open(Plain::Unix(stream)) {
        Ok(stream) => {
            let client = Client::new(mode, stream, keys, shared);
            let ending = shared.ending.clone();
            all.spawn(async move { (None, client.run(ending).await.into_iter().collect()) });
        }
        Err(e) => tracing::error!("a monitor client cannot be served: {e}"),
    }
}

/// What a task leaves when clients are kept.
type Group = (Option<Listening>, Vec<Client>);

/// Waits for all tasks, and collects what they leave.
async fn all_ended(all: &mut JoinSet<Group>, groups: &mut Vec<Result<Group, JoinError>>) {
    while let Some(group) = all.join_next().await {
        groups.push(group);
    }
}

/// Waits until clients are not served any more, and says how that is.
async fn over(ending: &mut watch::Receiver<End>) -> End {
    match ending.wait_for(|end| !matches!(end, End::NotYet)).await {
        Ok(end) => *end,
        // The monitor is gone without a word.
        Err(_) => End::NotYet,
    }
}

/// Waits for the end. The monitor going away means the same.
pub(super) async fn ended(ending: &mut watch::Receiver<End>) {
    if let End::Keep(_) = over(ending).await {
        // Nothing comes after that.
        std::future::pending::<()>().await;
    }
}

/// Waits until clients are to be kept, and says how long commands may still take.
pub(super) async fn detached(ending: &mut watch::Receiver<End>) -> Instant {
    match over(ending).await {
        End::Keep(patience) => patience,
        _ => std::future::pending().await,
    }
}

async fn listen(listening: Listening, shared: Shared) -> Group {
    let Listening { option, socket } = listening;
    let mut open = match socket.map(Open::new).transpose() {
        Ok(open) => open,
        Err(e) => {
            tracing::error!("{option}: takes no clients: {e}");
            None
        }
    };
    let mut clients = JoinSet::new();
    let mut left = Vec::new();
    let mut ending = shared.ending.clone();
    let mut doors = shared.doors.clone();
    loop {
        let (shut, given) = {
            let doors = doors.borrow_and_update();
            (doors.shut, doors.are_given(&option.address))
        };
        if given {
            open = None;
            if clients.is_empty() {
                return (None, left);
            }
        }
        let stream = tokio::select! {
            biased;
            _ = over(&mut ending) => break,
            Ok(()) = doors.changed() => continue,
            stream = next(open.as_ref()), if !shut => stream,
            Some(client) = clients.join_next() => {
                // One that is kept may have heard of it before this task did.
                left.extend(client.ok().flatten());
                continue;
            }
        };
        clients.spawn(Client::new(option.mode, stream, false, &shared).run(shared.ending.clone()));
    }
    while let Some(client) = clients.join_next().await {
        left.extend(client.ok().flatten());
    }
    let socket = open
        .map(Open::close)
        .transpose()
        .inspect_err(|e| tracing::error!("{option}: cannot be kept: {e}"))
        .unwrap_or_default();
    (Some(Listening { option, socket }), left)
}

/// A listener on the runtime.
enum Open {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Open {
    fn new(socket: Socket) -> io::Result<Self> {
        Ok(match socket {
            Socket::Unix(listener) => {
                listener.set_nonblocking(true)?;
                Self::Unix(UnixListener::from_std(listener)?)
            }
            Socket::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                Self::Tcp(TcpListener::from_std(listener)?)
            }
        })
    }

    fn close(self) -> io::Result<Socket> {
        Ok(match self {
            Self::Unix(listener) => Socket::Unix(listener.into_std()?),
            Self::Tcp(listener) => Socket::Tcp(listener.into_std()?),
        })
    }
}

/// The next client.
async fn next(open: Option<&Open>) -> Stream {
    match open {
        Some(Open::Unix(listener)) => Stream::Unix(accepted(|| listener.accept()).await.0),
        Some(Open::Tcp(listener)) => {
            let (stream, _) = accepted(|| listener.accept()).await;
            // Answers are small, and are waited for.
            let _ = stream.set_nodelay(true);
            Stream::Tcp(stream)
        }
        None => std::future::pending().await,
    }
}

/// The next client. One that has gone before it was taken, and a lack of descriptors, pass.
pub(super) async fn accepted<T, F>(mut accept: impl FnMut() -> F) -> T
where
    F: Future<Output = io::Result<T>>,
{
    loop {
        match accept().await {
            Ok(client) => return client,
            Err(e) => tracing::warn!("a monitor client was not taken: {e}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
