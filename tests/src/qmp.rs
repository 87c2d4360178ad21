//! A QMP client. Every wait has a deadline, and no event is lost while it waits for an answer.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Instant;

use crate::wait::PATIENCE;

/// A connection to a monitor that takes commands.
pub struct Qmp {
    output: Box<dyn Write + Send>,
    lines: Receiver<String>,
    /// Received, and not waited for yet.
    events: VecDeque<Value>,
    /// Ends the thread that reads.
    socket: Option<UnixStream>,
}

impl Qmp {
    /// Connects and leaves negotiation mode.
    ///
    /// # Errors
    /// When nobody listens, or who does is no QMP server.
    pub fn connect(socket: &Path) -> Result<Self> {
        let about = || format!("Cannot connect to the monitor {}", socket.display());
        let stream = UnixStream::connect(socket).with_context(about)?;
        let output = stream.try_clone().with_context(about)?;
        let input = stream.try_clone().with_context(about)?;
        let mut qmp = Self::over(input, output)?;
        qmp.socket = Some(stream);
        qmp.negotiate()?;
        Ok(qmp)
    }

    /// The same over any pair of streams, a process's standard ones for instance, still in
    /// negotiation mode.
    ///
    /// # Errors
    /// When no thread can be started to read from it.
    pub fn over(
        input: impl Read + Send + 'static,
        output: impl Write + Send + 'static,
    ) -> Result<Self> {
        let (sender, lines) = channel();
        std::thread::Builder::new()
            .name("qmp".into())
            .spawn(move || {
                for line in BufReader::new(input).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        return;
                    }
                }
            })
            .context("Cannot start a thread to read from the monitor")?;
        Ok(Self {
            output: Box::new(output),
            lines,
            events: VecDeque::new(),
            socket: None,
        })
    }

    /// Takes the greeting and leaves negotiation mode.
    ///
    /// # Errors
    /// When there is none.
    pub fn negotiate(&mut self) -> Result<()> {
        let deadline = deadline();
        // QEMU sends what happens between accept and greeting first.
        let greeting = loop {
            let message = self
                .read(deadline)
                .context("The monitor sent no greeting")?;
            if message.get("event").is_none() {
                break message;
            }
        };
        if greeting.get("QMP").is_none() {
            bail!("The monitor's greeting is not QMP: {greeting}");
        }
        self.execute("qmp_capabilities", &json!({}))?;
        Ok(())
    }

    /// Runs one command and gives what it returns.
    ///
    /// # Errors
    /// When it is refused, or not answered in time.
    pub fn execute(&mut self, name: &str, arguments: &Value) -> Result<Value> {
        self.send(name, arguments)?;
        match self.answer(name)? {
            Ok(value) => Ok(value),
            Err(reason) => bail!("{name} was refused: {reason}"),
        }
    }

    /// Runs a command that must be refused, and gives the reason.
    ///
    /// # Errors
    /// When it is not refused, or not answered in time.
    pub fn refusal(&mut self, name: &str, arguments: &Value) -> Result<String> {
        self.send(name, arguments)?;
        match self.answer(name)? {
            Ok(value) => bail!("{name} was not refused; it returned {value}"),
            Err(reason) => Ok(reason),
        }
    }

    /// Sends a command; [`Self::answer`] takes its answer.
    ///
    /// # Errors
    /// When the monitor is gone.
    pub fn send(&mut self, name: &str, arguments: &Value) -> Result<()> {
        let line = json!({ "execute": name, "arguments": arguments }).to_string() + "\n";
        self.send_line(&line, name)
    }

    /// Sends a line as it is.
    ///
    /// # Errors
    /// When the monitor is gone.
    pub fn send_line(&mut self, line: &str, what: &str) -> Result<()> {
        self.output
            .write_all(line.as_bytes())
            .and_then(|()| self.output.flush())
            .with_context(|| format!("Cannot send {what} to the monitor"))
    }

    /// The answer to the last command: what it returns, or why it was refused.
    ///
    /// # Errors
    /// When there is none in time.
    pub fn answer(&mut self, name: &str) -> Result<Result<Value, String>> {
        let end = deadline();
        loop {
            let mut line = self
                .read(end)
                .with_context(|| format!("The monitor did not answer {name}"))?;
            if let Some(value) = line.get_mut("return") {
                return Ok(Ok(value.take()));
            }
            if let Some(error) = line.get("error") {
                let reason = error["desc"].as_str().unwrap_or("no reason given");
                return Ok(Err(reason.to_owned()));
            }
            self.keep(line);
        }
    }

    /// Waits for an event, and gives its data. Each event is found once; those before it that have
    /// another name stay for later.
    ///
    /// # Errors
    /// When it does not come in time, or the VMM closes its monitor first.
    pub fn wait_event(&mut self, name: &str) -> Result<Value> {
        self.wait_event_with(name, |_| true)
    }

    /// The same for the first event of that name whose data is `wanted`; others of that name are
    /// dropped.
    ///
    /// # Errors
    /// As [`Self::wait_event`].
    pub fn wait_event_with(
        &mut self,
        name: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let end = deadline();
        loop {
            while let Some(at) = self.events.iter().position(|event| event["event"] == name) {
                let data = self.events.remove(at).map(|mut event| event["data"].take());
                if let Some(data) = data.filter(&wanted) {
                    return Ok(data);
                }
            }
            let line = self
                .read(end)
                .with_context(|| format!("The monitor did not send the event {name}"))?;
            self.keep(line);
        }
    }

    /// Drops the events that have come so far.
    pub fn forget_events(&mut self) {
        while let Ok(line) = self.lines.try_recv() {
            drop(line);
        }
        self.events.clear();
    }

    /// How many events of that name have come and were not waited for.
    pub fn events(&self, name: &str) -> usize {
        let named = |event: &&Value| event["event"] == name;
        self.events.iter().filter(named).count()
    }

    fn keep(&mut self, line: Value) {
        if line.get("event").is_some() {
            self.events.push_back(line);
        }
    }

    fn read(&mut self, end: Instant) -> Result<Value> {
        let left = end.saturating_duration_since(Instant::now());
        let line = match self.lines.recv_timeout(left) {
            Ok(line) => line,
            Err(RecvTimeoutError::Disconnected) => bail!("the VMM closed its monitor"),
            Err(RecvTimeoutError::Timeout) => {
                bail!("it sent nothing for {} s", PATIENCE.as_secs())
            }
        };
        serde_json::from_str(&line)
            .with_context(|| format!("The monitor sent what is not JSON: {line}"))
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        if let Some(socket) = &self.socket {
            // An error means that it is closed already.
            socket.shutdown(Shutdown::Both).ok();
        }
    }
}

fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// A client of a monitor that says all of `text` at once.
    fn client(text: &'static str) -> (Qmp, UnixStream) {
        let scratch = crate::scratch::Scratch::new().unwrap();
        let path = scratch.join("qmp.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream
                .write_all(b"{\"QMP\": {}}\n{\"return\": {}}\n")
                .unwrap();
            stream.write_all(text.as_bytes()).unwrap();
            stream
        });
        (Qmp::connect(&path).unwrap(), server.join().unwrap())
    }

    #[test]
    fn events_between_a_command_and_its_answer_are_kept() {
        let (mut qmp, _open) = client(concat!(
            "{\"event\": \"STOP\"}\n{\"return\": {\"status\": \"running\"}}\n",
            "{\"event\": \"MIGRATION\", \"data\": {\"status\": \"setup\"}}\n",
            "{\"event\": \"MIGRATION\", \"data\": {\"status\": \"failed\"}}\n",
        ));
        assert_eq!(
            qmp.execute("query-status", &json!({})).unwrap()["status"],
            "running"
        );
        let end = qmp
            .wait_event_with("MIGRATION", |data| data["status"] == "failed")
            .unwrap();
        assert_eq!(end["status"], "failed");
        qmp.wait_event("STOP").unwrap();
    }

    #[test]
    fn a_refusal_gives_the_reason() {
        let error = "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no such thing\"}}\n";
        let (mut qmp, _open) = client(error);
        let error = qmp.execute("nothing", &json!({})).unwrap_err().to_string();
        assert_eq!(error, "nothing was refused: no such thing");
    }

    #[test]
    fn a_monitor_that_is_closed_is_no_endless_wait() {
        let (mut qmp, open) = client("");
        drop(open);
        let error = format!("{:#}", qmp.wait_event("STOP").unwrap_err());
        assert!(error.ends_with("the VMM closed its monitor"), "{error}");
    }
}
