use serde_json::{Value, json};

use super::*;

fn section(name: &str, version: u32, minimum: u32) -> Value {
    json!({ "name": name, "version": version, "minimum-version": minimum })
}

fn device(kind: &str, id: Option<&str>, sections: &[Value]) -> Value {
    let mut device = json!({ "type": kind, "sections": sections });
    if let Some(id) = id {
        device["id"] = json!(id);
    }
    device
}

fn build(devices: &[Value]) -> Description {
    serde_json::from_value(json!({
        "producer": "baton test",
        "machine": { "type": "baton-1.0", "sections": [section("irqchip", 2, 1)] },
        "devices": devices,
    }))
    .unwrap()
}

/// What does not fit: names and verdicts.
fn findings(old: &Description, new: &Description) -> Vec<(String, Verdict)> {
    compare(old, new)
        .into_iter()
        .filter(|line| line.verdict != Verdict::Ok)
        .map(|line| (line.name, line.verdict))
        .collect()
}

fn found(name: &str, verdict: Verdict) -> Vec<(String, Verdict)> {
    vec![(name.to_owned(), verdict)]
}

#[test]
fn a_build_loads_what_itself_writes() {
    let machine = build(&[device("disk", Some("d0"), &[section("disk", 1, 1)])]);
    let lines = compare(&machine, &machine);
    let names: Vec<_> = lines.iter().map(|line| line.name.as_str()).collect();
    assert_eq!(names, ["machine/irqchip", "d0/disk"]);
    assert_eq!(findings(&machine, &machine), []);
}

#[test]
fn a_version_is_loaded_from_the_minimum_to_the_newest() {
    let writes = |version| build(&[device("disk", None, &[section("disk", version, 1)])]);
    let loads = build(&[device("disk", None, &[section("disk", 4, 3)])]);
    let name = "disk/disk";
    assert_eq!(findings(&writes(2), &loads), found(name, Verdict::TooOld));
    assert_eq!(findings(&writes(3), &loads), []);
    assert_eq!(findings(&writes(4), &loads), []);
    assert_eq!(findings(&writes(5), &loads), found(name, Verdict::TooNew));
}

#[test]
fn what_one_side_lacks_is_found() {
    let sections = [section("disk", 1, 1), section("cache", 1, 1)];
    let two = build(&[device("disk", Some("d0"), &sections)]);
    let one = build(&[device("disk", Some("d0"), &sections[..1])]);
    let none = build(&[]);
    let other = build(&[device("tape", Some("d0"), &sections)]);
    let name = "d0/cache";
    assert_eq!(findings(&two, &one), found(name, Verdict::MissingSection));
    assert_eq!(findings(&one, &two), found(name, Verdict::NotWritten));
    assert_eq!(findings(&two, &none), found("d0", Verdict::MissingDevice));
    assert_eq!(findings(&none, &two), found("d0", Verdict::NotWritten));
    assert_eq!(findings(&two, &other), found("d0", Verdict::OtherType));
    // More device types than before are no matter.
    let types = build(&[device("disk", None, &sections)]);
    assert_eq!(findings(&none, &types), []);
}

#[test]
fn a_machine_is_compared_with_another_build_by_its_types() {
    let machine = build(&[device("disk", Some("d0"), &[section("disk", 2, 1)])]);
    let types = |version| build(&[device("disk", None, &[section("disk", version, 1)])]);
    assert_eq!(findings(&machine, &types(2)), []);
    assert_eq!(
        findings(&machine, &types(1)),
        found("d0/disk", Verdict::TooNew)
    );
}

#[test]
fn a_subsection_that_new_does_not_know_is_found_and_one_that_old_does_not_know_is_not() {
    let with = |version| {
        let mut disk = section("disk", 1, 1);
        let sub = json!({ "name": "sub", "version": version, "minimum-version": 2 });
        disk["subsections"] = json!([sub]);
        build(&[device("disk", Some("d0"), &[disk])])
    };
    let without = build(&[device("disk", Some("d0"), &[section("disk", 1, 1)])]);
    let name = "d0/disk/sub";
    assert_eq!(
        findings(&with(2), &without),
        found(name, Verdict::MissingSubsection)
    );
    assert_eq!(findings(&without, &with(2)), []);
    assert_eq!(findings(&with(3), &with(2)), found(name, Verdict::TooNew));
    let state = state(&[
        ("machine/irqchip", 0, 2),
        ("d0/disk/sub", 0, 3),
        ("d0/disk", 0, 1),
    ]);
    assert_eq!(findings(&state, &with(2)), found(name, Verdict::TooNew));
    assert_eq!(findings(&state, &with(3)), []);
    assert_eq!(findings(&with(2), &Source::State(state).loads()), []);
}

#[test]
fn another_machine_type_is_found() {
    let old = build(&[]);
    let mut new = old.clone();
    new.machine.kind = "baton-1.1".into();
    assert_eq!(findings(&old, &new), found(MACHINE, Verdict::OtherType));
}

/// What a state with these sections says of its machine.
fn state(sections: &[(&str, u32, u32)]) -> Description {
    use baton_migration::fingerprint::MachineFingerprint;
    use baton_migration::stream::{Header, SectionData, StateImage};
    let mut image = StateImage::new(Header {
        producer: "baton test".into(),
        fingerprint: MachineFingerprint {
            machine_type: "baton-1.0".into(),
            ..MachineFingerprint::default()
        },
    });
    for (name, instance, version) in sections {
        image
            .push(SectionData {
                name: (*name).into(),
                instance: *instance,
                version: *version,
                payload: Vec::new(),
            })
            .unwrap();
    }
    of_state(&StateFile { image, size: 0 })
}

#[test]
fn a_state_is_compared_with_a_machine_by_ids_and_with_a_build_by_names() {
    let state = state(&[
        ("machine/irqchip", 0, 2),
        ("machine/irqchip", 1, 2),
        ("0000:00:01.0/disk", 0, 3),
    ]);
    let place = Some("0000:00:01.0");
    let build_of = |id, version| build(&[device("disk", id, &[section("disk", version, 1)])]);
    let machine = |version| build_of(place, version);
    let name = "0000:00:01.0/disk";
    for id in [place, None] {
        assert_eq!(findings(&state, &build_of(id, 3)), []);
        let older = build_of(id, 2);
        assert_eq!(findings(&state, &older), found(name, Verdict::TooNew));
    }
    let empty = build(&[]);
    assert_eq!(
        findings(&state, &empty),
        found(name, Verdict::MissingSection)
    );
    // The other way about, the state's build is taken to load whatever is older.
    assert_eq!(
        findings(&machine(1), &Source::State(state.clone()).loads()),
        []
    );
    assert_eq!(
        findings(&machine(4), &Source::State(state).loads()),
        found(name, Verdict::TooNew)
    );
}

#[test]
fn the_report_has_a_line_for_each_section_and_the_number_of_findings() {
    let old = build(&[device("disk", None, &[section("disk", 2, 1)])]);
    let new = build(&[device("disk", None, &[section("disk", 1, 1)])]);
    assert_eq!(
        text(&compare(&old, &new), 1),
        "ok  machine/irqchip: version 2\n\
         BAD disk/disk: version 2 is too new, NEW loads up to 1\n\
         NEW cannot load what OLD writes: 1 finding\n"
    );
}
