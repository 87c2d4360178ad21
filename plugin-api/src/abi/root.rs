//! The three tables of functions, frozen within a major version.
//!
//! `abi_stable` refuses a plugin whose table has fewer functions than the host's, so that one
//! function more would refuse every older plugin. What is new in a minor version is a message.

use abi_stable::StableAbi;
use abi_stable::library::{CheckTypeLayout, LibHeader, RootModule, RootModuleResult};
use abi_stable::prefix_type::PrefixTypeTrait;
use abi_stable::sabi_types::VersionStrings;
use abi_stable::std_types::{RResult, RSlice, RStr, RVec};

use super::host::HostHandle;

/// An encoded message, or an encoded [`crate::Error`].
pub type Reply = RResult<RVec<u8>, RVec<u8>>;

/// What a plugin file exports.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = PluginRootRef)))]
#[sabi(missing_field(panic))]
pub struct PluginRoot {
    /// The encoded [`crate::PluginDescriptor`]. May be called before anything else, many times.
    pub descriptor: extern "C" fn() -> Reply,
    /// Creates a device of the named type from an encoded [`crate::Config`].
    #[sabi(last_prefix_field)]
    pub create:
        extern "C" fn(RStr<'_>, RSlice<'_, u8>, HostHandle) -> RResult<DeviceHandle, RVec<u8>>,
}

impl RootModule for PluginRootRef {
    abi_stable::declare_root_module_statics! {PluginRootRef}
    const BASE_NAME: &'static str = "baton_plugin";
    const NAME: &'static str = "baton_plugin";
    // The magic block carries the ABI's version; what abi_stable compares here is the major alone.
    const VERSION_STRINGS: VersionStrings = VersionStrings::new("1.0.0");
}

/// A device, as its functions and the opaque value they take.
#[repr(C)]
#[derive(StableAbi)]
pub struct DeviceHandle {
    /// The plugin's own.
    pub device: *mut (),
    /// Its functions.
    pub ops: DeviceOpsRef,
}

/// The functions of a device. None of them unwinds.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = DeviceOpsRef)))]
#[sabi(missing_field(panic))]
pub struct DeviceOps {
    /// Takes an encoded [`crate::protocol::Request`], gives an encoded reply.
    pub call: unsafe extern "C" fn(*mut (), RSlice<'_, u8>) -> Reply,
    /// Reads `len` bytes at an offset of a region.
    pub read: unsafe extern "C" fn(*mut (), u32, u64, *mut u8, usize),
    /// Writes `len` bytes at an offset of a region.
    pub write: unsafe extern "C" fn(*mut (), u32, u64, *const u8, usize),
    /// Ends the device.
    #[sabi(last_prefix_field)]
    pub drop: unsafe extern "C" fn(*mut ()),
}

/// The functions of the host, for one device. All may be called from any thread.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = HostOpsRef)))]
#[sabi(missing_field(panic))]
pub struct HostOps {
    /// Takes an encoded [`crate::protocol::HostRequest`], gives an encoded reply.
    pub call: unsafe extern "C" fn(*const (), RSlice<'_, u8>) -> Reply,
    /// Sets a level-triggered line of the device.
    pub set_irq: unsafe extern "C" fn(*const (), u32, bool),
    /// Takes a level (1 error to 5 trace), a target and a message.
    pub log: unsafe extern "C" fn(*const (), u32, RStr<'_>, RStr<'_>),
    /// The highest level that is wanted.
    pub log_level: unsafe extern "C" fn(*const ()) -> u32,
    /// One more owner of the opaque value.
    pub retain: unsafe extern "C" fn(*const ()),
    /// One owner fewer.
    #[sabi(last_prefix_field)]
    pub release: unsafe extern "C" fn(*const ()),
}

/// The header a plugin exports for `abi_stable`; used by the export macro.
pub const fn export_root(loader: extern "C" fn() -> RootModuleResult) -> LibHeader {
    // SAFETY: the export macro's loader returns a `PluginRootRef`, made by `root_of`.
    unsafe { LibHeader::from_constructor::<PluginRootRef>(loader, CheckTypeLayout::Yes) }
}

/// Runs `root` for `abi_stable`; used by the export macro.
pub fn load_root(root: fn() -> PluginRootRef) -> RootModuleResult {
    abi_stable::library::__call_root_module_loader(root)
}

impl PluginRoot {
    /// The table in its exported form. It lives as long as the library.
    pub fn leak(self) -> PluginRootRef {
        self.leak_into_prefix()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::host::HostHandle;

    /// The names in a table, in order, as `abi_stable` compares them.
    fn functions<T: StableAbi>() -> Vec<&'static str> {
        // What crosses is a reference to the table, which has the table as its phantom field.
        let table = T::LAYOUT.phantom_fields().iter().next().unwrap().layout();
        table
            .get_fields()
            .unwrap()
            .iter()
            .map(|f| f.name())
            .collect()
    }

    #[test]
    fn the_tables_of_functions_are_frozen() {
        assert_eq!(functions::<PluginRootRef>(), ["descriptor", "create"]);
        assert_eq!(
            functions::<DeviceOpsRef>(),
            ["call", "read", "write", "drop"]
        );
        let host = ["call", "set_irq", "log", "log_level", "retain", "release"];
        assert_eq!(functions::<HostOpsRef>(), host);
        assert_eq!(size_of::<HostHandle>(), 16);
        assert_eq!(size_of::<DeviceHandle>(), 16);
    }
}
