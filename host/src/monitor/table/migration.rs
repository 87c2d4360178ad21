//! Commands about migrations: QEMU's `qapi/migration.json` and `sockets.json`.

use baton_migration::Mode;
use baton_migration::settings::Capability;
use baton_migration::status::MigrationStatus;

use super::Spec;
use crate::monitor::qapi::Type::{self, Bool, Int, List, Null, Number, Size, Str, Uint8, Uint64};
use crate::monitor::qapi::{Alternate, Enum, Member, Object};

pub(super) static COMMANDS: &[Spec] = &[
    Spec::new("migrate", "Moves the guest to where the main channel leads, as the parameters say")
        .takes(&[
            Member::optional("uri", Str, "the main channel; mode `cpr-exec` needs none"),
            Member::optional("channels", CHANNELS, "all channels, in place of `uri`"),
            Member::optional("detach", Bool, "means nothing: no migration blocks the monitor")
                .with(&["deprecated"]),
            Member::optional("resume", Bool, "refused if true: there is no postcopy"),
        ]),
    Spec::new("migrate_cancel", "Ends a migration that is under way; the guest stays here"),
    Spec::new("migrate-continue", "Goes on after a pause before the switchover").takes(&[
        Member::required("state", Type::Enum(&STATUS), "`pre-switchover`"),
    ]),
    Spec::new("migrate-incoming", "Says where the guest comes from, after `-incoming defer`").takes(&[
        Member::optional("uri", Str, "the main channel"),
        Member::optional("channels", CHANNELS, "the main channel, in place of `uri`"),
        Member::optional("exit-on-error", Bool, "whether the process ends if the guest does not come; true if left out"),
    ]),
    Spec::new("cpr-save", "Keeps the guest in a file, and answers when it is kept").takes(CPR_FILE),
    Spec::new(
        "cpr-load",
        "Loads a guest that is kept in a file, and answers when it is there; it runs if it ran, whatever `-S` says",
    )
    .takes(CPR_FILE),
    Spec::new("migrate-set-parameters", "Sets parameters of migrations: all of these or none")
        .takes_all(&PARAMETERS),
    Spec::new("query-migrate-parameters", "The parameters of migrations, each with its value")
        .returns(Type::Object(&PARAMETERS)),
    Spec::new("migrate-set-capabilities", "Switches migration capabilities on and off: all of these or none")
        .takes(&[Member::required("capabilities", List(&Type::Object(&CAPABILITY_STATUS)), "")]),
    Spec::new("query-migrate-capabilities", "The migration capabilities, each with whether it is on")
        .returns(List(&Type::Object(&CAPABILITY_STATUS))),
    Spec::new("query-migrationthreads", "The threads of this process that move a guest")
        .returns(List(&Type::Object(&THREAD))),
    Spec::new("query-yank", "What could hang, and can be ended with `yank`: a migration")
        .returns(List(&Type::Object(&YANK_INSTANCE)))
        .oob(),
    Spec::new("yank", "Ends what hangs: a migration is cancelled, whatever its other side does")
        .takes(&[Member::required("instances", List(&Type::Object(&YANK_INSTANCE)), "all of them or none")])
        .oob(),
    Spec::new("query-migratable", "What stands in the way of a migration; Baton's own command")
        .takes(&[Member::optional("mode", Type::Enum(&MODE), "the one mode to tell of; without it all")])
        .returns(List(&Type::Object(&MIGRATABLE))),
    Spec::new("query-migrate", "How the last migration went, or how far this one is; nothing if there was none")
        .returns(Type::Object(&INFO)),
];

/// The words of an enum that has a list of itself.
macro_rules! words {
    ($of:ty) => {{
        const WORDS: [&str; <$of>::ALL.len()] = {
            let mut words = [""; <$of>::ALL.len()];
            let mut at = 0;
            while at < words.len() {
                words[at] = <$of>::ALL[at].as_str();
                at += 1;
            }
            words
        };
        &WORDS
    }};
}

static MODE: Enum = Enum {
    name: "MigMode",
    values: words!(Mode),
};

pub(super) static STATUS: Enum = Enum {
    name: "MigrationStatus",
    values: words!(MigrationStatus),
};

static CAPABILITY: Enum = Enum {
    name: "MigrationCapability",
    values: words!(Capability),
};

static CAPABILITY_STATUS: Object = Object::new(
    "MigrationCapabilityStatus",
    &[
        Member::required("capability", Type::Enum(&CAPABILITY), ""),
        Member::required("state", Bool, "whether it is on"),
    ],
);

const CPR_FILE: &[Member] = &[
    Member::required("filename", Str, "the file"),
    Member::required("mode", Type::Enum(&CPR_MODE), ""),
];

static CPR_MODE: Enum = Enum {
    name: "CprMode",
    values: &["reboot"],
};

const CHANNELS: Type = List(&Type::Object(&CHANNEL));

static CHANNEL: Object = Object::new(
    "MigrationChannel",
    &[
        Member::required("channel-type", Type::Enum(&CHANNEL_TYPE), ""),
        Member::required("addr", Type::Object(&ADDRESS), ""),
    ],
);

static CHANNEL_TYPE: Enum = Enum {
    name: "MigrationChannelType",
    values: &["main", "cpr"],
};

static ADDRESS: Object = Object::union(
    "MigrationAddress",
    &[Member::required("transport", Type::Enum(&TRANSPORT), "")],
    "transport",
    &[
        ("socket", &SOCKET_ADDRESS),
        ("exec", &EXEC_COMMAND),
        ("rdma", &INET_ADDRESS),
        ("file", &FILE_ARGUMENTS),
    ],
);

static TRANSPORT: Enum = Enum {
    name: "MigrationAddressType",
    values: &["socket", "exec", "rdma", "file"],
};

static EXEC_COMMAND: Object = Object::new(
    "MigrationExecCommand",
    &[Member::required(
        "args",
        List(&Str),
        "the program and its arguments",
    )],
);

static FILE_ARGUMENTS: Object = Object::new(
    "FileMigrationArgs",
    &[
        Member::required("filename", Str, ""),
        Member::required("offset", Uint64, "where the state begins, in bytes"),
    ],
);

static SOCKET_ADDRESS: Object = Object::union(
    "SocketAddress",
    &[Member::required("type", Type::Enum(&SOCKET_TYPE), "")],
    "type",
    &[
        ("inet", &INET_ADDRESS),
        ("unix", &UNIX_ADDRESS),
        ("vsock", &VSOCK_ADDRESS),
        ("fd", &FD_ADDRESS),
    ],
);

static SOCKET_TYPE: Enum = Enum {
    name: "SocketAddressType",
    values: &["inet", "unix", "vsock", "fd"],
};

pub(super) static INET_ADDRESS: Object = Object::new(
    "InetSocketAddress",
    &[
        Member::required("host", Str, ""),
        Member::required("port", Str, ""),
    ],
);

static UNIX_ADDRESS: Object =
    Object::new("UnixSocketAddress", &[Member::required("path", Str, "")]);

static VSOCK_ADDRESS: Object = Object::new(
    "VsockSocketAddress",
    &[
        Member::required("cid", Str, ""),
        Member::required("port", Str, ""),
    ],
);

static FD_ADDRESS: Object = Object::new(
    "FdSocketAddress",
    &[Member::required(
        "str",
        Str,
        "the number of an open descriptor, or the name that `getfd` gave one",
    )],
);

/// What can be changed, then what is reported and left alone.
static PARAMETERS: Object = Object::new(
    "MigrationParameters",
    &[
        Member::optional("mode", Type::Enum(&MODE), ""),
        Member::optional("cpr-exec-command", List(&Str), ""),
        Member::optional(
            "cpr-exec-args",
            List(&Str),
            "older name of `cpr-exec-command`; not reported",
        )
        .with(&["deprecated"]),
        Member::optional("downtime-limit", Uint64, "milliseconds"),
        Member::optional("max-bandwidth", Size, "bytes a second"),
        Member::optional("multifd-channels", Uint8, ""),
        Member::optional("direct-io", Bool, ""),
        Member::optional("zero-page-detection", Type::Enum(&ZERO_PAGE_DETECTION), ""),
        Member::optional("announce-initial", Size, FIXED),
        Member::optional("announce-max", Size, FIXED),
        Member::optional("announce-rounds", Size, FIXED),
        Member::optional("announce-step", Size, FIXED),
        Member::optional("avail-switchover-bandwidth", Size, FIXED),
        Member::optional("block-bitmap-mapping", List(&Type::Any), "cannot be set"),
        Member::optional("cpu-throttle-increment", Uint8, FIXED),
        Member::optional("cpu-throttle-initial", Uint8, FIXED),
        Member::optional("cpu-throttle-tailslow", Bool, FIXED),
        Member::optional("max-cpu-throttle", Uint8, FIXED),
        Member::optional("max-postcopy-bandwidth", Size, FIXED),
        Member::optional("multifd-compression", Type::Enum(&COMPRESSION), FIXED),
        Member::optional("multifd-qatzip-level", Uint8, FIXED),
        Member::optional("multifd-zlib-level", Uint8, FIXED),
        Member::optional("multifd-zstd-level", Uint8, FIXED),
        Member::optional("throttle-trigger-threshold", Uint8, FIXED),
        Member::optional("tls-authz", Type::Alternate(&STR_OR_NULL), FIXED),
        Member::optional("tls-creds", Type::Alternate(&STR_OR_NULL), FIXED),
        Member::optional("tls-hostname", Type::Alternate(&STR_OR_NULL), FIXED),
        Member::optional("vcpu-dirty-limit", Uint64, FIXED),
        Member::optional("x-checkpoint-delay", Type::Uint32, FIXED).with(&["unstable"]),
        Member::optional("x-vcpu-dirty-limit-period", Uint64, FIXED).with(&["unstable"]),
        Member::optional("xbzrle-cache-size", Size, FIXED),
    ],
);

const FIXED: &str = "has its default for ever";

static ZERO_PAGE_DETECTION: Enum = Enum {
    name: "ZeroPageDetection",
    values: &["none", "legacy", "multifd"],
};

static COMPRESSION: Enum = Enum {
    name: "MultiFDCompression",
    values: &["none"],
};

static STR_OR_NULL: Alternate = Alternate {
    name: "StrOrNull",
    of: &[Str, Null],
};

static THREAD: Object = Object::new(
    "MigrationThreadInfo",
    &[
        Member::required("name", Str, ""),
        Member::required("thread-id", Int, "the host's thread"),
    ],
);

static YANK_INSTANCE: Object = Object::union(
    "YankInstance",
    &[Member::required("type", Type::Enum(&YANK_TYPE), "")],
    "type",
    &[("block-node", &YANK_BLOCK_NODE), ("chardev", &YANK_CHARDEV)],
);

static YANK_TYPE: Enum = Enum {
    name: "YankInstanceType",
    values: &["block-node", "chardev", "migration"],
};

static YANK_BLOCK_NODE: Object = Object::new(
    "YankInstanceBlockNode",
    &[Member::required("node-name", Str, "")],
);

static YANK_CHARDEV: Object =
    Object::new("YankInstanceChardev", &[Member::required("id", Str, "")]);

static MIGRATABLE: Object = Object::new(
    "BatonMigratable",
    &[
        Member::required("mode", Type::Enum(&MODE), ""),
        Member::required("migratable", Bool, "whether nothing is in the way"),
        Member::required("blockers", List(&Type::Object(&BLOCKER)), ""),
    ],
);

static BLOCKER: Object = Object::new(
    "BatonBlocker",
    &[
        Member::required("id", Str, "for programs: stable within its owner"),
        Member::required(
            "owner",
            Str,
            "the device's id; empty for the machine itself",
        ),
        Member::required("reason", Str, "for people"),
        Member::required("remedy", Str, "for people: what to do about it"),
        Member::optional(
            "unless-suspended",
            Bool,
            "true: it is lifted while the guest is suspended",
        ),
    ],
);

static INFO: Object = Object::new(
    "MigrationInfo",
    &[
        Member::optional("status", Type::Enum(&STATUS), ""),
        Member::optional("total-time", Int, "milliseconds"),
        Member::optional("setup-time", Int, "milliseconds"),
        Member::optional(
            "downtime",
            Int,
            "milliseconds for which the guest stood still",
        ),
        Member::optional("expected-downtime", Int, "milliseconds, in mode normal"),
        Member::optional(
            "blackout",
            Type::Object(&BLACKOUT),
            "where the downtime went; Baton's own",
        ),
        Member::optional("ram", Type::Object(&STATS), "in mode normal"),
        Member::optional("error-desc", Str, "why it has failed"),
        Member::optional(
            "blocked-reasons",
            List(&Str),
            "what stands in the way in the mode that is set",
        ),
    ],
);

static BLACKOUT: Object = Object::new(
    "BatonBlackout",
    &[
        Member::required("total-us", Int, "microseconds, as are all of these"),
        Member::required("quiesce-us", Int, "stopping vCPUs and devices"),
        Member::required("save-us", Int, "saving every section"),
        Member::required(
            "transfer-us",
            Int,
            "sending the state, receiving and checking it",
        ),
        Member::required("load-us", Int, "loading it"),
        Member::required("start-us", Int, "acknowledgement, commitment and start"),
    ],
);

static STATS: Object = Object::new(
    "MigrationStats",
    &[
        Member::required("transferred", Int, "bytes"),
        Member::required("remaining", Int, "bytes"),
        Member::required("total", Int, "bytes"),
        Member::required("duplicate", Int, "pages of zeros"),
        Member::required("normal", Int, "pages that were sent whole"),
        Member::required("normal-bytes", Int, ""),
        Member::required("dirty-pages-rate", Int, "pages a second"),
        Member::required("mbps", Number, "megabits a second"),
        Member::required("dirty-sync-count", Int, "rounds"),
        Member::required("postcopy-requests", Int, ""),
        Member::required("page-size", Int, "bytes"),
        Member::required("multifd-bytes", Uint64, ""),
        Member::required("pages-per-second", Uint64, ""),
        Member::required("precopy-bytes", Uint64, ""),
        Member::required("downtime-bytes", Uint64, ""),
        Member::required("postcopy-bytes", Uint64, ""),
        Member::required("dirty-sync-missed-zero-copy", Uint64, ""),
    ],
);
