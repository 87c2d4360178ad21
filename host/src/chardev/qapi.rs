//! Character devices as QMP's commands name them (QEMU's qapi/char.json).

use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::Chardevs;
use super::config::{Chardev, ChardevAddress, ChardevBackend, ChardevSocket};
use crate::cli::chardev::{KINDS, ring_size, role, tcp};

/// `ChardevBackend`, as far as there is one here.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", content = "data", rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the names are QEMU's")]
pub enum BackendArgument {
    File(FileArgument),
    Pipe(PipeArgument),
    Socket(SocketArgument),
    Pty(PtyArgument),
    Null(CommonArgument),
    Stdio(StdioArgument),
    Ringbuf(RingbufArgument),
}

/// `ChardevCommon`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommonArgument {}

/// `ChardevFile`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileArgument {
    r#in: Option<PathBuf>,
    out: PathBuf,
    #[serde(default)]
    append: bool,
}

/// `ChardevHostdev`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PipeArgument {
    device: PathBuf,
}

/// `ChardevPty`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PtyArgument {
    path: Option<PathBuf>,
}

/// `ChardevStdio`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StdioArgument {
    signal: Option<bool>,
}

/// `ChardevRingbuf`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RingbufArgument {
    size: Option<i64>,
}

/// `ChardevSocket`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SocketArgument {
    addr: AddressArgument,
    server: Option<bool>,
    wait: Option<bool>,
    nodelay: Option<bool>,
    reconnect: Option<u32>,
    reconnect_ms: Option<u32>,
}

/// `SocketAddressLegacy`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", content = "data", rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the names are QEMU's")]
pub enum AddressArgument {
    Inet {
        host: String,
        port: String,
    },
    Unix {
        path: String,
        r#abstract: Option<bool>,
        tight: Option<bool>,
    },
}

/// `DataFormat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DataFormat {
    /// Text; what is no UTF-8 is replaced.
    #[default]
    Utf8,
    /// Base64, RFC 4648.
    Base64,
}

/// `ChardevReturn`.
#[derive(Debug, Serialize)]
pub struct ChardevReturn {
    /// The path of a new pseudo-terminal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pty: Option<String>,
}

/// `ChardevBackendInfo`.
#[derive(Debug, Serialize)]
pub struct ChardevBackendInfo {
    name: &'static str,
}

/// The command `query-chardev-backends`.
pub fn backends() -> Vec<ChardevBackendInfo> {
    KINDS
        .into_iter()
        .map(|name| ChardevBackendInfo { name })
        .collect()
}

/// The command `chardev-add`.
pub fn add(
    chardevs: &Chardevs,
    id: &str,
    backend: BackendArgument,
) -> Result<ChardevReturn, String> {
    let config = Chardev {
        id: id.parse()?,
        backend: checked(backend)?,
        mux: false,
        monitors: Vec::new(),
    };
    let pty = chardevs
        .add(&config)
        .map_err(|e| format!("Failed to add chardev '{id}': {e}"))?;
    Ok(ChardevReturn { pty })
}

fn checked(backend: BackendArgument) -> Result<ChardevBackend, String> {
    Ok(match backend {
        BackendArgument::File(file) => ChardevBackend::File {
            path: file.out,
            append: file.append,
            input: file.r#in,
        },
        BackendArgument::Pipe(pipe) => ChardevBackend::Pipe { path: pipe.device },
        BackendArgument::Pty(pty) => ChardevBackend::Pty { link: pty.path },
        BackendArgument::Null(_) => ChardevBackend::Null,
        BackendArgument::Stdio(stdio) => ChardevBackend::Stdio {
            signal: stdio.signal.unwrap_or(true),
        },
        BackendArgument::Ringbuf(ring) => ChardevBackend::Ringbuf {
            size: ring_size(
                ring.size
                    .map_or(64 << 10, |size| size.try_into().unwrap_or(0)),
            )?,
        },
        BackendArgument::Socket(socket) => ChardevBackend::Socket(checked_socket(socket)?),
    })
}

fn checked_socket(socket: SocketArgument) -> Result<ChardevSocket, String> {
    let address = match socket.addr {
        AddressArgument::Inet { host, port } => tcp(&host, &port)?,
        AddressArgument::Unix {
            path,
            r#abstract,
            tight,
        } => match r#abstract.unwrap_or(false) {
            true => ChardevAddress::Abstract {
                name: path,
                tight: tight.unwrap_or(true),
            },
            false => ChardevAddress::Unix(path.into()),
        },
    };
    let reconnect = match (socket.reconnect, socket.reconnect_ms) {
        (Some(_), Some(_)) => {
            return Err("'reconnect' and 'reconnect-ms' are mutually exclusive".to_owned());
        }
        (Some(seconds), None) => Some(u64::from(seconds) * 1000),
        (None, ms) => ms.map(u64::from),
    };
    // A server unless said otherwise, which waits for nobody: as in QEMU, and other than in -chardev.
    let server = socket.server.unwrap_or(true);
    Ok(ChardevSocket {
        role: role(server, socket.wait, reconnect, false)?,
        address,
        nodelay: socket.nodelay.unwrap_or(false),
    })
}

/// The command `ringbuf-read`.
pub fn ringbuf_read(
    chardevs: &Chardevs,
    device: &str,
    size: i64,
    format: DataFormat,
) -> Result<String, String> {
    let size = usize::try_from(size)
        .ok()
        .filter(|size| *size > 0)
        .ok_or("size must be greater than zero")?;
    let bytes = chardevs.ringbuf_read(device, size)?;
    Ok(match format {
        DataFormat::Utf8 => String::from_utf8_lossy(&bytes).into_owned(),
        DataFormat::Base64 => STANDARD.encode(&bytes),
    })
}

/// The command `ringbuf-write`.
pub fn ringbuf_write(
    chardevs: &Chardevs,
    device: &str,
    data: &str,
    format: DataFormat,
) -> Result<(), String> {
    let bytes = match format {
        DataFormat::Utf8 => data.as_bytes().to_vec(),
        DataFormat::Base64 => STANDARD
            .decode(data)
            .map_err(|e| format!("Base64 data '{data}' is invalid: {e}"))?,
    };
    chardevs.ringbuf_write(device, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chardev::SocketRole;
    use serde_json::{Value, json};

    fn read(backend: Value) -> Result<ChardevBackend, String> {
        checked(serde_json::from_value(backend).map_err(|e| e.to_string())?)
    }

    #[test]
    fn backends_are_those_of_the_command_line() {
        use crate::cli::chardev::parse;
        for (json, text) in [
            (json!({"type": "null", "data": {}}), "null,id=c"),
            (json!({"type": "pty", "data": {}}), "pty,id=c"),
            (json!({"type": "stdio", "data": {}}), "stdio,id=c"),
            (
                json!({"type": "ringbuf", "data": {"size": 64}}),
                "ringbuf,id=c,size=64",
            ),
            (
                json!({"type": "file", "data": {"out": "/o", "in": "/i", "append": true}}),
                "file,id=c,path=/o,input-path=/i,append=on",
            ),
            (
                json!({"type": "pipe", "data": {"device": "/p"}}),
                "pipe,id=c,path=/p",
            ),
            (
                json!({"type": "socket", "data": {
                    "addr": {"type": "unix", "data": {"path": "/s"}}}}),
                "socket,id=c,path=/s,server=on,wait=off",
            ),
            (
                json!({"type": "socket", "data": {"server": false, "reconnect": 2, "nodelay": true,
                    "addr": {"type": "inet", "data": {"host": "::1", "port": "44"}}}}),
                "socket,id=c,host=::1,port=44,reconnect=2,nodelay=on",
            ),
        ] {
            assert_eq!(read(json), Ok(parse(text).unwrap().backend), "{text}");
        }
        let unix = json!({"type": "unix", "data": {"path": "/s"}});
        let waits = json!({"type": "socket", "data": {"addr": unix, "wait": true}});
        let ChardevBackend::Socket(socket) = read(waits).unwrap() else {
            panic!("it is a socket")
        };
        assert_eq!(socket.role, SocketRole::Server { wait: true });
        for json in [
            json!({"type": "udp", "data": {}}),
            json!({"type": "null", "data": {"x": 1}}),
            json!({"type": "ringbuf", "data": {"size": 3}}),
            json!({"type": "socket", "data": {"addr": unix, "reconnect": 1}}),
        ] {
            read(json.clone()).expect_err(&json.to_string());
        }
    }

    #[test]
    fn a_ring_buffer_is_read_and_written_as_text_or_base64() {
        let chardevs = Chardevs::new().unwrap();
        let ring = json!({"type": "ringbuf", "data": {"size": 16}});
        add(&chardevs, "r", serde_json::from_value(ring).unwrap()).unwrap();
        let (utf8, base64) = (DataFormat::Utf8, DataFormat::Base64);
        ringbuf_write(&chardevs, "r", "/3g=", base64).unwrap();
        ringbuf_write(&chardevs, "r", "ü", utf8).unwrap();
        assert_eq!(ringbuf_read(&chardevs, "r", 2, utf8).unwrap(), "\u{fffd}x");
        assert_eq!(ringbuf_read(&chardevs, "r", 9, base64).unwrap(), "w7w=");
        let refused = ringbuf_write(&chardevs, "r", "?", base64).unwrap_err();
        assert!(
            refused.starts_with("Base64 data '?' is invalid"),
            "{refused}"
        );
        let refused = ringbuf_read(&chardevs, "r", 0, utf8).unwrap_err();
        assert_eq!(refused, "size must be greater than zero");
        let refused = add(&chardevs, "r", BackendArgument::Null(CommonArgument {}));
        assert_eq!(
            refused.unwrap_err(),
            "Failed to add chardev 'r': Chardev with id 'r' already exists"
        );
    }
}
