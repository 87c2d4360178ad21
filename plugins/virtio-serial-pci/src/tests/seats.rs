//! Numbers and names.

use super::*;
use crate::seats::seat;
use crate::state::State;
use std::collections::BTreeMap;

fn numbers(children: &[Child]) -> Result<Vec<(u32, String)>> {
    let host = TestHost::new();
    let mut rig = Rig::new(&host, children.to_vec())?;
    let state = rig.device.save("virtio-console")?;
    let value: State = baton_plugin_api::wire::decode("it", &state)?;
    Ok(value
        .ports
        .into_iter()
        .map(|port| (port.number, port.id))
        .collect())
}

fn at(kind: &str, id: &str, nr: Option<u64>) -> Child {
    let said: Vec<_> = nr.map(|nr| ("nr", Value::Uint(nr))).into_iter().collect();
    child(kind, id, &said)
}

#[test]
fn ports_get_the_first_free_number_and_port_0_is_for_a_console() {
    let children = [
        at("virtserialport", "a", None),
        at("virtserialport", "b", Some(1)),
        at("virtconsole", "c", None),
    ];
    let expected = [(0, "c"), (1, "b"), (2, "a")].map(|(n, id)| (n, id.to_owned()));
    assert_eq!(numbers(&children).unwrap(), expected);
}

#[test]
fn a_number_or_name_that_is_taken_or_beyond_the_last_is_refused() {
    let named = |id: &str| {
        let name = Value::String("agent".into());
        child("virtserialport", id, &[("name", name)])
    };
    for (children, text) in [
        (
            vec![
                at("virtserialport", "a", Some(2)),
                at("virtserialport", "b", Some(2)),
            ],
            "'b': virtio-serial-bus: A port already exists at id 2",
        ),
        (
            vec![at("virtserialport", "a", Some(4))],
            "'a': virtio-serial-bus: Out-of-range port id specified, max. allowed: 3; say more \
             max_ports",
        ),
        (
            vec![named("a"), named("b")],
            "'b': virtio-serial-bus: A port already exists by name agent",
        ),
        (
            ["a", "b", "c", "d"]
                .map(|id| at("virtserialport", id, None))
                .into(),
            "'d': virtio-serial-bus: Maximum port limit for this device reached; say more \
             max_ports, or add a virtio-serial-pci",
        ),
    ] {
        assert_eq!(numbers(&children).unwrap_err().message, text);
    }
}

#[test]
fn ports_without_a_name_are_no_two_of_one_name() {
    let ports = BTreeMap::new();
    let first = seat(&ports, &at("virtserialport", "a", None), 4).unwrap();
    let ports = BTreeMap::from([(first.number, first)]);
    assert_eq!(
        seat(&ports, &at("virtserialport", "b", None), 4)
            .unwrap()
            .number,
        2
    );
}
