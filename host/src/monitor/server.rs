//! The monitor's thread: listeners and clients.

use std::future::Future;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinSet;

use super::command::Command;
use super::error::QmpError;
use super::events::Events;
use super::framing::{Frame, Framing};
use super::listener::{MonitorAddress, MonitorError, OwnPath, bind_tcp, bind_unix};
use super::session::{Said, Session, answer, greeting};

/// The VM behind a monitor.
pub trait Control: Send + Sync + 'static {
    /// Carries out a command. May block: it is called on a thread of its own, one command of a
    /// client at a time.
    fn execute(&self, command: Command) -> Result<Value, QmpError>;
}

/// All monitors of the process, on one thread.
pub struct Monitor {
    thread: Option<JoinHandle<()>>,
    end: watch::Sender<End>,
    /// Each is disconnected once all that was written to it has left the process.
    outputs: Vec<Receiver<()>>,
    _paths: Vec<OwnPath>,
}

/// Whether clients are served, and until when they may be sent what is left.
#[derive(Debug, Clone, Copy)]
enum End {
    NotYet,
    By(Instant),
}

enum Listener {
    Unix(std::os::unix::net::UnixListener, Option<StdUnixStream>),
    Tcp(std::net::TcpListener, Option<std::net::TcpStream>),
    Stream(StdUnixStream),
}

impl Monitor {
    /// Listens on all `addresses`: when this returns they can be connected to, and those with `wait`
    /// have their first client.
    pub fn start(
        addresses: Vec<MonitorAddress>,
        control: Arc<dyn Control>,
        events: Events,
    ) -> Result<Self, MonitorError> {
        let mut bound = Bound::default();
        for address in addresses {
            bound.add(&address).map_err(|reason| MonitorError {
                address: address.to_string(),
                reason,
            })?;
        }
        Self::serve(bound, control, events)
    }

    /// Serves clients on a thread.
    pub(super) fn serve(
        bound: Bound,
        control: Arc<dyn Control>,
        events: Events,
    ) -> Result<Self, MonitorError> {
        let Bound {
            listeners,
            outputs,
            paths,
        } = bound;
        let failed = |e: std::io::Error| MonitorError {
            address: String::new(),
            reason: format!("its thread cannot be started: {e}"),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(failed)?;
        let (end, ending) = watch::channel(End::NotYet);
        let thread = std::thread::Builder::new()
            .name("monitor".into())
            .spawn(move || {
                runtime.block_on(serve_all(listeners, &control, &events, ending));
                // A command that still runs must not keep the process.
                runtime.shutdown_background();
            })
            .map_err(failed)?;
        Ok(Self {
            thread: Some(thread),
            end,
            outputs,
            _paths: paths,
        })
    }

    /// Lets clients have what is left for them, for at most `within`, and ends the monitors.
    pub fn shutdown(mut self, within: Duration) {
        let by = Instant::now() + within;
        self.end.send_replace(End::By(by));
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the monitor's thread panicked");
        }
        for output in &self.outputs {
            // Either it is through, or time is up.
            let _ = output.recv_timeout(by.saturating_duration_since(Instant::now()));
        }
    }
}

/// What monitors listen on.
#[derive(Default)]
pub(super) struct Bound {
    listeners: Vec<Listener>,
    outputs: Vec<Receiver<()>>,
    paths: Vec<OwnPath>,
}

impl Bound {
    fn add(&mut self, address: &MonitorAddress) -> Result<(), String> {
        let prepared = |e: std::io::Error| format!("cannot be prepared: {e}");
        let waiting = || tracing::info!("-qmp {address}: the guest waits for a client");
        let listener = match address {
            MonitorAddress::Stdio => {
                return self
                    .add_streams(std::io::stdin(), std::io::stdout())
                    .map_err(prepared);
            }
            MonitorAddress::Unix { path, wait } => {
                let (listener, own) = bind_unix(path)?;
                self.paths.push(own);
                let first = wait
                    .then(|| {
                        waiting();
                        listener.accept()
                    })
                    .transpose()
                    .map_err(prepared)?;
                listener.set_nonblocking(true).map_err(prepared)?;
                Listener::Unix(listener, first.map(|(stream, _)| stream))
            }
            MonitorAddress::Tcp { host, port, wait } => {
                let listener = bind_tcp(host, *port)?;
                let first = wait
                    .then(|| {
                        waiting();
                        listener.accept()
                    })
                    .transpose()
                    .map_err(prepared)?;
                listener.set_nonblocking(true).map_err(prepared)?;
                Listener::Tcp(listener, first.map(|(stream, _)| stream))
            }
        };
        self.listeners.push(listener);
        Ok(())
    }

    /// Adds a client that is there already. Its streams may be files or terminals, which cannot be
    /// waited for, so that two threads copy from and to a socket.
    pub(super) fn add_streams(
        &mut self,
        mut input: impl Read + Send + 'static,
        mut output: impl Write + Send + 'static,
    ) -> std::io::Result<()> {
        let (ours, theirs) = StdUnixStream::pair()?;
        let (mut to, mut from) = (theirs.try_clone()?, theirs);
        // This one stays in its read, maybe to the end of the process.
        std::thread::Builder::new()
            .name("monitor-in".into())
            .spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(n @ 1..) = input.read(&mut buffer) {
                    if to.write_all(&buffer[..n]).is_err() {
                        return;
                    }
                }
                let _ = to.shutdown(std::net::Shutdown::Write);
            })?;
        let (through, done) = channel::<()>();
        std::thread::Builder::new()
            .name("monitor-out".into())
            .spawn(move || {
                let _through = through;
                let mut buffer = [0; 4096];
                while let Ok(n @ 1..) = from.read(&mut buffer) {
                    if output
                        .write_all(&buffer[..n])
                        .and_then(|()| output.flush())
                        .is_err()
                    {
                        return;
                    }
                }
            })?;
        self.listeners.push(Listener::Stream(ours));
        self.outputs.push(done);
        Ok(())
    }
}

/// What every client needs.
#[derive(Clone)]
struct Shared {
    control: Arc<dyn Control>,
    events: Events,
    ending: watch::Receiver<End>,
}

async fn serve_all(
    listeners: Vec<Listener>,
    control: &Arc<dyn Control>,
    events: &Events,
    mut ending: watch::Receiver<End>,
) {
    let shared = Shared {
        control: Arc::clone(control),
        events: events.clone(),
        ending: ending.clone(),
    };
    let mut all = JoinSet::new();
    for listener in listeners {
        all.spawn(listen(listener, shared.clone()));
    }
    ended(&mut ending).await;
    let by = match *ending.borrow() {
        End::By(by) => by,
        End::NotYet => Instant::now(),
    };
    let finished = async { while all.join_next().await.is_some() {} };
    let _ = tokio::time::timeout_at(by.into(), finished).await;
}

/// Waits for the end. The monitor going away means the same.
async fn ended(ending: &mut watch::Receiver<End>) {
    let _ = ending.wait_for(|end| matches!(end, End::By(_))).await;
}

async fn listen(listener: Listener, shared: Shared) {
    let mut clients = JoinSet::new();
    let mut ending = shared.ending.clone();
    let accept = async {
        if let Err(e) = accept_all(listener, &mut clients, &shared).await {
            tracing::error!("a monitor takes no more clients: {e}");
        }
        // Those it has are served to the end.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = ended(&mut ending) => {}
        () = accept => {}
    }
    while clients.join_next().await.is_some() {}
}

async fn accept_all(
    listener: Listener,
    clients: &mut JoinSet<()>,
    shared: &Shared,
) -> std::io::Result<()> {
    match listener {
        Listener::Stream(stream) => {
            stream.set_nonblocking(true)?;
            let (reader, writer) = UnixStream::from_std(stream)?.into_split();
            clients.spawn(Client::serve(reader, writer, shared.clone()));
            Ok(())
        }
        Listener::Unix(listener, first) => {
            let listener = UnixListener::from_std(listener)?;
            let mut first = first.map(|first| {
                first
                    .set_nonblocking(true)
                    .and_then(|()| UnixStream::from_std(first))
            });
            loop {
                let stream = match first.take() {
                    Some(first) => first?,
                    None => accepted(|| listener.accept()).await.0,
                };
                let (reader, writer) = stream.into_split();
                clients.spawn(Client::serve(reader, writer, shared.clone()));
                while clients.try_join_next().is_some() {}
            }
        }
        Listener::Tcp(listener, first) => {
            let listener = TcpListener::from_std(listener)?;
            let mut first = first.map(|first| {
                first
                    .set_nonblocking(true)
                    .and_then(|()| TcpStream::from_std(first))
            });
            loop {
                let stream = match first.take() {
                    Some(first) => first?,
                    None => accepted(|| listener.accept()).await.0,
                };
                // Answers are small, and are waited for.
                let _ = stream.set_nodelay(true);
                let (reader, writer) = stream.into_split();
                clients.spawn(Client::serve(reader, writer, shared.clone()));
                while clients.try_join_next().is_some() {}
            }
        }
    }
}

/// The next client. One that has gone before it was taken, and a lack of descriptors, pass.
pub(super) async fn accepted<T, F>(mut accept: impl FnMut() -> F) -> T
where
    F: Future<Output = std::io::Result<T>>,
{
    loop {
        match accept().await {
            Ok(client) => return client,
            Err(e) => tracing::warn!("a monitor client was not taken: {e}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// One client. It reads, asks, and writes in one task: one that does not read what it is sent waits
/// for itself alone, and loses the oldest events.
struct Client<W> {
    writer: W,
    session: Session,
    events: broadcast::Receiver<Arc<str>>,
    control: Arc<dyn Control>,
}

impl<W: AsyncWrite + Unpin> Client<W> {
    async fn serve(mut reader: impl AsyncRead + Unpin, writer: W, shared: Shared) {
        let Shared {
            control,
            events,
            mut ending,
        } = shared;
        let mut client = Self {
            writer,
            session: Session::default(),
            events: events.subscribe(),
            control,
        };
        let mut framing = Framing::default();
        let mut buffer = vec![0; 4096];
        if client.send(&super::json::line(&greeting())).await.is_err() {
            return;
        }
        loop {
            tokio::select! {
                biased;
                event = client.events.recv() => if client.pass(event).await.is_err() { return },
                read = reader.read(&mut buffer) => match read {
                    Ok(n @ 1..) => {
                        framing.push(&buffer[..n]);
                        while let Some(frame) = framing.next() {
                            if client.take(frame).await.is_err() {
                                return;
                            }
                        }
                    }
                    _ => return,
                },
                () = ended(&mut ending) => {
                    // What was emitted until now is still sent.
                    let _ = client.pass_all().await;
                    return;
                }
            }
        }
    }

    async fn take(&mut self, frame: Frame) -> std::io::Result<()> {
        let said = match frame {
            Frame::Value(value) => self.session.take(value),
            Frame::Error(desc) => Said::Answer(answer(Err(QmpError::generic(desc)), None)),
        };
        let answer = match said {
            Said::Answer(answer) => answer,
            Said::Ask(command, id) => {
                let control = Arc::clone(&self.control);
                let running = tokio::task::spawn_blocking(move || control.execute(command));
                let result = self.while_passing_events(running).await?;
                let panicked = || QmpError::generic("The command failed inside Baton; see its log");
                answer(result.unwrap_or_else(|_| Err(panicked())), id)
            }
        };
        self.send(&super::json::line(&answer)).await
    }

    /// Waits for a command. Events that it causes reach the client before its answer, as in QEMU.
    async fn while_passing_events<T>(
        &mut self,
        running: impl Future<Output = T>,
    ) -> std::io::Result<T> {
        tokio::pin!(running);
        let result = loop {
            tokio::select! {
                biased;
                result = &mut running => break result,
                event = self.events.recv() => self.pass(event).await?,
            }
        };
        self.pass_all().await?;
        Ok(result)
    }

    async fn pass(&mut self, event: Result<Arc<str>, RecvError>) -> std::io::Result<()> {
        match event {
            Ok(event) if self.session.hears_events() => self.send(&event).await,
            Ok(_) => Ok(()),
            Err(RecvError::Lagged(lost)) => {
                tracing::warn!("a monitor client does not read: it lost {lost} events");
                Ok(())
            }
            // The VM is gone, and the process with it soon.
            Err(RecvError::Closed) => Err(std::io::ErrorKind::BrokenPipe.into()),
        }
    }

    async fn pass_all(&mut self) -> std::io::Result<()> {
        loop {
            match self.events.try_recv() {
                Ok(event) => self.pass(Ok(event)).await?,
                Err(TryRecvError::Lagged(lost)) => self.pass(Err(RecvError::Lagged(lost))).await?,
                Err(TryRecvError::Empty | TryRecvError::Closed) => return Ok(()),
            }
        }
    }

    async fn send(&mut self, line: &str) -> std::io::Result<()> {
        self.writer.write_all(line.as_bytes()).await?;
        self.writer.flush().await
    }
}
