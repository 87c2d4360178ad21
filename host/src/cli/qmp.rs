//! `-qmp` and `-monitor`.

use super::number;
use super::pairs::Pairs;
use crate::monitor::{MonitorAddress, MonitorMode, MonitorOption};

/// One value of `-qmp`.
pub(super) fn qmp(text: &str) -> Result<MonitorOption, String> {
    let address = parse(text)?;
    let mode = MonitorMode::Control;
    Ok(MonitorOption { address, mode })
}

/// One value of `-monitor`; `none` is none.
pub(super) fn human(text: &str) -> Result<Option<MonitorOption>, String> {
    if text == "none" {
        return Ok(None);
    }
    let address = parse(text)?;
    let mode = MonitorMode::Readline;
    Ok(Some(MonitorOption { address, mode }))
}

fn parse(text: &str) -> Result<MonitorAddress, String> {
    let unknown = || {
        format!(
            "Monitor at '{text}' is not supported; use unix:PATH,server=on,wait=off or \
             tcp:HOST:PORT,server=on,wait=off or fd:NAME,server=on,wait=off or stdio"
        )
    };
    if text == "stdio" {
        return Ok(MonitorAddress::Stdio);
    }
    let (protocol, rest) = text.split_once(':').ok_or_else(unknown)?;
    let (place, options) = split_at_comma(rest);
    let address = match protocol {
        "unix" if place.is_empty() => return Err("The socket's path is missing".to_owned()),
        "unix" => MonitorAddress::Unix {
            path: place.into(),
            wait: waits(options)?,
        },
        "fd" if place.is_empty() => return Err("The descriptor's name is missing".to_owned()),
        "fd" => MonitorAddress::Inherited {
            name: place,
            wait: waits(options)?,
        },
        "tcp" => {
            let (host, port) = place
                .rsplit_once(':')
                .ok_or("The port is missing; write tcp:HOST:PORT")?;
            let port = number::digits(port, 10)
                .and_then(|port| u16::try_from(port).ok())
                .filter(|port| *port > 0)
                .ok_or_else(|| format!("Port '{port}' is not a number from 1 to 65535"))?;
            MonitorAddress::Tcp {
                host: host.trim_matches(['[', ']']).to_owned(),
                port,
                wait: waits(options)?,
            }
        }
        _ => return Err(unknown()),
    };
    Ok(address)
}

/// The text up to a single comma, with `,,` in it made one, and what follows.
pub(super) fn split_at_comma(text: &str) -> (String, &str) {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match (bytes[at], bytes.get(at + 1)) {
            (b',', Some(b',')) => at += 2,
            (b',', _) => return (text[..at].replace(",,", ","), &text[at + 1..]),
            _ => at += 1,
        }
    }
    (text.replace(",,", ","), "")
}

/// Whether to wait for a client, from the options of a socket, which must be a server.
fn waits(options: &str) -> Result<bool, String> {
    let mut pairs = Pairs::parse_with_flags(options)?;
    let server = pairs.switch("server")?.unwrap_or(false);
    let wait = pairs.switch("wait")?;
    pairs.finish("socket.")?;
    match server {
        true => Ok(wait.unwrap_or(true)),
        false => Err("A monitor does not connect to anyone; add server=on".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unix(path: &str, wait: bool) -> MonitorAddress {
        MonitorAddress::Unix {
            path: path.into(),
            wait,
        }
    }

    #[test]
    fn a_monitor_listens_in_old_and_new_spelling() {
        for (text, address) in [
            ("stdio", MonitorAddress::Stdio),
            (
                "unix:/run/a.sock,server=on,wait=off",
                unix("/run/a.sock", false),
            ),
            ("unix:/run/a.sock,server,nowait", unix("/run/a.sock", false)),
            ("unix:a:b,,c,server=on", unix("a:b,c", true)),
            (
                "fd:qmp,server=on,wait=off",
                MonitorAddress::Inherited {
                    name: "qmp".into(),
                    wait: false,
                },
            ),
            (
                "tcp:localhost:4444,server=on,wait=off",
                MonitorAddress::Tcp {
                    host: "localhost".into(),
                    port: 4444,
                    wait: false,
                },
            ),
            (
                "tcp:[::1]:4444,server=on,wait=on",
                MonitorAddress::Tcp {
                    host: "::1".into(),
                    port: 4444,
                    wait: true,
                },
            ),
        ] {
            assert_eq!(parse(text), Ok(address), "{text}");
        }
    }

    #[test]
    fn other_monitors_are_refused() {
        for (text, reason) in [
            (
                "pty",
                "Monitor at 'pty' is not supported; use unix:PATH,server=on,wait=off or \
                 tcp:HOST:PORT,server=on,wait=off or fd:NAME,server=on,wait=off or stdio",
            ),
            (
                "unix:a",
                "A monitor does not connect to anyone; add server=on",
            ),
            ("unix:,server=on", "The socket's path is missing"),
            (
                "tcp:4444,server=on",
                "The port is missing; write tcp:HOST:PORT",
            ),
            (
                "tcp:a:0,server=on",
                "Port '0' is not a number from 1 to 65535",
            ),
            (
                "unix:a,server=on,wiat=off",
                "Property 'socket.wiat' not found; did you mean 'wait'?",
            ),
            (
                "unix:a,server=1",
                "Parameter 'server' expects 'on' or 'off'",
            ),
        ] {
            assert_eq!(parse(text).unwrap_err(), reason, "{text}");
        }
    }

    #[test]
    fn both_monitors_listen_at_the_same_kinds_of_places() {
        let option = |mode| MonitorOption {
            address: unix("a", false),
            mode,
        };
        let text = "unix:a,server=on,wait=off";
        assert_eq!(qmp(text), Ok(option(MonitorMode::Control)));
        assert_eq!(human(text), Ok(Some(option(MonitorMode::Readline))));
        assert_eq!(human("none"), Ok(None));
        assert!(qmp("none").is_err());
    }
}
