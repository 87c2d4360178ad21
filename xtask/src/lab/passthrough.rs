//! The disk of L1's that a guest gets by VFIO: a controller behind an IOMMU that remaps interrupts, too, as
//! Linux wants it for that. What the guest has written is looked at here, where nobody else was.

use super::inside;
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const SIZE: u64 = 64 << 20;
const BLOCK: usize = 4096;

/// Makes its image.
pub(crate) fn make(image: &Path) -> Result<()> {
    File::create(image)
        .and_then(|file| {
            file.set_len(SIZE)?;
            file.write_all_at(inside::NVME_MAGIC.as_bytes(), 0)
        })
        .with_context(|| format!("Cannot make {}", image.display()))
}

/// What the outer machine has it by. Behind a port of its own it can be reset.
pub(crate) fn arguments(image: &Path) -> Vec<String> {
    // Nothing of it needs to outlive this machine, so no flush needs to reach its disk.
    let drive = format!(
        "if=none,id=passed,file={},format=raw,cache=unsafe",
        image.display()
    );
    let disk = format!("nvme,drive=passed,serial={},bus=rp", inside::NVME_SERIAL);
    [
        "-device",
        "intel-iommu,intremap=on",
        "-device",
        "pcie-root-port,id=rp,chassis=1,slot=1",
        "-drive",
        &drive,
        "-device",
        &disk,
    ]
    .map(str::to_owned)
    .into()
}

/// Looks for the last of the `count` blocks that the guest says it has written.
pub(crate) fn check(image: &Path, count: &str) -> Result<()> {
    let about = || format!("Cannot read {}", image.display());
    let count: u64 = count
        .parse()
        .with_context(|| format!("`{count}` is not a number of blocks"))?;
    ensure!(count > 0, "The guest has written no block to the NVMe disk");
    let image = File::open(image).with_context(about)?;
    let mut found = [0; BLOCK];
    let first = count.saturating_sub(inside::NVME_BLOCKS) + 1;
    for number in first..=count {
        let at = 1 + (number - 1) % inside::NVME_BLOCKS;
        image
            .read_exact_at(&mut found, at * BLOCK as u64)
            .with_context(about)?;
        ensure!(
            found == block(number).as_bytes(),
            "The NVMe disk does not hold the guest's block {number}, but {:?}",
            String::from_utf8_lossy(&found[..32])
        );
    }
    Ok(())
}

/// What only this block has, as the guest's workload makes it.
fn block(number: u64) -> String {
    let value = number * 2_654_435_761 % (1 << 32);
    let unit = format!(
        "block {} {} lab",
        1_000_000_000 + number,
        10_000_000_000 + value
    );
    unit.repeat(BLOCK / unit.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use baton_testkit::scratch::Scratch;

    #[test]
    fn the_image_is_found_to_hold_what_the_guest_wrote_and_nothing_else() {
        let scratch = Scratch::new().unwrap();
        let path = scratch.join("nvme.img");
        make(&path).unwrap();
        let image = File::options().write(true).open(&path).unwrap();
        // It went round: the first place has a later block.
        let count = inside::NVME_BLOCKS + 1;
        for number in 1..=count {
            let at = 1 + (number - 1) % inside::NVME_BLOCKS;
            image
                .write_all_at(block(number).as_bytes(), at * BLOCK as u64)
                .unwrap();
        }
        check(&path, &count.to_string()).unwrap();

        image.write_all_at(b"torn", 5 * BLOCK as u64 - 4).unwrap();
        let error = check(&path, &count.to_string()).unwrap_err().to_string();
        assert!(error.contains("block 4,"), "{error}");
        assert!(check(&path, "0").is_err());
    }
}
