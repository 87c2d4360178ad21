//! The machine, its CPUs and its memory.

use std::path::Path;

use serde_json::{Value, json};

use crate::cli::{self, BackendKind, IMPLICIT_RAM_ID, Options};
use crate::machine::Machine;
use crate::vm::Vm;

/// The names of the machine type: its own, and the one that stands for the newest.
pub const MACHINE_TYPE: &str = "baton-1.0";
const MACHINE_ALIAS: &str = "baton";

/// The answer of `query-target`.
pub fn target() -> Value {
    json!({ "arch": "x86_64" })
}

/// The answer of `query-machines`.
pub fn machines() -> Value {
    json!([{
        "name": MACHINE_TYPE,
        "alias": MACHINE_ALIAS,
        "is-default": true,
        "cpu-max": cli::MAX_CPUS,
        "hotpluggable-cpus": false,
        "numa-mem-supported": false,
        "deprecated": false,
        "default-ram-id": IMPLICIT_RAM_ID,
        "acpi": true,
    }])
}

/// The answer of `query-current-machine`.
pub fn current_machine() -> Value {
    json!({ "wakeup-suspend-support": true })
}

/// The answer of `query-uuid`: QEMU's for a machine that was given none.
pub fn uuid() -> Value {
    json!({ "UUID": "00000000-0000-0000-0000-000000000000" })
}

/// The answer of `query-cpus-fast`. There are none while the machine is elsewhere.
pub fn cpus(vm: &Vm) -> Value {
    let state = vm.state();
    let threads = state.machine.iter().flat_map(Machine::cpu_threads);
    let row = |(cpu, thread): (u32, i32)| {
        json!({
            "cpu-index": cpu,
            "qom-path": super::qom::cpu_path(cpu),
            "thread-id": thread,
            "props": { "socket-id": 0, "core-id": cpu, "thread-id": 0 },
            "target": "x86_64",
        })
    };
    (0..).zip(threads).map(row).collect()
}

/// The answer of `query-migrationthreads`.
pub fn migration_threads() -> Value {
    threads()
        .into_iter()
        .filter(|(_, name)| name.starts_with("migration") || name == "incoming")
        .map(|(thread, name)| json!({ "name": name, "thread-id": thread }))
        .collect()
}

/// The process's threads with their names. One that ends meanwhile is not among them.
fn threads() -> Vec<(u64, String)> {
    let tasks = std::fs::read_dir("/proc/self/task");
    let entries = tasks.into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let id = entry.file_name().to_str()?.parse().ok()?;
            let name = std::fs::read_to_string(entry.path().join("comm")).ok()?;
            Some((id, name.trim_end().to_owned()))
        })
        .collect()
}

/// The answer of `query-memory-size-summary`.
pub fn memory_size(options: &Options) -> Value {
    json!({ "base-memory": options.memory.size, "plugged-memory": 0 })
}

/// The answer of `query-memdev`.
pub fn memdev(options: &Options) -> Value {
    let memory = &options.memory;
    json!([{
        "id": memory.id.as_str(),
        "size": memory.size,
        "merge": false,
        "dump": true,
        "prealloc": memory.prealloc,
        "share": memory.share,
        "reserve": false,
        "host-nodes": [],
        "policy": "default",
    }])
}

/// A memory backend's type and properties beside its size, as `-object` has them.
pub(super) fn backend(kind: &BackendKind) -> (&'static str, Vec<(&'static str, Value)>) {
    let text = |path: &Path| Value::from(path.to_string_lossy());
    match kind {
        BackendKind::File {
            path,
            align,
            discard_data,
        } => (
            "memory-backend-file",
            vec![
                ("mem-path", text(path)),
                ("align", align.unwrap_or(0).into()),
                ("discard-data", (*discard_data).into()),
            ],
        ),
        BackendKind::Memfd {
            hugetlb,
            seal,
            fdstore,
        } => (
            "memory-backend-memfd",
            vec![
                ("hugetlb", hugetlb.is_some().into()),
                ("seal", (*seal).into()),
                ("fdstore", (*fdstore).into()),
            ],
        ),
        BackendKind::Ram => ("memory-backend-ram", vec![]),
        BackendKind::Shm => ("memory-backend-shm", vec![]),
    }
}
