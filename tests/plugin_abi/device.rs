//! A device of a plugin, driven as the host drives it.

use anyhow::{Context, Result, bail};
use baton_plugin_api::abi::{PluginDevice, Root, root_module};
use baton_plugin_api::protocol::{Reply, Request, StartArguments};
use baton_plugin_api::testing::{TestHost, TestRam};
use baton_plugin_api::{Config, Error, Value};
use std::path::Path;
use std::sync::Arc;

/// The root module of a plugin.
pub(crate) fn root(plugin: &Path) -> Result<Root> {
    root_module(plugin).with_context(|| format!("Cannot load {}", plugin.display()))
}

/// What a device of the plugin's first type is created from: its defaults, and what is said.
pub(crate) fn config(root: &Root, id: &str, said: &[(&str, Value)]) -> Result<(String, Config)> {
    let mut types = root.descriptor()?.devices;
    let device_type = types.swap_remove(0);
    let mut config = Config {
        id: id.into(),
        ..Config::default()
    };
    let defaults = device_type.properties.into_iter();
    config.properties = defaults
        .filter_map(|p| Some((p.name, p.default?)))
        .collect();
    config
        .properties
        .extend(said.iter().map(|(k, v)| ((*k).to_owned(), v.clone())));
    Ok((device_type.name, config))
}

/// A device of the plugin's first type, created.
pub(crate) fn created(
    root: &Root,
    id: &str,
    said: &[(&str, Value)],
    host: &Arc<TestHost>,
) -> Result<PluginDevice> {
    let (name, config) = config(root, id, said)?;
    Ok(root.create(&name, &config, Arc::clone(host))?)
}

/// The same, realized.
pub(crate) fn realized(
    root: &Root,
    id: &str,
    said: &[(&str, Value)],
    host: &Arc<TestHost>,
) -> Result<PluginDevice> {
    let mut device = created(root, id, said, host)?;
    device.call(&Request::Realize)?;
    Ok(device)
}

/// Lets a device run.
pub(crate) fn start(device: &mut PluginDevice, ram: &TestRam) -> Result<(), Error> {
    device.call(&start_request(ram)).map(drop)
}

pub(crate) fn start_request(ram: &TestRam) -> Request {
    Request::Start(StartArguments {
        memory: ram.table(),
        ..StartArguments::default()
    })
}

/// Stops a device.
pub(crate) fn quiesce(device: &mut PluginDevice) -> Result<(), Error> {
    device.call(&Request::Quiesce).map(drop)
}

/// The state of a section of a device.
pub(crate) fn save(device: &mut PluginDevice, section: &str) -> Result<Vec<u8>> {
    match device.call(&Request::Save {
        section: section.into(),
    })? {
        Reply::Saved { data } => Ok(data),
        other => bail!("{other:?} is no answer to Save"),
    }
}

/// Gives a device the state of a section.
pub(crate) fn load(
    device: &mut PluginDevice,
    section: &str,
    version: u32,
    data: &[u8],
) -> Result<(), Error> {
    let request = Request::Load {
        section: section.into(),
        version,
        data: data.into(),
    };
    device.call(&request).map(drop)
}
