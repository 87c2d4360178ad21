//! Commands about character devices: QEMU's `qapi/char.json`.

use super::Spec;
use crate::monitor::qapi::Type::{self, Bool, Int, List, Str, Uint32};
use crate::monitor::qapi::{Enum, Member, Object};

pub(super) static COMMANDS: &[Spec] = &[
    Spec::new("query-chardev", "The character devices").returns(List(&Type::Object(&INFO))),
    Spec::new("query-chardev-backends", "The kinds of character devices")
        .returns(List(&Type::Object(&BACKEND_INFO))),
    Spec::new("chardev-add", "Makes a character device")
        .takes(&[
            Member::required("id", Str, "its id"),
            Member::required("backend", Type::Object(&BACKEND), "what it is"),
        ])
        .returns(Type::Object(&RETURN)),
    Spec::new(
        "chardev-remove",
        "Removes a character device that nobody uses",
    )
    .takes(&[Member::required("id", Str, "its id")]),
    Spec::new(
        "ringbuf-read",
        "Takes the oldest bytes out of a ring buffer",
    )
    .takes(&[
        Member::required("device", Str, "the ring buffer"),
        Member::required("size", Int, "how many bytes at most"),
        Member::optional("format", Type::Enum(&FORMAT), "`utf8` if left out"),
    ])
    .returns(Str),
    Spec::new("ringbuf-write", "Adds bytes to a ring buffer").takes(&[
        Member::required("device", Str, "the ring buffer"),
        Member::required("data", Str, "the bytes"),
        Member::optional("format", Type::Enum(&FORMAT), "`utf8` if left out"),
    ]),
];

static INFO: Object = Object::new(
    "ChardevInfo",
    &[
        Member::required("label", Str, "its id"),
        Member::required("filename", Str, "what it is and where"),
        Member::required("frontend-open", Bool, "whether somebody uses it"),
    ],
);

static BACKEND_INFO: Object =
    Object::new("ChardevBackendInfo", &[Member::required("name", Str, "")]);

static RETURN: Object = Object::new(
    "ChardevReturn",
    &[Member::optional(
        "pty",
        Str,
        "the path of a new pseudo-terminal",
    )],
);

static FORMAT: Enum = Enum {
    name: "DataFormat",
    values: &["utf8", "base64"],
};

static BACKEND: Object = Object::union(
    "ChardevBackend",
    &[Member::required("type", Type::Enum(&KIND), "")],
    "type",
    &[
        ("file", &FILE_WRAPPER),
        ("pipe", &PIPE_WRAPPER),
        ("socket", &SOCKET_WRAPPER),
        ("pty", &PTY_WRAPPER),
        ("null", &COMMON_WRAPPER),
        ("stdio", &STDIO_WRAPPER),
        ("ringbuf", &RINGBUF_WRAPPER),
    ],
);

static KIND: Enum = Enum {
    name: "ChardevBackendKind",
    values: &crate::cli::chardev::KINDS,
};

/// A variant whose members are in `data`.
macro_rules! wrapper {
    ($name:literal, $of:expr) => {
        Object::new($name, &[Member::required("data", Type::Object(&$of), "")])
    };
}

static FILE_WRAPPER: Object = wrapper!("ChardevFileWrapper", FILE);
static FILE: Object = Object::new(
    "ChardevFile",
    &[
        Member::required("out", Str, "the file for output"),
        Member::optional("in", Str, "the file for input"),
        Member::optional("append", Bool, "whether what the file holds stays"),
    ],
);

static PIPE_WRAPPER: Object = wrapper!("ChardevHostdevWrapper", PIPE);
static PIPE: Object = Object::new(
    "ChardevHostdev",
    &[Member::required("device", Str, "the name of the pipes")],
);

static PTY_WRAPPER: Object = wrapper!("ChardevPtyWrapper", PTY);
static PTY: Object = Object::new(
    "ChardevPty",
    &[Member::optional("path", Str, "a symbolic link to it")],
);

static COMMON_WRAPPER: Object = wrapper!("ChardevCommonWrapper", COMMON);
static COMMON: Object = Object::new("ChardevCommon", &[]);

static STDIO_WRAPPER: Object = wrapper!("ChardevStdioWrapper", STDIO);
static STDIO: Object = Object::new(
    "ChardevStdio",
    &[Member::optional(
        "signal",
        Bool,
        "whether keys still send signals; true if left out",
    )],
);

static RINGBUF_WRAPPER: Object = wrapper!("ChardevRingbufWrapper", RINGBUF);
static RINGBUF: Object = Object::new(
    "ChardevRingbuf",
    &[Member::optional(
        "size",
        Int,
        "bytes, a power of two; 65536 if left out",
    )],
);

static SOCKET_WRAPPER: Object = wrapper!("ChardevSocketWrapper", SOCKET);
static SOCKET: Object = Object::new(
    "ChardevSocket",
    &[
        Member::required("addr", Type::Object(&ADDRESS), ""),
        Member::optional("server", Bool, "whether it listens; true if left out"),
        Member::optional("wait", Bool, "refused if true"),
        Member::optional("nodelay", Bool, "whether small pieces are sent at once"),
        Member::optional("reconnect", Uint32, "seconds; 0 is never").with(&["deprecated"]),
        Member::optional("reconnect-ms", Uint32, "milliseconds; 0 is never"),
    ],
);

static ADDRESS: Object = Object::union(
    "SocketAddressLegacy",
    &[Member::required("type", Type::Enum(&ADDRESS_KIND), "")],
    "type",
    &[("inet", &INET_WRAPPER), ("unix", &UNIX_WRAPPER)],
);

static ADDRESS_KIND: Enum = Enum {
    name: "SocketAddressLegacyType",
    values: &["inet", "unix"],
};

static INET_WRAPPER: Object = wrapper!("InetSocketAddressWrapper", super::migration::INET_ADDRESS);
static UNIX_WRAPPER: Object = wrapper!("UnixSocketAddressWrapper", UNIX);
static UNIX: Object = Object::new(
    "ChardevUnixSocketAddress",
    &[
        Member::required("path", Str, ""),
        Member::optional(
            "abstract",
            Bool,
            "whether it is a name of Linux's abstract namespace",
        ),
        Member::optional(
            "tight",
            Bool,
            "whether an abstract address ends with the name; true if left out",
        ),
    ],
);
