//! Commands about descriptors that clients pass: QEMU's `qapi/misc.json`.

use super::Spec;
use crate::monitor::qapi::Type::{self, Int, List, Str};
use crate::monitor::qapi::{Member, Object};

pub(super) static COMMANDS: &[Spec] = &[
    Spec::new("getfd", "Gives the descriptor that comes with this command a name, for `fd:` addresses")
        .takes(&[Member::required("fdname", Str, "no digit at its beginning; one that has this name is closed")]),
    Spec::new("closefd", "Closes a descriptor that has a name")
        .takes(&[Member::required("fdname", Str, "")]),
    Spec::new("add-fd", "Adds the descriptor that comes with this command to a set, which `/dev/fdset/N` stands for")
        .takes(&[
            Member::optional("fdset-id", Int, "the set; a new one without it"),
            Member::optional("opaque", Str, "anything, for `query-fdsets`"),
        ])
        .returns(Type::Object(&ADDED)),
    Spec::new("remove-fd", "Closes a descriptor of a set, or all of it; what is open stays open").takes(&[
        Member::required("fdset-id", Int, ""),
        Member::optional("fd", Int, "the one; without it all"),
    ]),
    Spec::new("query-fdsets", "The sets of descriptors").returns(List(&Type::Object(&SET))),
];

static ADDED: Object = Object::new(
    "AddfdInfo",
    &[
        Member::required("fdset-id", Int, ""),
        Member::required("fd", Int, "its number in this process"),
    ],
);

static SET: Object = Object::new(
    "FdsetInfo",
    &[
        Member::required("fdset-id", Int, ""),
        Member::required("fds", List(&Type::Object(&PASSED)), ""),
    ],
);

static PASSED: Object = Object::new(
    "FdsetFdInfo",
    &[
        Member::required("fd", Int, ""),
        Member::optional("opaque", Str, ""),
    ],
);
