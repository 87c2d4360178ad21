//! The clients of others: QEMU's own, in Python, and socat.

use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::guest;

/// What is installed; a folder for each version.
const PACKAGE: &str = "qemu.qmp==0.0.6";

/// The folder of programs of a Python environment with QEMU's client, which is made under `target/`
/// at the first use; or why there is none.
///
/// # Errors
/// When the folder cannot be made.
pub fn python() -> Result<std::result::Result<PathBuf, String>> {
    let root = guest::target_dir().join(PACKAGE.replace("==", "-"));
    let (ready, programs) = (root.join("ready"), root.join("bin"));
    let lock = root.with_extension("lock");
    fs::create_dir_all(guest::target_dir())?;
    let lock = File::create(&lock).with_context(|| format!("Cannot make {}", lock.display()))?;
    // Several tests come here at once.
    lock.lock()?;
    if ready.exists() {
        return Ok(Ok(programs));
    }
    let made = run(Command::new("python3")
        .args(["-m", "venv", "--clear"])
        .arg(&root));
    let pip = || {
        let mut pip = Command::new(programs.join("pip"));
        pip.args(["install", "--quiet", "--disable-pip-version-check", PACKAGE]);
        run(&mut pip)
    };
    if let Err(reason) = made.and_then(|()| pip()) {
        return Ok(Err(reason));
    }
    fs::write(ready, "")?;
    Ok(Ok(programs))
}

fn run(command: &mut Command) -> std::result::Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    match command.output() {
        Err(e) => Err(format!("{name} cannot be run: {e}")),
        Ok(done) if done.status.success() => Ok(()),
        Ok(done) => {
            let said = String::from_utf8_lossy(&done.stderr);
            let last = said.lines().last().unwrap_or_default().to_owned();
            Err(format!("{name} failed: {last}"))
        }
    }
}

/// Runs a script of `tests/clients` with arguments, and gives what it printed.
///
/// # Errors
/// When it fails.
pub fn script(programs: &Path, name: &str, arguments: &[&str]) -> Result<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("clients")
        .join(name);
    let mut command = Command::new("timeout");
    command.arg("120").arg(programs.join("python")).arg(script);
    let done = command.args(arguments).output()?;
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    ensure!(
        done.status.success(),
        "{name}: {said}{}",
        String::from_utf8_lossy(&done.stderr)
    );
    Ok(said)
}

/// Passes over the calling test, and says so, unless there is a Python with QEMU's client.
#[macro_export]
macro_rules! needs_python {
    () => {
        match $crate::clients::python()? {
            Ok(programs) => programs,
            Err(reason) => {
                $crate::native::skipped($crate::this_test!(), &reason);
                return Ok(());
            }
        }
    };
}
