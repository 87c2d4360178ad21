//! What a monitor left is checked before it is gone on with.

use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;

use serde_json::{Value, json};

use super::events::BEHIND;
use super::*;

fn path(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("baton-left-{}-{name}", std::process::id()))
}

fn taken(description: Value, fds: Vec<OwnedFd>) -> Result<Kept, String> {
    let description = serde_json::from_value(description).map_err(|e| e.to_string())?;
    Kept::from_parts(description, fds).map_err(|e| e.to_string())
}

fn refused(description: Value, fds: Vec<OwnedFd>, text: &str) {
    let shown = description.to_string();
    let error = taken(description, fds).unwrap_err();
    assert!(error.contains(text), "{error:?} for {shown:.200}");
}

fn pair() -> OwnedFd {
    UnixStream::pair().unwrap().0.into()
}

fn client(stream: &Value) -> Value {
    json!({ "clients": [{ "stream": stream, "negotiated": true }] })
}

#[test]
fn descriptors_must_be_there_and_each_is_taken_once() {
    let unix = |fd: u64| client(&json!({ "unix": { "fd": fd } }));
    refused(unix(0), vec![], "it names descriptor 0 of 0");
    refused(unix(u64::MAX), vec![pair()], "of 1");
    refused(json!({}), vec![pair()], "descriptor 0 belongs to nothing");
    let twice = client(&json!({ "standard": { "input": 0, "output": 0 } }));
    refused(twice, vec![pair()], "it names descriptor 0 twice");
    // One without names, as a pair's, is a connected socket as well.
    taken(unix(0), vec![pair()]).unwrap();
    taken(json!({}), vec![]).unwrap();
}

#[test]
fn descriptors_must_be_what_they_are_said_to_be() {
    let name = path("kind");
    let unix_listener = || {
        let _ = std::fs::remove_file(&name);
        UnixListener::bind(&name).unwrap().into()
    };
    let tcp_listener = || TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp_client = || {
        let listener = tcp_listener();
        TcpStream::connect(listener.local_addr().unwrap())
            .unwrap()
            .into()
    };
    let file = || std::fs::File::open("/dev/null").unwrap().into();
    let unix = || client(&json!({ "unix": { "fd": 0 } }));
    let tcp = || client(&json!({ "tcp": { "fd": 0 } }));
    let bytes = name.as_os_str().as_encoded_bytes();
    let on_unix = || json!({ "listeners": [{ "unix": { "fd": 0, "path": bytes } }] });
    let on_tcp = || json!({ "listeners": [{ "tcp": { "fd": 0, "host": "", "port": 1 } }] });

    refused(unix(), vec![file()], "descriptor 0 is no socket");
    refused(
        unix(),
        vec![unix_listener()],
        "is a listening UNIX socket, not a connected",
    );
    refused(
        unix(),
        vec![tcp_client()],
        "is a connected TCP socket, not a connected UNIX",
    );
    let datagram = UnixDatagram::unbound().unwrap().into();
    refused(unix(), vec![datagram], "not a connected UNIX socket");
    refused(
        tcp(),
        vec![pair()],
        "is a connected UNIX socket, not a connected TCP socket",
    );
    refused(
        tcp(),
        vec![tcp_listener().into()],
        "is a listening TCP socket, not",
    );
    refused(on_unix(), vec![pair()], "not a listening UNIX socket");
    refused(
        on_unix(),
        vec![tcp_listener().into()],
        "not a listening UNIX socket",
    );
    refused(
        on_tcp(),
        vec![unix_listener()],
        "not a listening TCP socket",
    );
    for (description, fd) in [
        (unix(), pair()),
        (tcp(), tcp_client()),
        (on_unix(), unix_listener()),
        (on_tcp(), tcp_listener().into()),
    ] {
        taken(description, vec![fd]).unwrap();
    }
    std::fs::remove_file(&name).unwrap();
}

#[test]
fn no_file_can_be_removed_but_the_listeners_own_socket() {
    use std::os::unix::fs::MetadataExt;
    let (precious, socket) = (path("precious"), path("socket"));
    std::fs::write(&precious, "precious").unwrap();
    let listener = UnixListener::bind(&socket).unwrap();
    let own = |at: &PathBuf, listens: &PathBuf| {
        let meta = at.symlink_metadata().unwrap();
        let bytes = listens.as_os_str().as_encoded_bytes();
        let owned = [meta.dev(), meta.ino()];
        let fd = listener.try_clone().unwrap().into();
        let unix = json!({ "unix": { "fd": 0, "path": bytes, "owned": owned } });
        taken(json!({ "listeners": [unix] }), vec![fd])
    };
    let error = own(&precious, &precious).unwrap_err();
    assert!(error.contains("does not listen on"), "{error}");
    drop(own(&precious, &socket).unwrap());
    assert!(socket.exists() && precious.exists());
    // Its socket has been replaced by a file.
    let meta = own(&socket, &socket).unwrap();
    std::fs::remove_file(&socket).unwrap();
    std::fs::hard_link(&precious, &socket).unwrap();
    drop(meta);
    drop(own(&precious, &socket).unwrap());
    assert!(socket.exists());
    for file in [precious, socket] {
        std::fs::remove_file(file).unwrap();
    }
}

#[test]
fn what_is_more_than_a_monitor_keeps_is_refused() {
    let with = |member: &str, value: Value| {
        let mut description = client(&json!({ "unix": { "fd": 0 } }));
        description["clients"][0][member] = value;
        description
    };
    let unread = vec![b' '; 2 * framing::MESSAGE_MAX];
    refused(with("unread", json!(unread)), vec![pair()], "2097152 bytes");
    let lines = vec![json!({ "text": "x", "event": true }); 2 * BEHIND];
    refused(with("unsent", json!(lines)), vec![pair()], "2048 lines");
    let many = json!({ "events": vec!["x"; 2 * BEHIND] });
    refused(many, vec![], "2048 events");
    let large = json!({ "events": ["x".repeat(2 * events::BEHIND_BYTES)] });
    refused(large, vec![], "more than are ever held");
    let twice = json!({ "listeners": [{ "stdio": {} }, { "stdio": {} }] });
    refused(twice, vec![], "it listens on stdio twice");
    // These are odd, and do no harm.
    let odd = with(
        "unsent",
        json!([{ "text": "" }, { "text": "x", "event": true }]),
    );
    let kept = taken(odd, vec![pair()]).unwrap();
    serve(kept);
    let mut lost = with("skipping", json!(true));
    lost["lost"] = json!(u64::MAX);
    serve(taken(lost, vec![pair()]).unwrap());
}

fn serve(kept: Kept) {
    let fake = tests::Fake::new();
    let events = fake.events.clone();
    events.emit("STOP", None);
    let monitor = Monitor::attach(kept, &[], fake, events).unwrap();
    monitor.shutdown(tests::DEADLINE);
}

#[test]
fn descriptions_of_other_versions_are_read_or_refused() {
    let later = json!({
        "clients": [{ "stream": { "unix": { "fd": 0, "new": 1 } }, "negotiated": true, "new": 2 }],
        "new": { "a": 1 },
    });
    taken(later, vec![pair()]).unwrap();
    refused(
        client(&json!({ "vsock": { "fd": 0 } })),
        vec![pair()],
        "vsock",
    );
    refused(
        json!({ "clients": [{ "negotiated": true }] }),
        vec![],
        "stream",
    );
    refused(json!({ "clients": 1 }), vec![], "expected a sequence");
}

#[test]
fn no_damage_to_a_description_is_more_than_an_error() {
    let name = path("damage");
    let listener = UnixListener::bind(&name).unwrap();
    let description = json!({
        "listeners": [
            { "unix": { "fd": 0, "path": name.as_os_str().as_encoded_bytes() } }, { "stdio": {} },
        ],
        "clients": [{
            "stream": { "unix": { "fd": 1 } }, "negotiated": true, "oob": true,
            "unread": [b'{'], "unsent": [{ "text": "x", "event": true }],
        }],
        "events": ["a"], "lost": 1,
    });
    let description: KeptDescription = serde_json::from_value(description).unwrap();
    let bytes = rmp_serde::to_vec_named(&description).unwrap();
    let peer = pair();
    let check = |bytes: &[u8]| {
        if let Ok(description) = rmp_serde::from_slice::<KeptDescription>(bytes) {
            let fds = vec![
                listener.try_clone().unwrap().into(),
                peer.try_clone().unwrap(),
            ];
            let _ = Kept::from_parts(description, fds);
        }
    };
    for at in 0..bytes.len() {
        check(&bytes[..at]);
        for value in 0..=u8::MAX {
            let mut damaged = bytes.clone();
            damaged[at] = value;
            check(&damaged);
        }
    }
    let fds = vec![listener.into(), peer];
    let again = Kept::from_parts(description.clone(), fds).unwrap();
    assert_eq!(again.into_parts().0, description);
    std::fs::remove_file(&name).unwrap();
}
