//! One client: it reads, asks, and writes in one task. One that does not read what it is sent waits
//! for itself alone, and loses the oldest events.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{broadcast, watch};
use tokio::task::{JoinError, JoinHandle};

use super::error::QmpError;
use super::framing::{Frame, Framing};
use super::outgoing::Outgoing;
use super::server::{Control, End, Shared, detached, ended};
use super::session::{Asked, Said, Session, answer, greeting};
use super::stream::{Plain, Stream};
use super::table;

/// How much is read at once.
pub(super) const READ: usize = 4096;

/// A client that nobody serves.
pub(super) struct Parked {
    pub(super) stream: Plain,
    pub(super) session: Session,
    /// What it has said and nobody has taken.
    pub(super) framing: Framing,
    pub(super) out: Outgoing,
}

impl Parked {
    /// A client that has just connected.
    pub(super) fn new(stream: Plain) -> Self {
        Self {
            stream,
            session: Session::default(),
            framing: Framing::default(),
            out: greeted(),
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
    out: Outgoing,
    running: Option<Running>,
    events: broadcast::Receiver<Arc<str>>,
    control: Arc<dyn Control>,
}

/// A command that is being carried out.
struct Running {
    command: JoinHandle<Result<Value, QmpError>>,
    id: Option<Value>,
}

impl Client {
    /// One that has just connected.
    pub(super) fn new(stream: Stream, shared: &Shared) -> Self {
        Self {
            stream,
            session: Session::default(),
            framing: Framing::default(),
            out: greeted(),
            running: None,
            events: shared.events.subscribe(),
            control: Arc::clone(&shared.control),
        }
    }

    /// Goes on with one. Must be called on the runtime that serves it.
    pub(super) fn resume(
        parked: Parked,
        events: broadcast::Receiver<Arc<str>>,
        control: Arc<dyn Control>,
    ) -> std::io::Result<Self> {
        Ok(Self {
            stream: Stream::open(parked.stream)?,
            session: parked.session,
            framing: parked.framing,
            out: parked.out,
            running: None,
            events,
            control,
        })
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
            _ = self.serve(&mut end) => None,
        }
    }

    async fn serve(&mut self, ending: &mut watch::Receiver<End>) -> std::io::Result<()> {
        let mut buffer = vec![0; READ];
        self.flush().await?;
        self.take_all().await?;
        loop {
            let read = tokio::select! {
                biased;
                event = self.events.recv() => {
                    self.hear(event)?;
                    self.flush().await?;
                    continue;
                }
                read = self.stream.read(&mut buffer) => read?,
                () = ended(ending) => {
                    // What was emitted until now is still sent.
                    self.hear_all()?;
                    return self.flush().await;
                }
            };
            if read == 0 {
                return Ok(());
            }
            self.framing.push(&buffer[..read]);
            self.take_all().await?;
        }
    }

    async fn take_all(&mut self) -> std::io::Result<()> {
        while let Some(frame) = self.framing.next() {
            self.take(frame);
            self.finish_command().await?;
            self.flush().await?;
        }
        Ok(())
    }

    fn take(&mut self, frame: Frame) {
        let said = match frame {
            Frame::Value(value) => self.session.take(value),
            Frame::Error(desc) => Said::Answer(answer(Err(QmpError::generic(desc)), None)),
        };
        match said {
            Said::Answer(answer) => self.out.answer(super::json::line(&answer)),
            Said::Ask(Asked { name, command, id }) => {
                let control = Arc::clone(&self.control);
                let command = tokio::task::spawn_blocking(move || {
                    let result = control.execute(command);
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

    /// Waits for the command, if one is running. Events that it causes reach the client before its
    /// answer, as in QEMU.
    async fn finish_command(&mut self) -> std::io::Result<()> {
        while let Some(running) = &mut self.running {
            tokio::select! {
                biased;
                result = &mut running.command => self.conclude(result)?,
                event = self.events.recv() => {
                    self.hear(event)?;
                    self.flush().await?;
                }
            }
        }
        Ok(())
    }

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
        let stream = self
            .stream
            .close()
            .inspect_err(|e| tracing::error!("a monitor client cannot be kept: {e}"))
            .ok()?;
        Some(Parked {
            stream,
            session: self.session,
            framing: self.framing,
            out: self.out,
        })
    }
}

/// Says that a client has lost events.
pub(super) fn lose(events: u64) {
    if events > 0 {
        tracing::warn!("a monitor client does not read: it lost {events} events");
    }
}
