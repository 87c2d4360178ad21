//! Drives and their images.

use std::os::unix::fs::{FileTypeExt, MetadataExt};

use baton_plugin_api::Drive;
use serde_json::{Value, json};

use super::qom;
use crate::machine::MachineDevice;
use crate::runstate::RunState;
use crate::vm::Vm;

/// The answer of `query-block`.
pub fn block(vm: &Vm) -> Value {
    // An image may be on a file system that is slow to answer, and nobody else is to wait for it.
    let (active, drives) = {
        let state = vm.state();
        let machine = state.machine.as_ref();
        let place = |drive: &Drive| {
            let mut devices = machine?.devices().iter();
            let has = |device: &&MachineDevice| {
                let mut drives = device.config().drives.values();
                drives.any(|own| own.id == drive.id)
            };
            devices.find(has).map(qom::device_path)
        };
        let drives = state.drives(&vm.options);
        let places: Vec<_> = drives.iter().map(place).collect();
        (is_active(state.runstate), drives.into_iter().zip(places))
    };
    let row = |(drive, place): (Drive, Option<String>)| {
        let mut row = json!({
            "device": drive.id,
            "type": "unknown",
            "removable": false,
            "locked": false,
            "inserted": image(&drive, active),
        });
        if let Some(place) = place {
            row["qdev"] = place.into();
            // An error of an image is the guest's to handle, and stops nothing.
            row["io-status"] = "ok".into();
        }
        row
    };
    drives.map(row).collect()
}

/// The answer of `query-named-block-nodes`.
pub fn named_nodes(vm: &Vm) -> Value {
    let (active, drives) = {
        let state = vm.state();
        (is_active(state.runstate), state.drives(&vm.options))
    };
    drives.iter().map(|drive| image(drive, active)).collect()
}

/// Whether the images are this process's to write to.
fn is_active(runstate: RunState) -> bool {
    !matches!(runstate, RunState::InMigrate | RunState::PostMigrate)
}

fn image(drive: &Drive, active: bool) -> Value {
    let (virtual_size, actual_size) = sizes(&drive.file);
    let mut image = json!({
        "filename": drive.file,
        "format": drive.format,
        "virtual-size": virtual_size.unwrap_or(0),
    });
    if let Some(bytes) = actual_size {
        image["actual-size"] = bytes.into();
    }
    json!({
        "file": drive.file,
        "node-name": drive.id,
        "ro": drive.read_only,
        "drv": drive.format,
        "backing_file_depth": 0,
        "active": active,
        "encrypted": false,
        "detect_zeroes": "off",
        "bps": 0, "bps_rd": 0, "bps_wr": 0,
        "iops": 0, "iops_rd": 0, "iops_wr": 0,
        "image": image,
        "cache": { "writeback": true, "direct": drive.direct, "no-flush": drive.no_flush },
        "write_threshold": 0,
    })
}

/// Bytes that an image has, and that it takes on the host, as far as its name tells.
fn sizes(file: &str) -> (Option<u64>, Option<u64>) {
    let Ok(found) = std::fs::metadata(file) else {
        return (None, None);
    };
    if !found.file_type().is_block_device() {
        return (Some(found.len()), Some(found.blocks() * 512));
    }
    let device = found.rdev();
    let (major, minor) = (nix::libc::major(device), nix::libc::minor(device));
    let sectors = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/size"));
    let bytes = sectors
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok());
    (bytes.map(|sectors| sectors * 512), None)
}
