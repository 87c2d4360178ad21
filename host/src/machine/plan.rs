//! Which devices a machine will have and what they are called, found out without making any.

use std::collections::BTreeMap;
use std::sync::Arc;

use baton_migration::HostError;
use baton_plugin_api::{BusClass, Config, DeviceType};

use super::Wanted;
use super::devices::name;
use super::pci::{HostBridge, PciAddress, PciBus};
use crate::cli::{Backends, Options};
use crate::plugin::Registry;

/// A device that a machine will have.
pub struct Planned<'a> {
    /// Its type.
    pub device_type: &'a DeviceType,
    /// Checked against the type, with the id that the device will have.
    pub config: Config,
}

/// These devices in their order, with the backends of `options`. Nothing is opened.
pub fn plan<'a>(
    options: &Options,
    wanted: Wanted<'_>,
    registry: &'a Registry,
) -> Result<Vec<Planned<'a>>, HostError> {
    let backends = Backends::new(wanted.drives, &options.chardevs);
    let backends = backends.with_netdevs(&options.netdevs);
    let mut backends = backends.with_objects(wanted.objects);
    let mut unnamed = BTreeMap::new();
    // Only its places are of interest; any function fills one.
    let bus = PciBus::default();
    let take = |at| bus.insert(at, Arc::new(HostBridge::new()));
    take(PciAddress {
        slot: 0,
        function: 0,
    });
    let mut planned = Vec::new();
    for option in wanted.devices {
        let (_, device_type) = registry
            .device(&option.driver)
            .map_err(|e| option.error(e.to_string()))?;
        let mut config = backends.configure(device_type, option)?;
        let on_pci = device_type.bus != BusClass::Platform;
        let at = on_pci.then(|| bus.place(option.address)).transpose();
        let at = at.map_err(|e| option.error(e.to_string()))?;
        at.into_iter().for_each(take);
        name(&mut config, device_type, at, &mut unnamed);
        planned.push(Planned {
            device_type,
            config,
        });
    }
    Ok(planned)
}
