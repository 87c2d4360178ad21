//! One client: it reads, asks, and writes in one task. One that does not read what it is sent waits
//! for itself alone, and loses the oldest events.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::mem::take;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde_json::Value;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{broadcast, watch};
use tokio::task::{JoinError, JoinHandle};

use super::error::QmpError;
use super::fds::{Caller, NamedFds};
use super::framing::{Frame, Framing};
use super::outgoing::Outgoing;
use super::server::{Control, End, Shared, detached, ended};
use super::session::{Asked, Said, Session, answer, greeting};
use super::stream::{Plain, Stream};
use super::table;
use crate::fdset::SETS;

/// How much is read at once.
pub(super) const READ: usize = 4096;

/// With capability `oob`, how many commands of a client may wait and run: QEMU's
/// `QMP_REQ_QUEUE_LEN_MAX`. No more is read from one that has so many.
pub(super) const QUEUE: usize = 8;

/// A client that nobody serves.
pub(super) struct Parked {
    pub(super) stream: Plain,
    pub(super) session: Session,
    /// What it has said whole and nobody has taken.
    pub(super) waiting: Vec<Value>,
    /// What it has said beyond that.
    pub(super) framing: Framing,
    pub(super) out: Outgoing,
    pub(super) named: NamedFds,
}

impl Parked {
    /// A client that has just connected.
    pub(super) fn new(stream: Plain) -> Self {
        Self {
            stream,
            session: Session::default(),
            waiting: Vec::new(),
            framing: Framing::default(),
            out: greeted(),
            named: NamedFds::default(),
        }
    }
}

fn greeted() -> Outgoing {
    let mut out = Outgoing::default();
    out.answer(super::json::line(&greeting()));
    out
}

/// A client that is served.
///
/// Serving may be given up wherever it waits, so whatever is not done is in these fields then.
pub(super) struct Client {
    stream: Stream,
    session: Session,
    framing: Framing,
    /// What it has said whole, and what came with it.
    queue: VecDeque<Waiting>,
    /// What came with something that is not whole yet.
    passed: Vec<OwnedFd>,
    out: Outgoing,
    running: Option<Running>,
    named: NamedFds,
    events: broadcast::Receiver<Arc<str>>,
    control: Arc<dyn Control>,
    clients: Arc<AtomicUsize>,
}

/// Something that a client has said, and that has its turn later.
struct Waiting {
    frame: Frame,
    /// Only a command that takes a descriptor takes one, the first; the others are closed.
    passed: Vec<OwnedFd>,
}

/// A command that is being carried out.
struct Running {
    command: JoinHandle<Result<Value, QmpError>>,
    id: Option<Value>,
}

/// What a client waits for.
enum Happened {
    Event(Result<Arc<str>, RecvError>),
    Done(Result<Result<Value, QmpError>, JoinError>),
    Read(usize, Vec<OwnedFd>),
    Ended,
}

impl Client {
    /// One that has just connected.
    pub(super) fn new(stream: Stream, shared: &Shared) -> Self {
        let events = shared.events.subscribe();
        Self::serve_on(stream, events, shared)
    }

    /// Goes on with one. Must be called on the runtime that serves it.
    pub(super) fn resume(
        parked: Parked,
        events: broadcast::Receiver<Arc<str>>,
        shared: &Shared,
    ) -> std::io::Result<Self> {
        let stream = Stream::open(parked.stream)?;
        let waiting = |value| Waiting {
            frame: Frame::Value(value),
            passed: Vec::new(),
        };
        Ok(Self {
            session: parked.session,
            queue: parked.waiting.into_iter().map(waiting).collect(),
            framing: parked.framing,
            out: parked.out,
            named: parked.named,
            ..Self::serve_on(stream, events, shared)
        })
    }

    fn serve_on(stream: Stream, events: broadcast::Receiver<Arc<str>>, shared: &Shared) -> Self {
        shared.clients.fetch_add(1, Ordering::SeqCst);
        Self {
            stream,
            session: Session::default(),
            framing: Framing::default(),
            queue: VecDeque::new(),
            passed: Vec::new(),
            out: greeted(),
            running: None,
            named: NamedFds::default(),
            events,
            control: Arc::clone(&shared.control),
            clients: Arc::clone(&shared.clients),
        }
    }

    /// Serves it until it leaves, or to the end. It is still there when clients shall be kept.
    pub(super) async fn run(mut self, ending: watch::Receiver<End>) -> Option<Self> {
        let (mut keep, mut end) = (ending.clone(), ending);
        tokio::select! {
            biased;
            patience = detached(&mut keep) => {
                self.settle(patience).await;
                Some(self)
            }
            // It has left, or its connection has failed, which is the same to us.
            _ = self.serve(&mut end) => {
                if self.clients.fetch_sub(1, Ordering::SeqCst) == 1 {
                    SETS.abandon();
                }
                None
            }
        }
    }

    async fn serve(&mut self, ending: &mut watch::Receiver<End>) -> std::io::Result<()> {
        let mut buffer = vec![0; READ];
        self.flush().await?;
        self.receive(Vec::new());
        loop {
            while self.running.is_none()
                && let Some(next) = self.queue.pop_front()
            {
                self.take(next);
                self.flush().await?;
            }
            let (reads, idle) = (self.reads(), self.running.is_none());
            let Self {
                events,
                running,
                stream,
                ..
            } = self;
            let happened = tokio::select! {
                biased;
                event = events.recv() => Happened::Event(event),
                result = done(running) => Happened::Done(result),
                read = stream.read(&mut buffer), if reads => {
                    let (bytes, passed) = read?;
                    Happened::Read(bytes, passed)
                }
                () = ended(ending), if idle => Happened::Ended,
            };
            match happened {
                Happened::Event(event) => self.hear(event)?,
                Happened::Done(result) => self.conclude(result)?,
                Happened::Read(0, _) => return Ok(()),
                Happened::Read(bytes, passed) => {
                    self.framing.push(&buffer[..bytes]);
                    self.receive(passed);
                }
                Happened::Ended => {
                    // What was emitted until now is still sent.
                    self.hear_all()?;
                    return self.flush().await;
                }
            }
            self.flush().await?;
        }
    }

    /// Whether more is read: without `oob` once all it has said is done.
    fn reads(&self) -> bool {
        let most = if self.session.has_oob() { QUEUE } else { 1 };
        self.queue.len() + usize::from(self.running.is_some()) < most
    }

    /// Puts what is whole now into the queue; what is said out of band is done at once. Descriptors
    /// come with the last bytes that are read: they belong to what these complete, or to what the
    /// next ones do.
    fn receive(&mut self, passed: Vec<OwnedFd>) {
        if !passed.is_empty() {
            self.passed = passed;
        }
        let mut whole: Vec<Frame> = std::iter::from_fn(|| self.framing.next()).collect();
        let Some(last) = whole.pop() else { return };
        // If the last bytes have begun something, what they bring is for that.
        let passed = match self.framing.is_blank() {
            true => take(&mut self.passed),
            false => Vec::new(),
        };
        let without = whole.into_iter().map(|frame| (frame, Vec::new()));
        for (frame, passed) in without.chain([(last, passed)]) {
            match frame {
                Frame::Value(value) if self.session.is_oob(&value) => {
                    let said = self.session.take(value);
                    self.say_oob(said);
                }
                frame => self.queue.push_back(Waiting { frame, passed }),
            }
        }
    }

    fn say_oob(&mut self, said: Said) {
        let answer = match said {
            Said::Answer(answer) => answer,
            Said::Ask(Asked { name, command, id }) => {
                let result = self.control.execute(command, &Caller::default());
                debug_assert!(
                    cfg!(test) || table::fits_result(name, &result),
                    "{result:?}"
                );
                answer(result, id)
            }
        };
        self.out.answer(super::json::line(&answer));
    }

    fn take(&mut self, Waiting { frame, passed }: Waiting) {
        let said = match frame {
            Frame::Value(value) => self.session.take(value),
            Frame::Error(desc) => Said::Answer(answer(Err(QmpError::generic(desc)), None)),
        };
        match said {
            Said::Answer(answer) => self.out.answer(super::json::line(&answer)),
            Said::Ask(Asked { name, command, id }) => {
                let control = Arc::clone(&self.control);
                let caller = Caller {
                    named: self.named.clone(),
                    passed: Mutex::new(passed.into_iter().next()),
                };
                let command = tokio::task::spawn_blocking(move || {
                    let result = control.execute(command, &caller);
                    // The VMs of the monitor's own tests do not say much.
                    debug_assert!(
                        cfg!(test) || table::fits_result(name, &result),
                        "{result:?}"
                    );
                    result
                });
                self.running = Some(Running { command, id });
            }
        }
    }

    /// Events that a command causes reach the client before its answer, as in QEMU.
    fn conclude(
        &mut self,
        result: Result<Result<Value, QmpError>, JoinError>,
    ) -> std::io::Result<()> {
        self.hear_all()?;
        if let Some(running) = self.running.take() {
            let panicked = || QmpError::generic("The command failed inside Baton; see its log");
            let result = result.unwrap_or_else(|_| Err(panicked()));
            let answer = answer(result, running.id);
            self.out.answer(super::json::line(&answer));
        }
        Ok(())
    }

    fn hear(&mut self, event: Result<Arc<str>, RecvError>) -> std::io::Result<()> {
        match event {
            Ok(event) if self.session.hears_events() => self.out.event(event),
            Ok(_) => {}
            Err(RecvError::Lagged(lost)) => lose(lost),
            // The VM is gone, and the process with it soon.
            Err(RecvError::Closed) => return Err(ErrorKind::BrokenPipe.into()),
        }
        Ok(())
    }

    fn hear_all(&mut self) -> std::io::Result<()> {
        loop {
            match self.events.try_recv() {
                Ok(event) => self.hear(Ok(event))?,
                Err(TryRecvError::Lagged(lost)) => self.hear(Err(RecvError::Lagged(lost)))?,
                Err(TryRecvError::Empty | TryRecvError::Closed) => return Ok(()),
            }
        }
    }

    async fn flush(&mut self) -> std::io::Result<()> {
        while let Some(bytes) = self.out.next() {
            match self.stream.write(bytes).await? {
                0 => return Err(ErrorKind::WriteZero.into()),
                written => self.out.written(written),
            }
        }
        Ok(())
    }

    /// Gives a command that is running until `patience` has an end to be done.
    async fn settle(&mut self, patience: Instant) {
        let Some(running) = &mut self.running else {
            return;
        };
        let result = match tokio::time::timeout_at(patience.into(), &mut running.command).await {
            Ok(result) => result,
            Err(_) => Ok(Err(QmpError::interrupted())),
        };
        // The client is kept even if the events have ended.
        let _ = self.conclude(result);
    }

    /// Stops serving it: what was emitted until now is written as far as that is possible at once.
    /// Nothing if it has left. Must be called on the runtime that served it.
    pub(super) fn park(mut self) -> Option<Parked> {
        let _ = self.hear_all();
        while let Some(bytes) = self.out.next() {
            match self.stream.try_write(bytes) {
                Ok(0) => return None,
                Ok(written) => self.out.written(written),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return None,
            }
        }
        lose(self.out.bound());
        let waiting = self.waiting();
        let stream = self
            .stream
            .close()
            .inspect_err(|e| tracing::error!("a monitor client cannot be kept: {e}"))
            .ok()?;
        Some(Parked {
            stream,
            session: self.session,
            waiting,
            framing: self.framing,
            out: self.out,
            named: self.named,
        })
    }

    /// What waits in the queue, for the next program. Descriptors that came with it are closed, and
    /// their commands say then that there are none.
    fn waiting(&mut self) -> Vec<Value> {
        let mut values = Vec::new();
        for waiting in take(&mut self.queue) {
            match waiting.frame {
                Frame::Value(value) => values.push(value),
                Frame::Error(desc) => {
                    let answer = answer(Err(QmpError::generic(desc)), None);
                    self.out.answer(super::json::line(&answer));
                }
            }
        }
        values
    }
}

/// The result of the command that is running; never, if none is.
async fn done(running: &mut Option<Running>) -> Result<Result<Value, QmpError>, JoinError> {
    match running {
        Some(running) => (&mut running.command).await,
        None => std::future::pending().await,
    }
}

/// Says that a client has lost events.
pub(super) fn lose(events: u64) {
    if events > 0 {
        tracing::warn!("a monitor client does not read: it lost {events} events");
    }
}
