//! Queries about disks: QEMU's `qapi/block-core.json`.

use super::Spec;
use crate::monitor::qapi::Type::{self, Bool, Int, List, Str};
use crate::monitor::qapi::{Enum, Member, Object};

pub(super) static COMMANDS: &[Spec] = &[
    Spec::new(
        "blockdev-add",
        "Adds a block node that a device can name; the arguments are the properties of `-blockdev`",
    )
    .takes(&[
        Member::required("driver", Str, "`raw`, `file` or `host_device`"),
        Member::required("node-name", Str, "its name from then on"),
    ])
    .takes_more(),
    Spec::new(
        "blockdev-del",
        "Removes a block node that was added and that nothing uses",
    )
    .takes(&[Member::required("node-name", Str, "")]),
    Spec::new("query-block", "The drives, and the images in them")
        .returns(List(&Type::Object(&BLOCK_INFO))),
    Spec::new("query-named-block-nodes", "The images")
        .takes(&[Member::optional(
            "flat",
            Bool,
            "means nothing: no image has another beneath it",
        )])
        .returns(List(&Type::Object(&BLOCK_DEVICE))),
];

static BLOCK_INFO: Object = Object::new(
    "BlockInfo",
    &[
        Member::required("device", Str, "the drive's id"),
        Member::optional("qdev", Str, "the QOM path of the device that has it"),
        Member::required("type", Str, "`unknown`, as in QEMU"),
        Member::required("removable", Bool, ""),
        Member::required("locked", Bool, ""),
        Member::optional("inserted", Type::Object(&BLOCK_DEVICE), ""),
        Member::optional(
            "io-status",
            Type::Enum(&IO_STATUS),
            "with a device: errors go to the guest",
        ),
    ],
);

static IO_STATUS: Enum = Enum {
    name: "BlockDeviceIoStatus",
    values: &["ok", "failed", "nospace"],
};

static BLOCK_DEVICE: Object = Object::new(
    "BlockDeviceInfo",
    &[
        Member::required("file", Str, "the image's path"),
        Member::optional("node-name", Str, ""),
        Member::required("ro", Bool, ""),
        Member::required("drv", Str, "the image's format"),
        Member::required("backing_file_depth", Int, "0"),
        Member::required("active", Bool, "whether this process may write to it"),
        Member::required("encrypted", Bool, ""),
        Member::required("detect_zeroes", Type::Enum(&DETECT_ZEROES), ""),
        Member::required("bps", Int, "0, as are all limits"),
        Member::required("bps_rd", Int, ""),
        Member::required("bps_wr", Int, ""),
        Member::required("iops", Int, ""),
        Member::required("iops_rd", Int, ""),
        Member::required("iops_wr", Int, ""),
        Member::required("image", Type::Object(&IMAGE), ""),
        Member::required("cache", Type::Object(&CACHE), ""),
        Member::required("write_threshold", Int, "0: there is none"),
    ],
);

static DETECT_ZEROES: Enum = Enum {
    name: "BlockdevDetectZeroesOptions",
    values: &["off"],
};

static IMAGE: Object = Object::new(
    "ImageInfo",
    &[
        Member::required("filename", Str, ""),
        Member::required("format", Str, ""),
        Member::required("virtual-size", Int, "bytes; 0 if the image cannot be asked"),
        Member::optional("actual-size", Int, "bytes it takes on the host"),
    ],
);

static CACHE: Object = Object::new(
    "BlockdevCacheInfo",
    &[
        Member::required("writeback", Bool, "true: the guest flushes"),
        Member::required("direct", Bool, "past the host's page cache"),
        Member::required("no-flush", Bool, "the guest's flushes are not passed on"),
    ],
);
