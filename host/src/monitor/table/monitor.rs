//! Commands about the monitor itself: QEMU's `qapi/control.json` and `introspect.json`.

use super::Spec;
use crate::monitor::qapi::Type::{self, Any, Int, List, Str};
use crate::monitor::qapi::{Enum, Member, Object};

pub(super) static COMMANDS: &[Spec] = &[
    Spec::new(
        "qmp_capabilities",
        "Ends negotiation; before it nothing else is understood",
    )
    .takes(&[Member::optional(
        "enable",
        List(&Type::Enum(&CAPABILITY)),
        "capabilities to switch on",
    )]),
    Spec::new(
        "query-version",
        "The version of QEMU whose commands these are, and Baton's own",
    )
    .returns(Type::Object(&VERSION_INFO)),
    Spec::new("query-commands", "The names of all commands")
        .returns(List(&Type::Object(&COMMAND_INFO))),
    Spec::new(
        "query-qmp-schema",
        "All commands and events with the types of what belongs to them",
    )
    .returns(List(&Type::Object(&SCHEMA_INFO))),
    Spec::new(
        "human-monitor-command",
        "Carries out a line of the monitor for people ([hmp.md](hmp.md)), and returns what it prints",
    )
    .takes(&[
        Member::required("command-line", Str, ""),
        Member::optional("cpu-index", Int, "the CPU that the line is about"),
    ])
    .returns(Str),
];

static CAPABILITY: Enum = Enum {
    name: "QMPCapability",
    values: &["oob"],
};

static VERSION_INFO: Object = Object::new(
    "VersionInfo",
    &[
        Member::required("qemu", Type::Object(&VERSION_TRIPLE), ""),
        Member::required("package", Str, "Baton and its version"),
    ],
);

static VERSION_TRIPLE: Object = Object::new(
    "VersionTriple",
    &[
        Member::required("major", Int, ""),
        Member::required("minor", Int, ""),
        Member::required("micro", Int, ""),
    ],
);

static COMMAND_INFO: Object = Object::new("CommandInfo", &[Member::required("name", Str, "")]);

static SCHEMA_INFO: Object = Object::union(
    "SchemaInfo",
    &[
        Member::required(
            "name",
            Str,
            "of commands, events and builtin types; of other types a number",
        ),
        Member::required("meta-type", Type::Enum(&META_TYPE), ""),
        Member::optional(
            "features",
            List(&Str),
            "such as `deprecated` and `unstable`",
        ),
    ],
    "meta-type",
    &[
        ("builtin", &SCHEMA_BUILTIN),
        ("enum", &SCHEMA_ENUM),
        ("array", &SCHEMA_ARRAY),
        ("object", &SCHEMA_OBJECT),
        ("alternate", &SCHEMA_ALTERNATE),
        ("command", &SCHEMA_COMMAND),
        ("event", &SCHEMA_EVENT),
    ],
);

static META_TYPE: Enum = Enum {
    name: "SchemaMetaType",
    values: &[
        "builtin",
        "enum",
        "array",
        "object",
        "alternate",
        "command",
        "event",
    ],
};

static SCHEMA_BUILTIN: Object = Object::new(
    "SchemaInfoBuiltin",
    &[Member::required("json-type", Type::Enum(&JSON_TYPE), "")],
);

static JSON_TYPE: Enum = Enum {
    name: "JSONType",
    values: &[
        "string", "number", "int", "boolean", "null", "object", "array", "value",
    ],
};

static SCHEMA_ENUM: Object = Object::new(
    "SchemaInfoEnum",
    &[
        Member::required("members", List(&Type::Object(&SCHEMA_ENUM_MEMBER)), ""),
        Member::required("values", List(&Str), "the members' names").with(&["deprecated"]),
    ],
);

static SCHEMA_ENUM_MEMBER: Object =
    Object::new("SchemaInfoEnumMember", &[Member::required("name", Str, "")]);

static SCHEMA_ARRAY: Object = Object::new(
    "SchemaInfoArray",
    &[Member::required("element-type", Str, "")],
);

static SCHEMA_OBJECT: Object = Object::new(
    "SchemaInfoObject",
    &[
        Member::required("members", List(&Type::Object(&SCHEMA_OBJECT_MEMBER)), ""),
        Member::optional(
            "tag",
            Str,
            "the member that says which of `variants` applies",
        ),
        Member::optional("variants", List(&Type::Object(&SCHEMA_OBJECT_VARIANT)), ""),
    ],
);

static SCHEMA_OBJECT_MEMBER: Object = Object::new(
    "SchemaInfoObjectMember",
    &[
        Member::required("name", Str, ""),
        Member::required("type", Str, ""),
        Member::optional("default", Any, "`null`: the member is optional"),
        Member::optional("features", List(&Str), ""),
    ],
);

static SCHEMA_OBJECT_VARIANT: Object = Object::new(
    "SchemaInfoObjectVariant",
    &[
        Member::required("case", Str, ""),
        Member::required("type", Str, ""),
    ],
);

static SCHEMA_ALTERNATE: Object = Object::new(
    "SchemaInfoAlternate",
    &[Member::required(
        "members",
        List(&Type::Object(&SCHEMA_ALTERNATE_MEMBER)),
        "",
    )],
);

static SCHEMA_ALTERNATE_MEMBER: Object = Object::new(
    "SchemaInfoAlternateMember",
    &[Member::required("type", Str, "")],
);

static SCHEMA_COMMAND: Object = Object::new(
    "SchemaInfoCommand",
    &[
        Member::required("arg-type", Str, ""),
        Member::required("ret-type", Str, ""),
        Member::optional("allow-oob", Type::Bool, "it may be said with `exec-oob`"),
    ],
);

static SCHEMA_EVENT: Object =
    Object::new("SchemaInfoEvent", &[Member::required("arg-type", Str, "")]);
