//! Every message of each released minor version reads, and is still sent, as it was.

use anyhow::{Context, Result, ensure};
use baton_plugin_api::protocol::{HostReply, HostRequest, Reply, Request};
use baton_plugin_api::{Config, Error, Fd, PluginDescriptor, wire};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;

use crate::archive::minors;

/// Reads messages of type `T` and tells whether what would be sent now holds all that they do.
macro_rules! check {
    ($messages:expr, $($kind:literal => $type:ty),+ $(,)?) => {
        $(for message in $messages.remove($kind).with_context(|| format!("No {}", $kind))? {
            let sent: $type = wire::decode($kind, &wire::encode(&message)?)?;
            let now = serde_json::to_value(&sent)?;
            ensure!(holds(&now, &message), "{message} is now {now}");
        })+
    };
}

#[test]
fn messages_of_every_released_minor_are_still_understood_and_sent() -> Result<()> {
    for (_, folder) in minors()? {
        let file = folder.join("messages.json");
        let text = fs::read_to_string(&file).with_context(|| format!("No {}", file.display()))?;
        let mut messages: BTreeMap<String, Vec<Value>> = serde_json::from_str::<Value>(&text)?
            .as_object()
            .context("No map")?
            .iter()
            .map(|(kind, all)| (kind.clone(), all.as_array().cloned().unwrap_or_default()))
            .collect();
        check!(
            messages,
            "descriptor" => PluginDescriptor,
            "config" => Config,
            "request" => Request,
            "reply" => Reply,
            "host-request" => HostRequest,
            "host-reply" => HostReply,
            "error" => Error,
        );
        ensure!(messages.is_empty(), "Nobody reads {messages:?}");
    }
    Ok(())
}

/// Whether `now` holds every field of `then`, with the same value.
fn holds(now: &Value, then: &Value) -> bool {
    match (now, then) {
        (Value::Object(now), Value::Object(then)) => then
            .iter()
            .all(|(name, value)| now.get(name).is_some_and(|found| holds(found, value))),
        (Value::Array(now), Value::Array(then)) => {
            now.len() == then.len() && now.iter().zip(then).all(|(now, then)| holds(now, then))
        }
        _ => now == then,
    }
}

#[test]
fn a_message_is_a_messagepack_map_with_field_names() -> Result<()> {
    let fd = Fd {
        name: "image".into(),
        instance: 1,
        fd: 300,
    };
    let bytes = b"\x83\xa4name\xa5image\xa8instance\x01\xa2fd\xcd\x01\x2c";
    ensure!(wire::encode(&fd)? == bytes);
    // A variant is a map with one entry, or its bare name if it has no fields; bytes are binary.
    let load = Request::Load {
        section: "s".into(),
        version: 2,
        data: vec![7],
    };
    let bytes = b"\x81\xa4Load\x83\xa7section\xa1s\xa7version\x02\xa4data\xc4\x01\x07";
    ensure!(wire::encode(&load)? == bytes);
    ensure!(wire::encode(&Request::Quiesce)? == b"\xa7Quiesce");
    Ok(())
}

#[test]
fn a_message_with_bytes_behind_its_end_is_refused() -> Result<()> {
    let mut bytes = wire::encode(&Request::Quiesce)?;
    bytes.push(0xc0);
    let error = wire::decode::<Request>("a request", &bytes).unwrap_err();
    ensure!(
        error.message == "Cannot read a request: 1 bytes too many",
        "{error}"
    );
    Ok(())
}
