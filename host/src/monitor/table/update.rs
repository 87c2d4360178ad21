//! What `baton update` asks of a process, beside migrations.

use super::Spec;
use crate::monitor::qapi::Type::{self, Any, Bool, List, Str, Uint32};
use crate::monitor::qapi::{Enum, Member, Object};

pub(super) static COMMANDS: &[Spec] = &[
    Spec::new(
        "query-process",
        "How this process was started; Baton's own command",
    )
    .returns(Type::Object(&PROCESS)),
    Spec::new(
        "query-vmstate",
        "What the machine saves and loads, as `-dump-vmstate` writes it; Baton's own command",
    )
    .returns(Any),
    Spec::new(
        "start-successor",
        "Starts a process beside this one, in a session of its own, with this one's environment, \
         folder and standard streams. It connects to `report`, and ends if that hangs up before a \
         guest comes; Baton's own command",
    )
    .takes(&[
        Member::required("program", Str, "an absolute path"),
        Member::required("arguments", List(&Str), "`-incoming` among them"),
        Member::required("report", Str, "the path of a UNIX socket"),
        Member::optional("log", Str, "the file that standard error goes to"),
    ])
    .returns(Type::Object(&SUCCESSOR)),
];

static PROCESS: Object = Object::new(
    "BatonProcess",
    &[
        Member::required("pid", Uint32, ""),
        Member::required("program", Str, "the path of the file it executes"),
        Member::required(
            "replaced",
            Bool,
            "whether that leads to another file by now, or to none",
        ),
        Member::optional("build-id", Str, "the linker's id of the program"),
        Member::required("version", Str, ""),
        Member::required("directory", Str, "where relative paths begin"),
        Member::required("arguments", List(&Str), "as given, without the program"),
        Member::required(
            "blockdevs",
            List(&Any),
            "block nodes that were added since, as `-blockdev` takes them",
        ),
        Member::required(
            "objects",
            List(&Any),
            "objects that were added since, as `-object` takes them",
        ),
        Member::required(
            "chardevs",
            List(&Any),
            "character devices that were added since, as `-chardev` takes them",
        ),
        Member::required(
            "chardevs-gone",
            List(&Str),
            "ids of character devices that were removed since",
        ),
        Member::optional("plugin-path", Str, "`BATON_PLUGIN_PATH`"),
        Member::required(
            "standard-streams",
            Type::Enum(&STREAMS),
            "how the guest and monitors use standard input and output",
        ),
    ],
);

static STREAMS: Enum = Enum {
    name: "BatonStandardStreams",
    values: &["unused", "used", "terminal"],
};

static SUCCESSOR: Object = Object::new("BatonSuccessor", &[Member::required("pid", Uint32, "")]);
