//! Writing the one archive format Linux unpacks at boot: cpio "newc"
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

use anyhow::{Result, ensure};
use std::collections::HashSet;

const FOLDER: u32 = 0o040_755;
const LINK: u32 = 0o120_777;
const FILE: u32 = 0o100_000;

/// An initramfs being made, in memory. Parent folders come by themselves.
#[derive(Default)]
pub(crate) struct Cpio {
    bytes: Vec<u8>,
    folders: HashSet<String>,
    entries: u32,
}

impl Cpio {
    /// Adds a file; `permissions` as in chmod.
    pub(crate) fn file(&mut self, path: &str, permissions: u32, data: &[u8]) -> Result<()> {
        self.parents(path)?;
        self.entry(path, FILE | permissions, data)
    }

    pub(crate) fn folder(&mut self, path: &str) -> Result<()> {
        let path = path.trim_matches('/');
        self.parents(path)?;
        if self.folders.insert(path.to_owned()) {
            self.entry(path, FOLDER, &[])?;
        }
        Ok(())
    }

    pub(crate) fn link(&mut self, path: &str, target: &str) -> Result<()> {
        self.parents(path)?;
        self.entry(path, LINK, target.as_bytes())
    }

    /// Ends the archive.
    pub(crate) fn finish(mut self) -> Result<Vec<u8>> {
        self.entry("TRAILER!!!", 0, &[])?;
        Ok(self.bytes)
    }

    fn parents(&mut self, path: &str) -> Result<()> {
        let path = path.trim_start_matches('/');
        match path.rsplit_once('/') {
            Some((parent, _)) => self.folder(parent),
            None => Ok(()),
        }
    }

    fn entry(&mut self, path: &str, mode: u32, data: &[u8]) -> Result<()> {
        let path = path.trim_start_matches('/');
        let size = u32::try_from(data.len()).unwrap_or(u32::MAX);
        ensure!(
            size < u32::MAX,
            "{path} is too large for an initramfs: its format ends at 4 GiB"
        );
        self.entries += 1;
        let name_size = path.len() as u32 + 1;
        // inode, mode, uid, gid, links, mtime, size, device (2), special device (2), name size, check
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            0,
            0,
            name_size,
            0,
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08X}").bytes());
        }
        self.bytes.extend(path.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(data);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_brings_its_folders_once_and_everything_is_aligned() {
        let mut cpio = Cpio::default();
        cpio.file("/a/b/one", 0o644, b"12345").unwrap();
        cpio.file("a/b/two", 0o755, b"").unwrap();
        let bytes = cpio.finish().unwrap();

        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(
            text.matches("070701").count(),
            5,
            "a, a/b, two files and the trailer"
        );
        assert!(text.contains("a/b/one\0"));
        assert!(text.contains("12345"));
    }

    #[test]
    fn the_header_is_110_bytes_with_the_size_in_hex() {
        let mut cpio = Cpio::default();
        cpio.file("f", 0o644, &[7; 26]).unwrap();
        let bytes = cpio.finish().unwrap();
        assert_eq!(&bytes[54..62], b"0000001A");
        assert_eq!(&bytes[110..112], b"f\0");
        assert_eq!(bytes[112], 7);
    }
}
