//! Opening, checking and locking the image.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, ChildStdout, Command, Stdio};

use baton_plugin_api::{MigrationEvent, Mode};

use super::*;

fn open_again(image: &Path) -> OwnedFd {
    File::options()
        .read(true)
        .write(true)
        .open(image)
        .unwrap()
        .into()
}

/// Realizes on an image that another process handed over.
fn adopt(fd: OwnedFd, drive: Drive) -> Result<TestVirtio<Block>> {
    let host = TestHost::new();
    host.preserve("image", 0, fd);
    let mut config = config(drive, &[]);
    config.restoring = Some(Mode::CprTransfer);
    TestVirtio::new(config, &host)
}

#[test]
fn an_image_that_is_no_disk_is_refused_in_one_line() {
    let dir = Dir::new();
    let file = |name: &str, bytes: usize| {
        let path = dir.0.join(name);
        fs::write(&path, vec![0; bytes]).unwrap();
        path
    };
    let at = dir.0.display();
    for (path, why) in [
        (
            dir.0.join("gone"),
            format!(
                "Image '{at}/gone' does not exist; create it with truncate -s SIZE '{at}/gone', \
                 or correct its name"
            ),
        ),
        (
            dir.0.clone(),
            format!("Image '{at}' is a directory; name a raw file or a block device"),
        ),
        (
            "/dev/null".into(),
            "Image '/dev/null' is neither a file nor a block device; name a raw file or a block \
             device"
                .into(),
        ),
        (
            file("empty", 0),
            format!("Image '{at}/empty' is empty; give it a size: truncate -s SIZE '{at}/empty'"),
        ),
        (
            file("short", 100),
            format!(
                "Image '{at}/short' has 100 bytes, which are not whole blocks of 512; extend it: \
                 truncate -s 512 '{at}/short'"
            ),
        ),
        (
            file("odd", 1025),
            format!(
                "Image '{at}/odd' has 1025 bytes, which are not whole blocks of 512; extend it: \
                 truncate -s 1536 '{at}/odd'"
            ),
        ),
    ] {
        assert_eq!(refusal(drive(&path), &[]), why);
    }
}

#[test]
fn an_image_that_cannot_be_written_is_refused_unless_it_is_read_only() {
    // Nobody, not even root, opens a running program for writing. It is no whole number of blocks
    // in general, so that the second refusal is for that.
    let program = std::env::current_exe().unwrap();
    let name = program.display();
    assert_eq!(
        refusal(drive(&program), &[]),
        format!(
            "Cannot open '{name}' for writing: Text file busy; let this user write it, or say \
             readonly=on"
        )
    );
    let read_only = Drive {
        read_only: true,
        ..drive(&program)
    };
    match realize(read_only, &[]) {
        Ok(_) => {}
        Err(e) => assert!(e.message.contains("whole blocks"), "{}", e.message),
    }
}

#[test]
fn what_this_device_does_not_do_is_refused() {
    let dir = Dir::new();
    let image = dir.image(4096);
    let with = |change: fn(&mut Drive)| {
        let mut drive = drive(&image);
        change(&mut drive);
        refusal(drive, &[])
    };
    assert_eq!(
        with(|drive| drive.format = "qcow2".into()),
        "Format 'qcow2' is not one this device reads; convert the image with qemu-img convert -O \
         raw, or say format=raw"
    );
    assert_eq!(
        with(|drive| drive.aio = Some("native".into())),
        "Drive 'd0' says aio=native, which this device does not have; say aio=io_uring or \
         aio=threads"
    );
    for (name, value, why) in [
        (
            "queue-size",
            uint(100),
            "Property 'queue-size' is 100, it takes a power of two",
        ),
        (
            "logical_block_size",
            uint(1000),
            "Property 'logical_block_size' is 1000, it takes a power of two",
        ),
        (
            "logical_block_size",
            uint(4096),
            "Property 'logical_block_size' is 4096, above physical_block_size; say \
             physical_block_size=4096",
        ),
        (
            "serial",
            Value::String("0123456789012345678901".into()),
            "Property 'serial' is '0123456789012345678901', it takes at most 20 bytes",
        ),
    ] {
        assert_eq!(refusal(drive(&image), &[(name, value)]), why);
    }
}

#[test]
fn an_image_has_one_writer_or_many_readers() {
    let dir = Dir::new();
    let image = dir.image(4096);
    let writer = || drive(&image);
    let reader = || Drive {
        read_only: true,
        ..drive(&image)
    };
    let in_use = format!(
        "Cannot lock '{}': another process uses it; stop it, or say file.locking=off",
        image.display()
    );
    {
        let _reading = realize(reader(), &[]).unwrap();
        let _reading_too = realize(reader(), &[]).unwrap();
        assert_eq!(refusal(writer(), &[]), in_use);
    }
    let _writing = realize(writer(), &[]).unwrap();
    assert_eq!(refusal(reader(), &[]), in_use);
    assert_eq!(refusal(writer(), &[]), in_use);
    let unlocked = Drive {
        locking: false,
        ..writer()
    };
    assert!(realize(unlocked, &[]).is_ok());
}

/// Run by the next test in a process of its own: holds the lock until its input ends.
#[test]
#[ignore = "a part of the test that starts it"]
fn a_process_that_holds_the_lock() {
    let Some(image) = std::env::var_os("BATON_TEST_IMAGE") else {
        return;
    };
    let _disk = realize(drive(Path::new(&image)), &[]).unwrap();
    println!("locked");
    let _ = std::io::stdin().read_line(&mut String::new());
}

struct Holder {
    child: Child,
    /// It must be able to write to it.
    _output: BufReader<ChildStdout>,
}

impl Holder {
    fn new(image: &Path) -> Self {
        let name = "tests::image::a_process_that_holds_the_lock";
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([name, "--exact", "--ignored", "--nocapture"])
            .env("BATON_TEST_IMAGE", image)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let locked = output
            .by_ref()
            .lines()
            .any(|line| line.unwrap().contains("locked"));
        assert!(locked, "the other process has not locked the image");
        Self {
            child,
            _output: output,
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn an_image_that_another_process_uses_is_refused_until_that_ends() {
    let dir = Dir::alone();
    let image = dir.image(4096);
    let other = Holder::new(&image);
    assert!(refusal(drive(&image), &[]).contains("another process uses it"));
    drop(other);
    assert!(realize(drive(&image), &[]).is_ok());
    // It does end by itself too, or the test above would prove little.
    let mut other = Holder::new(&image);
    let mut input = other.child.stdin.take().unwrap();
    input.write_all(b"\n").unwrap();
    assert!(other.child.wait().unwrap().success());
}

#[test]
fn an_image_handed_over_keeps_its_lock_and_is_neither_opened_nor_locked_again() {
    let dir = Dir::new();
    let image = dir.image(4096);
    let mut source = realize(drive(&image), &[]).unwrap();
    let fds = source.fds(Mode::CprTransfer);
    assert_eq!(fds.len(), 1);
    let fd = baton_plugin_api::fd::duplicate(fds[0].fd).unwrap();
    // What is not opened may be gone.
    let moved = dir.0.join("moved.img");
    fs::rename(&image, &moved).unwrap();
    let target = adopt(fd, drive(&image)).unwrap();
    // Both have it, then one, then none.
    assert!(refusal(drive(&moved), &[]).contains("another process"));
    drop(source);
    assert!(refusal(drive(&moved), &[]).contains("another process"));
    drop(target);
    assert!(realize(drive(&moved), &[]).is_ok());
}

#[test]
fn the_lock_of_a_copied_guest_goes_to_the_process_that_starts_it() {
    let dir = Dir::new();
    let image = dir.image(1 << 20);
    let ram = TestRam::new(1 << 20);
    let start = |disk: &mut TestVirtio<Block>| disk.start(&ram, FEATURES, &mut []);
    let mut source = realize(drive(&image), &[]).unwrap();
    start(&mut source).unwrap();
    // It opens what the other process uses.
    let mut config = config(drive(&image), &[]);
    config.restoring = Some(Mode::Normal);
    let mut target = TestVirtio::new(config, &TestHost::new()).unwrap();
    let error = start(&mut target).unwrap_err();
    assert!(error.message.starts_with("Cannot lock"), "{error}");

    source.quiesce(&mut []).unwrap();
    start(&mut target).unwrap_err();
    source.notify(MigrationEvent::Switchover);
    // The guest stays, whether it stands still or runs.
    source.notify(MigrationEvent::Failed);
    start(&mut target).unwrap_err();
    source.notify(MigrationEvent::Switchover);
    start(&mut source).unwrap();
    start(&mut target).unwrap_err();

    source.quiesce(&mut []).unwrap();
    source.notify(MigrationEvent::Switchover);
    start(&mut target).unwrap();
    start(&mut source).unwrap_err();
    target.quiesce(&mut []).unwrap();
}

#[test]
fn the_image_is_handed_over_in_the_modes_that_keep_descriptors() {
    let dir = Dir::new();
    let mut disk = realize(drive(&dir.image(4096)), &[]).unwrap();
    for mode in Mode::ALL {
        assert_eq!(
            disk.fds(mode).len(),
            usize::from(mode.preserves_fds()),
            "{mode}"
        );
    }
}

#[test]
fn an_image_handed_over_must_be_open_as_the_drive_says() {
    let dir = Dir::new();
    let image = dir.image(4096);
    let read_only = Drive {
        read_only: true,
        ..drive(&image)
    };
    let refused = |fd, drive| adopt(fd, drive).err().unwrap().message;
    assert_eq!(
        refused(open_again(&image), read_only),
        format!(
            "Image '{}' was handed over with readonly=off; say readonly=off here too",
            image.display()
        )
    );
    let direct = Drive {
        direct: true,
        ..drive(&image)
    };
    assert!(refused(open_again(&image), direct).contains("cache.direct=off"));
    let pipe = nix::unistd::pipe().unwrap();
    let text = refused(
        pipe.0,
        Drive {
            read_only: true,
            ..drive(&image)
        },
    );
    assert!(text.contains("neither a file nor a block device"), "{text}");
}

#[test]
fn a_target_that_was_handed_nothing_opens_only_after_a_reboot() {
    let dir = Dir::new();
    let image = dir.image(4096);
    for mode in Mode::ALL {
        let mut config = config(drive(&image), &[]);
        config.restoring = Some(mode);
        let realized = TestVirtio::<Block>::new(config, &TestHost::new()).map(drop);
        match (mode.preserves_fds(), realized) {
            (false, Ok(())) => {}
            (true, Err(e)) => assert_eq!(
                e.message,
                format!(
                    "The other process did not hand over image '{}'; start both with the same \
                     -drive and -device",
                    image.display()
                )
            ),
            (_, realized) => panic!("{mode}: {:?}", realized.err()),
        }
    }
    // One that reboots locks what it opens.
    let mut config = config(drive(&image), &[]);
    config.restoring = Some(Mode::CprReboot);
    let _disk = TestVirtio::<Block>::new(config, &TestHost::new()).unwrap();
    assert!(refusal(drive(&image), &[]).contains("another process"));
}
