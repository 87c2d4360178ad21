//! Loads one plugin file through the three layers of the contract.
// Reading the magic block of a file that is only now being found out about needs `unsafe`.
#![allow(unsafe_code)]

use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use baton_plugin_api::PluginDescriptor;
use baton_plugin_api::abi::{Root, root_module};
use baton_plugin_api::magic::{ABI_MAJOR, ABI_MINOR, MAGIC, MAGIC_SYMBOL, MagicBlock};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use super::elf;

/// Why a file is not loaded. Each text is one line: what was found, and what is needed.
#[derive(Debug, thiserror::Error)]
#[error("Plugin '{}': {reason}", path.display())]
pub struct LoadError {
    /// The file.
    pub path: PathBuf,
    /// What was found and what is needed.
    pub reason: String,
}

/// A loaded plugin. It is never unloaded.
pub struct Plugin {
    /// The file.
    pub path: PathBuf,
    /// What tells its build from others, if the linker wrote that.
    pub build_id: Option<String>,
    /// The same, open, whatever happens to its path. It is never closed, since the library may be known
    /// to the dynamic linker by this descriptor, whose number no other file must get.
    pub file: ManuallyDrop<File>,
    /// Its first layer.
    pub magic: MagicBlock,
    /// Its third layer, checked.
    pub descriptor: PluginDescriptor,
    /// Its second layer.
    pub root: Root,
}

impl Plugin {
    /// Loads `path`. All of its code up to here runs in this process: a plugin is trusted code,
    /// and what is refused here is what is unfit, not what is hostile.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        Self::load_open(path, open(path)?)
    }

    /// The same of the file that was at `path` once.
    pub fn load_open(path: &Path, file: File) -> Result<Self, LoadError> {
        // By its own name where it still has it, for the sake of what is looked for beside it.
        let from = match names(path, &file) {
            true => path.to_owned(),
            false => by_descriptor(&file),
        };
        Self::load_as(&from, path, file)
    }

    /// Loads `path` even if a library has been loaded from there before, which is what the dynamic
    /// linker would give back instead of a new file of the same name.
    pub fn load_anew(path: &Path) -> Result<Self, LoadError> {
        let shown = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let file = open(path)?;
        Self::load_as(&by_descriptor(&file), &shown, file)
    }

    /// Loads `file` by the name `from`; it is called `shown`.
    fn load_as(from: &Path, shown: &Path, file: File) -> Result<Self, LoadError> {
        let refused = |reason: String| LoadError {
            path: shown.to_owned(),
            reason,
        };
        elf::check(from).map_err(&refused)?;
        // The library stays, even if it is refused in the end.
        let file = ManuallyDrop::new(file);
        let magic = read_magic(from).map_err(&refused)?;
        check_version(&magic).map_err(&refused)?;
        let root = root_module(from).map_err(|mismatch| {
            // Hundreds of lines, which would bury the one below.
            tracing::debug!(file = %shown.display(), "{}", mismatch.full);
            refused(format!(
                "its functions are not those of this Baton, although both are ABI {ABI_MAJOR}; build \
                 it with the released API crate ({mismatch})"
            ))
        })?;
        let descriptor = root.descriptor().map_err(|e| refused(e.to_string()))?;
        let wrong = |e: String| refused(format!("its descriptor is wrong: {e}"));
        descriptor.check().map_err(wrong)?;
        if (&descriptor.name, &descriptor.version) != (&magic.name(), &magic.version()) {
            return Err(wrong(
                "its name and version are not those of the magic block".into(),
            ));
        }
        Ok(Self {
            path: shown.to_owned(),
            build_id: elf::build_id(from),
            file,
            magic,
            descriptor,
            root,
        })
    }
}

fn open(path: &Path) -> Result<File, LoadError> {
    File::open(path).map_err(|e| LoadError {
        path: path.to_owned(),
        reason: format!("cannot be opened: {e}"),
    })
}

/// A name of an open file.
fn by_descriptor(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// Whether `path` leads to `file`.
fn names(path: &Path, file: &File) -> bool {
    let identity = |found: std::fs::Metadata| (found.dev(), found.ino());
    match (path.metadata(), file.metadata()) {
        (Ok(named), Ok(open)) => identity(named) == identity(open),
        _ => false,
    }
}

fn read_magic(path: &Path) -> Result<MagicBlock, String> {
    // SAFETY: the file's initialisers run. It is code the user asked to run in this process.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }
        .map_err(|e| format!("cannot be loaded: {}", one_line(&e)))?;
    // SAFETY: a plugin's symbol of this name is a `MagicBlock`, and the block says how long it is.
    let symbol = unsafe { library.get::<*const MagicBlock>(MAGIC_SYMBOL.as_bytes()) }
        .map_err(|_| format!("is no Baton plugin: it has no symbol '{MAGIC_SYMBOL}'"))?;
    let block = *symbol;
    // SAFETY: as above; the first twelve bytes of the block never change their meaning.
    let (magic, size) = unsafe { ((*block).magic, (*block).size) };
    if magic != MAGIC {
        return Err(format!(
            "is no Baton plugin: '{MAGIC_SYMBOL}' does not begin with its magic"
        ));
    }
    if (size as usize) < size_of::<MagicBlock>() {
        return Err(format!(
            "its magic block has {size} bytes, {} are needed; build it again",
            size_of::<MagicBlock>()
        ));
    }
    // SAFETY: the block says that it is at least this long.
    let block = unsafe { *block };
    // The library stays: `abi_stable` opens it once more, and devices will live in it.
    std::mem::forget(library);
    Ok(block)
}

fn check_version(magic: &MagicBlock) -> Result<(), String> {
    let (major, minor) = (magic.abi_major, magic.abi_minor);
    if major != ABI_MAJOR {
        return Err(format!(
            "was built for plugin ABI {major}.{minor}, this Baton has ABI {ABI_MAJOR}.{ABI_MINOR}; \
             build it with an API crate of ABI {ABI_MAJOR}"
        ));
    }
    if minor > ABI_MINOR {
        return Err(format!(
            "was built for plugin ABI {major}.{minor}, which is newer than this Baton's \
             {ABI_MAJOR}.{ABI_MINOR}; use a newer Baton"
        ));
    }
    Ok(())
}

/// The dynamic linker's own words, which are the source of the library's error.
fn one_line(error: &libloading::Error) -> String {
    baton_migration::error_chain(error).replace('\n', " ")
}
