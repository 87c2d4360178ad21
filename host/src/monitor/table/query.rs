//! Queries about the VM: QEMU's `qapi/machine.json`, `run-state.json` and `misc.json`.

use super::Spec;
use crate::monitor::qapi::Type::{self, Any, Bool, List, Str, Uint64};
use crate::monitor::qapi::{Enum, Member, Object};

pub(super) static COMMANDS: &[Spec] = &[
    Spec::new("query-status", "What the VM as a whole is doing")
        .returns(Type::Object(&STATUS_INFO)),
    Spec::new("query-name", "The guest's name").returns(Type::Object(&NAME_INFO)),
    Spec::new(
        "query-kvm",
        "Whether KVM runs the guest, which is always so",
    )
    .returns(Type::Object(&KVM_INFO)),
    Spec::new("query-devices", "The devices; Baton's own command")
        .returns(List(&Type::Object(&DEVICE))),
    Spec::new(
        "query-plugins",
        "The plugins that are loaded; Baton's own command",
    )
    .returns(List(&Type::Object(&PLUGIN))),
    Spec::new(
        "query-address-spaces",
        "What decodes which addresses and ports; Baton's own command",
    )
    .returns(List(&Type::Object(&ADDRESS_SPACE))),
];

static ADDRESS_SPACE: Object = Object::new(
    "BatonAddressSpace",
    &[
        Member::required("name", Str, "`memory` or `I/O`"),
        Member::required("last", Uint64, "its last address"),
        Member::required("ranges", List(&Type::Object(&RANGE)), "in ascending order"),
    ],
);

static RANGE: Object = Object::new(
    "BatonRange",
    &[
        Member::required("base", Uint64, "its first address"),
        Member::required("last", Uint64, "its last one"),
        Member::required("kind", Type::Enum(&RANGE_KIND), ""),
        Member::required("name", Str, "the device or the memory backend"),
    ],
);

static RANGE_KIND: Enum = Enum {
    name: "BatonRangeKind",
    values: &["ram", "i/o"],
};

static STATUS_INFO: Object = Object::new(
    "StatusInfo",
    &[
        Member::required("running", Bool, "whether the guest runs"),
        Member::required("status", Type::Enum(&RUN_STATE), ""),
    ],
);

static RUN_STATE: Enum = Enum {
    name: "RunState",
    values: &[
        "inmigrate",
        "internal-error",
        "paused",
        "postmigrate",
        "prelaunch",
        "finish-migrate",
        "running",
        "shutdown",
        "suspended",
    ],
};

static NAME_INFO: Object = Object::new(
    "NameInfo",
    &[Member::optional("name", Str, "what `-name` said")],
);

static KVM_INFO: Object = Object::new(
    "KvmInfo",
    &[
        Member::required("enabled", Bool, ""),
        Member::required("present", Bool, ""),
    ],
);

static DEVICE: Object = Object::new(
    "BatonDevice",
    &[
        Member::required("id", Str, ""),
        Member::required("driver", Str, "the device's type, as `-device` names it"),
        Member::required("bus", Str, ""),
        Member::required("address", Str, "where on the bus it is"),
        Member::required("failed", Bool, "whether it has stopped working"),
        Member::optional("reason", Str, "why it has failed"),
        Member::required("hotplugged", Bool, "whether it came by `device_add`"),
        Member::required(
            "arguments",
            Any,
            "an object: the arguments of the `device_add`, or of the JSON `-device`, that makes the \
             same device in the same place",
        ),
    ],
);

static PLUGIN: Object = Object::new(
    "BatonPlugin",
    &[
        Member::required("file", Str, ""),
        Member::optional(
            "build-id",
            Str,
            "what the linker wrote into it, in hexadecimal (`.note.gnu.build-id`)",
        ),
        Member::required("name", Str, ""),
        Member::required("version", Str, ""),
        Member::required("abi", Str, "the version of the ABI it was built for"),
        Member::required(
            "api-version",
            Str,
            "the version of `baton-plugin-api` it was built with",
        ),
        Member::required("devices", List(&Str), "the types of devices it has"),
    ],
);
