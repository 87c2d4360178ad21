//! A device in a plugin, with the questions the rest of the VMM asks it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use baton_plugin_api::abi::PluginDevice;
use baton_plugin_api::migration::SUBSECTION;
use baton_plugin_api::protocol::{DeviceInfo, Reply, Request, StartArguments};
use baton_plugin_api::{
    Blocker, Child, Config, DeviceType, Error, Fd, MigrationEvent, Mode, PropertyKind,
    QueueProgress, Value,
};

use super::{Bridge, Plugin};

/// An error of a device, with its id.
pub type DeviceError = Error;

/// A device, from `create` on.
pub struct PluggedDevice {
    /// Gone once the device has ended, while its place in the machine may still be known somewhere.
    device: Option<PluginDevice>,
    bridge: Arc<Bridge>,
    device_type: DeviceType,
    id: String,
}

impl PluggedDevice {
    /// Creates a device of type `device_type` of `plugin`.
    pub fn create(
        plugin: &Plugin,
        device_type: &DeviceType,
        config: &Config,
        bridge: Arc<Bridge>,
    ) -> Result<Self, DeviceError> {
        let device = plugin
            .root
            .create(&device_type.name, config, Arc::clone(&bridge))?;
        Ok(Self {
            device: Some(device),
            bridge,
            device_type: device_type.clone(),
            id: config.id.clone(),
        })
    }

    /// The device's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What the plugin says of its type.
    pub fn device_type(&self) -> &DeviceType {
        &self.device_type
    }

    /// Opens, maps, allocates; tells what the device turned out to be.
    pub fn realize(&mut self) -> Result<DeviceInfo, DeviceError> {
        match self.plugin()?.call(&Request::Realize)? {
            Reply::Info(info) => Ok(info),
            other => Err(self.out_of_place(&other)),
        }
    }

    /// Back to power-on.
    pub fn reset(&mut self) -> Result<(), DeviceError> {
        self.done(&Request::Reset)
    }

    /// The guest runs.
    pub fn start(&mut self, arguments: StartArguments) -> Result<(), DeviceError> {
        self.done(&Request::Start(arguments))
    }

    /// The guest is about to stop.
    pub fn settle(&mut self) -> Result<(), DeviceError> {
        self.plugin()?.call_if_known(&Request::Settle).map(|_| ())
    }

    /// The guest has stopped.
    pub fn quiesce(&mut self) -> Result<Vec<QueueProgress>, DeviceError> {
        match self.plugin()?.call(&Request::Quiesce)? {
            Reply::Quiesced { queues } => Ok(queues),
            other => Err(self.out_of_place(&other)),
        }
    }

    /// The state of a section; of a subsection that is not needed there is none.
    pub fn save(&mut self, section: &str) -> Result<Option<Vec<u8>>, DeviceError> {
        match self.plugin()?.call(&Request::Save {
            section: section.to_owned(),
        })? {
            Reply::Saved { data } => Ok(Some(data)),
            Reply::NotNeeded if section.contains(SUBSECTION) => Ok(None),
            other => Err(self.out_of_place(&other)),
        }
    }

    /// Takes the state of a section.
    pub fn load(&mut self, section: &str, version: u32, data: Vec<u8>) -> Result<(), DeviceError> {
        self.done(&Request::Load {
            section: section.to_owned(),
            version,
            data,
        })
    }

    /// What blocks `mode`: the type's static blockers, then the device's own.
    pub fn blockers(&mut self, mode: Mode) -> Result<Vec<Blocker>, DeviceError> {
        let mut blockers = self.device_type.blockers.clone();
        match self.plugin()?.call_if_known(&Request::Blockers { mode })? {
            Some(Reply::Blockers(dynamic)) => blockers.extend(dynamic),
            Some(other) => return Err(self.out_of_place(&other)),
            None => {}
        }
        blockers.retain(|blocker| blocker.modes.contains(&mode));
        Ok(blockers)
    }

    /// The descriptors to hand over in `mode`. One the descriptor does not declare is an error.
    pub fn fds(&mut self, mode: Mode) -> Result<Vec<Fd>, DeviceError> {
        let fds = match self.plugin()?.call_if_known(&Request::Fds { mode })? {
            Some(Reply::Fds(fds)) => fds,
            Some(other) => return Err(self.out_of_place(&other)),
            None => Vec::new(),
        };
        match fds
            .iter()
            .find(|fd| !self.device_type.fds.iter().any(|d| d.name == fd.name))
        {
            Some(fd) => Err(Error::state(format!(
                "It hands over a descriptor '{}' that its plugin does not declare",
                fd.name
            ))
            .in_device(&self.id)),
            None => Ok(fds),
        }
    }

    /// A migration went on.
    pub fn notify(&mut self, event: MigrationEvent) -> Result<(), DeviceError> {
        self.plugin()?
            .call_if_known(&Request::Notify { event })
            .map(|_| ())
    }

    /// When it wants a suspended guest woken.
    pub fn wake_time(&mut self) -> Result<Option<SystemTime>, DeviceError> {
        match self.plugin()?.call_if_known(&Request::WakeTime)? {
            Some(Reply::WakeTime { at }) => {
                Ok(at.map(|at| SystemTime::UNIX_EPOCH + Duration::from_nanos(at)))
            }
            Some(other) => Err(self.out_of_place(&other)),
            None => Ok(None),
        }
    }

    /// Something comes to sit on its own bus; it is quiesced.
    pub fn attach(&mut self, child: Child) -> Result<(), DeviceError> {
        let child = Box::new(child);
        self.done(&Request::Attach { child })
    }

    /// A child leaves, and lets go of its character devices.
    pub fn detach(&mut self, child: &Child) -> Result<(), DeviceError> {
        let id = child.config.id.clone();
        self.done(&Request::Detach { id })?;
        for chardev in chardevs(&self.device_type, child) {
            self.bridge.release(chardev);
        }
        Ok(())
    }

    /// Reads a register.
    #[inline]
    pub fn read(&mut self, region: u32, offset: u64, data: &mut [u8]) {
        match &mut self.device {
            Some(device) => device.read(region, offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes a register.
    #[inline]
    pub fn write(&mut self, region: u32, offset: u64, data: &[u8]) {
        if let Some(device) = &mut self.device {
            device.write(region, offset, data);
        }
    }

    /// The device ends now, whoever still knows of it: it takes no more calls, reads as all ones and
    /// ignores writes.
    pub fn end(&mut self) {
        self.bridge.close();
        self.device = None;
    }

    fn plugin(&mut self) -> Result<&mut PluginDevice, DeviceError> {
        let gone = || Error::state("The device is gone").in_device(&self.id);
        self.device.as_mut().ok_or_else(gone)
    }

    /// The error of a device that is not what its type says.
    pub fn not_of_its_class(&self) -> DeviceError {
        Error::state(format!(
            "Its plugin calls it a {} device, but it describes itself as something else",
            self.device_type.bus.as_str()
        ))
        .in_device(&self.id)
    }

    fn done(&mut self, request: &Request) -> Result<(), DeviceError> {
        match self.plugin()?.call(request)? {
            Reply::Done => Ok(()),
            other => Err(self.out_of_place(&other)),
        }
    }

    fn out_of_place(&self, reply: &Reply) -> DeviceError {
        Error::state(format!(
            "It gave an answer that does not fit its question: {reply:?}"
        ))
        .in_device(&self.id)
    }
}

/// The character devices of a child of a device of this type.
pub fn chardevs<'a>(parent: &DeviceType, child: &'a Child) -> impl Iterator<Item = &'a str> {
    let kind = parent.children().iter();
    let kind = kind.filter(|kind| kind.name == child.device_type);
    let properties = kind.flat_map(|kind| &kind.properties);
    let names = properties.filter(|p| p.kind == PropertyKind::Chardev);
    names.filter_map(|p| match child.config.properties.get(&p.name) {
        Some(Value::String(chardev)) => Some(chardev.as_str()),
        _ => None,
    })
}

impl Drop for PluggedDevice {
    /// The device itself goes right after, and has no more use for its services.
    fn drop(&mut self) {
        self.bridge.close();
    }
}
