//! Devices, images, kernels and memory that are not what they should be.

use anyhow::{Context, Result};
use baton_testkit::fixtures::baton;
use baton_testkit::native::expect_text;
use baton_testkit::needs_kvm;
use baton_testkit::refusal::refusal;
use baton_testkit::scratch::Scratch;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use std::fs::{self, File};
use std::path::Path;

use crate::machine;

/// The line of a Baton that is told these things as well; each must be in it.
fn expect(arguments: &[&str], parts: &[&str]) -> Result<()> {
    let line = refusal(machine()?.args(arguments))?.line()?;
    expect_text(&line, parts)
}

/// The same for a disk in `image`.
fn expect_of_image(image: &Path, parts: &[&str]) -> Result<()> {
    let drive = format!("file={},format=raw,if=virtio", image.display());
    expect(
        &["-drive", &drive],
        &[&[&*format!("-drive {drive}: ")], parts].concat(),
    )
}

#[test]
fn a_device_that_no_plugin_offers() -> Result<()> {
    needs_kvm!();
    let mistyped = "-device virtio-rng-pic: Device 'virtio-rng-pic' is offered by no plugin";
    expect(
        &["-device", "virtio-rng-pic"],
        &[
            mistyped,
            "did you mean 'virtio-rng-pci'?",
            "see -device help",
        ],
    )?;
    expect(
        &["-device", "e1000e"],
        &["'e1000e' is offered by no plugin; see -device help"],
    )
}

#[test]
fn a_port_without_a_controller_and_a_bus_that_is_not_there() -> Result<()> {
    needs_kvm!();
    let controller = ["-device", "virtio-serial-pci,id=vs0", "-device"];
    let port = "virtserialport,bus=vs1.0";
    expect(
        &[&controller[..], &[port]].concat(),
        &[&format!(
            "-device {port}: Bus 'vs1.0' not found; there is vs0.0"
        )],
    )?;
    expect(
        &["-device", "virtserialport", "-device", "virtio-serial-pci"],
        &[
            "-device virtserialport: No 'virtio-serial-bus' bus found for device 'virtserialport'; add a \
           virtio-serial-pci before it",
        ],
    )?;
    expect(
        &[&controller[..], &["virtserialport,nr=31"]].concat(),
        &["Parameter 'nr' expects a number from 1 to 30"],
    )?;
    expect(
        &["-device", "virtserialpor"],
        &["did you mean 'virtserialport'?"],
    )
}

#[test]
fn a_device_that_no_plugin_offers_and_its_help() -> Result<()> {
    let line = refusal(baton()?.args(["-device", "virtio-rng-pic,help"]))?.line()?;
    expect_text(
        &line,
        &["'virtio-rng-pic'", "did you mean 'virtio-rng-pci'?"],
    )
}

#[test]
fn a_property_that_the_device_does_not_have() -> Result<()> {
    needs_kvm!();
    expect(
        &["-device", "virtio-rng-pci,filenam=/dev/urandom"],
        &["Property 'virtio-rng-pci.filenam' not found; did you mean 'filename'?"],
    )
}

#[test]
fn a_property_of_another_type() -> Result<()> {
    needs_kvm!();
    let drive = ["-drive", "if=none,id=d,file=none,format=raw", "-device"];
    for (device, reason) in [
        (
            "virtio-blk-pci,drive=d,num-queues=many",
            "Parameter 'num-queues' expects a number from 1 to",
        ),
        (
            "virtio-blk-pci,drive=d,num-queues=0",
            "Parameter 'num-queues' expects a number from 1",
        ),
        (
            "virtio-blk-pci,drive=other",
            "can't find value 'other'; add a -drive or -blockdev with that id",
        ),
        (
            "virtio-blk-pci",
            "Parameter 'drive' is missing; it expects <id of a -drive>",
        ),
    ] {
        let arguments = [&drive[..], &[device]].concat();
        expect(&arguments, &[&format!("-device {device}: "), reason])?;
    }
    Ok(())
}

#[test]
fn an_image_that_is_missing() -> Result<()> {
    needs_kvm!();
    let scratch = Scratch::new()?;
    expect_of_image(
        &scratch.join("disk"),
        &["does not exist; create it with truncate -s SIZE"],
    )
}

#[test]
fn an_image_that_is_too_small() -> Result<()> {
    needs_kvm!();
    let scratch = Scratch::new()?;
    let image = scratch.join("disk");
    File::create(&image)?;
    expect_of_image(&image, &["is empty; give it a size: truncate -s SIZE"])?;
    fs::write(&image, [0; 100])?;
    expect_of_image(&image, &["has 100 bytes", "extend it: truncate -s 512"])
}

#[test]
fn an_image_that_is_a_folder() -> Result<()> {
    needs_kvm!();
    let scratch = Scratch::new()?;
    expect_of_image(
        scratch.path(),
        &["is a directory; name a raw file or a block device"],
    )
}

#[test]
fn an_image_that_another_process_uses() -> Result<()> {
    needs_kvm!();
    let scratch = Scratch::new()?;
    let image = scratch.join("disk");
    let file = File::create(&image)?;
    file.set_len(1 << 20)?;
    let whole = libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(&file, FcntlArg::F_OFD_SETLK(&whole)).context("Cannot lock a file")?;
    expect_of_image(
        &image,
        &[
            "Cannot lock",
            "another process uses it; stop it, or say file.locking=off",
        ],
    )
}

#[test]
fn a_kernel_that_is_missing() -> Result<()> {
    needs_kvm!();
    let line =
        refusal(baton()?.args(["-nodefaults", "-S", "-kernel", "/does/not/exist"]))?.line()?;
    expect_text(
        &line,
        &["-kernel /does/not/exist: cannot be opened: No such file"],
    )
}

#[test]
fn no_kernel_at_all() -> Result<()> {
    let line = refusal(baton()?.args(["-nodefaults", "-S"]))?.line()?;
    expect_text(
        &line,
        &["-kernel: nothing to boot; there is no firmware, so say -kernel FILE"],
    )
}

#[test]
fn a_kernel_that_is_none() -> Result<()> {
    needs_kvm!();
    let scratch = Scratch::new()?;
    let file = scratch.join("kernel");
    let name = file.display().to_string();
    for content in [Vec::new(), b"no kernel".to_vec(), vec![0; 1 << 16]] {
        fs::write(&file, content)?;
        let line = refusal(baton()?.args(["-nodefaults", "-S", "-kernel", &name]))?.line()?;
        expect_text(&line, &[&name, "is neither a bzImage nor an ELF kernel"])?;
    }
    // A program of the host's is an ELF file, and no kernel.
    let program = std::env::current_exe()?;
    let mut command = baton()?;
    command.args(["-nodefaults", "-S", "-kernel"]).arg(&program);
    expect_text(
        &refusal(&mut command)?.line()?,
        &[&program.display().to_string()],
    )
}

#[test]
fn a_memory_file_that_is_too_small() -> Result<()> {
    needs_kvm!();
    let scratch = Scratch::new()?;
    let file = scratch.join("ram");
    fs::write(&file, [7; 4096])?;
    let object = format!(
        "memory-backend-file,id=ram0,size=128M,mem-path={},share=on",
        file.display()
    );
    expect(
        &["-object", &object, "-machine", "memory-backend=ram0"],
        &[
            "Memory backend 'ram0'",
            "holds 4096 bytes, size= asks for 134217728",
            "make it larger, or remove it",
        ],
    )?;
    // It is somebody's, and stays as it was.
    anyhow::ensure!(fs::read(&file)? == [7; 4096]);
    Ok(())
}

#[test]
fn a_file_system_that_is_too_small_for_the_memory() -> Result<()> {
    needs_kvm!();
    let scratch = Scratch::new()?;
    let folder = scratch.path().display();
    let object = format!("memory-backend-file,id=ram0,size=1T,mem-path={folder},share=on");
    expect(
        &["-object", &object, "-machine", "memory-backend=ram0"],
        &["Memory backend 'ram0'", "cannot hold 1099511627776 bytes"],
    )
}

#[test]
fn a_memory_size_that_is_none() -> Result<()> {
    for size in ["0", "-1", "much", "16E", "1.5G"] {
        let line = refusal(baton()?.args(["-kernel", "none", "-m", size]))?.line()?;
        expect_text(
            &line,
            &[
                &format!("-m {size}: "),
                "expects a size, such as 512M or 4G",
            ],
        )?;
    }
    Ok(())
}

#[test]
fn a_cpu_feature_that_the_host_does_not_have() -> Result<()> {
    needs_kvm!();
    expect(
        &["-cpu", "host,+avx512pf"],
        &[
            "-cpu host,+avx512pf: host doesn't support requested feature: CPUID[eax=07h,ecx=00h].EBX",
        ],
    )?;
    expect(
        &["-cpu", "host,+vmx"],
        &[
            "-cpu host,+vmx: 'vmx' is hidden from guests",
            "leave it out",
        ],
    )
}

#[test]
fn a_network_backend_that_no_device_can_have() -> Result<()> {
    needs_kvm!();
    expect(
        &["-netdev", "user,id=n0"],
        &["netdev n0 has no peer, and no plugin that is loaded has a network device"],
    )
}

#[test]
fn a_user_that_is_root() -> Result<()> {
    needs_kvm!();
    expect(
        &["-runas", "root"],
        &["root keeps its rights; name another user"],
    )
}
