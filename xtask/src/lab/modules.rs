//! Kernel modules with everything they need, as `modprobe` wants to find them.
//!
//! Debian's package has no `modules.dep`: that is made when it is installed. What a module needs
//! stands in its own `.modinfo` section, so it is read from there, for the few that are used.

use super::cpio::Cpio;
use super::packages::Kernel;
use super::process;
use anyhow::{Context, Result};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Puts the named modules of a kernel and their dependencies into an initramfs. Names use `_`, not
/// `-`; one that is built into the kernel needs no file. `busybox` unpacks them.
pub(crate) fn add(cpio: &mut Cpio, busybox: &Path, kernel: &Kernel, names: &[&str]) -> Result<()> {
    let mut files = HashMap::new();
    collect(&kernel.modules.join("kernel"), &mut files)?;
    let builtin = fs::read_to_string(kernel.modules.join("modules.builtin"))
        .with_context(|| format!("Cannot read modules.builtin of kernel {}", kernel.release))?;
    let built_in: Vec<String> = builtin
        .lines()
        .map(|line| module_name(Path::new(line)))
        .collect();

    let base = format!("lib/modules/{}", kernel.release);
    // Deepest first, as `modules.dep` lists them.
    let mut needs: HashMap<String, Vec<String>> = HashMap::new();
    let mut wanted: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    while let Some(name) = wanted.pop() {
        if built_in.contains(&name) || needs.contains_key(&name) {
            continue;
        }
        let file = files.get(&name).with_context(|| {
            format!(
                "Kernel {} has no module {name}: the lab needs a Debian cloud kernel",
                kernel.release
            )
        })?;
        let elf = contents(busybox, file)?;
        let depends = depends(&elf)
            .with_context(|| format!("{} has no readable .modinfo section", file.display()))?;
        let depends: Vec<String> = depends
            .into_iter()
            .filter(|d| !built_in.contains(d))
            .collect();
        cpio.file(&format!("{base}/{name}.ko"), 0o644, &elf)?;
        wanted.extend(depends.iter().cloned());
        needs.insert(name, depends);
    }
    // Without it `modprobe` of something built in is an error.
    cpio.file(
        &format!("{base}/modules.builtin"),
        0o644,
        builtin.as_bytes(),
    )?;
    let mut table = String::new();
    for name in needs.keys() {
        let mut all = Vec::new();
        closure(name, &needs, &mut all);
        let all: Vec<String> = all.iter().map(|d| format!("{d}.ko")).collect();
        table += &format!("{name}.ko: {}\n", all.join(" "));
    }
    cpio.file(&format!("{base}/modules.dep"), 0o644, table.as_bytes())
}

/// Everything `name` needs, direct needs before what they need in turn.
fn closure(name: &str, needs: &HashMap<String, Vec<String>>, all: &mut Vec<String>) {
    for need in needs.get(name).into_iter().flatten() {
        // A later place is a deeper one: it must be loaded earlier.
        all.retain(|seen| seen != need);
        all.push(need.clone());
        closure(need, needs, all);
    }
}

fn collect(dir: &Path, files: &mut HashMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("Cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.insert(module_name(&path), path);
        }
    }
    Ok(())
}

/// `.../kvm-amd.ko.xz` is the module `kvm_amd`.
fn module_name(file: &Path) -> String {
    let file = file
        .file_name()
        .map(|n| n.to_string_lossy())
        .unwrap_or_default();
    file.split('.').next().unwrap_or_default().replace('-', "_")
}

fn contents(busybox: &Path, file: &Path) -> Result<Vec<u8>> {
    if file.extension().is_some_and(|ext| ext == "xz") {
        return process::output(Command::new(busybox).arg("xzcat").arg(file));
    }
    fs::read(file).with_context(|| format!("Cannot read {}", file.display()))
}

/// The modules an ELF module names as its dependencies. None when the file is not as expected.
fn depends(elf: &[u8]) -> Option<Vec<String>> {
    let info = section(elf, b".modinfo")?;
    let list = info
        .split(|&byte| byte == 0)
        .find_map(|entry| entry.strip_prefix(b"depends="))?;
    let list = std::str::from_utf8(list).ok()?;
    Some(
        list.split(',')
            .filter(|name| !name.is_empty())
            .map(|name| name.replace('-', "_"))
            .collect(),
    )
}

/// A section of a 64-bit little-endian ELF file (System V ABI, "Sections").
fn section<'a>(elf: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let number = |at: usize, length: usize| -> Option<usize> {
        let bytes = elf.get(at..at.checked_add(length)?)?;
        usize::try_from(bytes.iter().rev().fold(0u64, |n, &b| n << 8 | u64::from(b))).ok()
    };
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (table, entry, count, names) = (
        number(0x28, 8)?,
        number(0x3a, 2)?,
        number(0x3c, 2)?,
        number(0x3e, 2)?,
    );
    let header = |index: usize| table.checked_add(index * entry);
    let body = |index: usize| -> Option<&'a [u8]> {
        let at = header(index)?;
        let (offset, size) = (
            number(at.checked_add(0x18)?, 8)?,
            number(at.checked_add(0x20)?, 8)?,
        );
        elf.get(offset..offset.checked_add(size)?)
    };
    let strings = body(names)?;
    let index = (0..count).find(|&index| {
        let start = header(index).and_then(|at| number(at, 4));
        start
            .and_then(|at| strings.get(at..))
            .is_some_and(|text| text.split(|&b| b == 0).next() == Some(name))
    })?;
    body(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_gives_the_name_modprobe_uses() {
        assert_eq!(module_name(Path::new("/x/kvm-amd.ko.xz")), "kvm_amd");
        assert_eq!(module_name(Path::new("kernel/fs/ext4/ext4.ko")), "ext4");
    }

    #[test]
    fn what_is_needed_by_a_need_is_loaded_before_it() {
        let needs = HashMap::from([
            ("a".to_owned(), vec!["c".to_owned(), "b".to_owned()]),
            ("b".to_owned(), vec!["c".to_owned()]),
        ]);
        let mut all = Vec::new();
        closure("a", &needs, &mut all);
        assert_eq!(all, ["b", "c"], "modules.dep is read from its end");
    }

    #[test]
    fn garbage_is_not_a_module() {
        assert!(depends(b"").is_none());
        let mut broken = b"\x7fELF\x02\x01".to_vec();
        broken.resize(64, 0xff);
        assert!(depends(&broken).is_none());
    }
}
