use serde_json::json;

use super::*;

fn channel(value: Value) -> Result<MigrationChannel, AddressError> {
    MigrationChannel::try_from(value)
}

fn main_and_cpr() -> Vec<MigrationChannel> {
    serde_json::from_value(json!([
        {"channel-type": "main",
         "addr": {"transport": "socket", "type": "inet", "host": "0", "port": "44444"}},
        {"channel-type": "cpr",
         "addr": {"transport": "socket", "type": "unix", "path": "cpr.sock"}},
    ]))
    .unwrap()
}

fn outgoing(channels: &[MigrationChannel]) -> Result<TransferChannels, AddressError> {
    TransferChannels::from_arguments(None, Some(channels))
}

#[test]
fn the_channels_of_qemus_document_are_accepted() {
    let channels = outgoing(&main_and_cpr()).unwrap();
    assert_eq!(channels.cpr, PathBuf::from("cpr.sock"));
    assert_eq!(channels.main.to_string(), "tcp:0:44444");
}

#[test]
fn every_address_goes_to_json_and_back_in_the_form_of_qapi() {
    for json in [
        json!({"transport": "socket", "type": "inet", "host": "0", "port": "44444"}),
        json!({"transport": "socket", "type": "unix", "path": "cpr.sock"}),
        json!({"transport": "socket", "type": "vsock", "cid": "3", "port": "1234"}),
        json!({"transport": "socket", "type": "fd", "str": "7"}),
        json!({"transport": "exec", "args": ["/bin/sh", "-c", "cat"]}),
        json!({"transport": "rdma", "host": "a", "port": "1"}),
        json!({"transport": "file", "filename": "/tmp/state", "offset": 4096}),
    ] {
        let address: MigrationAddress = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(serde_json::to_value(&address).unwrap(), json);
    }
}

#[test]
fn members_that_are_extra_missing_or_of_another_type_are_told_in_the_words_of_qapi() {
    let unix = |addr: Value| channel(json!({"channel-type": "cpr", "addr": addr}));
    for (addr, text) in [
        (
            json!({"transport": "socket", "type": "unix", "path": "a", "mode": "x"}),
            "Parameter 'addr.mode' is unexpected",
        ),
        (
            json!({"transport": "socket", "type": "unix"}),
            "Parameter 'addr.path' is missing",
        ),
        (
            json!({"transport": "socket", "type": "unix", "path": 3}),
            "Invalid parameter type for 'addr.path', expected: string",
        ),
        (
            json!({"transport": "bus"}),
            "Parameter 'addr.transport' does not accept value 'bus'",
        ),
        (
            json!({"transport": "socket", "type": "ip"}),
            "Parameter 'addr.type' does not accept value 'ip'",
        ),
        (
            json!({"transport": "file", "filename": "a"}),
            "Parameter 'addr.offset' is missing",
        ),
        (
            json!({"transport": "exec", "args": [1]}),
            "Invalid parameter type for 'addr.args', expected: string",
        ),
        (
            json!("x"),
            "Invalid parameter type for 'addr', expected: object",
        ),
    ] {
        assert_eq!(unix(addr).unwrap_err().to_string(), text);
    }
    let extra = json!({"channel-type": "cpr", "more": 1,
        "addr": {"transport": "socket", "type": "unix", "path": "a"}});
    assert_eq!(
        channel(extra).unwrap_err().to_string(),
        "Parameter 'more' is unexpected"
    );
}

#[test]
fn uris_are_parsed_and_printed_back() {
    for uri in [
        "tcp:0:44444",
        "tcp::4444",
        "tcp:localhost:4444",
        "tcp:[::1]:4444",
        "unix:/run/vm.sock",
        "fd:7",
        "fd:main",
        "vsock:3:1234",
        "file:/tmp/state",
        "file:/tmp/state,offset=4096",
    ] {
        assert_eq!(parse_uri(uri).unwrap().to_string(), uri);
    }
    assert_eq!(
        parse_uri("exec:cat > x").unwrap(),
        MigrationAddress::Exec {
            args: vec!["/bin/sh".into(), "-c".into(), "cat > x".into()]
        }
    );
}

#[test]
fn the_offset_of_a_file_may_be_hexadecimal_or_have_a_suffix() {
    for (uri, expected) in [
        ("file:a,offset=0x1000", 4096),
        ("file:a,offset=4k", 4096),
        ("file:a,offset=1M", 1 << 20),
    ] {
        let MigrationAddress::File { filename, offset } = parse_uri(uri).unwrap() else {
            panic!()
        };
        assert_eq!((filename.as_str(), offset), ("a", expected));
    }
    for uri in [
        "file:a,offset=",
        "file:a,offset=x",
        "file:a,offset=-1",
        "file:,offset=1",
    ] {
        parse_uri(uri).unwrap_err();
    }
}

#[test]
fn an_unknown_protocol_is_told_in_the_words_of_qemu() {
    for uri in ["foo:bar", "foo", ""] {
        let text = parse_uri(uri).unwrap_err().to_string();
        assert_eq!(text, format!("unknown migration protocol: {uri}"));
    }
}

#[test]
fn an_incomplete_uri_is_refused() {
    for uri in [
        "tcp:",
        "tcp:host",
        "tcp:host:",
        "tcp:[::1]",
        "tcp:h:1,to=5",
        "unix:",
        "fd:",
        "file:",
    ] {
        assert!(
            matches!(parse_uri(uri), Err(AddressError::BadUri { .. })),
            "{uri}"
        );
    }
}

#[test]
fn bad_channel_lists_are_refused_in_the_words_of_qemu() {
    let both = main_and_cpr();
    let file = MigrationChannel {
        channel_type: ChannelType::Main,
        addr: parse_uri("file:a").unwrap(),
    };
    let port_zero = MigrationChannel {
        channel_type: ChannelType::Main,
        addr: parse_uri("tcp:0:0").unwrap(),
    };
    let with_cpr = |uri: &str| {
        let cpr = MigrationChannel {
            channel_type: ChannelType::Cpr,
            addr: parse_uri(uri).unwrap(),
        };
        [both[0].clone(), cpr]
    };
    for (channels, text) in [
        (&both[..1], "missing 'cpr' migration channel"),
        (&both[1..], "Channel list has no main entry"),
        (&[], "Channel list has no main entry"),
        (
            &[both[0].clone(), both[1].clone(), both[0].clone()],
            "Channel list has more than one main entry",
        ),
        (
            &[both[0].clone(), both[1].clone(), both[1].clone()],
            "Channel list has more than one cpr entry",
        ),
        (&with_cpr("file:a"), "bad cpr channel address; must be unix"),
        (
            &with_cpr("tcp:a:1"),
            "bad cpr channel address; must be unix",
        ),
        (&with_cpr("fd:3"), "bad cpr channel address; must be unix"),
        (
            &[file, both[1].clone()],
            "Migration requires streamable transport (eg unix)",
        ),
        (
            &[port_zero, both[1].clone()],
            "tcp port 0 cannot be used for the main channel of cpr-transfer; choose a port",
        ),
    ] {
        assert_eq!(outgoing(channels).unwrap_err().to_string(), text);
    }
}

#[test]
fn exactly_one_of_uri_and_channels_is_needed() {
    let channels = main_and_cpr();
    let text = "need either 'uri' or 'channels' argument";
    for (uri, channels) in [(Some("unix:a"), Some(&channels[..])), (None, None)] {
        let error = TransferChannels::from_arguments(uri, channels).unwrap_err();
        assert_eq!(error.to_string(), text);
        assert_eq!(main_address(uri, channels).unwrap_err().to_string(), text);
        assert_eq!(
            IncomingChannels::deferred_main(uri, channels)
                .unwrap_err()
                .to_string(),
            text
        );
    }
    assert_eq!(
        TransferChannels::from_arguments(Some("unix:a"), None).unwrap_err(),
        AddressError::NoCpr
    );
}

#[test]
fn incoming_takes_uri_dotted_keys_and_json() {
    let dotted = "cpr,addr.transport=socket,addr.type=unix,addr.path=cpr.sock";
    let json = r#"{"channel-type": "cpr", "addr":
        {"transport": "socket", "type": "unix", "path": "cpr.sock"}}"#;
    let expected = Incoming::Channel(main_and_cpr()[1].clone());
    assert_eq!(dotted.parse(), Ok(expected.clone()));
    assert_eq!(json.parse(), Ok(expected));
    assert_eq!(
        "tcp:0:44444".parse(),
        Ok(Incoming::Channel(main_and_cpr()[0].clone()))
    );
    assert_eq!("defer".parse(), Ok(Incoming::Defer));
}

#[test]
fn dotted_keys_may_hold_commas_numbers_and_lists() {
    let file: Incoming = "main,addr.transport=file,addr.filename=a,,b,addr.offset=16"
        .parse()
        .unwrap();
    let Incoming::Channel(MigrationChannel { addr, .. }) = file else {
        panic!()
    };
    assert_eq!(
        addr,
        MigrationAddress::File {
            filename: "a,b".into(),
            offset: 16
        }
    );

    let exec: Incoming = "channel-type=main,addr.transport=exec,addr.args.0=cat,addr.args.1=x"
        .parse()
        .unwrap();
    let Incoming::Channel(MigrationChannel { addr, .. }) = exec else {
        panic!()
    };
    assert_eq!(
        addr,
        MigrationAddress::Exec {
            args: vec!["cat".into(), "x".into()]
        }
    );
}

#[test]
fn malformed_dotted_keys_and_json_are_refused() {
    for text in [
        "",
        "cpr,addr",
        "cpr,addr.=x",
        "cpr,.=x",
        "cpr,addr=x,addr.y=z",
        "{",
        "{}",
        "bogus",
    ] {
        text.parse::<Incoming>().unwrap_err();
    }
}

#[test]
fn incoming_channels_keep_the_last_of_each_type() {
    let mut channels = IncomingChannels::default();
    for text in [
        "defer",
        "unix:a",
        "unix:b",
        "cpr,addr.transport=socket,addr.type=fd,addr.str=3",
    ] {
        channels.add(text.parse().unwrap()).unwrap();
    }
    channels.validate().unwrap();
    assert!(!channels.defer);
    assert_eq!(channels.main.unwrap().to_string(), "unix:b");
    assert_eq!(channels.cpr.unwrap().to_string(), "fd:3");
}

#[test]
fn incoming_cpr_channels_must_be_local_and_have_a_main_channel() {
    let cpr = |rest: &str| {
        format!("cpr,addr.transport={rest}")
            .parse::<Incoming>()
            .unwrap()
    };
    let mut channels = IncomingChannels::default();
    for (rest, error) in [
        (
            "file,addr.filename=a,addr.offset=0",
            AddressError::CprAddress,
        ),
        (
            "socket,addr.type=inet,addr.host=a,addr.port=1",
            AddressError::CprSocketType,
        ),
    ] {
        assert_eq!(channels.add(cpr(rest)), Err(error));
    }
    channels
        .add(cpr("socket,addr.type=unix,addr.path=c"))
        .unwrap();
    assert_eq!(channels.validate(), Err(AddressError::NoMain));
    channels.add(Incoming::Defer).unwrap();
    channels.validate().unwrap();
    channels.add("file:a".parse().unwrap()).unwrap();
    assert_eq!(channels.validate(), Err(AddressError::NotStreamable));
}

#[test]
fn migrate_incoming_takes_one_main_channel() {
    let channels = main_and_cpr();
    IncomingChannels::deferred_main(None, Some(&channels[..1])).unwrap();
    IncomingChannels::deferred_main(Some("unix:a"), None).unwrap();
    for list in [&channels[..], &channels[1..], &[]] {
        assert_eq!(
            IncomingChannels::deferred_main(None, Some(list))
                .unwrap_err()
                .to_string(),
            "Channel list must have only one entry, for type 'main'"
        );
    }
}
