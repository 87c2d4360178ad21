//! The events: QEMU's `qapi/run-state.json`, `qdev.json` and `migration.json`. QEMU sends some events once a second
//! at most (`monitor_qapi_event_conf` in `monitor/monitor.c`), as here.

use super::Event;
use super::migration::STATUS;
use crate::monitor::qapi::Type::{self, Bool, Int, Str};
use crate::monitor::qapi::{Enum, Member};

pub(super) static EVENTS: &[Event] = &[
    Event::new("STOP", "The guest was stopped"),
    Event::new("RESUME", "The guest runs again"),
    Event::new("SUSPEND", "The guest has suspended itself"),
    Event::new("WAKEUP", "The guest was woken"),
    Event::new("POWERDOWN", "The power button was pressed"),
    Event::new("RESET", "The machine was reset").has(&[
        Member::required("guest", Bool, "whether the guest did it"),
        Member::required("reason", Type::Enum(&SHUTDOWN_CAUSE), ""),
    ]),
    Event::new("SHUTDOWN", "The guest is gone").has(&[
        Member::required("guest", Bool, "whether the guest did it"),
        Member::required("reason", Type::Enum(&SHUTDOWN_CAUSE), ""),
    ]),
    Event::new("RTC_CHANGE", "The guest has set its clock")
        .has(&[
            Member::required("offset", Int, "seconds that it is ahead of the host's"),
            Member::required("qom-path", Str, "the clock's place in the tree of objects"),
        ])
        .limited_by("qom-path"),
    Event::new(
        "VSERPORT_CHANGE",
        "A program in the guest has opened or closed a port",
    )
    .has(&[
        Member::required(
            "id",
            Str,
            "the port's id; of a port without one there is no event",
        ),
        Member::required("open", Bool, "whether it is open now"),
    ])
    .limited_by("id"),
    Event::new(
        "DEVICE_DELETED",
        "A device is gone, after `device_del` or by the guest",
    )
    .has(DEVICE),
    Event::new(
        "DEVICE_UNPLUG_GUEST_ERROR",
        "The guest cannot let go of a device",
    )
    .has(DEVICE),
    Event::new(
        "MIGRATION",
        "A migration's status has changed; with capability `events`",
    )
    .has(&[Member::required("status", Type::Enum(&STATUS), "")]),
    Event::new(
        "MIGRATION_PASS",
        "A round of copying RAM begins; with capability `events`",
    )
    .has(&[Member::required("pass", Int, "which")]),
];

const DEVICE: &[Member] = &[
    Member::optional("device", Str, "its id, if it was given one"),
    Member::required("path", Str, "its place in QEMU's tree of objects"),
];

static SHUTDOWN_CAUSE: Enum = Enum {
    name: "ShutdownCause",
    values: &[
        "host-error",
        "host-qmp-quit",
        "host-qmp-system-reset",
        "host-signal",
        "host-ui",
        "guest-shutdown",
        "guest-reset",
        "guest-panic",
    ],
};
