//! Taking a program of this machine into L1, with its dynamic loader and libraries.
//!
//! They keep their paths, so a program finds there what it found here, whatever this machine's
//! libc is.

use super::cpio::Cpio;
use super::{paths, process};
use anyhow::{Context, Result, bail};
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Copies programs and libraries, each library once.
pub(crate) struct Programs {
    copied: HashSet<PathBuf>,
    /// A file of its own for a program without its debug information.
    scratch: PathBuf,
}

impl Programs {
    pub(crate) fn new(scratch: &Path) -> Self {
        Self {
            copied: HashSet::new(),
            scratch: scratch.join("stripped"),
        }
    }

    /// Puts a program or a shared object of this machine at `path` of the archive.
    pub(crate) fn add(&mut self, cpio: &mut Cpio, file: &Path, path: &str) -> Result<()> {
        cpio.file(path, 0o755, &self.without_debug_info(file)?)?;
        for library in libraries(file)? {
            if self.copied.insert(library.clone()) {
                let data = fs::read(&library)
                    .with_context(|| format!("Cannot read the library {}", library.display()))?;
                cpio.file(&library.to_string_lossy(), 0o755, &data)?;
            }
        }
        Ok(())
    }

    /// Debug builds are hundreds of megabytes, nearly all of it of no use in L1.
    fn without_debug_info(&self, file: &Path) -> Result<Vec<u8>> {
        let stripped = paths::find_program("strip").is_some_and(|strip| {
            let mut command = Command::new(strip);
            command
                .arg("--strip-debug")
                .arg("-o")
                .arg(&self.scratch)
                .arg(file);
            process::output(&mut command).is_ok()
        });
        let source = if stripped { &self.scratch } else { file };
        let data = fs::read(source).with_context(|| format!("Cannot read {}", source.display()))?;
        if stripped {
            fs::remove_file(&self.scratch)
                .with_context(|| format!("Cannot remove {}", self.scratch.display()))?;
        }
        Ok(data)
    }
}

/// True when the file is an ELF program or shared object, which may need libraries.
pub(crate) fn is_elf(file: &Path) -> bool {
    use std::io::Read;
    let mut magic = [0; 4];
    fs::File::open(file).is_ok_and(|mut f| f.read_exact(&mut magic).is_ok()) && &magic == b"\x7fELF"
}

/// What `ldd` lists, the dynamic loader included; nothing for a static program.
fn libraries(file: &Path) -> Result<Vec<PathBuf>> {
    let out = Command::new("ldd")
        .arg(file)
        .env("LC_ALL", "C")
        .output()
        .context("Cannot start `ldd`: install the package libc-bin")?;
    let text = String::from_utf8_lossy(&out.stdout);
    let mut found = Vec::new();
    for line in text.lines() {
        if let Some((name, "not found")) = line.trim().split_once(" => ") {
            bail!(
                "{} needs {name}, which this machine does not have",
                file.display()
            );
        }
        let path = line.split_whitespace().find(|word| word.starts_with('/'));
        found.extend(path.filter(|p| !p.ends_with(':')).map(PathBuf::from));
    }
    Ok(found)
}
