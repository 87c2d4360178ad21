//! The VMMs a guest can be put on, and their programs.

use anyhow::{Result, bail};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::guest;

/// Names Baton's program; its plugins are beside it unless [`PLUGINS`] says otherwise.
pub const BINARY: &str = "BATON_BIN";
/// Names the folder of Baton's plugins.
pub const PLUGINS: &str = "BATON_PLUGINS";
/// Names the VMM that the native tests run on; Baton unless said.
pub const UNDER_TEST: &str = "BATON_TEST_VMM";

/// A virtual machine monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vmm {
    /// Ours.
    Baton,
    /// This machine's own QEMU: what Baton is compared with, and what proves a test right.
    Qemu,
}

/// A VMM's files.
#[derive(Clone, Debug)]
pub struct Programs {
    /// What is started.
    pub binary: PathBuf,
    /// The folder of the plugins; None for a VMM that has none.
    pub plugins: Option<PathBuf>,
}

impl Vmm {
    /// What the native tests run on.
    ///
    /// # Errors
    /// When the environment names something else than a VMM.
    pub fn under_test() -> Result<Self> {
        std::env::var(UNDER_TEST).map_or(Ok(Self::Baton), |name| name.parse())
    }

    /// Its files, as the environment names them, or beside this very program, or where cargo builds
    /// for development.
    ///
    /// # Errors
    /// When they are not there; the text says how to get them.
    pub fn programs(self) -> Result<Programs> {
        match self {
            Self::Qemu => match find_program("qemu-system-x86_64") {
                Some(binary) => Ok(Programs {
                    binary,
                    plugins: None,
                }),
                None => bail!("qemu-system-x86_64 is not installed (Debian: qemu-system-x86)"),
            },
            Self::Baton => match std::env::var_os(BINARY) {
                Some(binary) => baton(binary.into()),
                None => baton(built()),
            },
        }
    }
}

impl Programs {
    /// Baton as cargo has built it in `folder`.
    ///
    /// # Errors
    /// When it is not there.
    pub fn in_folder(folder: &Path) -> Result<Self> {
        baton(folder.join("baton"))
    }
}

impl FromStr for Vmm {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "baton" => Ok(Self::Baton),
            "qemu" => Ok(Self::Qemu),
            _ => bail!("No VMM `{name}` is known: there are baton and qemu"),
        }
    }
}

impl fmt::Display for Vmm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Baton => "baton",
            Self::Qemu => "qemu",
        })
    }
}

/// A program on PATH or in the system folders that a plain user's PATH leaves out.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// Test programs are in `target/PROFILE/deps`, others in `target/PROFILE`, both with Baton.
fn built() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join("baton"))
        .find(|file| file.is_file())
        .unwrap_or_else(|| guest::target_dir().join("debug/baton"))
}

fn baton(binary: PathBuf) -> Result<Programs> {
    if !binary.is_file() {
        bail!(
            "No Baton at {}: run `cargo build --workspace`",
            binary.display()
        );
    }
    let beside = binary.parent().map(Path::to_path_buf);
    let plugins = std::env::var_os(PLUGINS).map(PathBuf::from).or(beside);
    Ok(Programs { binary, plugins })
}
