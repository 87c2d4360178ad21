//! Commands, from their specs and from what clients say.

use serde_json::json;

use super::*;
use crate::monitor::qapi::{Member, Object, Type};

fn parse(name: &str, arguments: Value) -> Result<Command, String> {
    let Value::Object(arguments) = arguments else {
        panic!("arguments are an object")
    };
    Command::parse(name, arguments).map_err(|e| e.desc)
}

/// A value of this type.
fn sample(of: &Type) -> Value {
    match of {
        Type::Str => "a".into(),
        Type::Bool => false.into(),
        Type::Null | Type::Any => Value::Null,
        Type::List(of) => json!([sample(of)]),
        Type::Enum(of) => of.values[0].into(),
        Type::Object(of) => sample_of(of, |_| true),
        Type::Alternate(of) => sample(&of.of[0]),
        _ => 1.into(),
    }
}

fn sample_of(of: &Object, wanted: impl Fn(&Member) -> bool) -> Value {
    let members = of.members.iter().filter(|member| wanted(member));
    let mut object: Map<_, _> = members
        .map(|member| (member.name.to_owned(), sample(&member.of)))
        .collect();
    if let Some(variants) = &of.variants {
        let (case, more) = &variants.cases[0];
        if let Value::Object(more) = sample(&Type::Object(more)) {
            object.extend(more);
        }
        object.insert(variants.tag.into(), (*case).into());
    }
    object.into()
}

/// What a spec allows its command understands, or refuses with a text of its own.
#[test]
fn every_command_is_understood_as_its_spec_says() {
    for spec in table::commands() {
        let required = |member: &Member| !member.optional;
        let arguments = sample_of(&spec.arguments, required);
        parse(spec.name, arguments).unwrap_or_else(|e| panic!("{}: {e}", spec.name));
        for optional in spec.arguments.members.iter().filter(|m| m.optional) {
            let wanted = |member: &Member| required(member) || member.name == optional.name;
            let arguments = sample_of(&spec.arguments, wanted);
            if let Err(text) = parse(spec.name, arguments) {
                let own = ["Parameter '", "Capability '", "Bus '"];
                assert!(
                    own.iter().any(|own| text.starts_with(own)),
                    "{}: {text}",
                    spec.name
                );
                assert!(!text.ends_with("is unexpected"), "{}: {text}", spec.name);
            }
        }
    }
}

#[test]
fn names_are_there_once_and_sentences_do_not_break_the_docs() {
    let mut names: Vec<_> = table::commands().map(|spec| spec.name).collect();
    names.extend(table::events().map(|event| event.name));
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
    for spec in table::commands() {
        assert!(
            !spec.doc.is_empty() && !spec.doc.ends_with('.'),
            "{}",
            spec.name
        );
        let texts = spec.arguments.members.iter().map(|member| member.doc);
        assert!(
            texts
                .chain([spec.doc])
                .all(|text| !text.contains(['|', '\n'])),
            "{}",
            spec.name
        );
    }
}

#[test]
fn the_documents_migrate_is_understood() {
    let channels = json!([
        {"channel-type": "main",
         "addr": {"transport": "socket", "type": "inet", "host": "0", "port": "44444"}},
        {"channel-type": "cpr",
         "addr": {"transport": "socket", "type": "unix", "path": "cpr.sock"}}]);
    let Ok(Command::Migrate {
        uri: None,
        channels: Some(list),
        ..
    }) = parse("migrate", json!({ "channels": channels }))
    else {
        panic!("it is a migrate with channels");
    };
    assert_eq!(list.len(), 2);
}

#[test]
fn what_does_not_fit_is_refused_in_qemus_words() {
    let capability = |status: Value| json!({ "capabilities": [status] });
    let main = |addr: Value| json!({"channels": [{"channel-type": "main", "addr": addr}]});
    for (name, arguments, text) in [
        (
            "stop",
            json!({"now": true}),
            "Parameter 'now' is unexpected",
        ),
        (
            "migrate-set-parameters",
            json!({"mode": "cpr-bogus"}),
            "Parameter 'mode' does not accept value 'cpr-bogus'",
        ),
        (
            "migrate-set-parameters",
            json!({"multifd-channels": 256}),
            "Parameter 'multifd-channels' expects uint8_t",
        ),
        (
            "migrate-set-parameters",
            json!({"downtime-limit": -1}),
            "Parameter 'downtime_limit' expects an integer in the range of 0 to (2000 * 1000) ms",
        ),
        (
            "migrate-set-parameters",
            json!({"max-bandwidth": "x"}),
            "Parameter 'max-bandwidth' expects uint64",
        ),
        (
            "migrate-set-parameters",
            json!({"tls-creds": 1}),
            "Invalid parameter type for 'tls-creds', expected: StrOrNull",
        ),
        (
            "migrate-continue",
            json!({}),
            "Parameter 'state' is missing",
        ),
        (
            "migrate-continue",
            json!({"state": "foo"}),
            "Parameter 'state' does not accept value 'foo'",
        ),
        (
            "migrate-set-capabilities",
            json!({}),
            "Parameter 'capabilities' is missing",
        ),
        (
            "migrate-set-capabilities",
            json!({"capabilities": 3}),
            "Invalid parameter type for 'capabilities', expected: array",
        ),
        (
            "migrate-set-capabilities",
            capability(json!(3)),
            "Invalid parameter type for 'capabilities[0]', expected: object",
        ),
        (
            "migrate-set-capabilities",
            capability(json!({"capability": "events"})),
            "Parameter 'capabilities[0].state' is missing",
        ),
        (
            "migrate-set-capabilities",
            capability(json!({"capability": "events", "state": 3})),
            "Invalid parameter type for 'capabilities[0].state', expected: boolean",
        ),
        (
            "migrate-set-capabilities",
            capability(json!({"capability": "foo", "state": true})),
            "Parameter 'capability' does not accept value 'foo'",
        ),
        (
            "migrate-set-capabilities",
            capability(json!({"capability": "events", "state": true, "x": 1})),
            "Parameter 'capabilities[0].x' is unexpected",
        ),
        (
            "migrate",
            json!({"channels": [{"channel-type": "main"}]}),
            "Parameter 'channels[0].addr' is missing",
        ),
        (
            "migrate",
            main(json!({"transport": "socket", "type": "unix"})),
            "Parameter 'channels[0].addr.path' is missing",
        ),
        (
            "migrate",
            main(json!({"transport": "file", "filename": "a", "offset": 0, "path": "b"})),
            "Parameter 'channels[0].addr.path' is unexpected",
        ),
        (
            "migrate",
            main(json!({"transport": "bus"})),
            "Parameter 'transport' does not accept value 'bus'",
        ),
        (
            "migrate",
            json!({"channels": [3]}),
            "Invalid parameter type for 'channels[0]', expected: object",
        ),
        (
            "migrate",
            json!({"uri": "a", "resume": true}),
            "Parameter 'resume' belongs to postcopy, which Baton does not have; leave it out",
        ),
        (
            "migrate",
            json!({"uri": 3}),
            "Invalid parameter type for 'uri', expected: string",
        ),
        ("nope", json!({}), "The command nope has not been found"),
    ] {
        assert_eq!(parse(name, arguments).unwrap_err(), text);
    }
}
