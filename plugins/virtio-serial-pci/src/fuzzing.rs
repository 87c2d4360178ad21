//! What a hostile state reaches: see `fuzz/README.md`.

use std::collections::BTreeMap;

use baton_plugin_api::{Child, Config, Value};

use crate::seats;
use crate::service::Ports;
use crate::state;

const MAX_PORTS: u32 = 4;

/// Ports `a` and `b`, of which `b` says its number, and a console.
fn ports() -> Ports {
    let mut all = BTreeMap::new();
    for (kind, id) in [
        (seats::PORT, "a"),
        (seats::PORT, "b"),
        (seats::CONSOLE, "c"),
    ] {
        let name = ("name".to_owned(), Value::String(id.to_owned()));
        let number = (id == "b").then(|| ("nr".to_owned(), Value::Uint(2)));
        let child = Child {
            device_type: kind.to_owned(),
            config: Config {
                id: id.to_owned(),
                properties: [name].into_iter().chain(number).collect(),
                ..Config::default()
            },
        };
        let Ok(port) = seats::seat(&all, &child, MAX_PORTS) else {
            unreachable!("there is room");
        };
        all.insert(port.number, port);
    }
    Ports {
        all,
        ..Ports::default()
    }
}

/// Loads a section. What is taken must be what is saved.
///
/// # Panics
/// When it is not.
pub fn load(data: &[u8]) {
    let mut ports = ports();
    let Ok(loaded) = state::load(data, &ports, MAX_PORTS) else {
        return;
    };
    loaded.apply(&mut ports);
    assert!(ports.all.len() == 3 && ports.all.keys().all(|number| *number < MAX_PORTS));
    let saved = state::save(&ports, MAX_PORTS);
    let mut other = self::ports();
    let again = saved
        .as_ref()
        .map(|data| state::load(data, &other, MAX_PORTS));
    let Ok(Ok(again)) = again else {
        panic!("what was taken is refused");
    };
    again.apply(&mut other);
    assert_eq!(state::save(&other, MAX_PORTS), saved);
}

#[test]
fn a_hostile_state_is_refused_or_taken_whole() {
    baton_plugin_api::testing::exercise("virtio-serial", 20_000, load);
}

#[test]
fn the_seeds_that_are_states_are_taken() {
    let seeds = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../fuzz/seeds/virtio-serial"
    );
    for (name, taken) in [
        ("busy", true),
        ("new", true),
        ("moved", true),
        ("two-of-one-number", false),
    ] {
        let data = std::fs::read(format!("{seeds}/{name}")).unwrap();
        let loaded = state::load(&data, &ports(), MAX_PORTS);
        assert_eq!(loaded.is_ok(), taken, "{name}");
    }
}
