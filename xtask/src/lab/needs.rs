//! What the lab needs on this machine, and getting it.

use super::apt::{Apt, KEYRING};
use super::{paths, process};
use anyhow::{Result, bail};
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

/// One thing the lab needs.
struct Need {
    what: &'static str,
    package: &'static str,
    why: &'static str,
}

const QEMU: &str = "qemu-system-x86_64";
/// Every version from here on has EPYC-v4, the CPU L1 is given.
const QEMU_OLDEST: u32 = 9;

const NEEDS: [Need; 8] = [
    Need {
        what: QEMU,
        package: "qemu-system-x86",
        why: "runs the outer machine",
    },
    Need {
        what: "mke2fs",
        package: "e2fsprogs",
        why: "makes the guest's disk",
    },
    Need {
        what: "e2fsck",
        package: "e2fsprogs",
        why: "checks the guest's disk",
    },
    Need {
        what: "apt-get",
        package: "apt",
        why: "fetches Debian's kernel",
    },
    Need {
        what: "dpkg-deb",
        package: "dpkg",
        why: "unpacks it",
    },
    Need {
        what: "ldd",
        package: "libc-bin",
        why: "finds a program's libraries",
    },
    Need {
        what: "timeout",
        package: "coreutils",
        why: "ends a run that hangs",
    },
    Need {
        what: KEYRING,
        package: "debian-archive-keyring",
        why: "proves what was fetched is Debian's",
    },
];

/// What the tests with the clients of others need.
const CLIENTS: [Need; 2] = [
    Need {
        what: "socat",
        package: "socat",
        why: "talks to a monitor",
    },
    Need {
        what: "python3",
        package: "python3-venv",
        why: "runs QEMU's own client",
    },
];

/// One thing the lab needs and this machine has not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Missing {
    pub what: String,
    /// The Debian package that brings it.
    pub package: &'static str,
    pub why: String,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({}): install the Debian package {}",
            self.what, self.why, self.package
        )
    }
}

/// What this machine lacks; empty when the lab can run.
pub(crate) fn missing() -> Vec<Missing> {
    let mut missing: Vec<Missing> = NEEDS
        .iter()
        .filter(|need| !present(need.what))
        .map(|need| Missing {
            what: need.what.to_owned(),
            package: need.package,
            why: need.why.to_owned(),
        })
        .collect();
    if let Some(version) = qemu_version().filter(|&version| version < QEMU_OLDEST) {
        missing.push(Missing {
            what: format!("{QEMU} {QEMU_OLDEST} or later"),
            package: "qemu-system-x86",
            why: format!("this one is {version}; bookworm-backports has 10"),
        });
    }
    missing
}

/// Everything needed, present or not, a line each.
pub(crate) fn list() -> Vec<String> {
    let lines = NEEDS.iter().map(|need| {
        let state = if present(need.what) {
            "ok     "
        } else {
            "MISSING"
        };
        format!(
            "{state} {} (package {}): {}",
            need.what, need.package, need.why
        )
    });
    lines.collect()
}

/// An error that names all that is missing, when anything is.
pub(crate) fn require() -> Result<()> {
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    let items: Vec<String> = missing.iter().map(Missing::to_string).collect();
    bail!(
        "The lab cannot run here. Missing: {}. As root, `cargo xtask lab install` gets them",
        items.join("; ")
    )
}

/// Installs what is missing with apt; nothing is done when nothing is.
///
/// # Errors
/// Without root, without apt, or when apt fails.
pub(crate) fn install_missing() -> Result<()> {
    let mut packages: Vec<&str> = missing().iter().map(|m| m.package).collect();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    install(&packages)?;
    require()
}

/// Installs what the tests with the clients of others need. Without it they are skipped.
///
/// # Errors
/// As [`install_missing`].
pub(crate) fn install_clients() -> Result<()> {
    let lacking = CLIENTS.iter().filter(|need| !present(need.what));
    let packages: Vec<&str> = lacking.map(|need| need.package).collect();
    match packages.is_empty() {
        true => Ok(()),
        false => install(&packages),
    }
}

fn install(packages: &[&str]) -> Result<()> {
    let names = packages.join(" ");
    if !present("apt-get") {
        bail!("This machine has no apt-get: install what Debian calls {names} by its own means");
    }
    if process::text(Command::new("id").arg("-u"))?.trim() != "0" {
        bail!("Installing needs root: run `apt-get install {names}` as root");
    }
    eprintln!("installing {names}");
    // On bookworm QEMU comes from backports, which its own sources may not name. Elsewhere
    // bookworm's packages would not fit.
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let mut install = if release.contains("VERSION_CODENAME=bookworm") && present(KEYRING) {
        Apt::update(paths::lab_dir()?.join("apt"))?.command("apt-get")
    } else {
        process::output(Command::new("apt-get").args(["-qq", "update"]))?;
        Command::new("apt-get")
    };
    install.env("DEBIAN_FRONTEND", "noninteractive");
    process::output(
        install
            .args(["install", "-y", "--no-install-recommends"])
            .args(packages),
    )?;
    Ok(())
}

fn present(what: &str) -> bool {
    if what.starts_with('/') {
        Path::new(what).exists()
    } else {
        paths::find_program(what).is_some()
    }
}

/// The major version of this machine's QEMU.
fn qemu_version() -> Option<u32> {
    let text = process::text(Command::new(paths::find_program(QEMU)?).arg("--version")).ok()?;
    let version = text
        .split_whitespace()
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    version.split('.').next()?.parse().ok()
}
