//! Real files, commands and pipes.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use super::fakes::{FakeRam, FakeSink, Folder, Stage};
use crate::address::parse_uri;
use crate::checkpoint::{Cancel, Kept, Place, RamLayout, RamSource, Writing, keeper};
use crate::settings::Settings;
use crate::stream::{Header, SectionWriter};
use crate::{HostError, Mode};

fn place(uri: &str) -> Place {
    Place::of(&parse_uri(uri).unwrap(), &resolve).unwrap()
}

fn resolve(name: &str) -> Result<OwnedFd, HostError> {
    use std::os::fd::BorrowedFd;
    let number = name.parse()?;
    // SAFETY: only used by tests that hold the descriptor open.
    #[allow(unsafe_code)]
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    Ok(fd.try_clone_to_owned()?)
}

fn state() -> Vec<u8> {
    let header = Header {
        producer: "test".into(),
        fingerprint: super::fakes::fingerprint(),
    };
    let mut state = Vec::new();
    let mut writer = SectionWriter::new(&mut state, &header).unwrap();
    writer.put_raw("big", 0, 1, &vec![3; 300_000]).unwrap();
    writer.finish().unwrap();
    state
}

fn ram() -> FakeRam {
    let mut bytes = vec![0; 9 << 20];
    bytes[4096..8192].fill(1);
    bytes[6 << 20..7 << 20].fill(2);
    FakeRam(bytes)
}

/// Opens, writes and finishes; discards after an error.
fn keep(uri: &str, ram: Option<&dyn RamSource>) -> Result<(), String> {
    let stage = Stage::new(None);
    let cancel = Cancel::of(&stage.tracker);
    let mut keeper = keeper(
        place(uri),
        Mode::CprReboot,
        Writing::of(&Settings::default()),
    )
    .map_err(|e| e.to_string())?;
    let kept = keeper
        .open()
        .and_then(|()| keeper.write(&state(), ram, cancel))
        .and_then(|()| keeper.finish(cancel));
    kept.map_err(|e| {
        keeper.discard();
        e.to_string()
    })
}

/// Loads it; gives state and RAM.
fn load(uri: &str, size: u64) -> Result<(usize, Vec<u8>), String> {
    let stage = Stage::new(None);
    let cancel = Cancel::of(&stage.tracker);
    let load = || -> Result<_, HostError> {
        let mut kept = Kept::open(place(uri), cancel)?;
        let state = kept.state(cancel)?;
        let sink = FakeSink::new(size);
        kept.copy_ram(&sink, cancel)?;
        kept.finish(cancel)?;
        Ok((state.len(), sink.bytes()))
    };
    load().map_err(|e| e.to_string())
}

fn loads(uri: &str) {
    let ram = ram();
    let (sections, found) = load(uri, ram.size()).unwrap();
    assert_eq!(sections, 1);
    assert!(found == ram.0, "{uri}: RAM differs");
}

#[test]
fn what_is_kept_comes_back_from_every_kind_of_place() {
    let folder = Folder::new();
    let shown = folder.0.display();
    let ram = ram();
    for (keep_in, load_from) in [
        (format!("file:{shown}/a"), format!("file:{shown}/a")),
        (format!("file:{shown}/a"), format!("exec:cat {shown}/a")),
        (format!("exec:cat > {shown}/b"), format!("file:{shown}/b")),
        (
            format!("exec:cat > {shown}/b"),
            format!("exec:cat {shown}/b"),
        ),
        (
            format!("file:{shown}/c,offset=12288"),
            format!("file:{shown}/c,offset=12288"),
        ),
        (
            format!("exec:gzip > {shown}/d"),
            format!("exec:gzip -d < {shown}/d"),
        ),
    ] {
        keep(&keep_in, Some(&ram)).unwrap();
        loads(&load_from);
        // RAM that stays where it is.
        keep(&keep_in, None).unwrap();
        let (sections, _) = load(&load_from, 0).unwrap();
        assert_eq!(sections, 1, "{keep_in}");
    }
    assert_eq!(folder.names(), ["a", "b", "c", "d"]);
    let mode = fs::metadata(folder.join("a")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn ram_in_a_file_can_be_mapped_and_zeros_are_holes() {
    use std::os::unix::fs::MetadataExt;
    let folder = Folder::new();
    let uri = format!("file:{}/a", folder.0.display());
    keep(&uri, Some(&ram())).unwrap();
    let stage = Stage::new(None);
    let mut kept = Kept::open(place(&uri), Cancel::of(&stage.tracker)).unwrap();
    let mapped = kept.mappable().unwrap().unwrap();
    assert_eq!((mapped.size, mapped.offset % (2 << 20)), (9 << 20, 0));
    let mut page = [0; 4096];
    mapped
        .file
        .read_exact_at(&mut page, mapped.offset + 4096)
        .unwrap();
    assert_eq!(page, [1; 4096]);
    let blocks = fs::metadata(folder.join("a")).unwrap().blocks();
    assert!(blocks * 512 < 2 << 20, "{blocks} blocks");
    assert!(matches!(kept.header().ram, RamLayout::Fixed { .. }));
}

#[test]
fn a_descriptor_is_written_from_its_position_on() {
    use std::io::{Seek, SeekFrom};
    use std::os::fd::AsRawFd;
    let folder = Folder::new();
    let mut file = fs::OpenOptions::new();
    let file = file.read(true).write(true).create_new(true);
    let mut file = file.open(folder.join("a")).unwrap();
    file.write_all_at(&[9; 4096], 0).unwrap();
    file.seek(SeekFrom::Start(4096)).unwrap();
    let uri = format!("fd:{}", file.as_raw_fd());
    keep(&uri, Some(&ram())).unwrap();
    loads(&uri);
    loads(&format!("file:{}/a,offset=4096", folder.0.display()));
    let mut before = [0; 4096];
    file.read_exact_at(&mut before, 0).unwrap();
    assert_eq!(before, [9; 4096]);
    // Nobody else is kept from it.
    file.try_lock().unwrap();
}

#[test]
fn what_was_in_a_file_before_is_not_taken_for_ram() {
    let folder = Folder::new();
    let path = folder.join("a");
    fs::write(&path, vec![0x55; 20 << 20]).unwrap();
    let uri = format!("file:{},offset=4096", path.display());
    keep(&uri, Some(&ram())).unwrap();
    loads(&uri);
}

#[test]
fn places_that_keep_nothing_are_refused() {
    let folder = Folder::new();
    let shown = folder.0.display();
    let locked = folder.join("locked");
    fs::create_dir(&locked).unwrap();
    for (uri, reason) in [
        ("file:/dev/null".to_owned(), "character device"),
        ("file:/dev/full".to_owned(), "character device"),
        (format!("file:{shown}"), "Is a directory"),
        (format!("file:{shown}/no/a"), "No such file or directory"),
        ("exec:exit 3".to_owned(), "exit status: 3"),
        ("exec:cat > /dev/full".to_owned(), "exit status: 1"),
        (format!("exec:cat > {shown}/x; exit 5"), "exit status: 5"),
        ("exec:head -c 10000 > /dev/null".to_owned(), ""),
    ] {
        let error = keep(&uri, Some(&ram())).unwrap_err();
        assert!(error.contains(reason), "{uri}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
    for uri in ["tcp:0:1", "unix:/a", "vsock:1:2"] {
        let error = Place::of(&parse_uri(uri).unwrap(), &resolve).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("use file:PATH") && error.contains(uri),
            "{error}"
        );
    }
    let names = folder.names();
    assert_eq!(names, ["locked", "x"]);
}

#[test]
fn a_file_that_is_removed_meanwhile_is_no_success() {
    let folder = Folder::new();
    let stage = Stage::new(None);
    let cancel = Cancel::of(&stage.tracker);
    for (name, uri) in [("a.baton-unfinished", "a"), ("b", "b,offset=4096")] {
        let uri = format!("file:{}/{uri}", folder.0.display());
        let mut keeper = keeper(
            place(&uri),
            Mode::CprReboot,
            Writing::of(&Settings::default()),
        )
        .unwrap();
        keeper.open().unwrap();
        keeper.write(&state(), Some(&ram()), cancel).unwrap();
        fs::remove_file(folder.join(name)).unwrap();
        keeper.finish(cancel).unwrap_err();
        keeper.discard();
        assert!(folder.names().is_empty(), "{:?}", folder.names());
    }
}

#[test]
fn what_is_discarded_does_not_look_whole() {
    let folder = Folder::new();
    let stage = Stage::new(None);
    let cancel = Cancel::of(&stage.tracker);
    let shown = folder.0.display();
    for uri in [
        format!("file:{shown}/a"),
        format!("file:{shown}/b,offset=8192"),
        format!("exec:cat > {shown}/c"),
    ] {
        for steps in 0..3 {
            let mut keeper = keeper(
                place(&uri),
                Mode::CprReboot,
                Writing::of(&Settings::default()),
            )
            .unwrap();
            keeper.open().unwrap();
            if steps > 0 {
                keeper.write(&state(), Some(&ram()), cancel).unwrap();
            }
            // A command that was told to keep it has kept it.
            if steps > 1 && !uri.starts_with("exec") {
                keeper.finish(cancel).unwrap();
            }
            keeper.discard();
            for load_from in [&uri, &format!("file:{shown}/c")] {
                if load_from.starts_with("file") {
                    load(load_from, ram().size()).unwrap_err();
                }
            }
        }
    }
    assert!(!folder.join("a").exists());
}

#[test]
fn the_previous_state_stays_until_the_next_is_whole() {
    let folder = Folder::new();
    let uri = format!("file:{}/a", folder.0.display());
    keep(&uri, Some(&ram())).unwrap();
    let stage = Stage::new(None);
    let cancel = Cancel::of(&stage.tracker);
    let mut keeper = keeper(
        place(&uri),
        Mode::CprReboot,
        Writing::of(&Settings::default()),
    )
    .unwrap();
    keeper.open().unwrap();
    keeper.write(&state(), None, cancel).unwrap();
    loads(&uri);
    // Two at a time would spoil it.
    let error = keep(&uri, None).unwrap_err();
    assert!(error.contains("another process is writing it"), "{error}");
    keeper.discard();
    loads(&uri);
    assert_eq!(folder.names(), ["a"]);
}

#[test]
fn a_guest_can_be_loaded_as_soon_as_it_is_kept() {
    let folder = Folder::new();
    let stage = Stage::new(None);
    let cancel = Cancel::of(&stage.tracker);
    for uri in ["a", "b,offset=4096"] {
        let uri = format!("file:{}/{uri}", folder.0.display());
        let mut keeper = keeper(
            place(&uri),
            Mode::CprReboot,
            Writing::of(&Settings::default()),
        )
        .unwrap();
        keeper.open().unwrap();
        keeper.write(&state(), Some(&ram()), cancel).unwrap();
        keeper.finish(cancel).unwrap();
        loads(&uri);
    }
}

#[test]
fn a_file_that_is_mapped_is_not_written_over() {
    let folder = Folder::new();
    let uri = format!("file:{}/a,offset=4096", folder.0.display());
    keep(&uri, Some(&ram())).unwrap();
    let stage = Stage::new(None);
    let mut kept = Kept::open(place(&uri), Cancel::of(&stage.tracker)).unwrap();
    let mapped = kept.mappable().unwrap();
    drop(kept);
    let error = keep(&uri, Some(&ram())).unwrap_err();
    assert!(error.contains("memory is mapped from it"), "{error}");
    loads(&uri);
    mapped.unwrap().file.unlock().unwrap();
    keep(&uri, Some(&ram())).unwrap();
}

#[test]
fn damaged_files_are_refused() {
    let folder = Folder::new();
    let path = folder.join("a");
    let uri = format!("file:{}", path.display());
    let size = ram().size();
    let spoil = |change: &dyn Fn(&Path)| {
        keep(&uri, Some(&ram())).unwrap();
        change(&path);
        load(&uri, size).unwrap_err()
    };
    let flip = |at: u64| {
        move |path: &Path| {
            let mut file = fs::OpenOptions::new();
            let file = file.read(true).write(true).open(path).unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 4], at).unwrap();
        }
    };
    let cut = |length: u64| {
        move |path: &Path| {
            let file = fs::OpenOptions::new().write(true).open(path).unwrap();
            file.set_len(length).unwrap();
        }
    };
    for at in [0, 20, 100, 4095, 4096, 4200, 100_000] {
        let error = spoil(&flip(at));
        assert!(error.contains(path.to_str().unwrap()), "{error}");
    }
    for length in [0, 100, 4096, 100_000, 5 << 20, (11 << 20) - 1] {
        let error = spoil(&cut(length));
        assert!(
            error.contains("too short") || error.contains("cut short"),
            "{error}"
        );
    }
    let error = spoil(&|path| fs::write(path, b"something else entirely".repeat(500)).unwrap());
    assert!(
        error.contains("Not a migration stream (bad magic"),
        "{error}"
    );
    let error = load(&format!("exec:head -c 400000 {}", path.display()), size).unwrap_err();
    assert!(error.contains("bad magic"), "{error}");
}

#[test]
fn a_reader_that_stops_can_be_cancelled() {
    let stage = Stage::new(None);
    stage.tracker.begin().unwrap();
    let cancel = Cancel::of(&stage.tracker);
    let mut keeper = keeper(
        place("exec:sleep 1000"),
        Mode::CprReboot,
        Writing::of(&Settings::default()),
    )
    .unwrap();
    keeper.open().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| stage.tracker.cancel());
        let error = keeper.write(&state(), Some(&ram()), cancel).unwrap_err();
        assert!(error.to_string().contains("cancelled"), "{error}");
    });
    keeper.discard();
}

#[test]
fn a_writer_that_says_nothing_can_be_cancelled() {
    let stage = Stage::new(None);
    stage.tracker.begin().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| stage.tracker.cancel());
        let opened = Kept::open(place("exec:sleep 1000"), Cancel::of(&stage.tracker));
        assert!(opened.is_err());
    });
}
