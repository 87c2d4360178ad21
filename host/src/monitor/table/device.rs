//! Commands about devices that come and go: QEMU's `qapi/qdev.json`.

use super::Spec;
use crate::monitor::qapi::Member;
use crate::monitor::qapi::Type::Str;

pub(super) static COMMANDS: &[Spec] = &[
    Spec::new(
        "device_add",
        "Adds a device; further arguments are `addr`, its place, and the properties of its type",
    )
    .takes(&[
        Member::required("driver", Str, "the device's type, as `-device` names it"),
        Member::optional("bus", Str, "`pcie.0`"),
        Member::optional("id", Str, "its name from then on"),
    ])
    .takes_more(),
    Spec::new(
        "device_del",
        "Asks the guest to let go of a device, which goes once it has",
    )
    .takes(&[Member::required("id", Str, "the device's id")]),
    Spec::new(
        "plugin-replace",
        "Replaces the plugin of the same name under its devices; Baton's own command",
    )
    .takes(&[Member::required("file", Str, "the other build of it")]),
];
