//! A plugin that is replaced under its devices: each gets a new instance, which takes over descriptors
//! and state of the one before, as the target of a handover does, and its place in the machine.

use std::collections::BTreeSet;

use baton_migration::fingerprint::MachineFingerprint;
use baton_migration::stream::{Header, SectionWriter, StateImage};
use baton_migration::{HostError, MigrationEvent, Mode, error_chain};
use baton_plugin_api::{Config, DeviceType};

use super::devices::Instance;
use super::{Machine, MachineDevice};
use crate::cli::Backends;
use crate::plugin::{Plugin, Registry};

/// What the new instances are told of how they come about.
const MODE: Mode = Mode::CprTransfer;

/// A device that gets a new instance.
struct Affected<'a> {
    /// Its place among the machine's.
    at: usize,
    plugin: &'a Plugin,
    device_type: &'a DeviceType,
    config: Config,
}

impl Machine {
    /// Replaces the instances of these types by those of `next`: of all devices or, if anything goes
    /// wrong, of none. A guest that runs stands still meanwhile, and goes on in any case. All devices
    /// find what they are connected to among `backends`.
    pub fn replace_instances(
        &mut self,
        backends: Backends<'_>,
        types: &BTreeSet<&str>,
        next: &Registry,
        running: bool,
    ) -> Result<(), HostError> {
        let affected = self.affected(backends, types, next)?;
        for Affected { at, .. } in &affected {
            let device = &self.devices[*at];
            if let Some(blocker) = device.blockers(MODE, &self.around.reports.failures).first() {
                return Err(blocker.to_string().into());
            }
        }
        self.tell(&affected, MigrationEvent::Setup)?;
        if running {
            self.settle();
        }
        let stopped = if running { self.stop(false) } else { Ok(()) };
        let replaced = stopped.and_then(|()| self.exchange_all(&affected, running));
        if let Err(e) = &replaced {
            tracing::warn!("the plugin stays as it is: {}", error_chain(&**e));
            if let Err(e) = self.tell(&affected, MigrationEvent::Failed) {
                tracing::warn!("{}", error_chain(&*e));
            }
        }
        if running {
            self.start()?;
        }
        replaced
    }

    fn affected<'a>(
        &self,
        mut backends: Backends<'_>,
        types: &BTreeSet<&str>,
        next: &'a Registry,
    ) -> Result<Vec<Affected<'a>>, HostError> {
        let mut affected = Vec::new();
        for (at, device) in self.devices.iter().enumerate() {
            let (plugin, device_type) = next.device(&device.option().driver)?;
            // The others are asked, too: they take their backends.
            let mut config = backends.configure(device_type, device.option())?;
            if types.contains(device.device_type().name.as_str()) {
                config.id = device.id().to_owned();
                config.restoring = Some(MODE);
                // What has no id of its own keeps the name that it was given.
                for (child, (known, _)) in config.children.iter_mut().zip(device.children()) {
                    child.config.id.clone_from(&known.config.id);
                }
                affected.push(Affected {
                    at,
                    plugin,
                    device_type,
                    config,
                });
            }
        }
        Ok(affected)
    }

    fn tell(&self, affected: &[Affected<'_>], event: MigrationEvent) -> Result<(), HostError> {
        let devices = affected.iter().map(|one| &self.devices[one.at]);
        for device in devices {
            device.notify(event)?;
        }
        Ok(())
    }

    /// The machine has stopped. After an error every device has the instance it had.
    fn exchange_all(&mut self, affected: &[Affected<'_>], start: bool) -> Result<(), HostError> {
        let mut done: Vec<(usize, Instance)> = Vec::new();
        for one in affected {
            match self.exchange(one, start) {
                Ok(old) => done.push((one.at, old)),
                Err(e) => {
                    let mut reason = error_chain(&*e);
                    for (at, old) in done.into_iter().rev() {
                        if let Err(e) = self.take_back(at, old, start) {
                            let id = self.devices[at].id();
                            reason += &format!(
                                "; device '{id}' stays with the new plugin, since the old one does \
                                 not take it back: {}",
                                error_chain(&*e)
                            );
                        }
                    }
                    return Err(reason.into());
                }
            }
        }
        for (at, mut old) in done {
            if let Err(e) = old.notify(MigrationEvent::Done) {
                tracing::warn!(device = self.devices[at].id(), "while it was replaced: {e}");
            }
            old.end();
        }
        Ok(())
    }

    /// Gives one device its new instance, and returns the old one.
    fn exchange(&mut self, one: &Affected<'_>, start: bool) -> Result<Instance, HostError> {
        let (chardevs, reports) = (&self.chardevs, self.around.reports.clone());
        let failures = &self.around.reports.failures;
        let device = &mut self.devices[one.at];
        let state = image(device)?;
        let new = device.instance(one.plugin, one.device_type, &one.config, chardevs, reports)?;
        let old = device.put(new);
        match take_over(device, state, start) {
            Ok(()) => Ok(old),
            Err(e) => {
                // It may have started in part.
                let _ = device.quiesce();
                let mut new = device.put(old);
                new.end();
                failures.remove(device.id());
                Err(e)
            }
        }
    }

    /// Goes back from an instance that has started: what it has done is part of its state by now.
    fn take_back(&mut self, at: usize, old: Instance, start: bool) -> Result<(), HostError> {
        let device = &mut self.devices[at];
        device.quiesce()?;
        let state = image(device)?;
        let mut new = device.put(old);
        let taken = take_over(device, state, false);
        match &taken {
            Ok(()) => new.end(),
            Err(_) => {
                let mut old = device.put(new);
                old.end();
            }
        }
        if start {
            device.start()?;
        }
        taken
    }
}

/// The state of a quiesced device.
fn image(device: &MachineDevice) -> Result<StateImage, HostError> {
    let mut stream = Vec::new();
    let header = Header {
        producer: String::new(),
        fingerprint: MachineFingerprint::default(),
    };
    let mut out = SectionWriter::new(&mut stream, &header)?;
    device.save(&mut out)?;
    out.finish()?;
    Ok(StateImage::read(&stream[..])?)
}

/// The instance that a device has now takes this state, and starts.
fn take_over(device: &MachineDevice, mut state: StateImage, start: bool) -> Result<(), HostError> {
    for section in device.loads() {
        device.load(section, &mut state)?;
    }
    state.all_taken()?;
    if start {
        device.start()?;
    }
    Ok(())
}
