//! Queries about the machine: QEMU's `qapi/machine.json`, `misc.json` and `pci.json`.

use super::Spec;
use crate::monitor::qapi::Type::{self, Any, Bool, Int, List, Size, Str, Uint16};
use crate::monitor::qapi::{Enum, Member, Object};

pub(super) static COMMANDS: &[Spec] = &[
    Spec::new("query-target", "The architecture of the guest").returns(Type::Object(&TARGET_INFO)),
    Spec::new("query-machines", "The types of machines")
        .returns(List(&Type::Object(&MACHINE_INFO))),
    Spec::new("query-current-machine", "What the machine can do")
        .returns(Type::Object(&CURRENT_MACHINE)),
    Spec::new(
        "query-uuid",
        "The machine's UUID: all zeros, since there is no way to give it one",
    )
    .returns(Type::Object(&UUID_INFO)),
    Spec::new(
        "query-cpus-fast",
        "The virtual CPUs, without asking them anything",
    )
    .returns(List(&Type::Object(&CPU_INFO))),
    Spec::new("query-memory-size-summary", "How much memory the guest has")
        .returns(Type::Object(&MEMORY_SIZE)),
    Spec::new(
        "query-memory-devices",
        "Memory that was plugged in: none, since none can be",
    )
    .returns(List(&Type::Object(&MEMORY_DEVICE))),
    Spec::new("query-memdev", "What the guest's memory comes from")
        .returns(List(&Type::Object(&MEMDEV))),
    Spec::new(
        "query-iothreads",
        "Threads that devices share: none, since each has its own",
    )
    .returns(List(&Type::Object(&IOTHREAD))),
    Spec::new(
        "query-command-line-options",
        "The options of the command line",
    )
    .takes(&[Member::optional("option", Str, "the one; without it all")])
    .returns(List(&Type::Object(&OPTION))),
];

static TARGET_INFO: Object = Object::new(
    "TargetInfo",
    &[Member::required("arch", Type::Enum(&TARGET), "")],
);

static TARGET: Enum = Enum {
    name: "SysEmuTarget",
    values: &["x86_64"],
};

static MACHINE_INFO: Object = Object::new(
    "MachineInfo",
    &[
        Member::required("name", Str, ""),
        Member::optional("alias", Str, "another name of it"),
        Member::optional("is-default", Bool, ""),
        Member::required("cpu-max", Int, "the most virtual CPUs"),
        Member::required("hotpluggable-cpus", Bool, ""),
        Member::required("numa-mem-supported", Bool, ""),
        Member::required("deprecated", Bool, ""),
        Member::optional(
            "default-ram-id",
            Str,
            "the id of memory that no object describes",
        ),
        Member::required("acpi", Bool, ""),
    ],
);

static CURRENT_MACHINE: Object = Object::new(
    "CurrentMachineParams",
    &[Member::required(
        "wakeup-suspend-support",
        Bool,
        "whether the guest can be suspended and woken",
    )],
);

static UUID_INFO: Object = Object::new("UuidInfo", &[Member::required("UUID", Str, "")]);

static CPU_INFO: Object = Object::new(
    "CpuInfoFast",
    &[
        Member::required("cpu-index", Int, ""),
        Member::required("qom-path", Str, ""),
        Member::required("thread-id", Int, "the host's thread"),
        Member::required("props", Type::Object(&CPU_PROPERTIES), ""),
        Member::required("target", Type::Enum(&TARGET), ""),
    ],
);

static CPU_PROPERTIES: Object = Object::new(
    "CpuInstanceProperties",
    &[
        Member::required("socket-id", Int, ""),
        Member::required("core-id", Int, ""),
        Member::required("thread-id", Int, ""),
    ],
);

static MEMORY_SIZE: Object = Object::new(
    "MemoryInfo",
    &[
        Member::required("base-memory", Size, "bytes"),
        Member::required("plugged-memory", Size, "bytes: none"),
    ],
);

static MEMORY_DEVICE: Object = Object::new(
    "MemoryDeviceInfo",
    &[
        Member::required("type", Str, ""),
        Member::required("data", Any, ""),
    ],
);

static MEMDEV: Object = Object::new(
    "Memdev",
    &[
        Member::required("id", Str, ""),
        Member::required("size", Size, "bytes"),
        Member::required(
            "merge",
            Bool,
            "whether equal pages are merged: never asked for",
        ),
        Member::required("dump", Bool, "whether a core dump of this process has it"),
        Member::required("prealloc", Bool, "whether all of it is allocated at start"),
        Member::required("share", Bool, "whether another process can take it over"),
        Member::required("reserve", Bool, "whether swap space is reserved for it"),
        Member::required(
            "host-nodes",
            List(&Uint16),
            "NUMA nodes it is bound to: none",
        ),
        Member::required("policy", Type::Enum(&POLICY), ""),
    ],
);

static POLICY: Enum = Enum {
    name: "HostMemPolicy",
    values: &["default"],
};

static IOTHREAD: Object = Object::new(
    "IOThreadInfo",
    &[
        Member::required("id", Str, ""),
        Member::required("thread-id", Int, ""),
    ],
);

static OPTION: Object = Object::new(
    "CommandLineOptionInfo",
    &[
        Member::required("option", Str, ""),
        Member::required(
            "parameters",
            List(&Type::Object(&PARAMETER)),
            "those that are always the same",
        ),
    ],
);

static PARAMETER: Object = Object::new(
    "CommandLineParameterInfo",
    &[
        Member::required("name", Str, ""),
        Member::required("type", Type::Enum(&PARAMETER_TYPE), ""),
        Member::optional("help", Str, ""),
    ],
);

static PARAMETER_TYPE: Enum = Enum {
    name: "CommandLineParameterType",
    values: &["string"],
};
