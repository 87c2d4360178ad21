//! How long a register access through the plugin ABI takes, beside the same device as a Rust trait
//! object in this process.
//!
//! `cargo xtask bench abi` builds what this loads: the probe as a plugin, and the real serial port.

#[path = "probe/device.rs"]
mod device;

use baton_plugin_api::abi::{PluginDevice, root_module};
use baton_plugin_api::protocol::Request;
use baton_plugin_api::testing::TestHost;
use baton_plugin_api::{Config, PlatformDevice, Value};
use device::{PLAIN, Probe, SHARED};
use std::error::Error;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Calls in a run: some milliseconds.
const CALLS: u32 = 1_000_000;
/// Runs of each side, in turn: the machine's moods hit both.
const RUNS: usize = 31;
/// Line status of a 16550.
const LINE_STATUS: u64 = 5;

/// A register access as the host would make it of a device in its own process.
trait Registers {
    fn read(&mut self, region: u32, offset: u64, data: &mut [u8]);
}

impl<D: PlatformDevice> Registers for D {
    fn read(&mut self, region: u32, offset: u64, data: &mut [u8]) {
        PlatformDevice::read(self, region, offset, data);
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let folder = plugin_folder()?;
    let mut plugin = load(&folder.join("examples/libprobe.so"), "probe", &[])?;
    let mut object: Box<dyn Registers> = black_box(Box::new(Probe::new()));

    println!("| one read of a register | plugin, ns | trait object, ns | ratio |");
    println!("|---|---|---|---|");
    for (title, region) in [("bare", PLAIN), ("behind a lock", SHARED)] {
        let (through, beside) = in_turn(
            |data| plugin.read(region, 3, data),
            |data| object.read(region, 3, data),
        );
        println!(
            "| {title} | {through:.2} | {beside:.2} | {:.3} |",
            through / beside
        );
    }

    let index = ("index".to_owned(), Value::Uint(0));
    let mut serial = load(
        &folder.join("libbaton_isa_serial.so"),
        "isa-serial",
        &[index],
    )?;
    serial.call(&Request::Realize)?;
    let lsr = median((0..RUNS).map(|_| run(|data| serial.read(0, LINE_STATUS, data))));
    println!("| isa-serial's line status | {lsr:.2} | | |");
    Ok(())
}

/// Where cargo has built the plugins.
fn plugin_folder() -> Result<PathBuf, Box<dyn Error>> {
    match std::env::var_os("BATON_PLUGINS") {
        Some(folder) => Ok(folder.into()),
        None => Err("BATON_PLUGINS does not name a folder: run `cargo xtask bench abi`".into()),
    }
}

fn load(
    file: &Path,
    device: &str,
    properties: &[(String, Value)],
) -> Result<PluginDevice, Box<dyn Error>> {
    let root = root_module(file).map_err(|e| format!("{}: {e}", file.display()))?;
    let config = Config {
        id: device.to_owned(),
        properties: properties.iter().cloned().collect(),
        ..Config::default()
    };
    Ok(root.create(device, &config, TestHost::new())?)
}

/// The medians of both, in nanoseconds a call.
fn in_turn(mut a: impl FnMut(&mut [u8]), mut b: impl FnMut(&mut [u8])) -> (f64, f64) {
    let runs: Vec<_> = (0..RUNS).map(|_| (run(&mut a), run(&mut b))).collect();
    (
        median(runs.iter().map(|run| run.0)),
        median(runs.iter().map(|run| run.1)),
    )
}

fn run(mut call: impl FnMut(&mut [u8])) -> f64 {
    let mut data = [0];
    let start = Instant::now();
    for _ in 0..CALLS {
        call(black_box(&mut data));
    }
    start.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS)
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
