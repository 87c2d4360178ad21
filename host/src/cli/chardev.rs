//! `-chardev`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};

use super::nearest::hint;
use super::number;
use super::pairs::Pairs;
use crate::chardev::{
    Chardev, ChardevAddress, ChardevBackend, ChardevSocket, RINGBUF_MAX, SocketRole,
};

/// The kinds of character devices.
pub(crate) const KINDS: [&str; 7] = ["file", "null", "pipe", "pty", "ringbuf", "socket", "stdio"];

/// What a ring buffer holds if nothing is said, in bytes; as in QEMU.
const RINGBUF: u64 = 64 << 10;

/// One value of `-chardev`: a list of properties, or JSON.
pub(crate) fn parse(text: &str) -> Result<Chardev, String> {
    let mut pairs = Pairs::parse_or_json_with_flags(text, "backend")?;
    let name = pairs.require("backend")?;
    let id = pairs.require("id")?.parse()?;
    let mux = pairs.switch("mux")?.unwrap_or(false);
    let backend = backend(&name, &mut pairs)?;
    pairs.finish("chardev.")?;
    let monitors = Vec::new();
    Ok(Chardev {
        id,
        backend,
        mux,
        monitors,
    })
}

/// What [`parse`] reads as this one; the monitors on it are another option's.
pub(crate) fn option(chardev: &Chardev) -> Value {
    let mut pairs = Map::new();
    let mut say = |key: &str, value: Value| pairs.insert(key.to_owned(), value);
    let text = |path: &Path| Value::from(path.to_string_lossy());
    say("backend", chardev.backend.name().into());
    say("id", chardev.id.as_str().into());
    say("mux", chardev.mux.into());
    match &chardev.backend {
        ChardevBackend::Null | ChardevBackend::Pty { link: None } => {}
        ChardevBackend::Stdio { signal } => {
            say("signal", (*signal).into());
        }
        ChardevBackend::File {
            path,
            append,
            input,
        } => {
            say("path", text(path));
            say("append", (*append).into());
            if let Some(input) = input {
                say("input-path", text(input));
            }
        }
        ChardevBackend::Pipe { path } | ChardevBackend::Pty { link: Some(path) } => {
            say("path", text(path));
        }
        ChardevBackend::Ringbuf { size } => {
            say("size", (*size).into());
        }
        ChardevBackend::Socket(socket) => {
            match &socket.address {
                ChardevAddress::Unix(path) => {
                    say("path", text(path));
                }
                ChardevAddress::Abstract { name, tight } => {
                    say("path", name.as_str().into());
                    say("abstract", true.into());
                    say("tight", (*tight).into());
                }
                ChardevAddress::Tcp { host, port } => {
                    say("host", host.as_str().into());
                    say("port", port.to_string().into());
                }
            }
            say("nodelay", socket.nodelay.into());
            match socket.role {
                SocketRole::Server { wait } => {
                    say("server", true.into());
                    say("wait", wait.into());
                }
                SocketRole::Client { reconnect } => {
                    let ms = reconnect.map(|time| time.as_millis().to_string());
                    if let Some(ms) = ms {
                        say("reconnect-ms", ms.into());
                    }
                }
            }
        }
    }
    pairs.into()
}

fn backend(name: &str, pairs: &mut Pairs) -> Result<ChardevBackend, String> {
    Ok(match name {
        "null" => ChardevBackend::Null,
        "stdio" => ChardevBackend::Stdio {
            signal: pairs.switch("signal")?.unwrap_or(true),
        },
        "file" => ChardevBackend::File {
            path: pairs.require("path")?.into(),
            append: pairs.switch("append")?.unwrap_or(false),
            input: pairs.take("input-path").map(PathBuf::from),
        },
        "pipe" => ChardevBackend::Pipe {
            path: pairs.require("path")?.into(),
        },
        "pty" => ChardevBackend::Pty {
            link: pairs.take("path").map(PathBuf::from),
        },
        "ringbuf" => ChardevBackend::Ringbuf {
            size: ring_size(pairs.size("size")?.unwrap_or(RINGBUF))?,
        },
        "socket" => ChardevBackend::Socket(socket(pairs)?),
        other => {
            return Err(format!(
                "'{other}' is not a valid char driver name; use one of {}{}",
                KINDS.join(", "),
                hint(other, KINDS)
            ));
        }
    })
}

/// Checks the size of a ring buffer.
pub(crate) fn ring_size(size: u64) -> Result<usize, String> {
    let most = RINGBUF_MAX;
    match usize::try_from(size) {
        Ok(size) if size.is_power_of_two() && size <= most => Ok(size),
        Ok(size) if size <= most => Err("size of ringbuf chardev must be power of two".to_owned()),
        _ => Err(format!("size of ringbuf chardev must be at most {most}")),
    }
}

fn socket(pairs: &mut Pairs) -> Result<ChardevSocket, String> {
    let address = match (pairs.take("path"), pairs.take("host"), pairs.take("port")) {
        (Some(path), None, None) => unix(path, pairs)?,
        (Some(_), ..) => {
            return Err("Parameters 'path' and 'host' or 'port' exclude each other".to_owned());
        }
        (None, host, Some(port)) => tcp(&host.unwrap_or_default(), &port)?,
        (None, Some(_), None) => return Err("chardev: socket: no port given".to_owned()),
        (None, None, None) => {
            return Err("chardev: socket: no path or host and port given".to_owned());
        }
    };
    socket_at(address, pairs)
}

fn unix(path: String, pairs: &mut Pairs) -> Result<ChardevAddress, String> {
    if path.is_empty() {
        return Err("The socket's path is missing".to_owned());
    }
    let tight = pairs.switch("tight")?;
    match (pairs.switch("abstract")?.unwrap_or(false), tight) {
        (true, tight) => Ok(ChardevAddress::Abstract {
            name: path,
            tight: tight.unwrap_or(true),
        }),
        (false, None) => Ok(ChardevAddress::Unix(path.into())),
        (false, Some(_)) => Err("Parameter 'tight' is only for abstract=on".to_owned()),
    }
}

/// A TCP port, which is a number.
pub(crate) fn tcp(host: &str, port: &str) -> Result<ChardevAddress, String> {
    let port = number::digits(port, 10)
        .and_then(|port| u16::try_from(port).ok())
        .filter(|port| *port > 0)
        .ok_or_else(|| format!("Port '{port}' is not a number from 1 to 65535"))?;
    Ok(ChardevAddress::Tcp {
        host: host.trim_matches(['[', ']']).to_owned(),
        port,
    })
}

/// What else is said of a socket.
fn socket_at(address: ChardevAddress, pairs: &mut Pairs) -> Result<ChardevSocket, String> {
    let server = pairs.switch("server")?.unwrap_or(false);
    let wait = pairs.switch("wait")?;
    let nodelay = match (pairs.switch("nodelay")?, pairs.switch("delay")?) {
        // `nodelay` alone is read as `delay=off`.
        (nodelay, None) => nodelay.unwrap_or(false),
        (None, Some(delay)) => !delay,
        (Some(_), Some(_)) => {
            return Err("Parameters 'delay' and 'nodelay' exclude each other".to_owned());
        }
    };
    let whole = |text: Option<String>, key: &str, ms: u64| {
        text.map(|text| {
            number::digits(&text, 10)
                .and_then(|n| n.checked_mul(ms))
                .filter(|ms| *ms <= u64::from(u32::MAX))
                .ok_or_else(|| format!("Parameter '{key}' expects a number"))
        })
        .transpose()
    };
    let seconds = whole(pairs.take("reconnect"), "reconnect", 1000)?;
    let reconnect = match (
        seconds,
        whole(pairs.take("reconnect-ms"), "reconnect-ms", 1)?,
    ) {
        (Some(_), Some(_)) => {
            return Err("'reconnect' and 'reconnect-ms' are mutually exclusive".to_owned());
        }
        (seconds, ms) => seconds.or(ms),
    };
    Ok(ChardevSocket {
        role: role(server, wait, reconnect, true)?,
        address,
        nodelay,
    })
}

/// What a socket does, from what was said; `waits` is meant if nothing is said of waiting. Times are
/// milliseconds; 0 is never, as in QEMU.
pub(crate) fn role(
    server: bool,
    wait: Option<bool>,
    reconnect: Option<u64>,
    waits: bool,
) -> Result<SocketRole, String> {
    // QEMU's texts.
    match (server, wait, reconnect) {
        (true, _, Some(_)) => {
            Err("'reconnect' option is incompatible with socket in server listen mode".to_owned())
        }
        (true, wait, None) => Ok(SocketRole::Server {
            wait: wait.unwrap_or(waits),
        }),
        (false, Some(_), _) => {
            Err("'wait' option is incompatible with socket in client connect mode".to_owned())
        }
        (false, None, reconnect) => Ok(SocketRole::Client {
            reconnect: reconnect.filter(|ms| *ms > 0).map(Duration::from_millis),
        }),
    }
}

/// The short form of a character device, as `-serial` takes it; nothing if it is none.
pub(super) fn short(text: &str) -> Result<Option<ChardevBackend>, String> {
    let missing = |what: &str| Err(format!("The {what} is missing after '{text}'"));
    let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
    let path = || PathBuf::from(rest);
    Ok(Some(match (kind, rest) {
        ("null", "") => ChardevBackend::Null,
        ("stdio", "") => ChardevBackend::Stdio { signal: true },
        ("pty", "") => ChardevBackend::Pty { link: None },
        ("pty", _) => ChardevBackend::Pty { link: Some(path()) },
        ("file", "") => return missing("file's path"),
        // The path is all that follows, commas included, as in QEMU.
        ("file", _) => ChardevBackend::File {
            path: path(),
            append: false,
            input: None,
        },
        ("pipe", "") => return missing("pipe's path"),
        ("pipe", _) => ChardevBackend::Pipe { path: path() },
        ("unix" | "tcp", "") => return missing("socket's address"),
        ("unix" | "tcp", _) => {
            let (place, options) = super::qmp::split_at_comma(rest);
            let mut pairs = Pairs::parse_with_flags(options)?;
            let address = match kind {
                "unix" => unix(place, &mut pairs)?,
                _ => {
                    let (host, port) = place
                        .rsplit_once(':')
                        .ok_or("The port is missing; write tcp:HOST:PORT")?;
                    tcp(host, port)?
                }
            };
            let socket = socket_at(address, &mut pairs)?;
            pairs.finish("socket.")?;
            ChardevBackend::Socket(socket)
        }
        _ => return Ok(None),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(text: &str) -> Result<ChardevSocket, String> {
        match parse(&format!("socket,id=c,{text}"))?.backend {
            ChardevBackend::Socket(socket) => Ok(socket),
            other => panic!("{other:?}"),
        }
    }

    fn unix(path: &str, role: SocketRole) -> ChardevSocket {
        ChardevSocket {
            address: ChardevAddress::Unix(path.into()),
            role,
            nodelay: false,
        }
    }

    #[test]
    fn character_devices_are_what_qemu_calls_them() {
        for (text, backend) in [
            ("null,id=c", ChardevBackend::Null),
            ("stdio,id=c", ChardevBackend::Stdio { signal: true }),
            (
                "stdio,id=c,signal=off",
                ChardevBackend::Stdio { signal: false },
            ),
            (
                "file,id=c,path=/a,append=on",
                ChardevBackend::File {
                    path: "/a".into(),
                    append: true,
                    input: None,
                },
            ),
            (
                "file,id=c,path=/a,input-path=/b",
                ChardevBackend::File {
                    path: "/a".into(),
                    append: false,
                    input: Some("/b".into()),
                },
            ),
            (
                "pipe,id=c,path=/p",
                ChardevBackend::Pipe { path: "/p".into() },
            ),
            ("pty,id=c", ChardevBackend::Pty { link: None }),
            (
                "pty,id=c,path=/tty",
                ChardevBackend::Pty {
                    link: Some("/tty".into()),
                },
            ),
            ("ringbuf,id=c", ChardevBackend::Ringbuf { size: 65536 }),
            (
                "ringbuf,id=c,size=1K",
                ChardevBackend::Ringbuf { size: 1024 },
            ),
            (
                r#"{"backend": "ringbuf", "id": "c", "size": 2048}"#,
                ChardevBackend::Ringbuf { size: 2048 },
            ),
        ] {
            let chardev = parse(text).unwrap();
            assert_eq!((chardev.id.as_str(), chardev.backend), ("c", backend));
            assert!(!chardev.mux);
        }
        assert!(parse("stdio,mux=on,id=c").unwrap().mux);
    }

    #[test]
    fn what_there_is_can_be_said_again() {
        for text in [
            "null,id=c",
            "null,id=c,mux=on",
            "stdio,id=c,signal=off",
            "file,id=c,path=/a,,b,append=on,input-path=/b",
            "pipe,id=c,path=/p",
            "pty,id=c",
            "pty,id=c,path=/tty",
            "ringbuf,id=c,size=1K",
            "socket,id=c,path=/s,server=on,wait=off",
            "socket,id=c,path=n,abstract=on,tight=off,reconnect=2",
            "socket,id=c,host=::1,port=44,nodelay=on",
            "socket,id=c,host=,port=44,server=on",
        ] {
            let chardev = parse(text).unwrap();
            let said = option(&chardev).to_string();
            assert_eq!(parse(&said), Ok(chardev), "{said}");
        }
    }

    #[test]
    fn sockets_listen_or_connect() {
        let server = |wait| SocketRole::Server { wait };
        let client = |ms: Option<u64>| SocketRole::Client {
            reconnect: ms.map(Duration::from_millis),
        };
        for (text, want) in [
            ("path=/s,server=on", unix("/s", server(true))),
            ("path=/s,server,nowait", unix("/s", server(false))),
            ("path=/s,server=on,wait=off", unix("/s", server(false))),
            ("path=/s", unix("/s", client(None))),
            ("path=/s,reconnect=2", unix("/s", client(Some(2000)))),
            ("path=/s,reconnect-ms=5", unix("/s", client(Some(5)))),
            ("path=/s,reconnect-ms=0", unix("/s", client(None))),
        ] {
            assert_eq!(socket(text), Ok(want), "{text}");
        }
        for text in ["nodelay", "nodelay=on", "delay=off"] {
            let tcp = socket(&format!("host=::1,port=44,server=on,wait=off,{text}")).unwrap();
            let host = "::1".to_owned();
            assert_eq!(tcp.address, ChardevAddress::Tcp { host, port: 44 });
            assert!(tcp.nodelay);
        }
        let tight = |text: &str| socket(text).unwrap().address.to_string();
        assert_eq!(tight("path=n,abstract=on"), "unix:n,abstract=on,tight=on");
        assert_eq!(tight("path=n,abstract=on,tight=off"), "unix:n,abstract=on");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (text, reason) in [
            (
                "ptty,id=c",
                "'ptty' is not a valid char driver name; use one of file, null, pipe, pty, \
                 ringbuf, socket, stdio; did you mean 'pty'?",
            ),
            ("null", "Parameter 'id' is missing"),
            ("file,id=c", "Parameter 'path' is missing"),
            ("null,id=c,path=x", "Property 'chardev.path' not found"),
            (
                "socket,id=c,telnet=on,port=1",
                "Property 'chardev.telnet' not found",
            ),
            (
                "ringbuf,id=c,size=1000",
                "size of ringbuf chardev must be power of two",
            ),
            (
                "ringbuf,id=c,size=1G",
                "size of ringbuf chardev must be at most 16777216",
            ),
            (
                "socket,id=c",
                "chardev: socket: no path or host and port given",
            ),
            ("socket,id=c,host=a", "chardev: socket: no port given"),
            (
                "socket,id=c,path=a,port=1",
                "Parameters 'path' and 'host' or 'port' exclude each other",
            ),
            (
                "socket,id=c,port=0",
                "Port '0' is not a number from 1 to 65535",
            ),
            (
                "socket,id=c,path=a,tight=on",
                "Parameter 'tight' is only for abstract=on",
            ),
            (
                "socket,id=c,path=a,wait=on",
                "'wait' option is incompatible with socket in client connect mode",
            ),
            (
                "socket,id=c,path=a,server=on,reconnect-ms=1",
                "'reconnect' option is incompatible with socket in server listen mode",
            ),
            (
                "socket,id=c,path=a,reconnect=1,reconnect-ms=1",
                "'reconnect' and 'reconnect-ms' are mutually exclusive",
            ),
            (
                "socket,id=c,path=a,reconnect-ms=soon",
                "Parameter 'reconnect-ms' expects a number",
            ),
        ] {
            assert_eq!(parse(text).unwrap_err(), reason);
        }
    }
}
