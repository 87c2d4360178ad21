//! `cache.direct`: transfers past the host's page cache.

use super::*;

/// An image with `cache.direct=on`, and what its file system asks transfers to be aligned to.
fn bench(aio: &str, dir: &Dir) -> Option<(PathBuf, Bench, u32)> {
    let image = dir.image(2 << 20);
    for block in [512, 4096] {
        let drive = Drive {
            aio: Some(aio.into()),
            direct: true,
            ..drive(&image)
        };
        let said = ["logical_block_size", "physical_block_size"].map(|name| (name, uint(block)));
        match realize(drive.clone(), &said).map(drop) {
            Ok(()) => return Some((image, Bench::new(drive, &said), block as u32)),
            Err(e) if e.message.contains("takes multiples of 4096 bytes") => {}
            Err(e) => {
                eprintln!("SKIPPED: {}", e.message);
                return None;
            }
        }
    }
    panic!("an image takes neither blocks of 512 nor of 4096 bytes");
}

#[test]
fn an_unbuffered_transfer_works_wherever_the_guest_has_its_memory() {
    on_each_engine(|aio| {
        let dir = Dir::new();
        let Some((image, mut bench, block)) = bench(aio, &dir) else {
            return;
        };
        // Aligned, not aligned, and in odd parts of which the bounce buffer cuts some in two.
        for (round, cuts) in [vec![], vec![], vec![1, 300, 262_000, 262_001]]
            .iter()
            .enumerate()
        {
            let len = 300 * 4096;
            let data = pattern(round as u64, len);
            let skip = u64::from(round > 0);
            let place = bench.allocate(len as u64 + 1, 4096) + skip;
            bench.ram.write(place, &data);
            let mut parts = Vec::new();
            let mut from = 0;
            for to in cuts.iter().chain([&len]) {
                parts.push(Buffer::readable(place + from as u64, (to - from) as u32));
                from = *to;
            }
            let sector = u64::from(block) / 512 * (round as u64 + 1);
            assert_eq!(bench.ask(VIRTIO_BLK_T_OUT, sector, &parts).status, OK);
            assert_eq!(file_bytes(&image, sector as usize * 512, len), data);
            bench.ram.write(place, &vec![0; len]);
            for part in &mut parts {
                part.writable = true;
            }
            let answer = bench.ask(VIRTIO_BLK_T_IN, sector, &parts);
            assert_eq!((answer.status, answer.written), (OK, len as u32 + 1));
            assert_eq!(answer.data, data);
        }
        bench.quiesce();
    });
}

#[test]
fn an_image_that_asks_for_larger_blocks_than_the_guest_has_is_refused() {
    let dir = Dir::alone();
    let image = dir.image(1 << 20);
    // A loop device is told which blocks to have.
    let made = std::process::Command::new("losetup")
        .args(["--find", "--show", "--sector-size", "4096"])
        .arg(&image)
        .output();
    let Some(made) = made.ok().filter(|made| made.status.success()) else {
        eprintln!("SKIPPED: this test may not make loop devices");
        return;
    };
    let device = String::from_utf8(made.stdout).unwrap();
    let drive = Drive {
        direct: true,
        ..drive(Path::new(device.trim()))
    };
    let refused = realize(drive.clone(), &[]).err().map(|e| e.message);
    let said = ["logical_block_size", "physical_block_size"].map(|name| (name, uint(4096)));
    let accepted = realize(drive, &said).is_ok();
    let _ = std::process::Command::new("losetup")
        .args(["--detach", device.trim()])
        .status();
    assert_eq!(
        refused.unwrap(),
        format!(
            "Image '{}' with cache.direct=on takes multiples of 4096 bytes; say \
             logical_block_size=4096,physical_block_size=4096 or cache.direct=off",
            device.trim()
        )
    );
    assert!(accepted);
}
