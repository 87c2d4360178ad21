//! What hostile input reaches in the host: see `fuzz/README.md`.

use crate::machine::decode::again;
pub use crate::monitor::hmp::fuzzing::hmp;

/// The host's sections, by the first byte of the input.
const SECTIONS: [&str; 8] = [
    "globalstate",
    "cpu",
    "irqchip",
    "kvmclock",
    "acpi-pm",
    "pci-config-ports",
    "virtio-pci",
    "acpi-pm/sleep",
];

/// Says `data` to a monitor as a client would, without a VM behind it.
///
/// # Panics
/// When what is understood depends on how the bytes came, or more is kept than a message may have.
pub fn qmp(data: &[u8]) {
    crate::monitor::fuzz(data);
}

/// Loads a section as far as that goes without a machine. What is taken must be what is saved.
///
/// # Panics
/// When it is not.
pub fn section(data: &[u8]) {
    let Some((&which, payload)) = data.split_first() else {
        return;
    };
    let name = SECTIONS[usize::from(which) % SECTIONS.len()];
    if let Some(Ok(saved)) = again(name, payload) {
        assert_eq!(again(name, &saved), Some(Ok(saved.clone())), "{name}");
    }
}

/// Reads a file of `-readconfig`. What is wrong with it is said in one line.
///
/// # Panics
/// When it is not.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Err(e) = crate::cli::parse_config(text) {
        let line = e.to_string();
        assert!(!line.chars().any(char::is_control), "{line:?}");
    }
}

#[test]
fn a_hostile_file_of_options_is_refused_in_one_line() {
    baton_plugin_api::testing::exercise("config", 20_000, config);
}

#[test]
fn a_hostile_client_is_answered_and_no_more() {
    baton_plugin_api::testing::exercise("qmp", 20_000, qmp);
}

#[test]
fn a_hostile_section_is_refused_or_taken_whole() {
    baton_plugin_api::testing::exercise("section", 20_000, section);
    let own = crate::machine::sections();
    assert!(
        own.iter()
            .all(|section| SECTIONS.contains(&section.name.as_str()))
    );
}
