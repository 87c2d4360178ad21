//! The macro that makes a plugin of a crate.

/// Exports the devices of a plugin: the magic block, the root module, and one adapter a device.
///
/// Each device is named with its bus class: `platform`, `virtio` or `pci`. The crate must be a
/// `cdylib`, and must be built with unwinding panics, since that is how one is caught.
///
/// ```text
/// baton_plugin_api::export_plugin! {
///     description: "Entropy for the guest",
///     devices: [virtio Rng],
/// }
/// ```
#[macro_export]
macro_rules! export_plugin {
    (description: $description:literal, devices: [$($class:ident $device:ty),+ $(,)?] $(,)?) => {
        #[cfg(not(panic = "unwind"))]
        compile_error!("a Baton plugin is built with panic = \"unwind\"");

        /// Layer 1 of the contract.
        #[unsafe(no_mangle)]
        #[allow(non_upper_case_globals)]
        pub static baton_plugin_magic: $crate::magic::MagicBlock =
            $crate::magic::MagicBlock::new(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));

        /// Layer 2 of the contract, under the name `abi_stable` looks for.
        #[unsafe(no_mangle)]
        #[allow(non_upper_case_globals)]
        pub static _1as_0lib_1header_0root_bmodule_bloader: $crate::export::LibHeader = {
            extern "C" fn descriptor() -> $crate::abi::Reply {
                fn devices() -> ::std::vec::Vec<$crate::DeviceType> {
                    ::std::vec![$(<$crate::__adapter!($class $device) as $crate::abi::Adapter>::device_type()),+]
                }
                $crate::abi::plugin_descriptor(
                    env!("CARGO_PKG_NAME"),
                    env!("CARGO_PKG_VERSION"),
                    $description,
                    devices,
                )
            }
            extern "C" fn create(
                name: $crate::export::RStr<'_>,
                config: $crate::export::RSlice<'_, u8>,
                host: $crate::abi::HostHandle,
            ) -> $crate::export::RResult<$crate::abi::DeviceHandle, $crate::export::RVec<u8>> {
                $crate::abi::create_by_name(
                    name.as_str(),
                    config,
                    host,
                    &[$($crate::abi::Creator::of::<$crate::__adapter!($class $device)>()),+],
                )
            }
            fn root() -> $crate::abi::PluginRootRef {
                $crate::abi::PluginRoot { descriptor, create }.leak()
            }
            extern "C" fn load() -> $crate::export::RootModuleResult {
                $crate::abi::load_root(root)
            }
            $crate::abi::export_root(load)
        };
    };
}

/// The adapter of a bus class.
#[doc(hidden)]
#[macro_export]
macro_rules! __adapter {
    (platform $device:ty) => { $crate::bus::PlatformAdapter<$device> };
    (virtio $device:ty) => { $crate::bus::VirtioAdapter<$device> };
    (pci $device:ty) => { $crate::bus::PciAdapter<$device> };
}

pub use abi_stable::library::{LibHeader, RootModuleResult};
pub use abi_stable::std_types::{RResult, RSlice, RStr, RVec};

#[cfg(test)]
mod tests {
    #[test]
    fn the_root_module_has_the_name_abi_stable_looks_for() {
        assert_eq!(
            abi_stable::library::ROOT_MODULE_LOADER_NAME_WITH_NUL,
            "_1as_0lib_1header_0root_bmodule_bloader\0"
        );
    }
}
