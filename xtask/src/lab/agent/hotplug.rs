//! The job `hotplug`: an entropy device and a disk come to a guest at work, are used, are handed over
//! with it, and go again.

use super::super::{Vmm, inside};
use super::command_line::Guest;
use super::life::{self, Life};
use super::migration;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::fs::File;

/// The image of the disk that comes and goes; as large as what the guest writes to it.
const IMAGE: &str = "/tmp/second.img";
const IMAGE_SIZE: u64 = 8 << 20;
/// The plugin of the disks, and where its next build is.
const BUILD: &str = "libbaton_virtio_blk_pci.so";
const NEXT_BUILD: &str = "/tmp/libbaton_virtio_blk_pci.so";

/// Boots a guest, plugs and unplugs, and lets it finish; gives the result line's numbers.
pub(crate) fn run(vmm: Vmm) -> Result<String> {
    let image = File::create(IMAGE).and_then(|file| file.set_len(IMAGE_SIZE));
    image.with_context(|| format!("Cannot make {IMAGE}"))?;
    let guest = Guest::new(vmm).drive(&format!("if=none,id=d1,file={IMAGE},format=raw"));
    let (mut life, boot) = Life::boot(guest)?;
    // More than one slot, so that a slot is found to be free again.
    for round in 1..=2 {
        entropy(&mut life).with_context(|| format!("Entropy device, round {round}"))?;
        disk(&mut life, round == 2).with_context(|| format!("Disk, round {round}"))?;
    }
    let numbers = life.end()?;
    Ok(format!("{} {numbers}", life::heading(vmm, boot)))
}

fn entropy(life: &mut Life) -> Result<()> {
    let comes = life.said("rngs virtio_rng.0 virtio_rng.")?;
    let goes = life.said("rngs virtio_rng.0 only")?;
    add(life, &json!({ "driver": "virtio-rng-pci", "id": "r1" }))?;
    life.wait_said("rngs virtio_rng.0 virtio_rng.", comes + 1)?;
    life.goes_on()?;
    remove(life, "r1")?;
    life.wait_said("rngs virtio_rng.0 only", goes + 1)?;
    println!("LAB an entropy device came, was used, and went");
    life.goes_on()
}

fn disk(life: &mut Life, hand_over: bool) -> Result<()> {
    let (comes, rests, leaves) = (
        life.said("disk came")?,
        life.said("disk rests")?,
        life.said("disk left")?,
    );
    life::tell_of_second_disk(&life.guest.disk, inside::WORK)?;
    add(
        life,
        &json!({ "driver": "virtio-blk-pci", "id": "disk1", "drive": "d1" }),
    )?;
    life.wait_said("disk came", comes + 1)?;
    writes(life)?;
    if hand_over {
        // The successor is told of what has come in the meantime, in the source's own words.
        let found = device(life, "disk1")?.context("query-devices does not list disk1")?;
        life.guest.devices = vec![found["arguments"].to_string()];
        migration::step(life, "cpr-transfer with the disk", migration::transfer)?;
        writes(life)?;
        replace(life).context("plugin-replace")?;
        writes(life)?;
    }
    life::tell_of_second_disk(&life.guest.disk, inside::REST)?;
    life.wait_said("disk rests", rests + 1)?;
    remove(life, "disk1")?;
    life.guest.devices.clear();
    life.wait_said("disk left", leaves + 1)?;
    println!("LAB a disk came, was written, and went");
    life.goes_on()
}

/// The plugin of the disks, which are being written, is replaced by a copy of its file.
fn replace(life: &mut Life) -> Result<()> {
    std::fs::copy(format!("{}/{BUILD}", inside::PLUGINS), NEXT_BUILD)
        .with_context(|| format!("Cannot copy {BUILD}"))?;
    life.now
        .command("plugin-replace", &json!({ "file": NEXT_BUILD }))?;
    let plugins = life.now.command("query-plugins", &json!({}))?;
    let mut plugins = plugins.as_array().cloned().unwrap_or_default().into_iter();
    ensure!(
        plugins.any(|plugin| plugin["file"] == NEXT_BUILD),
        "query-plugins does not list {NEXT_BUILD}"
    );
    println!("LAB the plugin of the disks was replaced");
    Ok(())
}

fn add(life: &mut Life, arguments: &Value) -> Result<()> {
    life.now.command("device_add", arguments).map(drop)
}

fn remove(life: &mut Life, id: &str) -> Result<()> {
    life.now.command("device_del", &json!({ "id": id }))?;
    let data = life.now.wait_event("DEVICE_DELETED")?;
    ensure!(data["device"] == id, "{data} instead of '{id}' has gone");
    ensure!(device(life, id)?.is_none(), "'{id}' is still listed");
    Ok(())
}

fn device(life: &mut Life, id: &str) -> Result<Option<Value>> {
    let all = life.now.command("query-devices", &json!({}))?;
    let mut all = all.as_array().cloned().unwrap_or_default().into_iter();
    Ok(all.find(|device| device["id"] == id))
}

/// The guest writes to the disk for a while.
fn writes(life: &mut Life) -> Result<()> {
    let before = life.said("disk wrote")?;
    life.wait_said("disk wrote", before + 2)
}
