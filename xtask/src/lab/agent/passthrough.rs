//! Taking L1's second disk away from L1, for a guest.

use super::super::inside;
use crate::lab::process;
use anyhow::{Context, Result, bail, ensure};
use baton_testkit::wait::{PATIENCE, wait_for};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const CONTROLLERS: &str = "/sys/class/nvme";
const DEVICES: &str = "/sys/bus/pci/devices";
const DRIVER: &str = "vfio-pci";
/// How Linux begins to tell of accesses that an Intel IOMMU has stopped.
const FAULT: &str = "handling fault status";

/// Gives the NVMe controller that is there for it to the driver vfio-pci; gives its address, as
/// `-device vfio-pci,host=` takes it.
pub(crate) fn bind() -> Result<String> {
    process::output(Command::new("modprobe").args(["-a", "vfio_iommu_type1", "vfio_pci"]))?;
    // Linux looks for disks in the background.
    let address = wait_for("the NVMe disk of L1", PATIENCE, find)?;
    let device = Path::new(DEVICES).join(&address);
    let group = fs::read_link(device.join("iommu_group"))
        .with_context(|| format!("{address} is behind no IOMMU"))?;

    write(&device.join("driver_override"), DRIVER)?;
    write(&device.join("driver/unbind"), &address)?;
    write(Path::new("/sys/bus/pci/drivers_probe"), &address)?;
    let driver = fs::read_link(device.join("driver"))
        .with_context(|| format!("No driver takes {address}"))?;
    ensure!(
        driver.ends_with(DRIVER),
        "{address} is driven by {}",
        driver.display()
    );
    let group = group.file_name().context("The IOMMU group has no number")?;
    let group = Path::new("/dev/vfio").join(group);
    ensure!(group.exists(), "There is no {}", group.display());
    Ok(address)
}

/// Sees that L1's IOMMU has stopped no access of the device: it has reached what the guest gave it, whoever
/// had the guest.
pub(crate) fn no_faults() -> Result<()> {
    let said = process::text(&mut Command::new("dmesg"))?;
    match said.lines().find(|line| line.contains(FAULT)) {
        Some(line) => bail!("L1's IOMMU complains: {line}"),
        None => Ok(()),
    }
}

/// The address of the controller with the right serial number.
fn find() -> Result<Option<String>> {
    // Before the first controller there is no such folder.
    let Ok(controllers) = fs::read_dir(CONTROLLERS) else {
        return Ok(None);
    };
    for controller in controllers {
        let controller = controller?.path();
        let serial = fs::read_to_string(controller.join("serial")).unwrap_or_default();
        if serial.trim() == inside::NVME_SERIAL {
            let device: PathBuf = fs::read_link(controller.join("device"))
                .with_context(|| format!("{} is no device", controller.display()))?;
            let address = device.file_name().map(|name| name.to_string_lossy());
            return Ok(address.map(|address| address.into_owned()));
        }
    }
    Ok(None)
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("Cannot write {text} to {}", file.display()))
}
