//! QEMU's guest agent, as Debian ships it, for a guest that has nothing but busybox.

use super::process;
use anyhow::{Context, Result, ensure};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The agent and all its libraries. By its dependencies apt would bring Perl, too.
pub(crate) const PACKAGES: [&str; 8] = [
    "qemu-guest-agent",
    "libc6",
    "libcap2",
    "libglib2.0-0",
    "libnuma1",
    "libpcre2-8-0",
    "libudev1",
    "liburing2",
];

const PROGRAM: &str = "usr/sbin/qemu-ga";
const LIBRARIES: &str = "lib/x86_64-linux-gnu";
const LOADER: &str = "ld-linux-x86-64.so.2";

/// What the agent asks for suspend where there is no systemd: pm-utils.
const SUSPEND: [(&str, &str); 2] = [
    ("pm-is-supported", "#!/bin/sh\nexit 0\n"),
    ("pm-suspend", "#!/bin/sh\necho mem >/sys/power/state\n"),
];

/// The unpacked packages.
pub(crate) struct GuestAgent {
    tree: PathBuf,
}

impl GuestAgent {
    pub(crate) fn new(tree: PathBuf) -> Self {
        Self { tree }
    }

    /// Puts the agent, its libraries and what it calls into a guest's root file system.
    pub(crate) fn install(&self, root: &Path) -> Result<()> {
        let install = |file: &Path, path: &str| copy(file, &root.join(path));
        install(&self.tree.join(PROGRAM), "sbin/qemu-ga")?;
        let loader = self.tree.join(LIBRARIES).join(LOADER);
        install(&loader, &format!("lib64/{LOADER}"))?;
        for (name, file) in self.libraries(&loader)? {
            install(&file, &format!("{LIBRARIES}/{name}"))?;
        }
        for (name, script) in SUSPEND {
            let path = root.join("bin").join(name);
            fs::write(&path, script)
                .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(0o755)))
                .with_context(|| format!("Cannot make {}", path.display()))?;
        }
        Ok(())
    }

    /// What Debian's own loader finds, which must not be this machine's.
    fn libraries(&self, loader: &Path) -> Result<Vec<(String, PathBuf)>> {
        let paths = [LIBRARIES, "usr/lib/x86_64-linux-gnu"].map(|path| self.tree.join(path));
        let paths = format!("{}:{}", paths[0].display(), paths[1].display());
        let listed = process::text(
            Command::new(loader)
                .args(["--inhibit-cache", "--library-path", &paths, "--list"])
                .arg(self.tree.join(PROGRAM)),
        )?;
        let mut found = Vec::new();
        for line in listed.lines() {
            let Some((name, place)) = line.trim().split_once(" => ") else {
                continue;
            };
            if name.contains('/') {
                // The loader itself.
                continue;
            }
            let file = place.split_whitespace().next().unwrap_or_default();
            let file = PathBuf::from(file);
            ensure!(
                file.starts_with(&self.tree),
                "The guest agent needs {name}, which is in none of the packages {}",
                PACKAGES.join(", ")
            );
            found.push((name.to_owned(), file));
        }
        Ok(found)
    }
}

fn copy(file: &Path, to: &Path) -> Result<()> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)
            .with_context(|| format!("Cannot create {}", folder.display()))?;
    }
    fs::copy(file, to)
        .map(drop)
        .with_context(|| format!("Cannot copy {} to {}", file.display(), to.display()))
}
