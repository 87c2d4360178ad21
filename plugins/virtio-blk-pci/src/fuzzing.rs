//! What a hostile state reaches: see `fuzz/README.md`.

use std::collections::BTreeMap;

use baton_plugin_api::{Config, Drive, Value};

use crate::properties::{Options, device_type};
use crate::request::Limits;
use crate::state;

/// Loads a section of a disk of 4 MiB with one queue. What is taken must be what is saved.
///
/// # Panics
/// When it is not.
pub fn load(data: &[u8]) {
    let properties: BTreeMap<_, _> = device_type()
        .properties
        .into_iter()
        .filter_map(|property| Some((property.name, property.default?)))
        .chain([("drive".to_owned(), Value::String("d0".into()))])
        .collect();
    let drive = Drive {
        id: "d0".into(),
        format: "raw".into(),
        ..Drive::default()
    };
    let config = Config {
        id: "disk".into(),
        properties,
        drives: [("drive".to_owned(), drive)].into(),
        ..Config::default()
    };
    let Ok(options) = Options::new(config) else {
        unreachable!("the defaults fit");
    };
    let limits = Limits {
        sectors: 8192,
        block: 512,
        read_only: false,
        queue_size: options.queue_size,
        discard: None,
        write_zeroes: None,
    };
    let Ok(loaded) = state::load(data, &options, &limits) else {
        return;
    };
    assert!(loaded.in_flight.len() <= usize::from(options.queue_size));
    let saved = state::save(&limits, loaded.write_cache, &loaded.in_flight);
    let again = saved.and_then(|data| state::load(&data, &options, &limits));
    assert!(again.is_ok_and(
        |again| again.in_flight == loaded.in_flight && again.write_cache == loaded.write_cache
    ));
}

#[test]
fn a_hostile_state_is_refused_or_taken_whole() {
    baton_plugin_api::testing::exercise("virtio-blk", 20_000, load);
}
