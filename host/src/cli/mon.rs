//! `-mon`, and monitors on character devices by other names.

use super::chardev;
use super::error::CliError;
use super::id::Id;
use super::pairs::Pairs;
use super::qmp;
use super::said::Said;
use crate::chardev::{Chardev, ChardevAddress, ChardevBackend, SocketRole};
use crate::monitor::{MonitorAddress, MonitorMode, MonitorOption};

/// A monitor on a character device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mon {
    chardev: Id,
    mode: MonitorMode,
}

impl Mon {
    /// One value of `-mon`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut pairs = Pairs::parse(text, Some("chardev"))?;
        let chardev = pairs.require("chardev")?.parse()?;
        let mode = match pairs.take("mode").as_deref() {
            None | Some("readline") => MonitorMode::Readline,
            Some("control") => MonitorMode::Control,
            Some(other) => {
                return Err(format!(
                    "unknown monitor mode \"{other}\"; use readline or control"
                ));
            }
        };
        // A name for `query-...` that there is none of.
        pairs.take("id").map(|id| id.parse::<Id>()).transpose()?;
        if pairs.switch("pretty")? == Some(true) {
            return Err(match mode {
                MonitorMode::Readline => "'pretty' is not compatible with HMP monitors".to_owned(),
                MonitorMode::Control => {
                    "Parameter 'pretty' can only be off; have the client lay out what it gets"
                        .to_owned()
                }
            });
        }
        pairs.finish("mon.")?;
        Ok(Self { chardev, mode })
    }

    /// A value of `-monitor` or `-qmp` that leads to a character device, which may be made for it as
    /// the monitor of this number; nothing if it leads elsewhere.
    pub(super) fn short(
        text: &str,
        mode: MonitorMode,
        number: usize,
    ) -> Result<Option<(Self, Option<Chardev>)>, String> {
        if let Some(id) = text.strip_prefix("chardev:") {
            let chardev = id.parse()?;
            return Ok(Some((Self { chardev, mode }, None)));
        }
        let (text, mux) = match text.strip_prefix("mon:") {
            Some(text) => (text, true),
            None => (text, false),
        };
        // What a monitor does not lead to by itself.
        let known = text == "null" || text == "pty" || text.starts_with("pty:");
        let Some(backend) = chardev::short(text)?.filter(|_| mux || known) else {
            return Ok(None);
        };
        // QEMU's name.
        let id: Id = format!("compat_monitor{number}").parse()?;
        let made = Chardev {
            id: id.clone(),
            backend,
            mux,
            monitors: Vec::new(),
        };
        let chardev = id;
        Ok(Some((Self { chardev, mode }, Some(made))))
    }

    /// Puts it onto its character device; one that can listen by itself takes the character device's
    /// place, so that it has more than one client at a time and takes descriptors from them.
    pub(super) fn place(
        self,
        origin: &str,
        chardevs: &mut Vec<Chardev>,
        monitors: &mut Vec<MonitorOption>,
    ) -> Result<(), CliError> {
        let Self { chardev: id, mode } = self;
        let Some(at) = chardevs.iter().position(|chardev| chardev.id == id) else {
            let reason = format!("chardev \"{id}\" not found; add a -chardev with that id");
            return Err(CliError::new(origin, reason));
        };
        if chardevs[at].users_max() == 0 {
            let reason = format!("chardev \"{id}\" is in use; say mux=on, or give it another");
            return Err(CliError::new(origin, reason));
        }
        match alone(&chardevs[at]) {
            Some(address) => {
                chardevs.remove(at);
                monitors.push(MonitorOption { address, mode });
            }
            None => chardevs[at].monitors.push(mode),
        }
        Ok(())
    }
}

/// Monitors that listen by themselves, and those that do on character devices, with what to call them in
/// errors.
type Monitors = (Vec<MonitorOption>, Vec<(Mon, String)>);

/// The monitors of `-qmp`, `-monitor` and `-mon`. Character devices may be made for them.
pub(super) fn monitors(said: &Said, chardevs: &mut Vec<Chardev>) -> Result<Monitors, CliError> {
    let mut monitors = Vec::new();
    let mut placed = Vec::new();
    let modes = [
        ("qmp", MonitorMode::Control),
        ("monitor", MonitorMode::Readline),
    ];
    let mut number = 0;
    for (option, mode) in modes {
        for word in said.words(option) {
            let short = Mon::short(&word.value, mode, number);
            number += 1;
            match short.map_err(|reason| word.error(reason))? {
                Some((mon, made)) => {
                    chardevs.extend(made);
                    placed.push((mon, word.origin.clone()));
                }
                None => {
                    let monitor = match mode {
                        MonitorMode::Control => qmp::qmp(&word.value).map(Some),
                        MonitorMode::Readline => qmp::human(&word.value),
                    };
                    monitors.extend(monitor.map_err(|reason| word.error(reason))?);
                }
            }
        }
    }
    let of_mon = said.each("mon", Mon::parse)?.into_iter();
    placed.extend(of_mon.zip(said.words("mon").map(|word| word.origin.clone())));
    Ok((monitors, placed))
}

/// Where a monitor listens by itself in place of this character device.
fn alone(chardev: &Chardev) -> Option<MonitorAddress> {
    if chardev.mux {
        return None;
    }
    match &chardev.backend {
        ChardevBackend::Stdio { signal: true } => Some(MonitorAddress::Stdio),
        ChardevBackend::Socket(socket) => match (socket.role, &socket.address) {
            (SocketRole::Server { wait }, ChardevAddress::Unix(path)) => {
                let path = path.clone();
                Some(MonitorAddress::Unix { path, wait })
            }
            (SocketRole::Server { wait }, ChardevAddress::Tcp { host, port }) => {
                let (host, port) = (host.clone(), *port);
                Some(MonitorAddress::Tcp { host, port, wait })
            }
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chardevs(texts: &[&str]) -> Vec<Chardev> {
        let parse = |text: &&str| chardev::parse(text).unwrap();
        texts.iter().map(parse).collect()
    }

    #[test]
    fn a_monitor_has_a_mode_and_a_character_device() {
        let mon = |text| Mon::parse(text).map(|mon| (mon.chardev.to_string(), mon.mode));
        let readline = Ok(("m".to_owned(), MonitorMode::Readline));
        let control = Ok(("m".to_owned(), MonitorMode::Control));
        assert_eq!(mon("m"), readline);
        assert_eq!(mon("chardev=m,mode=readline,pretty=off"), readline);
        assert_eq!(mon("chardev=m,id=monitor,mode=control"), control);
        for (text, reason) in [
            ("mode=control", "Parameter 'chardev' is missing"),
            (
                "m,mode=x",
                "unknown monitor mode \"x\"; use readline or control",
            ),
            (
                "m,pretty=on",
                "'pretty' is not compatible with HMP monitors",
            ),
            (
                "m,mode=control,pretty=on",
                "Parameter 'pretty' can only be off; have the client lay out what it gets",
            ),
            (
                "m,mdoe=x",
                "Property 'mon.mdoe' not found; did you mean 'mode'?",
            ),
        ] {
            assert_eq!(mon(text).unwrap_err(), reason);
        }
    }

    #[test]
    fn a_monitor_that_can_listen_by_itself_does() {
        let place = |mon: &str, mut chardevs: Vec<Chardev>| {
            let mut monitors = Vec::new();
            let mon = Mon::parse(mon).unwrap();
            mon.place("-mon", &mut chardevs, &mut monitors)
                .map_err(|e| e.to_string())?;
            let address = monitors.pop().map(|m: MonitorOption| m.address);
            let left = chardevs.pop().map(|chardev| chardev.monitors);
            Ok::<_, String>((address, left))
        };
        let unix = MonitorAddress::Unix {
            path: "/m".into(),
            wait: false,
        };
        let tcp = MonitorAddress::Tcp {
            host: String::new(),
            port: 44,
            wait: true,
        };
        for (text, address) in [
            ("socket,id=m,path=/m,server=on,wait=off", unix),
            ("socket,id=m,port=44,server=on", tcp),
            ("stdio,id=m", MonitorAddress::Stdio),
        ] {
            let placed = place("m,mode=control", chardevs(&[text]));
            assert_eq!(placed, Ok((Some(address), None)), "{text}");
        }
        for text in [
            "pty,id=m",
            "stdio,id=m,mux=on",
            "stdio,id=m,signal=off",
            "socket,id=m,path=/m,server=on,mux=on",
            "socket,id=m,path=/m",
            "socket,id=m,path=m,server=on,abstract=on",
        ] {
            let on_it = Some(vec![MonitorMode::Control]);
            let placed = place("m,mode=control", chardevs(&[text]));
            assert_eq!(placed, Ok((None, on_it)), "{text}");
        }
        assert_eq!(
            place("m", Vec::new()).unwrap_err(),
            "-mon: chardev \"m\" not found; add a -chardev with that id"
        );
        let mut one = chardevs(&["pty,id=m"]);
        one[0].monitors.push(MonitorMode::Control);
        assert_eq!(
            place("m", one).unwrap_err(),
            "-mon: chardev \"m\" is in use; say mux=on, or give it another"
        );
    }

    #[test]
    fn short_forms_lead_to_character_devices_too() {
        let short = |text| Mon::short(text, MonitorMode::Readline, 3).unwrap();
        let (mon, made) = short("chardev:c").unwrap();
        assert_eq!((mon.chardev.as_str(), made), ("c", None));
        let (mon, made) = short("pty").unwrap();
        let made = made.unwrap();
        assert_eq!(mon.chardev, made.id);
        assert_eq!((made.id.as_str(), made.mux), ("compat_monitor3", false));
        let (_, made) = short("mon:unix:/m,server=on").unwrap();
        assert!(made.unwrap().mux);
        for elsewhere in ["stdio", "unix:/m,server=on", "tcp::44,server=on", "none"] {
            assert!(short(elsewhere).is_none(), "{elsewhere}");
        }
    }
}
