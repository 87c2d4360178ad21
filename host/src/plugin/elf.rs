//! What can be known of a shared object before any of it is loaded.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

const HEADER: usize = 64;
const MAGIC: [u8; 4] = *b"\x7fELF";
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const ET_DYN: u16 = 3;
const EM_X86_64: u16 = 62;
const SEGMENT: usize = 56;
const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_NOTE: u32 = 4;
/// The fixed part of a note.
const NOTE: usize = 12;
const NT_GNU_BUILD_ID: u32 = 3;
const DT_STRTAB: u64 = 5;
const DT_STRSZ: u64 = 10;
/// More than any library's names take.
const NAMES_MAX: usize = 16 << 20;

/// Whether `path` is a whole shared object for this machine. The dynamic linker checks no file's
/// length: of one that was cut off it dies by SIGBUS.
pub(super) fn check(path: &Path) -> Result<(), String> {
    let unopened = |e: io::Error| format!("cannot be opened: {e}");
    let metadata = path.metadata().map_err(unopened)?;
    // Before it is opened: to open a pipe would wait for its other end.
    if !metadata.is_file() {
        return Err("is not a file; a plugin is a shared object (.so)".into());
    }
    let file = File::open(path).map_err(unopened)?;
    let failed = |e: io::Error| format!("cannot be read: {e}");
    let mut header = [0; HEADER];
    let whole = read(&file, &mut header, 0).map_err(failed)?;
    if !whole || header[..4] != MAGIC {
        return Err("is not an ELF file; a plugin is a shared object (.so)".into());
    }
    let ours = header[4] == CLASS_64 && header[5] == LITTLE_ENDIAN;
    if !ours || half(&header, 18) != EM_X86_64 {
        return Err("is built for another kind of processor; build it for x86-64".into());
    }
    if half(&header, 16) != ET_DYN {
        return Err("is an ELF file but no shared object; build the plugin as a cdylib".into());
    }
    let needed = bytes_needed(&file, &header).map_err(failed)?;
    if metadata.len() < needed {
        return Err(format!(
            "is cut off: it has {} bytes and needs {needed}; copy it again",
            metadata.len()
        ));
    }
    Ok(())
}

/// Whether the dynamic linker would find a symbol `name` in `path`, or in what it needs. Only the
/// names are read, which are a few kilobytes of a file of megabytes.
pub(super) fn names(path: &Path, name: &str) -> bool {
    dynamic_names(path).is_some_and(|names| {
        names
            .split(|byte| *byte == 0)
            .any(|found| found == name.as_bytes())
    })
}

/// The dynamic string table, by the ELF header's way to it: PT_DYNAMIC, DT_STRTAB, DT_STRSZ.
fn dynamic_names(path: &Path) -> Option<Vec<u8>> {
    let file = File::open(path).ok()?;
    let mut loaded = Vec::new();
    let mut dynamic = None;
    for segment in segments(&file)? {
        let (offset, address, length) = (long(&segment, 8), long(&segment, 16), long(&segment, 32));
        match word(&segment, 0) {
            PT_LOAD => loaded.push((offset, address, length)),
            PT_DYNAMIC => dynamic = Some((offset, length)),
            _ => {}
        }
    }
    let (offset, length) = dynamic?;
    let entries = bytes(&file, offset, length)?;
    let entry = |tag: u64| {
        let mut all = entries.chunks_exact(16);
        Some(long(all.find(|entry| long(entry, 0) == tag)?, 8))
    };
    let (address, length) = (entry(DT_STRTAB)?, entry(DT_STRSZ)?);
    let (offset, start, _) = loaded
        .into_iter()
        .find(|(_, start, length)| address >= *start && address - start < *length)?;
    bytes(&file, offset.checked_add(address - start)?, length)
}

/// What the linker wrote into `path` to tell builds apart, in hexadecimal: the first note of type
/// NT_GNU_BUILD_ID in a segment of notes.
pub fn build_id(path: &Path) -> Option<String> {
    let file = File::open(path).ok()?;
    let notes = segments(&file)?;
    let mut notes = notes.iter().filter(|segment| word(*segment, 0) == PT_NOTE);
    notes.find_map(|segment| id_of(&bytes(&file, long(segment, 8), long(segment, 32))?))
}

/// Notes are their name's and description's length, a type, and both, each filled up to 4 bytes.
fn id_of(mut notes: &[u8]) -> Option<String> {
    while notes.len() >= NOTE {
        let (name, description) = (word(notes, 0) as usize, word(notes, 4) as usize);
        let from = NOTE.checked_add(name.checked_next_multiple_of(4)?)?;
        let content = notes.get(from..from.checked_add(description)?)?;
        let is_gnu = notes.get(NOTE..NOTE.checked_add(name)?)? == b"GNU\0";
        if is_gnu && word(notes, 8) == NT_GNU_BUILD_ID {
            return Some(content.iter().map(|byte| format!("{byte:02x}")).collect());
        }
        notes = notes.get(from.checked_add(description.checked_next_multiple_of(4)?)?..)?;
    }
    None
}

/// The program headers.
fn segments(file: &File) -> Option<Vec<[u8; SEGMENT]>> {
    let mut header = [0; HEADER];
    if !read(file, &mut header, 0).ok()? || header[..4] != MAGIC || header[4] != CLASS_64 {
        return None;
    }
    let (table, size, count) = (long(&header, 32), half(&header, 54), half(&header, 56));
    let segment = |number: u64| {
        let mut segment = [0; SEGMENT];
        let at = table.checked_add(number * u64::from(size))?;
        read(file, &mut segment, at).ok()?.then_some(segment)
    };
    (0..u64::from(count)).map(segment).collect()
}

/// `length` bytes from `at`, if the file has them and they are not absurdly many.
fn bytes(file: &File, at: u64, length: u64) -> Option<Vec<u8>> {
    let length = usize::try_from(length).ok().filter(|n| *n <= NAMES_MAX)?;
    let mut bytes = vec![0; length];
    read(file, &mut bytes, at).ok()?.then_some(bytes)
}

/// How far the segments to be loaded reach, or as much of their table as is there.
fn bytes_needed(file: &File, header: &[u8; HEADER]) -> io::Result<u64> {
    let (table, size, count) = (long(header, 32), half(header, 54), half(header, 56));
    let mut needed = table.saturating_add(u64::from(size) * u64::from(count));
    for number in 0..u64::from(count) {
        let mut segment = [0; SEGMENT];
        let at = table.saturating_add(number * u64::from(size));
        if !read(file, &mut segment, at)? {
            break;
        }
        if word(&segment, 0) == PT_LOAD {
            needed = needed.max(long(&segment, 8).saturating_add(long(&segment, 32)));
        }
    }
    Ok(needed)
}

/// Fills `bytes` from `at` of the file; false if it ends before.
fn read(file: &File, bytes: &mut [u8], at: u64) -> io::Result<bool> {
    match file.read_exact_at(bytes, at) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        // What an offset beyond all files gives.
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => Ok(false),
        Err(e) => Err(e),
    }
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from(half(bytes, at)) | u32::from(half(bytes, at + 2)) << 16
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(name: &[u8], kind: u32, content: &[u8]) -> Vec<u8> {
        let mut note = Vec::new();
        for number in [name.len() as u32, content.len() as u32, kind] {
            note.extend(number.to_le_bytes());
        }
        for part in [name, content] {
            note.extend(part);
            note.resize(note.len().next_multiple_of(4), 0);
        }
        note
    }

    #[test]
    fn a_build_id_is_found_among_notes_and_damage_is_none() {
        let mut notes = note(b"GNU\0", 5, &[1; 9]);
        notes.extend(note(b"stapsdt\0", NT_GNU_BUILD_ID, &[2; 3]));
        notes.extend(note(b"GNU\0", NT_GNU_BUILD_ID, &[0xab, 0xcd, 0x01]));
        assert_eq!(id_of(&notes).as_deref(), Some("abcd01"));
        assert_eq!(id_of(&[]), None);
        for end in 0..notes.len() - 1 {
            assert_eq!(id_of(&notes[..end]), None, "{end}");
        }
        for at in 0..notes.len() {
            let mut damaged = notes.clone();
            damaged[at] ^= 0xff;
            let _ = id_of(&damaged);
        }
    }
}
