//! What the monitor says of itself.

use serde_json::{Value, json};

use super::{qapi, table};

/// The version of QEMU whose QMP this is: clients choose their commands by it.
const QEMU: [u32; 3] = [10, 2, 0];

/// The answer of `query-version`.
pub fn version() -> Value {
    let [major, minor, micro] = QEMU;
    json!({
        "qemu": { "micro": micro, "minor": minor, "major": major },
        "package": concat!("Baton ", env!("CARGO_PKG_VERSION")),
    })
}

/// The answer of `query-commands`.
pub fn commands() -> Value {
    let mut names: Vec<_> = table::commands().map(|spec| spec.name).collect();
    names.sort_unstable();
    names.iter().map(|name| json!({ "name": name })).collect()
}

/// The answer of `query-qmp-schema`.
pub fn schema() -> Value {
    qapi::schema(table::commands(), table::events())
}
