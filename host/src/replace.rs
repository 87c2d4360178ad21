//! A plugin that is replaced by another build of it, under the running guest.

use std::collections::BTreeSet;
use std::path::Path;

use baton_migration::{Blocker, HostError, Mode};
use baton_plugin_api::{DeviceType, PluginDescriptor};

use crate::cli::Backends;
use crate::plugin::Plugin;
use crate::runstate::RunState;
use crate::vm::Vm;

/// The blocker of a process whose command line names other plugins than it has. Each has its own.
fn elsewhere(plugin: &str, now: &Path) -> Blocker {
    Blocker {
        id: format!("plugin-replaced-{plugin}"),
        reason: format!(
            "plugin '{plugin}' was replaced by '{}', which the command line does not load, so that \
             there is no way back to this program",
            now.display()
        ),
        remedy: "Put the file where the old one was and replace the plugin by that, or use \
                 cpr-transfer"
            .into(),
        modes: vec![Mode::CprExec],
        unless_suspended: false,
    }
}

impl Vm {
    /// The QMP command `plugin-replace`: the plugin of the same name as the one in `file` makes way,
    /// and so do the instances of its devices. If anything goes wrong, all stays as it is.
    pub fn plugin_replace(&self, file: &Path) -> Result<(), HostError> {
        let mut state = self.state();
        if state.migrating || state.runstate == RunState::FinishMigrate {
            return Err("plugin-replace not allowed while migrating".into());
        }
        if state.runstate == RunState::InMigrate {
            return Err(
                "Guest is waiting for an incoming migration; replace the plugin once it is here, or \
                 start this process with the new one"
                    .into(),
            );
        }
        self.remove_ejected_from(&mut state);
        let registry = self.registry();
        let new = Plugin::load_anew(file)?;
        let name = new.descriptor.name.clone();
        let old = registry.named(&name).ok_or_else(|| {
            let names = registry.plugins().map(|p| p.descriptor.name.as_str());
            format!(
                "Plugin '{}': its name is '{name}', and no plugin of that name is loaded; there are {}",
                file.display(),
                names.collect::<Vec<_>>().join(", ")
            )
        })?;
        compatible(&old.descriptor, &new.descriptor)
            .map_err(|e| format!("Plugin '{}': {e}", file.display()))?;
        let types: BTreeSet<&str> = old.descriptor.devices.iter().map(|d| &*d.name).collect();
        let place = new.path.clone();
        let next = registry.with(new)?;
        let running = state.runstate.is_running();
        let (drives, chardevs) = (state.drives(&self.options), self.chardevs.configs());
        let objects = state.objects(&self.options);
        if let Some(machine) = &mut state.machine {
            let backends = Backends::new(&drives, &chardevs).with_netdevs(&self.options.netdevs);
            let backends = backends.with_objects(&objects);
            machine.replace_instances(backends, &types, &next, running)?;
        }
        self.set_registry(next);
        let blocker = elsewhere(&name, &place);
        match self.first_place(&name) == Some(place) {
            true => self.blockers.remove("", &blocker.id),
            // No migration is under way, which alone is refused.
            false => drop(self.blockers.add("", blocker)),
        }
        Ok(())
    }
}

/// Refuses a plugin whose devices are not those of `old`, or could not take over their states.
fn compatible(old: &PluginDescriptor, new: &PluginDescriptor) -> Result<(), String> {
    old.devices.iter().try_for_each(|was| {
        let now = new.devices.iter().find(|now| now.name == was.name);
        let now = now.ok_or_else(|| format!("it does not offer device '{}'", was.name))?;
        takes_over(was, now).map_err(|e| format!("its device '{}' {e}", was.name))
    })
}

fn takes_over(was: &DeviceType, now: &DeviceType) -> Result<(), String> {
    if was.bus != now.bus {
        return Err(format!(
            "is of bus class {}, and that of the running one is {}",
            now.bus.as_str(),
            was.bus.as_str()
        ));
    }
    let loads = |device: &DeviceType| -> Vec<_> {
        device.sections.iter().flat_map(|s| s.names()).collect()
    };
    let (written, loaded) = (loads(was), loads(now));
    for (name, versions) in &written {
        let version = versions.end();
        match loaded.iter().find(|(other, _)| other == name) {
            None => return Err(format!("does not load section '{name}'")),
            Some((_, range)) if !range.contains(version) => {
                return Err(format!(
                    "loads section '{name}' of versions {} to {}, and the running one writes {version}",
                    range.start(),
                    range.end()
                ));
            }
            Some(_) => {}
        }
    }
    let own = |device: &DeviceType| -> BTreeSet<String> {
        device.sections.iter().map(|s| s.name.clone()).collect()
    };
    match own(now).difference(&own(was)).next() {
        Some(name) => Err(format!(
            "needs section '{name}', which the running one does not write"
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use baton_plugin_api::{BusClass, Section};

    use super::*;

    fn device(sections: Vec<Section>) -> DeviceType {
        DeviceType {
            sections,
            ..DeviceType::new("disk", BusClass::Virtio, "a disk")
        }
    }

    fn plugin(devices: Vec<DeviceType>) -> PluginDescriptor {
        PluginDescriptor {
            name: "disks".into(),
            version: "1".into(),
            description: String::new(),
            devices,
        }
    }

    #[test]
    fn a_plugin_that_could_not_take_over_is_refused_and_says_why() {
        let old = plugin(vec![device(vec![Section::new("blk", 2, 1)])]);
        assert_eq!(compatible(&old, &old), Ok(()));
        let newer = plugin(vec![device(vec![Section::new("blk", 3, 2)])]);
        assert_eq!(compatible(&old, &newer), Ok(()));
        for (new, text) in [
            (plugin(vec![]), "it does not offer device 'disk'"),
            (
                plugin(vec![device(vec![])]),
                "its device 'disk' does not load section 'blk'",
            ),
            (
                plugin(vec![device(vec![Section::new("blk", 4, 3)])]),
                "its device 'disk' loads section 'blk' of versions 3 to 4, and the running one \
                 writes 2",
            ),
            (
                plugin(vec![device(vec![
                    Section::new("blk", 2, 2),
                    Section::new("more", 1, 1),
                ])]),
                "its device 'disk' needs section 'more', which the running one does not write",
            ),
            (
                plugin(vec![DeviceType {
                    bus: BusClass::Pci,
                    ..device(vec![Section::new("blk", 2, 2)])
                }]),
                "its device 'disk' is of bus class pci, and that of the running one is virtio",
            ),
        ] {
            assert_eq!(compatible(&old, &new).unwrap_err(), text);
        }
    }
}
