//! The host's side: layer 2 of loading a plugin, and a device as the host holds it.

use std::path::Path;
use std::sync::Arc;

use abi_stable::library::{LibraryError, lib_header_from_path};
use abi_stable::std_types::{RResult, RSlice, RStr};

use super::host::{HostHandle, HostServices, decode_error, decode_reply};
use super::root::{DeviceHandle, PluginRootRef};
use crate::config::Config;
use crate::descriptor::PluginDescriptor;
use crate::error::{ErrorKind, Result};
use crate::protocol::{Reply, Request};
use crate::wire;

/// The tables of a plugin have another layout than this host's.
#[derive(Debug, thiserror::Error)]
#[error("{summary}")]
pub struct LayoutMismatch {
    /// One line.
    pub summary: String,
    /// Everything `abi_stable` found: often hundreds of lines, for the log.
    pub full: String,
}

/// A plugin's root module, its layout checked.
#[derive(Clone, Copy)]
pub struct Root(PluginRootRef);

/// Loads the library at `path`, which has passed the magic block's check, and checks the layout of
/// its tables. The library is never unloaded.
pub fn root_module(path: &Path) -> std::result::Result<Root, LayoutMismatch> {
    let header = lib_header_from_path(path).map_err(|e| mismatch(&e))?;
    header
        .init_root_module::<PluginRootRef>()
        .map(Root)
        .map_err(|e| mismatch(&e))
}

fn mismatch(error: &LibraryError) -> LayoutMismatch {
    let full = error.to_string();
    let summary = match error {
        LibraryError::GetSymbolError { .. } => "it exports no root module".to_owned(),
        _ => first_difference(&full),
    };
    LayoutMismatch { summary, full }
}

/// What tells most in `abi_stable`'s text: its first error, with what it expected and found.
fn first_difference(text: &str) -> String {
    let lines: Vec<_> = text
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect();
    let first = lines
        .iter()
        .position(|line| line.starts_with("Error:"))
        .unwrap_or(0);
    let said = lines[first..]
        .iter()
        .take(5)
        .map(|line| line.trim_start_matches("Error:"));
    said.collect::<Vec<_>>()
        .join(" ")
        .chars()
        .take(SUMMARY_MAX)
        .collect()
}

/// Characters: about two lines of a terminal.
const SUMMARY_MAX: usize = 160;

impl Root {
    /// Layer 3: what the plugin says of itself, not yet checked.
    pub fn descriptor(&self) -> Result<PluginDescriptor> {
        decode_reply("the plugin's descriptor", self.0.descriptor()())
    }

    /// Creates a device.
    pub fn create<S: HostServices>(
        &self,
        device_type: &str,
        config: &Config,
        services: Arc<S>,
    ) -> Result<PluginDevice> {
        let encoded = wire::encode(config)?;
        let host = HostHandle::new(services);
        match self.0.create()(RStr::from(device_type), RSlice::from_slice(&encoded), host) {
            RResult::ROk(handle) => Ok(PluginDevice(handle)),
            RResult::RErr(error) => Err(decode_error(error.as_slice()).in_device(&config.id)),
        }
    }
}

/// A device in a plugin.
pub struct PluginDevice(pub(super) DeviceHandle);

// SAFETY: a device may be called from any thread, one at a time (`&mut self` sees to that).
unsafe impl Send for PluginDevice {}

impl PluginDevice {
    /// Sends a message and waits for the answer.
    pub fn call(&mut self, request: &Request) -> Result<Reply> {
        let request = wire::encode(request)?;
        // SAFETY: the handle is owned, and `&mut self` keeps other threads out.
        let reply = unsafe { self.0.ops.call()(self.0.device, RSlice::from_slice(&request)) };
        decode_reply("the device's answer", reply)
    }

    /// Sends a message that an older plugin may not know; `None` then.
    pub fn call_if_known(&mut self, request: &Request) -> Result<Option<Reply>> {
        match self.call(request) {
            Err(error) if error.kind == ErrorKind::Unsupported => Ok(None),
            other => other.map(Some),
        }
    }

    /// Reads from a region.
    #[inline]
    pub fn read(&mut self, region: u32, offset: u64, data: &mut [u8]) {
        // SAFETY: as in `call`; the buffer has the length given.
        unsafe {
            self.0.ops.read()(self.0.device, region, offset, data.as_mut_ptr(), data.len());
        }
    }

    /// Writes to a region.
    #[inline]
    pub fn write(&mut self, region: u32, offset: u64, data: &[u8]) {
        // SAFETY: as in `read`.
        unsafe { self.0.ops.write()(self.0.device, region, offset, data.as_ptr(), data.len()) }
    }
}

impl Drop for PluginDevice {
    fn drop(&mut self) {
        // SAFETY: given up here and nowhere else.
        unsafe { self.0.ops.drop()(self.0.device) }
    }
}
