//! The options of the command line.

use serde_json::{Value, json};

use crate::cli;
use crate::monitor::QmpError;

/// The answer of `query-command-line-options`: one option, or all.
pub fn options(wanted: Option<&str>) -> Result<Value, QmpError> {
    let all = cli::option_names();
    let rows: Vec<Value> = all
        .filter(|name| wanted.is_none_or(|wanted| wanted == *name))
        .map(|name| json!({ "option": name, "parameters": parameters(name) }))
        .collect();
    match wanted {
        Some(wanted) if rows.is_empty() => Err(QmpError::generic(format!(
            "Parameter 'option' expects an option of the command line, and '{wanted}' is none"
        ))),
        _ => Ok(rows.into()),
    }
}

/// What all values of an option have in common.
fn parameters(option: &str) -> Vec<Value> {
    let row = |name: &str| json!({ "name": name, "type": "string" });
    cli::option_parameters(option)
        .into_iter()
        .map(row)
        .collect()
}
