use serde_json::json;

use super::*;

fn read(arguments: Value) -> Result<ParameterChanges, String> {
    let Value::Object(arguments) = arguments else {
        panic!("arguments are an object")
    };
    ParameterChanges::read(&arguments)
}

fn applied(arguments: Value) -> MigrationParameters {
    let mut parameters = MigrationParameters::default();
    parameters.apply(read(arguments).unwrap());
    parameters
}

#[test]
fn every_parameter_of_qemu_is_reported_with_its_default() {
    let qemu = json!({
        "announce-initial": 50, "announce-max": 550, "announce-rounds": 5, "announce-step": 100,
        "throttle-trigger-threshold": 50, "cpu-throttle-initial": 20, "cpu-throttle-increment": 10,
        "cpu-throttle-tailslow": false, "max-cpu-throttle": 99, "max-bandwidth": 134217728,
        "avail-switchover-bandwidth": 0, "downtime-limit": 300, "x-checkpoint-delay": 20000,
        "multifd-channels": 2, "xbzrle-cache-size": 67108864, "max-postcopy-bandwidth": 0,
        "multifd-compression": "none", "multifd-zlib-level": 1, "multifd-zstd-level": 1,
        "multifd-qatzip-level": 1, "x-vcpu-dirty-limit-period": 1000, "vcpu-dirty-limit": 1,
        "mode": "normal", "zero-page-detection": "multifd", "direct-io": false, "tls-creds": "",
        "tls-hostname": "", "tls-authz": "", "cpr-exec-command": []
    });
    assert_eq!(Value::Object(MigrationParameters::default().report()), qemu);
}

#[test]
fn what_is_reported_can_be_set_again() {
    let all = MigrationParameters::default().report();
    let changes = ParameterChanges::read(&all).unwrap();
    let mut parameters = applied(json!({"mode": "cpr-exec", "downtime-limit": 7}));
    parameters.apply(changes);
    assert_eq!(parameters, MigrationParameters::default());
}

#[test]
fn what_is_set_is_reported() {
    let said = json!({
        "mode": "cpr-exec", "cpr-exec-command": ["baton", "-x", ""], "downtime-limit": 2000000,
        "max-bandwidth": u64::MAX, "multifd-channels": 255, "direct-io": true,
        "zero-page-detection": "legacy"
    });
    let report = applied(said.clone()).report();
    for (name, value) in said.as_object().unwrap() {
        assert_eq!(report[name], *value, "{name}");
    }
    let older = applied(json!({"cpr-exec-args": ["a"]}));
    assert_eq!(older.cpr_exec_command, ["a"]);
    assert_eq!(
        applied(json!({"tls-creds": null})),
        MigrationParameters::default()
    );
    assert_eq!(read(json!({})), Ok(ParameterChanges::default()));
}

#[test]
fn what_is_out_of_range_is_refused_in_qemus_words() {
    let downtime =
        "Parameter 'downtime_limit' expects an integer in the range of 0 to (2000 * 1000) ms";
    for (arguments, text) in [
        (json!({"downtime-limit": 2000001}), downtime),
        (json!({"downtime-limit": -1}), downtime),
        (
            json!({"downtime-limit": "x"}),
            "Parameter 'downtime-limit' expects uint64",
        ),
        (
            json!({"downtime-limit": 1.0}),
            "Parameter 'downtime-limit' expects uint64",
        ),
        (
            json!({"max-bandwidth": "1M"}),
            "Parameter 'max-bandwidth' expects uint64",
        ),
        (
            json!({"multifd-channels": 0}),
            "Parameter 'multifd_channels' expects a value between 1 and 255",
        ),
        (
            json!({"multifd-channels": 256}),
            "Parameter 'multifd-channels' expects uint8_t",
        ),
        (
            json!({"multifd-channels": -1}),
            "Parameter 'multifd-channels' expects uint8_t",
        ),
        (
            json!({"multifd-channels": "x"}),
            "Parameter 'multifd-channels' expects uint64",
        ),
        (
            json!({"direct-io": 3}),
            "Invalid parameter type for 'direct-io', expected: boolean",
        ),
        (
            json!({"zero-page-detection": "bogus"}),
            "Parameter 'zero-page-detection' does not accept value 'bogus'",
        ),
        (
            json!({"zero-page-detection": 3}),
            "Invalid parameter type for 'zero-page-detection', expected: string",
        ),
        (
            json!({"mode": "cpr-bogus"}),
            "Parameter 'mode' does not accept value 'cpr-bogus'",
        ),
        (
            json!({"mode": 3}),
            "Invalid parameter type for 'mode', expected: string",
        ),
        (
            json!({"cpr-exec-command": "baton"}),
            "Invalid parameter type for 'cpr-exec-command', expected: array",
        ),
        (
            json!({"cpr-exec-command": ["baton", 3]}),
            "Invalid parameter type for 'cpr-exec-command[1]', expected: string",
        ),
        (json!({"foo": 1}), "Parameter 'foo' is unexpected"),
        (
            json!({"downtime-limit": 5, "multifd-channels": 0}),
            "Parameter 'multifd_channels' expects a value between 1 and 255",
        ),
    ] {
        assert_eq!(read(arguments.clone()).unwrap_err(), text, "{arguments}");
    }
}

#[test]
fn what_no_program_can_be_given_is_refused() {
    for (arguments, text) in [
        (
            json!({"cpr-exec-command": ["a\u{0}b"]}),
            "Parameter 'cpr-exec-command[0]' has a NUL character, which no argument can have",
        ),
        (
            json!({"cpr-exec-command": ["a".repeat(MAX_WORD)]}),
            "Parameter 'cpr-exec-command[0]' is 131072 bytes long; the most is 131071",
        ),
        (
            json!({"cpr-exec-command": vec![""; MAX_WORDS + 1]}),
            "Parameter 'cpr-exec-command' has 65537 words; the most is 65536",
        ),
        (
            json!({"cpr-exec-command": ["a"], "cpr-exec-args": ["a"]}),
            "Parameters 'cpr-exec-args' and 'cpr-exec-command' are the same; leave one out",
        ),
    ] {
        assert_eq!(read(arguments).unwrap_err(), text);
    }
}

#[test]
fn what_means_nothing_here_keeps_its_value() {
    assert_eq!(
        read(json!({"x-checkpoint-delay": 1})).unwrap_err(),
        "Parameter 'x-checkpoint-delay' cannot be changed from 20000: Baton has no COLO; leave it \
         out"
    );
    assert_eq!(
        read(json!({"block-bitmap-mapping": []})).unwrap_err(),
        "Parameter 'block-bitmap-mapping' cannot be set: there are no dirty bitmaps of disks; \
         leave it out"
    );
    for fixed in fixed::all() {
        let other = json!({ fixed.name: "another value" });
        assert!(read(other).is_err(), "{}", fixed.name);
        if let Some(value) = fixed.value {
            let same = json!({ fixed.name: value });
            assert_eq!(read(same), Ok(ParameterChanges::default()));
        }
    }
}
