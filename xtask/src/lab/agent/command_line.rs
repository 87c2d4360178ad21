//! The guest as each VMM's command line describes it. Baton takes QEMU's spelling, so the two differ
//! only in what QEMU needs said for a handover to work at all.

use super::super::{Vmm, inside};

/// Where the guest's serial port ends up; every generation goes on in this one file.
pub(crate) const SERIAL: &str = "/out/guest.log";

/// What a guest is made of.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    pub vmm: Vmm,
    /// The image of its disk.
    pub disk: String,
    /// The shared file that is its RAM; without one the VMM takes what it takes by itself.
    pub ram: Option<String>,
    /// Images that no device of the line is connected to.
    pub drives: Vec<String>,
    /// Devices beside the usual ones, as JSON.
    pub devices: Vec<String>,
}

impl Guest {
    /// The usual guest.
    pub(crate) fn new(vmm: Vmm) -> Self {
        Self {
            vmm,
            disk: inside::DISK.to_owned(),
            ram: None,
            drives: Vec::new(),
            devices: Vec::new(),
        }
    }

    /// With one more `-drive`.
    pub(crate) fn drive(mut self, drive: &str) -> Self {
        self.drives.push(drive.to_owned());
        self
    }

    /// The arguments every generation is started with. No handover adds or changes one of them.
    pub(crate) fn line(&self) -> Vec<String> {
        let mut line = words("-name lab -m 256M -smp 1 -nodefaults -display none -no-reboot");
        line.extend(words(&format!(
            "-drive if=none,id=d0,file={},format=raw",
            self.disk
        )));
        line.extend(words(
            "-device virtio-blk-pci,drive=d0 -device virtio-rng-pci",
        ));
        for drive in &self.drives {
            line.extend(["-drive".to_owned(), drive.clone()]);
        }
        for device in &self.devices {
            line.extend(["-device".to_owned(), device.clone()]);
        }
        line.extend(words(&format!(
            "-kernel {} -initrd {}",
            inside::KERNEL,
            inside::INITRAMFS
        )));
        line.extend(["-append", "console=ttyS0 quiet panic=-1 mitigations=off"].map(str::to_owned));
        line.extend(words(&format!(
            "-chardev file,id=s0,path={SERIAL},append=on -serial chardev:s0"
        )));
        match self.vmm {
            Vmm::Baton => {
                line.extend(words(&format!("-plugin {}", inside::PLUGINS)));
                if let Some(file) = &self.ram {
                    line.extend(words(&format!(
                        "-object memory-backend-file,id=ram0,size=256M,mem-path={file},align=2M,share=on"
                    )));
                    line.extend(words("-machine memory-backend=ram0"));
                }
            }
            Vmm::Qemu => {
                line.extend(words("-accel kvm -cpu host -no-user-config -monitor none"));
                line.extend(words(
                    "-object memory-backend-memfd,id=ram0,size=256M,share=on",
                ));
                line.extend(words("-machine q35,memory-backend=ram0,aux-ram-share=on"));
            }
        }
        line
    }
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}
