//! One client of a monitor for people: it reads, asks and writes in one task. One that does not read
//! what it is told waits for itself alone, and is not listened to meanwhile.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};

use super::complete::{Choices, complete};
use super::migration;
use super::run::{self, Outcome, Speaker};
use super::session::{Session, Wanted};
use crate::monitor::client::READ;
use crate::monitor::error::QmpError;
use crate::monitor::outgoing::Outgoing;
use crate::monitor::server::{Control, End, Shared, detached, ended};
use crate::monitor::stream::{Plain, Stream};
use crate::monitor::terminal::RawMode;

/// How often a client that waits for a migration looks whether it is over.
const LOOK: Duration = Duration::from_millis(50);

/// A client that nobody serves.
pub(in crate::monitor) struct Parked {
    pub(in crate::monitor) stream: Plain,
    pub(in crate::monitor) session: Session,
    pub(in crate::monitor) out: Outgoing,
    /// Its terminal goes on sending keys.
    pub(in crate::monitor) raw: Option<RawMode>,
}

impl Parked {
    /// A client that has just connected.
    pub(in crate::monitor) fn new(stream: Plain) -> Self {
        let keys = stream.is_terminal();
        Self {
            stream,
            session: Session::new(keys),
            out: greeted(),
            raw: None,
        }
    }

    /// The same with nothing said yet, if it is on the standard streams.
    pub(in crate::monitor) fn begin_anew(self) -> Option<Self> {
        let Self { stream, raw, .. } = self;
        matches!(stream, Plain::Standard { .. }).then(|| Self {
            raw,
            ..Self::new(stream)
        })
    }
}

fn greeted() -> Outgoing {
    let mut out = Outgoing::default();
    out.answer(Session::greeting());
    out
}

/// A client that is served.
///
/// Serving may be given up wherever it waits, so whatever is not done is in these fields then.
pub(in crate::monitor) struct Client {
    stream: Stream,
    session: Session,
    out: Outgoing,
    running: Option<JoinHandle<Ended>>,
    control: Arc<dyn Control>,
    /// Keys come as they are struck while this lives.
    raw: Option<RawMode>,
}

/// What was done for a conversation.
enum Ended {
    Line(Outcome),
    Choices(Choices),
    /// The migration is over, if there is something to say of it.
    Migration(Option<String>),
}

impl Client {
    /// One that has just connected to a socket, maybe with a terminal behind it.
    pub(in crate::monitor) fn new(stream: Stream, keys: bool, shared: &Shared) -> Self {
        Self {
            stream,
            session: Session::new(keys),
            out: greeted(),
            running: None,
            control: Arc::clone(&shared.control),
            raw: None,
        }
    }

    /// Goes on with one. Must be called on the runtime that serves it.
    pub(in crate::monitor) fn resume(
        parked: Parked,
        control: Arc<dyn Control>,
    ) -> io::Result<Self> {
        let Parked {
            stream,
            session,
            out,
            raw,
        } = parked;
        let raw = match session.has_keys() {
            true => stream.raw_mode(raw),
            false => None,
        };
        let stream = Stream::open(stream)?;
        Ok(Self {
            stream,
            session,
            out,
            running: None,
            control,
            raw,
        })
    }

    /// Serves it until it leaves, or to the end. It is still there when clients shall be kept.
    pub(in crate::monitor) async fn run(mut self, ending: watch::Receiver<End>) -> Option<Self> {
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

    async fn serve(&mut self, ending: &mut watch::Receiver<End>) -> io::Result<()> {
        let mut buffer = vec![0; READ];
        loop {
            self.go_on().await?;
            let waits = self.session.waits();
            tokio::select! {
                biased;
                read = self.stream.read(&mut buffer), if self.session.unread() < READ => {
                    // A person has no use for descriptors.
                    match read? {
                        (0, _) => return Ok(()),
                        (read, _) => self.hear(&buffer[..read]),
                    }
                }
                () = ended(ending) => return Ok(()),
                () = tokio::time::sleep(LOOK), if waits => {
                    let control = Arc::clone(&self.control);
                    let look = move || Ended::Migration(migration::outcome(&*control));
                    self.running = Some(tokio::task::spawn_blocking(look));
                }
            }
        }
    }

    fn hear(&mut self, bytes: &[u8]) {
        if let Some(raw) = &self.raw {
            self.session.set_columns(raw.columns());
        }
        self.session.push(bytes);
    }

    /// Does what is wanted until nothing is, and tells the client.
    async fn go_on(&mut self) -> io::Result<()> {
        loop {
            if let Some(running) = &mut self.running {
                let result = running.await;
                self.conclude(result);
            }
            let mut out = String::new();
            let wanted = self.session.next(&mut out);
            self.tell(out);
            self.running = wanted.map(|wanted| self.start(wanted));
            self.flush().await?;
            if self.running.is_none() {
                return Ok(());
            }
        }
    }

    fn start(&self, wanted: Wanted) -> JoinHandle<Ended> {
        let control = Arc::clone(&self.control);
        tokio::task::spawn_blocking(move || match wanted {
            Wanted::Line(line) => Ended::Line(run::run(
                &*control,
                &line,
                Speaker {
                    waits: true,
                    cpu: 0,
                },
            )),
            Wanted::Choices(text) => Ended::Choices(complete(&*control, &text)),
        })
    }

    fn conclude(&mut self, result: Result<Ended, JoinError>) {
        self.running = None;
        let mut out = String::new();
        match result {
            Ok(Ended::Line(outcome)) => self.session.answer(&outcome, &mut out),
            Ok(Ended::Choices(choices)) => self.session.offer(&choices, &mut out),
            Ok(Ended::Migration(None)) => {}
            Ok(Ended::Migration(Some(text))) => {
                self.session.resume(&run::harmless(&text), &mut out);
            }
            Err(_) => {
                let failed = QmpError::generic("The command failed inside Baton; see its log");
                self.session.answer(&run::failed(&failed), &mut out);
            }
        }
        self.tell(out);
    }

    fn tell(&mut self, text: String) {
        if !text.is_empty() {
            self.out.answer(text);
        }
    }

    async fn flush(&mut self) -> io::Result<()> {
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
        match tokio::time::timeout_at(patience.into(), running).await {
            Ok(result) => self.conclude(result),
            Err(_) => {
                let interrupted = QmpError::interrupted();
                let mut out = String::new();
                self.session.answer(&run::failed(&interrupted), &mut out);
                self.running = None;
                self.tell(out);
            }
        }
    }

    /// Stops serving it: what it is still to be told is written as far as that is possible at once.
    /// Nothing if it has left. Must be called on the runtime that served it.
    pub(in crate::monitor) fn park(mut self) -> Option<Parked> {
        while let Some(bytes) = self.out.next() {
            match self.stream.try_write(bytes) {
                Ok(0) => return None,
                Ok(written) => self.out.written(written),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return None,
            }
        }
        let stream = self
            .stream
            .close()
            .inspect_err(|e| tracing::error!("a monitor client cannot be kept: {e}"))
            .ok()?;
        Some(Parked {
            stream,
            session: self.session,
            out: self.out,
            raw: self.raw,
        })
    }
}
