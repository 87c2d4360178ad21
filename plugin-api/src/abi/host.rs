//! The host's side of the contract as the plugin holds it, and how a host makes one.

use std::sync::Arc;

use abi_stable::StableAbi;
use abi_stable::prefix_type::WithMetadata;
use abi_stable::std_types::{RResult, RSlice, RStr, RVec};

use super::root::{HostOps, HostOpsRef, Reply};
use crate::error::{Error, ErrorKind, Result};
use crate::protocol::{HostReply, HostRequest};
use crate::wire;

/// What a host does for one device. Called from any thread of the device.
pub trait HostServices: Send + Sync + 'static {
    /// Answers a message.
    fn call(&self, request: HostRequest) -> Result<HostReply>;
    /// Sets a level-triggered line.
    fn set_irq(&self, line: u32, level: bool);
    /// Takes a line for the log; `level` goes from 1 (error) to 5 (trace).
    fn log(&self, level: u32, target: &str, message: &str);
    /// The highest level that is wanted.
    fn log_level(&self) -> u32;
}

/// The host, as it crosses: one owned reference to an opaque value, and its functions.
#[repr(C)]
#[derive(StableAbi)]
pub struct HostHandle {
    host: *const (),
    ops: HostOpsRef,
}

impl HostHandle {
    /// A handle that owns `services`.
    pub fn new<S: HostServices>(services: Arc<S>) -> Self {
        Self {
            host: Arc::into_raw(services).cast(),
            ops: Table::<S>::ops(),
        }
    }
}

/// An owned reference to the host, on the plugin's side.
pub(crate) struct HostRef(HostHandle);

// SAFETY: the host's functions may be called from any thread, by contract.
unsafe impl Send for HostRef {}
// SAFETY: as above.
unsafe impl Sync for HostRef {}

impl HostRef {
    pub(crate) fn new(handle: HostHandle) -> Self {
        Self(handle)
    }

    pub(crate) fn call(&self, request: &HostRequest) -> Result<HostReply> {
        let request = wire::encode(request)?;
        decode_reply("the host's answer", self.call_encoded(&request))
    }

    pub(super) fn call_encoded(&self, request: &[u8]) -> Reply {
        // SAFETY: the handle is owned, so the host's value lives.
        unsafe { self.0.ops.call()(self.0.host, RSlice::from_slice(request)) }
    }

    pub(crate) fn set_irq(&self, line: u32, level: bool) {
        // SAFETY: as in `call`.
        unsafe { self.0.ops.set_irq()(self.0.host, line, level) }
    }

    pub(crate) fn log(&self, level: u32, target: &str, message: &str) {
        // SAFETY: as in `call`.
        unsafe { self.0.ops.log()(self.0.host, level, RStr::from(target), RStr::from(message)) }
    }

    pub(crate) fn log_level(&self) -> u32 {
        // SAFETY: as in `call`.
        unsafe { self.0.ops.log_level()(self.0.host) }
    }
}

impl Clone for HostRef {
    fn clone(&self) -> Self {
        // SAFETY: as in `call`.
        unsafe { self.0.ops.retain()(self.0.host) };
        Self(HostHandle {
            host: self.0.host,
            ops: self.0.ops,
        })
    }
}

impl Drop for HostRef {
    fn drop(&mut self) {
        // SAFETY: this reference is given up here and nowhere else.
        unsafe { self.0.ops.release()(self.0.host) }
    }
}

/// The table of functions for services of type `S`.
struct Table<S>(std::marker::PhantomData<S>);

impl<S: HostServices> Table<S> {
    const OPS: &'static WithMetadata<HostOps> = &WithMetadata::new(HostOps {
        call: Self::call,
        set_irq: Self::set_irq,
        log: Self::log,
        log_level: Self::log_level,
        retain: Self::retain,
        release: Self::release,
    });

    fn ops() -> HostOpsRef {
        HostOpsRef(Self::OPS.static_as_prefix())
    }

    unsafe extern "C" fn call(host: *const (), request: RSlice<'_, u8>) -> Reply {
        // SAFETY: `host` came from `Arc::into_raw` of an `S` in `HostHandle::new`.
        let services = unsafe { &*host.cast::<S>() };
        encode_reply(guarded(|| {
            services.call(wire::decode("a device's request", request.as_slice()).map_err(unknown)?)
        }))
    }

    unsafe extern "C" fn set_irq(host: *const (), line: u32, level: bool) {
        // SAFETY: as in `call`.
        let services = unsafe { &*host.cast::<S>() };
        let _ = guarded(|| {
            services.set_irq(line, level);
            Ok(())
        });
    }

    unsafe extern "C" fn log(host: *const (), level: u32, target: RStr<'_>, message: RStr<'_>) {
        // SAFETY: as in `call`.
        let services = unsafe { &*host.cast::<S>() };
        let _ = guarded(|| {
            services.log(level, target.as_str(), message.as_str());
            Ok(())
        });
    }

    unsafe extern "C" fn log_level(host: *const ()) -> u32 {
        // SAFETY: as in `call`.
        let services = unsafe { &*host.cast::<S>() };
        guarded(|| Ok(services.log_level())).unwrap_or(0)
    }

    unsafe extern "C" fn retain(host: *const ()) {
        // SAFETY: as in `call`; the caller owns a reference.
        unsafe { Arc::increment_strong_count(host.cast::<S>()) }
    }

    unsafe extern "C" fn release(host: *const ()) {
        // SAFETY: the caller gives up a reference it owns.
        let services = unsafe { Arc::from_raw(host.cast::<S>()) };
        let _ = guarded(move || {
            drop(services);
            Ok(())
        });
    }
}

/// Runs `f`; a panic in it becomes an error.
pub(super) fn guarded<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)) {
        Ok(result) => result,
        Err(payload) => Err(panicked(payload)),
    }
}

/// The error that a panic becomes.
#[cold]
pub(super) fn panicked(payload: Box<dyn std::any::Any + Send>) -> Error {
    let text = payload
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no text".to_owned());
    // A payload's own destructor may panic again.
    std::mem::forget(payload);
    Error::new(ErrorKind::Panicked, format!("Panicked: {text}"))
}

/// A message that does not decode is one of a newer version.
pub(super) fn unknown(error: Error) -> Error {
    Error::new(ErrorKind::Unsupported, error.message)
}

pub(super) fn encode_reply<T: serde::Serialize>(reply: Result<T>) -> Reply {
    match reply.and_then(|reply| wire::encode(&reply)) {
        Ok(bytes) => RResult::ROk(RVec::from(bytes)),
        Err(error) => RResult::RErr(encode_error(&error)),
    }
}

pub(super) fn encode_error(error: &Error) -> RVec<u8> {
    // Encoding three strings into memory cannot fail; an empty answer still decodes to an error.
    RVec::from(wire::encode(error).unwrap_or_default())
}

pub(super) fn decode_reply<T: serde::de::DeserializeOwned>(what: &str, reply: Reply) -> Result<T> {
    match reply {
        RResult::ROk(bytes) => wire::decode(what, bytes.as_slice()),
        RResult::RErr(bytes) => Err(decode_error(bytes.as_slice())),
    }
}

pub(super) fn decode_error(bytes: &[u8]) -> Error {
    wire::decode("an error", bytes).unwrap_or_else(|error| error)
}
