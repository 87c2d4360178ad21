//! The guest as each VMM's command line describes it. Baton takes QEMU's spelling, so the two differ
//! only in what QEMU needs said for a handover to work at all.

use super::super::{Vmm, inside};

/// What a guest is made of.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    pub vmm: Vmm,
    /// The number of the first process that has it.
    pub first: u32,
    /// Where its serial port ends up; every generation goes on in this one file.
    pub serial: String,
    /// The image of its disk.
    pub disk: String,
    /// The shared file that is its RAM; without one the VMM takes what it takes by itself.
    pub ram: Option<String>,
    /// Images that no device of the line is connected to.
    pub drives: Vec<String>,
    /// Backends of the devices below.
    pub chardevs: Vec<String>,
    /// Devices beside the usual ones, each as `-device` takes it.
    pub devices: Vec<String>,
}

impl Guest {
    /// The usual guest.
    pub(crate) fn new(vmm: Vmm) -> Self {
        Self {
            vmm,
            first: 0,
            serial: "/out/guest.log".to_owned(),
            disk: inside::DISK.to_owned(),
            ram: None,
            drives: Vec::new(),
            chardevs: Vec::new(),
            devices: Vec::new(),
        }
    }

    /// With one more `-drive`.
    pub(crate) fn drive(mut self, drive: &str) -> Self {
        self.drives.push(drive.to_owned());
        self
    }

    /// With one more `-device`.
    pub(crate) fn device(mut self, device: &str) -> Self {
        self.devices.push(device.to_owned());
        self
    }

    /// With a port for the guest agent, which the host reaches by the socket `path`. The words are those
    /// of QEMU's document on CPR.
    pub(crate) fn guest_agent(mut self, path: &str) -> Self {
        self.chardevs
            .push(format!("socket,id=qga0,path={path},server=on,wait=off"));
        self.device("virtio-serial-pci")
            .device("virtserialport,chardev=qga0,name=org.qemu.guest_agent.0")
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
        for chardev in &self.chardevs {
            line.extend(["-chardev".to_owned(), chardev.clone()]);
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
            "-chardev file,id=s0,path={},append=on -serial chardev:s0",
            self.serial
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
                // From S3 a guest of its q35 comes back only once.
                let (ram, machine) = match &self.ram {
                    Some(file) => (format!("file,mem-path={file}"), "pc"),
                    None => ("memfd".to_owned(), "q35"),
                };
                line.extend(words(&format!(
                    "-object memory-backend-{ram},id=ram0,size=256M,share=on"
                )));
                line.extend(words(&format!(
                    "-machine {machine},memory-backend=ram0,aux-ram-share=on"
                )));
            }
        }
        line
    }
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}
