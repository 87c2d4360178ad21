//! What a client wants changed, checked before anything is.

use serde_json::{Map, Value};

use super::fixed;
use super::{MigrationParameters, ZeroPageDetection};
use crate::Mode;

/// The longest `downtime-limit`, in milliseconds.
const MAX_DOWNTIME_LIMIT: u64 = 2000 * 1000;
/// The most words of `cpr-exec-command`, and the most bytes of one: what the kernel takes.
const MAX_WORDS: usize = 1 << 16;
const MAX_WORD: usize = 128 << 10;

/// QAPI `MigrateSetParameters`: the parameters to set. All are valid.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ParameterChanges {
    mode: Option<Mode>,
    cpr_exec_command: Option<Vec<String>>,
    downtime_limit: Option<u64>,
    max_bandwidth: Option<u64>,
    multifd_channels: Option<u8>,
    direct_io: Option<bool>,
    zero_page_detection: Option<ZeroPageDetection>,
}

impl ParameterChanges {
    /// Reads the arguments of `migrate-set-parameters`. The errors are QEMU's texts, which spell
    /// names in two ways.
    pub fn read(arguments: &Map<String, Value>) -> Result<Self, String> {
        let fixed = fixed::all();
        let mut changes = Self::default();
        for (name, value) in arguments {
            match name.as_str() {
                "mode" => changes.mode = Some(text(name, value)?.parse()?),
                "cpr-exec-command" => changes.cpr_exec_command = Some(words(name, value)?),
                // Its name before it was merged.
                "cpr-exec-args" if arguments.contains_key("cpr-exec-command") => {
                    return Err(
                        "Parameters 'cpr-exec-args' and 'cpr-exec-command' are the same; leave \
                         one out"
                            .to_owned(),
                    );
                }
                "cpr-exec-args" => changes.cpr_exec_command = Some(words(name, value)?),
                "downtime-limit" => changes.downtime_limit = Some(downtime_limit(name, value)?),
                "max-bandwidth" => changes.max_bandwidth = Some(uint64(name, value)?),
                "multifd-channels" => changes.multifd_channels = Some(channels(name, value)?),
                "direct-io" => {
                    let on = value.as_bool().ok_or_else(|| bad_type(name, "boolean"))?;
                    changes.direct_io = Some(on);
                }
                "zero-page-detection" => {
                    changes.zero_page_detection = Some(zero_page_detection(name, value)?);
                }
                _ => match fixed.iter().find(|fixed| fixed.name == name) {
                    Some(fixed) => fixed.check(value)?,
                    None => return Err(format!("Parameter '{name}' is unexpected")),
                },
            }
        }
        Ok(changes)
    }
}

impl ParameterChanges {
    /// Whether nothing is changed but what a migration under way asks for again and again:
    /// `max-bandwidth` and `downtime-limit`.
    pub fn only_limits(&self) -> bool {
        let limits = Self {
            max_bandwidth: self.max_bandwidth,
            downtime_limit: self.downtime_limit,
            ..Self::default()
        };
        *self == limits
    }
}

impl MigrationParameters {
    /// Sets what is to be changed.
    pub fn apply(&mut self, changes: ParameterChanges) {
        fn set<T>(parameter: &mut T, change: Option<T>) {
            if let Some(value) = change {
                *parameter = value;
            }
        }
        let ParameterChanges {
            mode,
            cpr_exec_command,
            downtime_limit,
            max_bandwidth,
            multifd_channels,
            direct_io,
            zero_page_detection,
        } = changes;
        set(&mut self.mode, mode);
        set(&mut self.cpr_exec_command, cpr_exec_command);
        set(&mut self.downtime_limit, downtime_limit);
        set(&mut self.max_bandwidth, max_bandwidth);
        set(&mut self.multifd_channels, multifd_channels);
        set(&mut self.direct_io, direct_io);
        set(&mut self.zero_page_detection, zero_page_detection);
    }

    /// The answer of `query-migrate-parameters`: these and all those that never change.
    pub fn report(&self) -> Map<String, Value> {
        // Plain data with text keys always serializes.
        let mut all = match serde_json::to_value(self) {
            Ok(Value::Object(all)) => all,
            _ => Map::new(),
        };
        let fixed = fixed::all().into_iter();
        all.extend(fixed.filter_map(|fixed| Some((fixed.name.to_owned(), fixed.value?))));
        all
    }
}

fn bad_type(name: &str, expected: &str) -> String {
    format!("Invalid parameter type for '{name}', expected: {expected}")
}

fn text<'a>(name: &str, value: &'a Value) -> Result<&'a str, String> {
    value.as_str().ok_or_else(|| bad_type(name, "string"))
}

fn words(name: &str, value: &Value) -> Result<Vec<String>, String> {
    let list = value.as_array().ok_or_else(|| bad_type(name, "array"))?;
    if list.len() > MAX_WORDS {
        return Err(format!(
            "Parameter '{name}' has {} words; the most is {MAX_WORDS}",
            list.len()
        ));
    }
    let word = |(at, value): (usize, &Value)| {
        let word = text(&format!("{name}[{at}]"), value)?;
        if word.contains('\0') {
            return Err(format!(
                "Parameter '{name}[{at}]' has a NUL character, which no argument can have"
            ));
        }
        if word.len() >= MAX_WORD {
            return Err(format!(
                "Parameter '{name}[{at}]' is {} bytes long; the most is {}",
                word.len(),
                MAX_WORD - 1
            ));
        }
        Ok(word.to_owned())
    };
    list.iter().enumerate().map(word).collect()
}

fn uint64(name: &str, value: &Value) -> Result<u64, String> {
    value
        .as_u64()
        .ok_or_else(|| format!("Parameter '{name}' expects uint64"))
}

fn downtime_limit(name: &str, value: &Value) -> Result<u64, String> {
    let out_of_range = value
        .as_u64()
        .map_or(value.is_i64(), |limit| limit > MAX_DOWNTIME_LIMIT);
    if out_of_range {
        return Err(
            "Parameter 'downtime_limit' expects an integer in the range of 0 to (2000 * 1000) ms"
                .to_owned(),
        );
    }
    uint64(name, value)
}

fn channels(name: &str, value: &Value) -> Result<u8, String> {
    let too_large = || format!("Parameter '{name}' expects uint8_t");
    if value.is_i64() && value.as_u64().is_none() {
        return Err(too_large());
    }
    match u8::try_from(uint64(name, value)?) {
        Ok(0) => Err("Parameter 'multifd_channels' expects a value between 1 and 255".to_owned()),
        Ok(count) => Ok(count),
        Err(_) => Err(too_large()),
    }
}

fn zero_page_detection(name: &str, value: &Value) -> Result<ZeroPageDetection, String> {
    let word = text(name, value)?;
    serde_json::from_value(value.clone())
        .map_err(|_| format!("Parameter '{name}' does not accept value '{word}'"))
}

#[cfg(test)]
#[path = "changes_tests.rs"]
mod tests;
