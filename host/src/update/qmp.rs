//! A QMP client: one command at a time, every wait with an end.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// The longest line that is read, in bytes.
const LONGEST: u64 = 64 << 20;

/// Where a monitor listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A UNIX socket.
    Unix(PathBuf),
    /// Host and port.
    Tcp(String),
}

impl std::str::FromStr for Address {
    type Err = String;

    /// `PATH`, `unix:PATH` or `tcp:HOST:PORT`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("tcp", at)) if at.contains(':') => Ok(Self::Tcp(at.to_owned())),
            Some(("tcp", _)) => Err("the port is missing; write tcp:HOST:PORT".into()),
            Some(("unix", "")) | None if text.is_empty() || text == "unix:" => {
                Err("the socket's path is missing".into())
            }
            Some(("unix", path)) => Ok(Self::Unix(path.into())),
            _ => Ok(Self::Unix(text.into())),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Tcp(at) => write!(f, "tcp:{at}"),
        }
    }
}

impl Address {
    /// The folder of the socket, if it has one.
    pub fn folder(&self) -> Option<PathBuf> {
        match self {
            Self::Unix(path) => std::path::absolute(path)
                .ok()
                .and_then(|path| path.parent().map(Path::to_owned)),
            Self::Tcp(_) => None,
        }
    }
}

/// Why a command has no result.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The monitor refuses.
    #[error("{0}")]
    Refused(String),
    /// The command is not known: the process is no Baton, or an older one.
    #[error("{0}")]
    Unknown(String),
    /// The connection is of no use any more.
    #[error("the monitor at {address} {reason}")]
    Lost {
        /// Where it was.
        address: String,
        /// What happened.
        reason: String,
    },
}

enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    fn set_patience(&self, read: Duration) -> io::Result<()> {
        // Zero would be for ever.
        let read = Some(read.max(Duration::from_millis(1)));
        match self {
            Self::Unix(stream) => stream
                .set_read_timeout(read)
                .and_then(|()| stream.set_write_timeout(read)),
            Self::Tcp(stream) => stream
                .set_read_timeout(read)
                .and_then(|()| stream.set_write_timeout(read)),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(buffer),
            Self::Tcp(stream) => stream.read(buffer),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // An error means that it is closed already.
        let _ = match self {
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
        };
    }
}

/// A connection that takes commands.
pub struct Client {
    stream: BufReader<Stream>,
    address: String,
    patience: Duration,
    /// Of a line that is not whole yet.
    begun: Vec<u8>,
}

impl Client {
    /// Connects and leaves negotiation mode. Every answer may take as long as `patience`.
    pub fn connect(address: &Address, patience: Duration) -> Result<Self, QmpError> {
        let lost = |reason: String| QmpError::Lost {
            address: address.to_string(),
            reason,
        };
        let cannot = |e: io::Error| lost(format!("cannot be connected to: {e}"));
        let stream = match address {
            Address::Unix(path) => Stream::Unix(UnixStream::connect(path).map_err(cannot)?),
            Address::Tcp(at) => Stream::Tcp(TcpStream::connect(at).map_err(cannot)?),
        };
        let mut client = Self {
            stream: BufReader::new(stream),
            address: address.to_string(),
            patience,
            begun: Vec::new(),
        };
        let end = Instant::now() + patience;
        // QEMU sends what happens between accept and greeting first.
        loop {
            let message = client.read(end)?;
            if message.get("QMP").is_some() {
                break;
            }
            if message.get("event").is_none() {
                return Err(lost("does not greet as QMP does".into()));
            }
        }
        client.execute("qmp_capabilities", &json!({}))?;
        Ok(client)
    }

    /// Runs one command.
    pub fn execute(&mut self, name: &str, arguments: &Value) -> Result<Value, QmpError> {
        let line = json!({ "execute": name, "arguments": arguments }).to_string() + "\n";
        let end = Instant::now() + self.patience;
        let sent = self
            .stream
            .get_ref()
            .set_patience(self.patience)
            .and_then(|()| match self.stream.get_mut() {
                Stream::Unix(stream) => stream.write_all(line.as_bytes()),
                Stream::Tcp(stream) => stream.write_all(line.as_bytes()),
            });
        sent.map_err(|e| self.lost(format!("takes no command: {e}")))?;
        loop {
            let mut answer = self.read(end)?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                let reason = error["desc"]
                    .as_str()
                    .unwrap_or("no reason given")
                    .to_owned();
                return Err(match error["class"].as_str() {
                    Some("CommandNotFound") => QmpError::Unknown(reason),
                    _ => QmpError::Refused(reason),
                });
            }
        }
    }

    fn lost(&self, reason: impl Into<String>) -> QmpError {
        QmpError::Lost {
            address: self.address.clone(),
            reason: reason.into(),
        }
    }

    fn read(&mut self, end: Instant) -> Result<Value, QmpError> {
        while !self.begun.ends_with(b"\n") {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let waited = self.patience.as_secs();
                return Err(self.lost(format!("has not answered for {waited} s")));
            }
            let room = LONGEST.saturating_sub(self.begun.len() as u64);
            if room == 0 {
                return Err(self.lost("sends lines without an end"));
            }
            let patience = self.stream.get_ref().set_patience(left);
            let read = patience.and_then(|()| {
                (&mut self.stream)
                    .take(room)
                    .read_until(b'\n', &mut self.begun)
            });
            match read {
                Ok(0) => return Err(self.lost("was closed")),
                Ok(_) => {}
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(e) => return Err(self.lost(format!("cannot be read from: {e}"))),
            }
        }
        let line = std::mem::take(&mut self.begun);
        serde_json::from_slice(&line).map_err(|_| self.lost("sends what is not JSON"))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// A client of a monitor that says `text`, and then nothing until the thread ends.
    fn client(name: &str, text: &'static [u8], patience: u64) -> Result<Client, QmpError> {
        let path = std::env::temp_dir().join(format!("baton-up-{}-{name}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let hello = b"{\"QMP\": {}}\n{\"return\": {}}\n";
            stream
                .write_all(hello)
                .and_then(|()| stream.write_all(text))
                .unwrap();
            let _ = io::copy(&mut stream, &mut io::sink());
        });
        let client = Client::connect(
            &Address::Unix(path.clone()),
            Duration::from_millis(patience),
        );
        std::fs::remove_file(&path).unwrap();
        client
    }

    #[test]
    fn events_before_an_answer_are_passed_over_and_an_error_gives_its_text() {
        let said = b"{\"event\": \"STOP\"}\n{\"return\": 3}\n{\"error\": {\"desc\": \"no\"}}\n";
        let mut client = client("answers", said, 20_000).unwrap();
        assert_eq!(client.execute("a", &json!({})).unwrap(), 3);
        assert_eq!(
            client.execute("b", &json!({})).unwrap_err().to_string(),
            "no"
        );
    }

    #[test]
    fn a_monitor_that_says_half_or_nothing_is_not_waited_for_long() {
        let mut client = client("half", b"{\"ret", 100).unwrap();
        let error = client.execute("a", &json!({})).unwrap_err().to_string();
        assert!(error.contains("has not answered"), "{error}");
    }

    #[test]
    fn what_is_no_json_is_named() {
        let mut client = client("junk", b"\xff\xfe\n", 20_000).unwrap();
        let error = client.execute("a", &json!({})).unwrap_err().to_string();
        assert!(error.ends_with("sends what is not JSON"), "{error}");
    }

    #[test]
    fn a_monitors_address_is_a_path_or_as_qmp_has_it() {
        for (text, address) in [
            ("vm.sock", Ok(Address::Unix("vm.sock".into()))),
            ("unix:/run/a:b", Ok(Address::Unix("/run/a:b".into()))),
            ("./a:b", Ok(Address::Unix("./a:b".into()))),
            ("tcp:localhost:1", Ok(Address::Tcp("localhost:1".into()))),
            (
                "tcp:1",
                Err("the port is missing; write tcp:HOST:PORT".into()),
            ),
            ("", Err("the socket's path is missing".into())),
            ("unix:", Err("the socket's path is missing".into())),
        ] {
            assert_eq!(text.parse::<Address>(), address, "{text}");
        }
    }
}
