//! Queries about PCI: QEMU's `qapi/pci.json`.

use super::Spec;
use crate::monitor::qapi::Type::{self, Bool, Int, List, Str};
use crate::monitor::qapi::{Enum, Member, Object};

pub(super) static COMMANDS: &[Spec] =
    &[Spec::new("query-pci", "The PCI bus with its devices").returns(List(&Type::Object(&BUS)))];

static BUS: Object = Object::new(
    "PciInfo",
    &[
        Member::required("bus", Int, ""),
        Member::required("devices", List(&Type::Object(&DEVICE)), ""),
    ],
);

static DEVICE: Object = Object::new(
    "PciDeviceInfo",
    &[
        Member::required("bus", Int, ""),
        Member::required("slot", Int, ""),
        Member::required("function", Int, ""),
        Member::required("class_info", Type::Object(&CLASS), ""),
        Member::required("id", Type::Object(&ID), ""),
        Member::optional("irq", Int, "if it has a pin: the line a firmware would set"),
        Member::required("irq_pin", Int, "0 for none"),
        Member::required(
            "qdev_id",
            Str,
            "the device's id; empty if it has none of its own",
        ),
        Member::required("regions", List(&Type::Object(&REGION)), "its BARs"),
    ],
);

static CLASS: Object = Object::new(
    "PciDeviceClass",
    &[Member::required("class", Int, "base class and subclass")],
);

static ID: Object = Object::new(
    "PciDeviceId",
    &[
        Member::required("device", Int, ""),
        Member::required("vendor", Int, ""),
        Member::optional("subsystem", Int, ""),
        Member::optional("subsystem-vendor", Int, ""),
    ],
);

static REGION: Object = Object::new(
    "PciMemoryRegion",
    &[
        Member::required("bar", Int, ""),
        Member::required("type", Type::Enum(&REGION_TYPE), ""),
        Member::required("address", Int, "-1 while it does not decode"),
        Member::required("size", Int, "bytes"),
        Member::optional("prefetch", Bool, "of memory"),
        Member::optional("mem_type_64", Bool, "of memory: whether it takes two BARs"),
    ],
);

static REGION_TYPE: Enum = Enum {
    name: "PciRegionType",
    values: &["io", "memory"],
};
