//! The Debian packages the lab is made of, unpacked and kept: two kernels, a static busybox, and the
//! guest agent.

use super::guest_agent::{self, GuestAgent};
use super::{apt::Apt, paths, process};
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Unpacked packages, ready to take files from.
pub(crate) struct Packages {
    pub busybox: PathBuf,
    /// What L1 and L2 both boot.
    pub kernel: Kernel,
    /// Debian's stable one, which the other takes the place of; without backports they are the same.
    pub older: Kernel,
    pub agent: GuestAgent,
}

/// A stock kernel.
pub(crate) struct Kernel {
    pub release: String,
    pub image: PathBuf,
    /// `lib/modules/RELEASE`.
    pub modules: PathBuf,
}

/// Gives the packages, from the cache when it has them and `refresh` is not asked for.
pub(crate) fn get(refresh: bool) -> Result<Packages> {
    let dir = paths::lab_dir()?.join("packages");
    fs::create_dir_all(&dir).with_context(|| format!("Cannot create {}", dir.display()))?;
    // One fetch at a time; the others find it done. Dropping the file unlocks it.
    let lock = File::create(dir.join("lock"))
        .with_context(|| format!("Cannot create the lock in {}", dir.display()))?;
    lock.lock()
        .with_context(|| format!("Cannot lock {}", dir.display()))?;

    let list = dir.join("current");
    if !refresh
        && let Ok(current) = fs::read_to_string(&list)
        && let Ok(packages) = open(&dir, &current)
    {
        return Ok(packages);
    }
    eprintln!(
        "lab: fetching Debian's kernels, busybox and guest agent into {}",
        dir.display()
    );
    let apt = Apt::update(dir.with_file_name("apt"))?;
    let kernel = |stable| apt.dependency("linux-image-cloud-amd64", "linux-image-", stable);
    let (newest, older) = (kernel(false)?, kernel(true)?);
    let busybox = unpack(&apt, &dir, &["busybox-static"])?;
    let agent = unpack(&apt, &dir, &guest_agent::PACKAGES)?;
    let kernel = unpack(&apt, &dir, &[&newest])?;
    let older = if older == newest {
        kernel.clone()
    } else {
        unpack(&apt, &dir, &[&older])?
    };
    let names = [busybox, kernel, older, agent];
    let current = names.join("\n");
    let packages = open(&dir, &current)?;
    replace(&list, &current)?;
    Ok(packages)
}

/// Unpacks packages into one folder, named after the file of the first of them, and gives that name.
fn unpack(apt: &Apt, dir: &Path, packages: &[&str]) -> Result<String> {
    // A run that was interrupted leaves this behind.
    let scratch = dir.join("scratch");
    if scratch.exists() {
        fs::remove_dir_all(&scratch)
            .with_context(|| format!("Cannot empty {}", scratch.display()))?;
    }
    fs::create_dir_all(&scratch).with_context(|| format!("Cannot create {}", scratch.display()))?;
    let mut name = String::new();
    let tree = scratch.join("tree");
    for package in packages {
        let deb = apt.download(package, &scratch)?;
        process::output(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&tree))?;
        fs::remove_file(&deb).with_context(|| format!("Cannot remove {}", deb.display()))?;
        if name.is_empty() {
            let stem = deb.file_stem().map(|n| n.to_string_lossy().into_owned());
            name = stem.unwrap_or_default();
        }
    }
    let done = dir.join(&name);
    if done.exists() {
        fs::remove_dir_all(&done).with_context(|| format!("Cannot replace {}", done.display()))?;
    }
    fs::rename(&tree, &done)
        .with_context(|| format!("Cannot move what was unpacked to {}", done.display()))?;
    fs::remove_dir_all(&scratch)?;
    Ok(name)
}

fn open(dir: &Path, current: &str) -> Result<Packages> {
    let names: Vec<&str> = current.lines().collect();
    let [busybox, kernel, older, agent] = names[..] else {
        bail!(
            "{} is damaged: run `cargo xtask lab images --refresh`",
            dir.join("current").display()
        );
    };
    let busybox = dir.join(busybox).join("bin/busybox");
    let packages = Packages {
        kernel: open_kernel(&dir.join(kernel))?,
        older: open_kernel(&dir.join(older))?,
        busybox,
        agent: GuestAgent::new(dir.join(agent)),
    };
    let needed = [
        &packages.busybox,
        &packages.kernel.modules,
        &packages.older.modules,
    ];
    for needed in needed {
        if !needed.exists() {
            bail!(
                "{} is absent: run `cargo xtask lab images --refresh`",
                needed.display()
            );
        }
    }
    Ok(packages)
}

/// The kernel in an unpacked package.
fn open_kernel(tree: &Path) -> Result<Kernel> {
    let boot = tree.join("boot");
    let release = fs::read_dir(&boot)
        .with_context(|| format!("Cannot read {}", boot.display()))?
        .filter_map(|entry| {
            entry
                .ok()?
                .file_name()
                .to_str()?
                .strip_prefix("vmlinuz-")
                .map(str::to_owned)
        })
        .next()
        .with_context(|| {
            format!(
                "No kernel in {}: run `cargo xtask lab images --refresh`",
                boot.display()
            )
        })?;
    Ok(Kernel {
        image: boot.join(format!("vmlinuz-{release}")),
        modules: tree.join("lib/modules").join(&release),
        release,
    })
}

/// Writes a file so that no reader ever sees half of it.
fn replace(file: &Path, text: &str) -> Result<()> {
    let fresh = file.with_extension("new");
    fs::write(&fresh, text)
        .and_then(|()| fs::rename(&fresh, file))
        .with_context(|| format!("Cannot write {}", file.display()))
}
