//! The guest as each VMM's command line describes it. Baton takes QEMU's spelling, so the two differ
//! only in what QEMU needs said for a handover to work at all.

use super::super::{Vmm, inside};

/// Where the guest's serial port ends up; every generation goes on in this one file.
pub(crate) const SERIAL: &str = "/out/guest.log";

/// The arguments every generation is started with. No handover adds or changes one of them.
pub(crate) fn guest(vmm: Vmm) -> Vec<String> {
    let mut line = words("-name lab -m 256M -smp 1 -nodefaults -display none -no-reboot");
    line.extend(words(&format!(
        "-drive if=none,id=d0,file={},format=raw",
        inside::DISK
    )));
    line.extend(words(
        "-device virtio-blk-pci,drive=d0 -device virtio-rng-pci",
    ));
    line.extend(words(&format!(
        "-kernel {} -initrd {}",
        inside::KERNEL,
        inside::INITRAMFS
    )));
    line.extend(["-append", "console=ttyS0 quiet panic=-1 mitigations=off"].map(str::to_owned));
    match vmm {
        Vmm::Baton => {
            line.extend(words(&format!("-serial file:{SERIAL}")));
            line.extend(words(&format!("-plugin {}", inside::PLUGINS)));
        }
        Vmm::Qemu => {
            line.extend(words("-accel kvm -cpu host -no-user-config -monitor none"));
            line.extend(words(
                "-object memory-backend-memfd,id=ram0,size=256M,share=on",
            ));
            line.extend(words("-machine q35,memory-backend=ram0,aux-ram-share=on"));
            line.extend(words(&format!(
                "-chardev file,id=s0,path={SERIAL},append=on -serial chardev:s0"
            )));
        }
    }
    line
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}
