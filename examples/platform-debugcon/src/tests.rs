use std::io::{Read, pipe};

use baton_plugin_api::testing::{TestHost, config_of};
use baton_plugin_api::{Chardev, Device, PlatformDevice, Value};

use super::Debugcon;

#[test]
fn what_the_guest_writes_comes_out_of_the_chardev() {
    let (mut reader, writer) = pipe().unwrap();
    let host = TestHost::new();
    let output = Some(writer.into());
    host.add_chardev(
        "con",
        Chardev {
            output,
            input: None,
        },
    );
    let said = [("chardev", Value::String("con".into()))];
    let mut device = Debugcon::create(config_of::<Debugcon>("debug", &said), host.host()).unwrap();
    device.realize().unwrap();
    assert_eq!(device.platform().regions[0].base, 0xe9);
    for byte in b"hello" {
        device.write(0, 0, &[*byte]);
    }
    drop((device, host));
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
}

#[test]
fn the_console_says_that_it_is_there() {
    let config = config_of::<Debugcon>("debug", &[("chardev", Value::String("con".into()))]);
    let mut device = Debugcon::create(config, TestHost::new().host()).unwrap();
    let mut data = [0];
    device.read(0, 0, &mut data);
    assert_eq!(data, [0xe9]);
}

/// The guide opens with this file.
#[test]
fn the_guide_shows_the_plugin_as_it_is_built() {
    let source = include_str!("lib.rs");
    let shown = source.split("\n#[cfg(test)]").next().unwrap();
    let guide = include_str!("../../../docs/writing-a-plugin.md");
    assert!(
        guide.contains(&format!("```rust\n{shown}```")),
        "copy src/lib.rs into the guide"
    );
}
