//! The images a job boots: the guest's initramfs and disk, and L1's initramfs, which carries them.

use super::cpio::Cpio;
use super::libraries::{Programs, is_elf};
use super::packages::Packages;
use super::{Job, Options, Vmm, inside, modules, paths, process};
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

const L1_INIT: &str = include_str!("../../../tests/lab/l1-init.sh");
const GUEST_INIT: &str = include_str!("../../../tests/lab/guest-initramfs.sh");
const GUEST_WORKLOAD: &str = include_str!("../../../tests/lab/guest-workload.sh");

/// Loaded by the guest before it has its disk.
const GUEST_MODULES: [&str; 3] = ["virtio_pci", "virtio_blk", "virtio_rng"];
/// The first three are loaded by process 1; the others are there for a job's `modprobe`.
const L1_MODULES: [&str; 13] = [
    "virtio_pci",
    "virtio_console",
    "kvm_amd",
    "virtio_blk",
    "tun",
    "bridge",
    "vhost_net",
    "vfio_pci",
    "vfio_iommu_type1",
    "nd_e820",
    "nd_pmem",
    "dax_pmem",
    "device_dax",
];
/// What QEMU reads when it boots a kernel by itself, in its own folder or in SeaBIOS's.
const QEMU_FIRMWARE: [&str; 4] = [
    "bios-256k.bin",
    "linuxboot_dma.bin",
    "kvmvapic.bin",
    "pvh.bin",
];

/// Makes L1's initramfs for a job; `scratch` is a folder of the caller's.
pub(crate) fn l1(
    packages: &Packages,
    job: &Job,
    options: &Options,
    scratch: &Path,
) -> Result<Vec<u8>> {
    let mut cpio = Cpio::default();
    let mut programs = Programs::new(scratch);
    for folder in ["dev", "proc", "sys", "tmp", "run", "sbin", inside::OUT] {
        cpio.folder(folder)?;
    }
    cpio.file("init", 0o755, L1_INIT.as_bytes())?;
    busybox(&mut cpio, packages)?;
    let kernels = [&packages.kernel, &packages.older];
    let used = if *job == Job::Kexec { 2 } else { 1 };
    for kernel in &kernels[..used] {
        modules::add(&mut cpio, &packages.busybox, kernel, &L1_MODULES)?;
    }

    let agent = std::env::current_exe().context("Cannot find this program's own file")?;
    programs.add(&mut cpio, &agent, inside::AGENT)?;
    for name in ["e2fsck", "mke2fs"] {
        let program = paths::find_program(name)
            .with_context(|| format!("{name} is not installed: `apt-get install e2fsprogs`"))?;
        programs.add(&mut cpio, &program, &format!("{}/{name}", inside::SYSTEM))?;
    }
    for file in &options.add {
        add(&mut cpio, &mut programs, file)?;
    }
    vmm(&mut cpio, &mut programs, job, options)?;

    let kernel = &packages.kernel.image;
    cpio.file(inside::KERNEL, 0o644, &read(kernel)?)?;
    cpio.file(inside::INITRAMFS, 0o644, &guest_initramfs(packages)?)?;
    cpio.file(inside::DISK, 0o644, &guest_disk(packages, job, scratch)?)?;
    cpio.file(inside::RUN, 0o755, run_script(job, options)?.as_bytes())?;
    cpio.finish()
}

/// What process 1 of L1 runs.
fn run_script(job: &Job, options: &Options) -> Result<String> {
    if let Job::Script(file) = job {
        return fs::read_to_string(file)
            .with_context(|| format!("Cannot read the job's script {}", file.display()));
    }
    let command = match job.agent(options.vmm) {
        Some(task) => format!("{} lab-agent {task}", inside::AGENT),
        None => "setsid cttyhack sh".to_owned(),
    };
    Ok(format!("#!/bin/sh\nexec {command}\n"))
}

fn vmm(cpio: &mut Cpio, programs: &mut Programs, job: &Job, options: &Options) -> Result<()> {
    let binary = match &options.binary {
        Some(binary) => Ok(binary.clone()),
        None => options.vmm.programs().map(|programs| programs.binary),
    };
    let binary = match binary {
        Ok(binary) => binary,
        // A script or a shell may be about something else.
        Err(_) if job.agent(options.vmm).is_none() => return Ok(()),
        Err(error) => return Err(error),
    };
    programs.add(cpio, &binary, inside::VMM)?;
    cpio.folder(inside::PLUGINS)?;
    match options.vmm {
        Vmm::Qemu => firmware(cpio),
        Vmm::Baton => {
            let beside = binary.parent().map(Path::to_path_buf).unwrap_or_default();
            for plugin in shared_objects(options.plugin_dir.as_ref().unwrap_or(&beside))? {
                let name = plugin
                    .file_name()
                    .map(|n| n.to_string_lossy().into_owned())
                    .unwrap_or_default();
                programs.add(cpio, &plugin, &format!("{}/{name}", inside::PLUGINS))?;
            }
            Ok(())
        }
    }
}

fn firmware(cpio: &mut Cpio) -> Result<()> {
    for name in QEMU_FIRMWARE {
        let found = ["/usr/share/qemu", "/usr/share/seabios"]
            .map(|dir| Path::new(dir).join(name))
            .into_iter()
            .find(|f| f.exists());
        let Some(file) = found else {
            bail!(
                "QEMU's firmware {name} is not installed: `apt-get install qemu-system-x86 seabios`"
            );
        };
        cpio.file(&format!("usr/share/qemu/{name}"), 0o644, &read(&file)?)?;
    }
    Ok(())
}

fn shared_objects(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir)
        .with_context(|| format!("Cannot read the plugins' folder {}", dir.display()))?;
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    found.retain(|path| {
        let name = path
            .file_name()
            .map(|n| n.to_string_lossy())
            .unwrap_or_default();
        name.starts_with("lib") && name.ends_with(".so")
    });
    found.sort();
    Ok(found)
}

fn add(cpio: &mut Cpio, programs: &mut Programs, file: &Path) -> Result<()> {
    let name = file
        .file_name()
        .with_context(|| format!("{} is not a file", file.display()))?;
    let path = format!("lab/{}", name.to_string_lossy());
    if is_elf(file) {
        programs.add(cpio, file, &path)
    } else {
        cpio.file(&path, 0o755, &read(file)?)
    }
}

fn busybox(cpio: &mut Cpio, packages: &Packages) -> Result<()> {
    cpio.file("bin/busybox", 0o755, &read(&packages.busybox)?)?;
    cpio.link("bin/sh", "busybox")
}

fn guest_initramfs(packages: &Packages) -> Result<Vec<u8>> {
    let mut cpio = Cpio::default();
    for folder in ["dev", "proc", "sys", "root"] {
        cpio.folder(folder)?;
    }
    cpio.file("init", 0o755, GUEST_INIT.as_bytes())?;
    busybox(&mut cpio, packages)?;
    modules::add(
        &mut cpio,
        &packages.busybox,
        &packages.kernel,
        &GUEST_MODULES,
    )?;
    cpio.finish()
}

/// The guest's root: an ext4 file system and, behind it, the mailbox block.
fn guest_disk(packages: &Packages, job: &Job, scratch: &Path) -> Result<Vec<u8>> {
    let tree = scratch.join("guest-root");
    for folder in ["bin", "sbin", "dev", "proc", "sys", "tmp", "data"] {
        let folder = tree.join(folder);
        fs::create_dir_all(&folder)
            .with_context(|| format!("Cannot create {}", folder.display()))?;
    }
    fs::copy(&packages.busybox, tree.join("bin/busybox"))
        .context("Cannot copy busybox into the guest's disk")?;
    std::os::unix::fs::symlink("busybox", tree.join("bin/sh"))
        .context("Cannot make the guest's /bin/sh")?;
    let init = tree.join("sbin/init");
    fs::write(&init, GUEST_WORKLOAD).with_context(|| format!("Cannot write {}", init.display()))?;
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&init, executable)
        .with_context(|| format!("Cannot make {} executable", init.display()))?;
    if job.passes_through() {
        packages.agent.install(&tree)?;
    }

    let image = scratch.join("guest.img");
    File::create(&image)
        .and_then(|file| file.set_len(inside::FILE_SYSTEM + inside::MAILBOX))
        .with_context(|| format!("Cannot create {}", image.display()))?;
    let mke2fs = paths::find_program("mke2fs")
        .context("mke2fs is not installed: `apt-get install e2fsprogs`")?;
    process::output(
        Command::new(mke2fs)
            .args([
                "-q",
                "-F",
                "-t",
                "ext4",
                "-b",
                "4096",
                "-m",
                "0",
                "-E",
                "root_owner=0:0",
                "-d",
            ])
            .arg(&tree)
            .arg(&image)
            .arg(format!("{}", inside::FILE_SYSTEM / 4096)),
    )?;
    let bytes = read(&image)?;
    fs::remove_dir_all(&tree)
        .and_then(|()| fs::remove_file(&image))
        .context("Cannot remove the guest's scratch files")?;
    Ok(bytes)
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("Cannot read {}", file.display()))
}
