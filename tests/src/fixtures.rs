//! The plugins of `tests/fixtures`: as cargo has built them, copied, or changed; and a Baton to show
//! them to.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use crate::refusal::refusal;
use crate::scratch::Scratch;
use crate::{Vmm, guest};

/// How a magic block begins: eight letters and its size, both frozen.
const BLOCK: &[u8] = b"BATONPLG\x90\0\0\0";

/// A plugin, by its name without `fixture_`.
///
/// # Errors
/// When it is not built, or was before its source changed.
pub fn fixture(name: &str) -> Result<PathBuf> {
    let file = format!("examples/libfixture_{name}.so");
    // Test programs are in the folder `deps` beside `examples`.
    let own = std::env::current_exe().context("Where is this program?")?;
    let beside = own.ancestors().nth(2).map(|folder| folder.join(&file));
    let path = beside.unwrap_or_else(|| guest::target_dir().join("debug").join(&file));
    // A test program that cargo builds alone comes without them, or with those of another day.
    let built = path
        .metadata()
        .and_then(|metadata| metadata.modified())
        .ok();
    ensure!(
        built >= Some(newest(&guest::workspace().join("plugin-api/src"))?)
            && built >= Some(newest(&guest::workspace().join("tests/fixtures"))?),
        "{} is not there or old: run `cargo build -p baton-testkit --examples`",
        path.display()
    );
    Ok(path)
}

/// When the newest file in a folder was changed.
fn newest(folder: &Path) -> Result<SystemTime> {
    let mut newest = SystemTime::UNIX_EPOCH;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        newest = newest.max(match path.is_dir() {
            true => self::newest(&path)?,
            false => path.metadata()?.modified()?,
        });
    }
    Ok(newest)
}

/// A copy, which is a library of its own to the dynamic linker: with its own statics.
///
/// # Errors
/// When it is not built.
pub fn copied(name: &str, scratch: &Scratch) -> Result<PathBuf> {
    let copy = scratch.join(&format!("{name}.so"));
    fs::copy(fixture(name)?, &copy).context("Cannot copy a plugin")?;
    Ok(copy)
}

/// The probe with `bytes` at `offset` of its magic block.
///
/// # Errors
/// When it is not built.
pub fn patched(scratch: &Scratch, offset: usize, bytes: &[u8]) -> Result<PathBuf> {
    let mut library = fs::read(fixture("probe")?).context("Cannot read a plugin")?;
    let at = library
        .windows(BLOCK.len())
        .position(|window| window == BLOCK)
        .context("The plugin has no magic block")?;
    library[at + offset..at + offset + bytes.len()].copy_from_slice(bytes);
    let path = scratch.join("patched.so");
    fs::write(&path, library).context("Cannot write a plugin")?;
    Ok(path)
}

/// `baton`, with no plugins but those beside it.
///
/// # Errors
/// When there is no Baton.
pub fn baton() -> Result<Command> {
    let mut command = Command::new(Vmm::Baton.programs()?.binary);
    command.env_remove("BATON_PLUGIN_PATH");
    Ok(command)
}

/// `baton plugin info FILE`.
///
/// # Errors
/// When there is no Baton.
pub fn info(plugin: &Path) -> Result<Command> {
    let mut command = baton()?;
    command.args(["plugin", "info"]).arg(plugin);
    Ok(command)
}

/// The one line in which a plugin is refused, without its beginning that names the file.
///
/// # Errors
/// When it is not refused, or in more than a line.
pub fn refused(plugin: &Path) -> Result<String> {
    let line = refusal(&mut info(plugin)?)?.line()?;
    let start = format!("Plugin '{}': ", plugin.display());
    let reason = line.strip_prefix(&start);
    Ok(reason
        .with_context(|| format!("'{line}' does not begin with '{start}'"))?
        .to_owned())
}

/// What a command that succeeds prints.
///
/// # Errors
/// When it fails.
pub fn printed(command: &mut Command) -> Result<String> {
    let output = command.output().context("Cannot start Baton")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "It has said: {errors}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
