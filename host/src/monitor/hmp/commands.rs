//! Commands about the monitor, the process and devices.

use serde_json::{Value, json};

use super::arguments::is_space;
use super::run::{Context, Done, Next};
use super::table::{self, Entry};
use crate::cli::{DeviceOption, object};
use crate::monitor::error::QmpError;

/// The argument of `device_add`, as help shows it.
pub(super) const DEVICE: &str = "driver[,prop=value][,...]";

/// The argument of `object_add`, as help shows it.
pub(super) const OBJECT: &str = "qom-type,id=id[,prop=value][,...]";

/// `help`
pub(super) fn help(context: &Context<'_>) -> Result<Done, QmpError> {
    Ok(help_of(context.word("cmd")).into())
}

/// The help for what `words` name, or for everything.
pub(super) fn help_of(words: &str) -> String {
    let mut entries: &'static [Entry] = table::COMMANDS;
    let mut prefix = String::new();
    for word in words.split(is_space).filter(|word| !word.is_empty()) {
        let Some(entry) = table::find(entries, word) else {
            return format!("unknown command: '{prefix}{word}'\n");
        };
        if entry.group().is_empty() {
            return entry.help_line(&prefix);
        }
        entries = entry.group();
        prefix = format!("{prefix}{word} ");
    }
    entries
        .iter()
        .map(|entry| entry.help_line(&prefix))
        .collect()
}

/// `quit`
pub(super) fn quit(context: &Context<'_>) -> Result<Done, QmpError> {
    context.ask("quit", Value::Null)?;
    Ok(Done {
        next: Next::End,
        ..Done::default()
    })
}

/// `device_add`
pub(super) fn device_add(context: &Context<'_>) -> Result<Done, QmpError> {
    let device = context.word(DEVICE);
    let arguments = DeviceOption::arguments_of(device).map_err(QmpError::generic)?;
    context.done_with("device_add", arguments.into())
}

/// `object_add`
pub(super) fn object_add(context: &Context<'_>) -> Result<Done, QmpError> {
    let object = context.word(OBJECT);
    let arguments = object::arguments_of(object).map_err(QmpError::generic)?;
    context.done_with("object-add", arguments.into())
}

/// `object_del`
pub(super) fn object_del(context: &Context<'_>) -> Result<Done, QmpError> {
    context.done_with("object-del", json!({ "id": context.word("id") }))
}

/// `device_del`
pub(super) fn device_del(context: &Context<'_>) -> Result<Done, QmpError> {
    context.done_with("device_del", json!({ "id": context.word("device") }))
}
