//! Queries about objects and their types: QEMU's `qapi/qom.json` and `qdev.json`.

use super::Spec;
use crate::monitor::qapi::Type::{self, Any, Bool, List, Str};
use crate::monitor::qapi::{Member, Object};

pub(super) static COMMANDS: &[Spec] = &[
    Spec::new(
        "object-add",
        "Adds an object that a device can name; the arguments are the properties of `-object`",
    )
    .takes(&[
        Member::required("qom-type", Str, "`rng-builtin` or `rng-random`"),
        Member::required("id", Str, "its id from then on"),
    ])
    .takes_more(),
    Spec::new(
        "object-del",
        "Removes an object that was added and that no device uses",
    )
    .takes(&[Member::required("id", Str, "")]),
    Spec::new("qom-list", "The properties and children of an object")
        .takes(&[Member::required(
            "path",
            Str,
            "of the object, such as `/machine/peripheral`; a part of it will do if only one fits",
        )])
        .returns(PROPERTIES),
    Spec::new("qom-get", "The value of a property")
        .takes(&[
            Member::required("path", Str, "of the object"),
            Member::required("property", Str, ""),
        ])
        .returns(Any),
    Spec::new(
        "qom-list-types",
        "The types of objects: devices, memory backends, the machine",
    )
    .takes(&[
        Member::optional("implements", Str, "only those that are of this type"),
        Member::optional(
            "abstract",
            Bool,
            "also those that no object can be of alone",
        ),
    ])
    .returns(List(&Type::Object(&TYPE))),
    Spec::new("qom-list-properties", "The properties of a type")
        .takes(&[Member::required("typename", Str, "")])
        .returns(PROPERTIES),
    Spec::new(
        "device-list-properties",
        "The properties of a type of devices, as `-device` takes them",
    )
    .takes(&[Member::required("typename", Str, "")])
    .returns(PROPERTIES),
];

const PROPERTIES: Type = List(&Type::Object(&PROPERTY));

static PROPERTY: Object = Object::new(
    "ObjectPropertyInfo",
    &[
        Member::required("name", Str, ""),
        Member::required("type", Str, "`child<T>` for an object of type T"),
        Member::optional("description", Str, ""),
        Member::optional("default-value", Any, ""),
    ],
);

static TYPE: Object = Object::new(
    "ObjectTypeInfo",
    &[
        Member::required("name", Str, ""),
        Member::optional("abstract", Bool, ""),
        Member::optional("parent", Str, "the type it is one of"),
    ],
);
