//! The values of `-incoming` and of `migrate-incoming`.

use serde_json::{Map, Value};

use super::{
    AddressError, ChannelType, MigrationAddress, MigrationChannel, SocketAddress, parse_uri,
};

/// One value of `-incoming`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    /// `defer`: `migrate-incoming` gives the main channel later.
    Defer,
    /// A channel, from a URI (which is a main channel), dotted keys or JSON.
    Channel(MigrationChannel),
}

impl std::str::FromStr for Incoming {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text == "defer" {
            return Ok(Self::Defer);
        }
        if text.starts_with('{') {
            let value: Value = serde_json::from_str(text).map_err(|error| AddressError::Json {
                text: text.to_owned(),
                reason: error.to_string(),
            })?;
            return MigrationChannel::try_from(value).map(Self::Channel);
        }
        if is_uri(text) {
            let addr = parse_uri(text)?;
            let channel = MigrationChannel {
                channel_type: ChannelType::Main,
                addr,
            };
            return Ok(Self::Channel(channel));
        }
        MigrationChannel::try_from(dotted(text)?).map(Self::Channel)
    }
}

/// Letters up to a colon, which no list of dotted keys begins with.
fn is_uri(text: &str) -> bool {
    text.split_once(':').is_some_and(|(scheme, _)| {
        !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphabetic())
    })
}

/// Dotted keys as the JSON they stand for. The first value may leave out its key, which is
/// `channel-type` then; a comma in a value is written twice.
fn dotted(text: &str) -> Result<Value, AddressError> {
    let mut top = Map::new();
    for (position, pair) in split_at_commas(text).into_iter().enumerate() {
        let (key, value) = match pair.split_once('=') {
            Some((key, value)) => (key, value),
            None if position == 0 => ("channel-type", pair.as_str()),
            None => return Err(AddressError::BadKey(pair)),
        };
        insert(&mut top, key, value)?;
    }
    Ok(Value::Object(arrays(top)))
}

fn split_at_commas(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        let last = parts.len() - 1;
        match c {
            ',' if rest.next_if_eq(&',').is_some() => parts[last].push(','),
            ',' => parts.push(String::new()),
            _ => parts[last].push(c),
        }
    }
    parts
}

/// Puts a value where its dotted key says; the last of several wins, as in QEMU.
fn insert(map: &mut Map<String, Value>, key: &str, value: &str) -> Result<(), AddressError> {
    let bad = || AddressError::BadKey(key.to_owned());
    let mut map = map;
    let mut parts = key.split('.').peekable();
    while let Some(part) = parts.next() {
        if part.is_empty() {
            return Err(bad());
        }
        if parts.peek().is_none() {
            if map.get(part).is_some_and(Value::is_object) {
                return Err(bad());
            }
            map.insert(part.to_owned(), Value::String(value.to_owned()));
            break;
        }
        let inner = map.entry(part).or_insert_with(|| Value::Object(Map::new()));
        map = inner.as_object_mut().ok_or_else(bad)?;
    }
    Ok(())
}

/// Turns objects whose keys are `0`, `1`, ... into arrays (`addr.args.0=cat`).
fn arrays(map: Map<String, Value>) -> Map<String, Value> {
    let array = |inner: &Map<String, Value>| -> Option<Vec<Value>> {
        (0..inner.len())
            .map(|i| inner.get(&i.to_string()).cloned())
            .collect()
    };
    map.into_iter()
        .map(|(key, value)| match value {
            Value::Object(inner) => match array(&inner) {
                Some(list) if !list.is_empty() => (key, Value::Array(list)),
                _ => (key, Value::Object(arrays(inner))),
            },
            other => (key, other),
        })
        .collect()
}

/// All values of `-incoming` together.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IncomingChannels {
    /// Whether the main channel comes later, with `migrate-incoming`.
    pub defer: bool,
    /// The main channel.
    pub main: Option<MigrationAddress>,
    /// The cpr channel; it is there if and only if this is a cpr-transfer.
    pub cpr: Option<SocketAddress>,
}

impl IncomingChannels {
    /// Adds one value; of several for the same channel the last wins. A cpr channel must be a UNIX
    /// socket's path or an open descriptor.
    pub fn add(&mut self, value: Incoming) -> Result<(), AddressError> {
        match value {
            Incoming::Defer => (self.defer, self.main) = (true, None),
            Incoming::Channel(MigrationChannel {
                channel_type: ChannelType::Main,
                addr,
            }) => {
                (self.defer, self.main) = (false, Some(addr));
            }
            Incoming::Channel(MigrationChannel { addr, .. }) => match addr {
                MigrationAddress::Socket(
                    address @ (SocketAddress::Unix { .. } | SocketAddress::Fd { .. }),
                ) => self.cpr = Some(address),
                MigrationAddress::Socket(_) => return Err(AddressError::CprSocketType),
                _ => return Err(AddressError::CprAddress),
            },
        }
        Ok(())
    }

    /// Checks them together, once all are added: a cpr-transfer needs a main channel (or `defer`)
    /// that it can listen on.
    pub fn validate(&self) -> Result<(), AddressError> {
        match (&self.cpr, &self.main) {
            (Some(_), None) if !self.defer => Err(AddressError::NoMain),
            (Some(_), Some(main)) => super::outgoing::transfer_main(main).map(|_| ()),
            _ => Ok(()),
        }
    }

    /// The main address that `migrate-incoming` gives for a cpr-transfer: exactly one entry.
    pub fn deferred_main(
        uri: Option<&str>,
        channels: Option<&[MigrationChannel]>,
    ) -> Result<SocketAddress, AddressError> {
        let main = match (uri, channels) {
            (Some(uri), None) => parse_uri(uri)?,
            (None, Some([only])) if only.channel_type == ChannelType::Main => only.addr.clone(),
            (None, Some(_)) => return Err(AddressError::OnlyMain),
            _ => return Err(AddressError::UriOrChannels),
        };
        super::outgoing::transfer_main(&main)
    }
}
