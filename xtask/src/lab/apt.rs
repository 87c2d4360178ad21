//! Fetching Debian packages with apt's own tools, without root and without touching the machine's
//! configuration: package lists, cache and sources live in the lab's folder.

use super::process;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

pub(crate) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const RELEASE: &str = "bookworm";
const BACKPORTS: &str = "bookworm-backports";

pub(crate) struct Apt {
    dir: PathBuf,
}

impl Apt {
    /// Uses `dir` for everything apt keeps, and fetches the package lists.
    ///
    /// A mirror without backports (its release has been archived) gives the older, stable packages.
    pub(crate) fn update(dir: PathBuf) -> Result<Self> {
        let apt = Self { dir };
        apt.configure(true)?;
        if let Err(first) = process::output(apt.command("apt-get").arg("update")) {
            apt.configure(false)?;
            process::output(apt.command("apt-get").arg("update")).with_context(|| {
                format!("Cannot fetch Debian's package lists from {} (set BATON_LAB_MIRROR to name another mirror)", mirror())
            })?;
            eprintln!(
                "lab: {} has no {BACKPORTS}, using {RELEASE}'s older packages ({first:#})",
                mirror()
            );
        }
        Ok(apt)
    }

    /// An apt tool bound to the private configuration.
    pub(crate) fn command(&self, tool: &str) -> Command {
        let mut command = Command::new(tool);
        command
            .arg("-qq")
            .arg("-c")
            .arg(self.dir.join("apt.conf"))
            .env("LC_ALL", "C");
        command
    }

    /// The package that the dependencies of `meta` name with this prefix: the newest, or the one of
    /// the stable release.
    pub(crate) fn dependency(&self, meta: &str, prefix: &str, stable: bool) -> Result<String> {
        let mut command = self.command("apt-cache");
        if stable {
            command
                .arg("-o")
                .arg(format!("APT::Default-Release={RELEASE}"));
        }
        let shown = process::text(command.args(["--no-all-versions", "show", meta]))?;
        shown
            .lines()
            .filter_map(|line| line.strip_prefix("Depends: "))
            .flat_map(|depends| depends.split([',', '|', ' ']))
            .find(|word| word.starts_with(prefix))
            .map(str::to_owned)
            .with_context(|| {
                format!(
                    "Debian's package {meta} names no {prefix}* package: is the mirror {} whole?",
                    mirror()
                )
            })
    }

    /// Downloads one package into `into` and gives the file.
    pub(crate) fn download(&self, package: &str, into: &Path) -> Result<PathBuf> {
        process::output(
            self.command("apt-get")
                // What this machine has installed may be newer than what the mirror has.
                .args(["-o", "Dir::State::status=/dev/null"])
                .args(["download", package])
                .current_dir(into),
        )
        .with_context(|| {
            format!(
                "Cannot fetch the Debian package {package} from {}",
                mirror()
            )
        })?;
        for entry in fs::read_dir(into)? {
            let path = entry?.path();
            if path.extension().is_some_and(|ext| ext == "deb") {
                return Ok(path);
            }
        }
        bail!(
            "apt-get downloaded no file for {package} into {}",
            into.display()
        )
    }

    fn configure(&self, backports: bool) -> Result<()> {
        let dir = self.dir.display();
        for sub in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(self.dir.join(sub))
                .with_context(|| format!("Cannot create {dir}/{sub}"))?;
        }
        let source = |suite: &str| {
            format!(
                "deb [arch=amd64 target=Packages signed-by={KEYRING}] {} {suite} main\n",
                mirror()
            )
        };
        let mut sources = source(RELEASE);
        // The machine's proxies are kept; its hooks are not, they expect root and a desktop.
        let mut conf = format!(
            r#"Dir::Etc::sourcelist "{dir}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State::lists "{dir}/lists";
Dir::Cache "{dir}/cache";
APT::Sandbox::User "root";
APT::Install-Recommends "false";
Acquire::Languages "none";
Acquire::Retries "3";
APT::Update::Error-Mode "any";
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Post-Invoke;
"#
        );
        if backports {
            sources += &source(BACKPORTS);
            conf += &format!("APT::Default-Release \"{BACKPORTS}\";\n");
        }
        fs::write(self.dir.join("sources.list"), sources)
            .and_then(|()| fs::write(self.dir.join("apt.conf"), conf))
            .with_context(|| format!("Cannot write apt's configuration into {dir}"))
    }
}

fn mirror() -> String {
    std::env::var("BATON_LAB_MIRROR").unwrap_or_else(|_| "http://deb.debian.org/debian".to_owned())
}
