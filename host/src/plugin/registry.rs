//! All plugins of this process, and where they are looked for.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use baton_plugin_api::magic::MAGIC_SYMBOL;
use baton_plugin_api::{ChildType, DeviceType, PluginDescriptor, Property};

use super::elf;
use super::loader::{LoadError, Plugin};

/// Why the plugins cannot be used as they are.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// A file that was named, or lies in a plugin folder, is unfit.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A `-plugin` that is not there.
    #[error("Plugin path '{}' cannot be read: {reason}", path.display())]
    Path {
        /// As given.
        path: PathBuf,
        /// The system's words.
        reason: String,
    },
    /// Two files offer the same device.
    #[error(
        "Device '{device}' is offered by both '{}' and '{}'; leave one of them out",
        first.display(), second.display()
    )]
    Twice {
        /// The device type.
        device: String,
        /// The file loaded first.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// No plugin offers the device.
    #[error(
        "Device '{name}' is offered by no plugin{}; see -device help",
        nearest_text(nearest)
    )]
    Unknown {
        /// What was asked for.
        name: String,
        /// A device with a similar name.
        nearest: Option<String>,
    },
}

fn nearest_text(nearest: &Option<String>) -> String {
    nearest
        .as_ref()
        .map(|name| format!(", did you mean '{name}'?"))
        .unwrap_or_default()
}

/// The environment variable with further plugin paths, separated by colons.
pub const PATH_VARIABLE: &str = "BATON_PLUGIN_PATH";
/// Where an installed Baton has its plugins, from the folder of the executable.
const INSTALLED: &str = "../lib/baton/plugins";

/// Loaded plugins by device type.
#[derive(Clone, Default)]
pub struct Registry {
    plugins: Vec<Arc<Plugin>>,
    devices: BTreeMap<String, (usize, usize)>,
}

impl Registry {
    /// Loads every plugin of the search path: `named` (files or folders, from `-plugin`),
    /// `BATON_PLUGIN_PATH`, the folder of the executable, and `../lib/baton/plugins` from there.
    ///
    /// A file is a candidate in a folder if its name ends in `.so`. One that turns out unfit is an
    /// error where it was named or lies in a folder that is for plugins; beside the executable,
    /// where any shared object may lie, one without the magic block is passed over. A file that
    /// several paths lead to is loaded once.
    pub fn load(named: &[PathBuf]) -> Result<Self, RegistryError> {
        let mut this = Self::default();
        for path in named {
            this.add_path(path)?;
        }
        if let Some(paths) = std::env::var_os(PATH_VARIABLE) {
            for path in std::env::split_paths(&paths).filter(|p| !p.as_os_str().is_empty()) {
                this.add_path(&path)?;
            }
        }
        let beside = std::env::current_exe()
            .ok()
            .and_then(|p| p.parent().map(Path::to_owned));
        if let Some(beside) = beside {
            for file in folder(&beside).unwrap_or_default() {
                if elf::names(&file, MAGIC_SYMBOL) {
                    this.add_file(&file)?;
                }
            }
            let installed = beside.join(INSTALLED);
            if installed.is_dir() {
                this.add_path(&installed)?;
            }
        }
        Ok(this)
    }

    /// Loads the very files that another process, or an earlier program of this one, has loaded.
    pub fn load_open(files: Vec<(PathBuf, File)>) -> Result<Self, RegistryError> {
        let mut this = Self::default();
        for (path, file) in files {
            this.add(Plugin::load_open(&path, file)?);
        }
        Ok(this)
    }

    fn add_path(&mut self, path: &Path) -> Result<(), RegistryError> {
        let unreadable = |e: std::io::Error| RegistryError::Path {
            path: path.to_owned(),
            reason: e.to_string(),
        };
        if path.metadata().map_err(unreadable)?.is_dir() {
            for file in folder(path).map_err(unreadable)? {
                self.add_file(&file)?;
            }
            Ok(())
        } else {
            self.add_file(path)
        }
    }

    /// Loads one file, unless it is loaded already.
    fn add_file(&mut self, path: &Path) -> Result<(), RegistryError> {
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        if self.plugins.iter().any(|p| p.path == path) {
            return Ok(());
        }
        let plugin = Plugin::load(&path)?;
        // The same build may lie in two places of the search path; the first wins there, but a
        // different file that offers the same device is a mistake that nobody would notice.
        if let Some((device, first)) = self.offered(&plugin.descriptor) {
            if same_content(&first, &path) {
                return Ok(());
            }
            return Err(RegistryError::Twice {
                device,
                first,
                second: path,
            });
        }
        self.add(plugin);
        Ok(())
    }

    fn add(&mut self, plugin: Plugin) {
        let at = self.plugins.len();
        for (n, device) in plugin.descriptor.devices.iter().enumerate() {
            self.devices.insert(device.name.clone(), (at, n));
        }
        tracing::debug!(file = %plugin.path.display(), "loaded a plugin");
        self.plugins.push(Arc::new(plugin));
    }

    fn offered(&self, descriptor: &PluginDescriptor) -> Option<(String, PathBuf)> {
        offered_by(&self.plugins(), descriptor)
    }

    /// Every plugin, in the order loaded.
    pub fn plugins(&self) -> impl Iterator<Item = &Plugin> + Clone {
        self.plugins.iter().map(|plugin| &**plugin)
    }

    /// The plugin of this name.
    pub fn named(&self, name: &str) -> Option<&Plugin> {
        self.plugins().find(|plugin| plugin.descriptor.name == name)
    }

    /// The same with `plugin` in place of the one that has its name. It may offer more devices, but
    /// none that another plugin offers.
    pub fn with(&self, plugin: Plugin) -> Result<Self, RegistryError> {
        let same = |other: &Arc<Plugin>| other.descriptor.name == plugin.descriptor.name;
        let at = self.plugins.iter().position(same);
        let at = at.unwrap_or(self.plugins.len());
        let mut next = self.clone();
        next.devices.retain(|_, (of, _)| *of != at);
        let others = self.plugins.iter().enumerate().filter(|(of, _)| *of != at);
        let others = others.map(|(_, plugin)| &**plugin);
        if let Some((device, first)) = offered_by(&others, &plugin.descriptor) {
            return Err(RegistryError::Twice {
                device,
                first,
                second: plugin.path,
            });
        }
        for (n, device) in plugin.descriptor.devices.iter().enumerate() {
            next.devices.insert(device.name.clone(), (at, n));
        }
        let plugin = Arc::new(plugin);
        match next.plugins.get_mut(at) {
            Some(place) => *place = plugin,
            None => next.plugins.push(plugin),
        }
        Ok(next)
    }

    /// Every device type with its plugin, by name.
    pub fn devices(&self) -> impl Iterator<Item = (&Plugin, &DeviceType)> {
        self.devices.values().map(|&(plugin, device)| {
            let plugin = &*self.plugins[plugin];
            (plugin, &plugin.descriptor.devices[device])
        })
    }

    /// The type `name` of what sits on the bus of a device, and that device's type.
    pub fn child(&self, name: &str) -> Option<(&DeviceType, &ChildType)> {
        self.devices().find_map(|(_, parent)| {
            let mut children = parent.children().iter();
            children
                .find(|child| child.name == name)
                .map(|child| (parent, child))
        })
    }

    /// Every type of device and of child, with its properties.
    pub fn kinds(&self) -> impl Iterator<Item = (&str, &[Property])> {
        self.devices().flat_map(|(_, of)| {
            let children = of.children().iter();
            let children = children.map(|child| (child.name.as_str(), &*child.properties));
            std::iter::once((of.name.as_str(), &*of.properties)).chain(children)
        })
    }

    /// All that may stand after `-device`.
    fn names(&self) -> impl Iterator<Item = &str> {
        self.plugins().flat_map(|plugin| plugin.descriptor.names())
    }

    /// The device type `name` and its plugin.
    pub fn device(&self, name: &str) -> Result<(&Plugin, &DeviceType), RegistryError> {
        let Some(&(plugin, device)) = self.devices.get(name) else {
            return Err(RegistryError::Unknown {
                name: name.to_owned(),
                nearest: crate::cli::nearest(name, self.names()),
            });
        };
        let plugin = &self.plugins[plugin];
        Ok((plugin, &plugin.descriptor.devices[device]))
    }
}

/// The first name that `descriptor` and one of these plugins both offer, and that plugin's file.
fn offered_by<'a>(
    plugins: &(impl Iterator<Item = &'a Plugin> + Clone),
    descriptor: &PluginDescriptor,
) -> Option<(String, PathBuf)> {
    descriptor.names().find_map(|name| {
        let mut plugins = plugins.clone();
        let other = plugins.find(|other| other.descriptor.names().any(|own| own == name))?;
        Some((name.to_owned(), other.path.clone()))
    })
}

/// The shared objects in a folder, sorted, so that what is loaded does not depend on the disk.
fn folder(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in path.read_dir()? {
        let file = entry?.path();
        if file.extension().is_some_and(|e| e == "so") && file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

fn same_content(a: &Path, b: &Path) -> bool {
    matches!((std::fs::read(a), std::fs::read(b)), (Ok(a), Ok(b)) if a == b)
}
