//! The plugin's side: turns a device into the table of functions that the host calls.

use std::panic::{AssertUnwindSafe, catch_unwind};

use abi_stable::prefix_type::WithMetadata;
use abi_stable::std_types::{RResult, RSlice, RVec};

use super::host::{HostHandle, HostRef, encode_error, encode_reply, guarded, panicked, unknown};
use super::root::{DeviceHandle, DeviceOps, DeviceOpsRef, Reply};
use crate::config::Config;
use crate::descriptor::{DeviceType, PluginDescriptor};
use crate::error::{Error, ErrorKind, Result};
use crate::host::Host;
use crate::protocol::{self, Request, SECTION_MAX};
use crate::wire;

/// A device of any bus class, as the glue calls it.
pub trait Adapter: Send + Sized + 'static {
    /// What the descriptor says of the type.
    fn device_type() -> DeviceType;
    /// Creates a device.
    fn create(config: Config, host: Host) -> Result<Self>;
    /// Answers a message.
    fn call(&mut self, request: Request) -> Result<protocol::Reply>;
    /// Reads a register.
    fn read(&mut self, region: u32, offset: u64, data: &mut [u8]);
    /// Writes a register.
    fn write(&mut self, region: u32, offset: u64, data: &[u8]);
}

/// The encoded descriptor of a plugin with these device types.
pub fn plugin_descriptor(
    name: &str,
    version: &str,
    description: &str,
    devices: fn() -> Vec<DeviceType>,
) -> Reply {
    encode_reply(guarded(|| {
        Ok(PluginDescriptor {
            name: name.to_owned(),
            version: version.to_owned(),
            description: description.to_owned(),
            devices: devices(),
        })
    }))
}

/// A device type, and how a device of it is created.
pub struct Creator {
    device_type: fn() -> DeviceType,
    create: fn(&[u8], Host) -> RResult<DeviceHandle, RVec<u8>>,
}

impl Creator {
    /// Of devices with adapter `A`.
    pub const fn of<A: Adapter>() -> Self {
        Self {
            device_type: A::device_type,
            create: create_device::<A>,
        }
    }
}

/// Creates a device of the named type from an encoded config.
pub fn create_by_name(
    name: &str,
    config: RSlice<'_, u8>,
    host: HostHandle,
    creators: &[Creator],
) -> RResult<DeviceHandle, RVec<u8>> {
    let host = Host::new(HostRef::new(host));
    let found = guarded(|| {
        crate::log::install(&host);
        creators
            .iter()
            .find(|creator| (creator.device_type)().name == name)
            .ok_or_else(|| Error::invalid(format!("This plugin has no device type '{name}'")))
    });
    match found {
        Ok(creator) => (creator.create)(config.as_slice(), host),
        Err(error) => RResult::RErr(encode_error(&error)),
    }
}

fn create_device<A: Adapter>(config: &[u8], host: Host) -> RResult<DeviceHandle, RVec<u8>> {
    let mut id = String::new();
    let created = guarded(|| {
        let config: Config = wire::decode("the device's config", config)?;
        id.clone_from(&config.id);
        let sections = A::device_type().sections;
        let adapter = A::create(config, host.clone())?;
        Ok(Box::new(Slot {
            id: id.clone(),
            host,
            failed: None,
            running: false,
            sections,
            adapter,
        }))
    });
    match created {
        Ok(slot) => RResult::ROk(DeviceHandle {
            device: Box::into_raw(slot).cast(),
            ops: DeviceOpsRef(Table::<A>::OPS.static_as_prefix()),
        }),
        Err(error) => RResult::RErr(encode_error(&error.in_device(&id))),
    }
}

/// A device and what the glue keeps beside it.
struct Slot<A> {
    id: String,
    host: Host,
    /// Why the device takes no more calls.
    failed: Option<String>,
    /// Between `Start` and `Quiesce`.
    running: bool,
    sections: Vec<crate::migration::Section>,
    adapter: A,
}

impl<A: Adapter> Slot<A> {
    fn answer(&mut self, request: &[u8]) -> Result<protocol::Reply> {
        let request = wire::decode("a request", request).map_err(unknown)?;
        if let Some(reason) = &self.failed
            && !matches!(request, Request::Quiesce)
        {
            return Err(Error::new(
                ErrorKind::Failed,
                format!("It failed earlier: {reason}"),
            ));
        }
        self.check_turn(&request)?;
        if let Request::Load {
            section, version, ..
        } = &request
        {
            self.check_version(section, *version)?;
        }
        let starts = matches!(request, Request::Start(_));
        self.running &= !matches!(request, Request::Quiesce);
        let reply = match guarded(|| self.adapter.call(request)) {
            Err(error) if error.kind == ErrorKind::Panicked => {
                self.fail(&error.message);
                return Err(error);
            }
            other => other?,
        };
        self.running |= starts;
        match &reply {
            protocol::Reply::Saved { data } if data.len() > SECTION_MAX => {
                Err(Error::state(format!(
                    "A section has {} bytes, {SECTION_MAX} are allowed",
                    data.len()
                )))
            }
            _ => Ok(reply),
        }
    }

    /// Guards the device against a host that asks for its state while it runs.
    fn check_turn(&self, request: &Request) -> Result<()> {
        let what = match request {
            Request::Realize => "realize",
            Request::Reset => "reset",
            Request::Load { .. } => "load",
            Request::Start(_) => "start",
            Request::Save { .. } => "save",
            Request::Attach { .. } => "attach a child to",
            Request::Detach { .. } => "detach a child from",
            _ => return Ok(()),
        };
        if self.running {
            return Err(Error::state(format!(
                "The host asks to {what} a device that runs; it must quiesce it first"
            )));
        }
        Ok(())
    }

    fn check_version(&self, name: &str, version: u32) -> Result<()> {
        let (_, loads) = self
            .sections
            .iter()
            .flat_map(crate::migration::Section::names)
            .find(|(own, _)| own == name)
            .ok_or_else(|| Error::state(format!("Section '{name}' is not one of this device's")))?;
        if version > *loads.end() {
            return Err(Error::state(format!(
                "Section '{name}' has version {version}, this plugin reads up to {}; use a newer \
                 plugin",
                loads.end()
            )));
        }
        if version < *loads.start() {
            return Err(Error::state(format!(
                "Section '{name}' has version {version}, this plugin reads from {}; go through an \
                 older plugin first",
                loads.start()
            )));
        }
        Ok(())
    }

    #[cold]
    fn fail(&mut self, reason: &str) {
        self.failed = Some(reason.to_owned());
        self.host.failed(reason);
    }
}

/// The table of functions for adapters of type `A`.
struct Table<A>(std::marker::PhantomData<A>);

impl<A: Adapter> Table<A> {
    const OPS: &'static WithMetadata<DeviceOps> = &WithMetadata::new(DeviceOps {
        call: Self::call,
        read: Self::read,
        write: Self::write,
        drop: Self::drop,
    });

    unsafe extern "C" fn call(device: *mut (), request: RSlice<'_, u8>) -> Reply {
        // SAFETY: `device` came from `create_device::<A>`, and the host calls from one thread at a
        // time and not after `drop`.
        let slot = unsafe { &mut *device.cast::<Slot<A>>() };
        encode_reply(
            slot.answer(request.as_slice())
                .map_err(|e| e.in_device(&slot.id)),
        )
    }

    unsafe extern "C" fn read(device: *mut (), region: u32, at: u64, data: *mut u8, len: usize) {
        // SAFETY: as in `call`.
        let slot = unsafe { &mut *device.cast::<Slot<A>>() };
        // SAFETY: the host gives a buffer of this length.
        let data = unsafe { std::slice::from_raw_parts_mut(data, len) };
        if slot.failed.is_some() {
            data.fill(0xff);
            return;
        }
        // Nothing but the call and the guard around it: this is the way of every register access.
        let read = catch_unwind(AssertUnwindSafe(|| slot.adapter.read(region, at, data)));
        if let Err(payload) = read {
            data.fill(0xff);
            slot.fail(&panicked(payload).message);
        }
    }

    unsafe extern "C" fn write(device: *mut (), region: u32, at: u64, data: *const u8, len: usize) {
        // SAFETY: as in `call`.
        let slot = unsafe { &mut *device.cast::<Slot<A>>() };
        // SAFETY: the host gives a buffer of this length.
        let data = unsafe { std::slice::from_raw_parts(data, len) };
        if slot.failed.is_some() {
            return;
        }
        let written = catch_unwind(AssertUnwindSafe(|| slot.adapter.write(region, at, data)));
        if let Err(payload) = written {
            slot.fail(&panicked(payload).message);
        }
    }

    unsafe extern "C" fn drop(device: *mut ()) {
        // SAFETY: as in `call`; the host gives the device up here.
        let slot = unsafe { Box::from_raw(device.cast::<Slot<A>>()) };
        let host = slot.host.clone();
        if let Err(error) = guarded(move || {
            drop(slot);
            Ok(())
        }) {
            host.log(
                1,
                "baton_plugin_api",
                &format!("While a device ended: {}", error.message),
            );
        }
    }
}
