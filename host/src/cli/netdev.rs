//! `-netdev`: the host's end of a network device (QEMU's qapi/net.json, Netdev).
//!
//! It is checked here and handed to the device that names it, which is a plugin's.

use std::collections::BTreeMap;

use baton_plugin_api::Netdev;

use super::id::Id;
use super::nearest::hint;
use super::number;
use super::pairs::Pairs;

/// What a property's value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Switch,
    Number,
    Size,
}
use Kind::{Number, Size, Switch, Text};

impl Kind {
    /// As `-netdev help` prints it.
    pub(super) const fn describe(self) -> &'static str {
        match self {
            Text => "<str>",
            Switch => "<bool>",
            Number => "<uint>",
            Size => "<size>",
        }
    }

    fn check(self, key: &str, text: &str) -> Result<(), String> {
        let (right, expected) = match self {
            Text => (true, ""),
            Switch => (number::switch(text).is_some(), "'on' or 'off'"),
            Number => (number::number(text).is_some(), "a number"),
            Size => (number::size(text, 0).is_some(), "a size, such as 1M"),
        };
        match right {
            true => Ok(()),
            false => Err(format!("Parameter '{key}' expects {expected}")),
        }
    }
}

/// A property: its name, its type, and whether it must be said. A name that ends in a dot stands for
/// all that begin with it.
type Property = (&'static str, Kind, bool);

/// The types, each with its properties beside `id`.
pub(super) const TYPES: [(&str, &[Property]); 8] = [
    (
        "user",
        &[
            ("hostname", Text, false),
            ("restrict", Switch, false),
            ("ipv4", Switch, false),
            ("ipv6", Switch, false),
            ("net", Text, false),
            ("host", Text, false),
            ("dhcpstart", Text, false),
            ("dns", Text, false),
            ("dnssearch", Text, false),
            ("domainname", Text, false),
            ("tftp", Text, false),
            ("bootfile", Text, false),
            ("hostfwd", Text, false),
            ("guestfwd", Text, false),
        ],
    ),
    (
        "tap",
        &[
            ("ifname", Text, false),
            ("fd", Text, false),
            ("fds", Text, false),
            ("script", Text, false),
            ("downscript", Text, false),
            ("br", Text, false),
            ("helper", Text, false),
            ("sndbuf", Size, false),
            ("vnet_hdr", Switch, false),
            ("vhost", Switch, false),
            ("vhostfd", Text, false),
            ("vhostfds", Text, false),
            ("vhostforce", Switch, false),
            ("queues", Number, false),
            ("poll-us", Number, false),
        ],
    ),
    ("bridge", &[("br", Text, false), ("helper", Text, false)]),
    (
        "socket",
        &[
            ("fd", Text, false),
            ("listen", Text, false),
            ("connect", Text, false),
            ("mcast", Text, false),
            ("localaddr", Text, false),
            ("udp", Text, false),
        ],
    ),
    (
        "stream",
        &[
            ("addr.", Text, true),
            ("server", Switch, false),
            ("reconnect-ms", Number, false),
        ],
    ),
    (
        "dgram",
        &[("local.", Text, false), ("remote.", Text, false)],
    ),
    (
        "vhost-user",
        &[
            ("chardev", Text, true),
            ("vhostforce", Switch, false),
            ("queues", Number, false),
        ],
    ),
    (
        "vhost-vdpa",
        &[
            ("vhostdev", Text, false),
            ("vhostfd", Text, false),
            ("queues", Number, false),
        ],
    ),
];

/// One value of `-netdev`.
pub(super) fn parse(text: &str) -> Result<Netdev, String> {
    let mut pairs = Pairs::parse_or_json(text, "type")?;
    let kind = pairs.require("type")?;
    let Some((_, known)) = TYPES.iter().find(|(name, _)| *name == kind) else {
        let near = hint(&kind, TYPES.map(|(name, _)| name));
        // QEMU's text.
        return Err(format!(
            "Parameter 'type' does not accept value '{kind}'{}",
            if near.is_empty() {
                "; see -netdev help"
            } else {
                &near
            }
        ));
    };
    let id: Id = pairs.require("id")?.parse()?;
    let mut options = BTreeMap::new();
    for (key, value) in pairs.rest() {
        let is = |name: &str| match name.strip_suffix('.') {
            Some(_) => key.starts_with(name),
            None => key == name,
        };
        let Some((_, kind_of_value, _)) = known.iter().find(|(name, ..)| is(name)) else {
            return Err(format!(
                "Property '{kind}.{key}' not found{}",
                hint(&key, known.iter().map(|(name, ..)| *name).chain(["id"]))
            ));
        };
        kind_of_value.check(&key, &value)?;
        options.insert(key, value);
    }
    for (name, _, required) in *known {
        let said = options.keys().any(|key| match name.strip_suffix('.') {
            Some(_) => key.starts_with(name),
            None => key == name,
        });
        if *required && !said {
            return Err(format!(
                "Parameter '{}' is missing",
                name.trim_end_matches('.')
            ));
        }
    }
    Ok(Netdev {
        id: id.to_string(),
        kind,
        options,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_netdev_has_a_type_an_id_and_what_the_type_has() {
        let expected = Netdev {
            id: "n0".into(),
            kind: "tap".into(),
            options: [("ifname", "tap0"), ("vhost", "on"), ("sndbuf", "1M")]
                .map(|(k, v)| (k.into(), v.into()))
                .into(),
        };
        for text in [
            "tap,id=n0,ifname=tap0,vhost=on,sndbuf=1M",
            "type=tap,id=n0,ifname=tap0,vhost=on,sndbuf=1M",
            r#"{"type": "tap", "id": "n0", "ifname": "tap0", "vhost": true, "sndbuf": "1M"}"#,
        ] {
            assert_eq!(parse(text), Ok(expected.clone()), "{text}");
        }
        let nested = r#"{"type": "stream", "id": "n", "addr": {"type": "unix", "path": "/s"}}"#;
        for text in [nested, "stream,id=n,addr.type=unix,addr.path=/s"] {
            assert_eq!(parse(text).unwrap().options["addr.path"], "/s");
        }
    }

    #[test]
    fn what_a_netdev_cannot_be_is_refused() {
        for (text, reason) in [
            (
                "tup,id=n",
                "Parameter 'type' does not accept value 'tup'; did you mean 'tap'?",
            ),
            (
                "slirp,id=n",
                "Parameter 'type' does not accept value 'slirp'; see -netdev help",
            ),
            ("user", "Parameter 'id' is missing"),
            ("id=n", "Parameter 'type' is missing"),
            (
                "tap,id=n,ifnam=x",
                "Property 'tap.ifnam' not found; did you mean 'ifname'?",
            ),
            (
                "tap,id=n,vhost=1",
                "Parameter 'vhost' expects 'on' or 'off'",
            ),
            ("tap,id=n,queues=x", "Parameter 'queues' expects a number"),
            (
                "tap,id=n,sndbuf=x",
                "Parameter 'sndbuf' expects a size, such as 1M",
            ),
            ("vhost-user,id=n", "Parameter 'chardev' is missing"),
            ("stream,id=n,server=on", "Parameter 'addr' is missing"),
        ] {
            assert_eq!(parse(text).unwrap_err(), reason, "{text}");
        }
    }
}
