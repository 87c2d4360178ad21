//! How this process was started.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use baton_migration::HostError;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cli::{Options, chardev};
use crate::objects;
use crate::plugin;
use crate::vm::Vm;

/// The folder that paths of the command line begin in.
static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();

/// What the QMP command `query-process` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Origin {
    /// The process.
    pub pid: u32,
    /// The file it executes.
    pub program: PathBuf,
    /// Whether that path leads to another file by now, or to none.
    pub replaced: bool,
    /// Which build that is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_id: Option<String>,
    /// Its version.
    pub version: String,
    /// Where it was started: paths begin there.
    pub directory: PathBuf,
    /// The command line as given, without the program's name.
    pub arguments: Vec<String>,
    /// Block nodes that were added since, each as the JSON of a `-blockdev`.
    #[serde(default)]
    pub blockdevs: Vec<Value>,
    /// Objects that were added since, each as the JSON of an `-object`.
    #[serde(default)]
    pub objects: Vec<Value>,
    /// Character devices that were added since, each as the JSON of a `-chardev`.
    #[serde(default)]
    pub chardevs: Vec<Value>,
    /// The ids of those that were removed since.
    #[serde(default)]
    pub chardevs_gone: Vec<String>,
    /// `BATON_PLUGIN_PATH` of its environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plugin_path: Option<String>,
    /// How it uses its standard input and output.
    pub standard_streams: StandardStreams,
}

/// Whether a guest or a monitor uses standard input and output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StandardStreams {
    /// Nobody does.
    Unused,
    /// They lead to files, pipes or sockets, which another process can use as well.
    Used,
    /// They lead to a terminal, which only the process in its foreground can use.
    Terminal,
}

/// Notes where the process was started; call it before the folder is changed.
pub fn note() {
    if let Ok(directory) = std::env::current_dir() {
        let _ = DIRECTORY.set(directory);
    }
}

/// Where the process was started.
pub(super) fn directory() -> Result<&'static Path, HostError> {
    DIRECTORY
        .get()
        .map(PathBuf::as_path)
        .ok_or_else(|| "The folder that this process was started in is gone".into())
}

/// How this process was started.
pub fn describe(vm: &Vm) -> Result<Origin, HostError> {
    let (blockdevs, objects) = {
        let state = vm.state();
        let objects = state.objects.iter().map(objects::arguments).collect();
        (state.nodes.arguments()?, objects)
    };
    let chardevs = vm.chardevs.changes();
    let own = Path::new("/proc/self/exe");
    let link = std::fs::read_link(own)
        .map_err(|e| format!("This program's own file cannot be found: {e}"))?;
    // What the kernel adds to the name of a file that is gone.
    let text = link.to_string_lossy();
    let program = PathBuf::from(text.strip_suffix(" (deleted)").unwrap_or(&text));
    let identity = |path: &Path| path.metadata().ok().map(|m| (m.dev(), m.ino()));
    let arguments = std::env::args_os()
        .skip(1)
        .map(|argument| argument.into_string())
        .collect::<Result<_, _>>()
        .map_err(|_| "The command line is not UTF-8")?;
    Ok(Origin {
        pid: std::process::id(),
        replaced: identity(&program) != identity(own),
        program,
        build_id: plugin::build_id(own),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        directory: directory()?.to_owned(),
        arguments,
        blockdevs,
        objects,
        chardevs: chardevs.come.iter().map(chardev::option).collect(),
        chardevs_gone: chardevs.gone,
        plugin_path: std::env::var(plugin::PATH_VARIABLE).ok(),
        standard_streams: standard_streams(&vm.options),
    })
}

fn standard_streams(options: &Options) -> StandardStreams {
    use std::io::IsTerminal;
    if !options.uses_stdio() {
        StandardStreams::Unused
    } else if std::io::stdin().is_terminal() || std::io::stdout().is_terminal() {
        StandardStreams::Terminal
    } else {
        StandardStreams::Used
    }
}
