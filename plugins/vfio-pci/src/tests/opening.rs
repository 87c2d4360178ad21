//! How a device is found and opened, and what is said if it cannot be.

use baton_plugin_api::testing::TestRam;
use nix::errno::Errno;

use super::fake::{EXTENSIONS, State, What};
use super::*;
use crate::kernel::Extension;

/// What realizing a device says after `change`; nothing is left that a second try would meet.
fn refusal(change: impl FnOnce(&mut State)) -> String {
    let kernel = Fake::new([(NAME, card())]);
    change(&mut kernel.state());
    let vfio = Vfio::new(Arc::clone(&kernel) as _);
    let error = device(&vfio, &TestHost::new(), &[]).realize().unwrap_err();
    assert!(!error.message.contains('\n'));
    assert_eq!(kernel.open(), []);
    {
        let mut state = kernel.state();
        state.devices.insert(NAME.to_owned(), card());
        state.failing.clear();
        state.viable = true;
        state.extensions = EXTENSIONS.to_vec();
    }
    device(&vfio, &TestHost::new(), &[]).realize().unwrap();
    error.message
}

fn fails(call: &'static str, errno: Errno) -> String {
    refusal(|state| state.failing.extend([(call, errno)]))
}

fn bound_to(driver: Option<&'static str>) -> String {
    refusal(|state| state.devices.get_mut(NAME).unwrap().driver = driver)
}

#[test]
fn whatever_is_in_the_way_the_error_says_what_to_do() {
    let cases = [
        (
            bound_to(Some("igb")),
            "its driver is igb; bind it: modprobe vfio-pci; echo vfio-pci > \
             /sys/bus/pci/devices/0000:01:00.0/driver_override; echo 0000:01:00.0 > \
             /sys/bus/pci/devices/0000:01:00.0/driver/unbind; echo 0000:01:00.0 > \
             /sys/bus/pci/drivers_probe",
        ),
        (
            bound_to(None),
            "it has no driver; bind it: modprobe vfio-pci",
        ),
        (
            refusal(|state| state.devices.clear()),
            "There is no device 0000:01:00.0",
        ),
        (fails("group_of", Errno::ENOENT), "intel_iommu=on"),
        (fails("open_container", Errno::ENOENT), "modprobe vfio-pci"),
        (
            fails("open_container", Errno::EACCES),
            "access to /dev/vfio/vfio",
        ),
        (fails("open_group", Errno::EACCES), "chown USER /dev/vfio/7"),
        (fails("open_group", Errno::EBUSY), "another process has it"),
        (
            fails("set_iommu", Errno::EPERM),
            "allow_unsafe_interrupts=1",
        ),
        (
            fails("set_container", Errno::ENODEV),
            "modprobe vfio_iommu_type1",
        ),
        (
            fails("open_device", Errno::ENODEV),
            "Cannot open device 0000:01:00.0",
        ),
        (
            refusal(|state| state.extensions.retain(|it| *it != Extension::Type1v2)),
            "modprobe vfio_iommu_type1",
        ),
    ];
    for (said, wanted) in cases {
        assert!(said.contains(wanted), "{said}");
    }
}

/// Whether a device is realized by an IOMMU that keeps DMA to the caches or not, and how often the host
/// was told of the group, if it knows what that means.
fn realized(coherent: bool, knows: bool) -> (baton_plugin_api::Result<()>, u32) {
    let kernel = Fake::new([(NAME, card())]);
    if !coherent {
        let mut state = kernel.state();
        state
            .extensions
            .retain(|it| *it != Extension::CacheCoherent);
    }
    let host = TestHost::new();
    if !knows {
        host.forget_vfio();
    }
    let realized = device(&Vfio::new(kernel), &host, &[]).realize();
    (realized, host.vfio_files())
}

#[test]
fn kvm_is_told_of_the_group_and_has_to_be_where_dma_passes_the_caches_by() {
    assert_eq!(realized(true, true), (Ok(()), 1));
    assert_eq!(realized(false, true), (Ok(()), 1));
    assert_eq!(realized(true, false), (Ok(()), 0));
    let refused = realized(false, false).0.unwrap_err();
    assert!(refused.message.contains("VFIO_DMA_CC_IOMMU"), "{refused}");
}

#[test]
fn a_group_that_is_not_viable_names_the_devices_that_are_in_the_way() {
    let said = refusal(|state| {
        state.viable = false;
        for (name, driver) in [
            ("0000:01:00.1", Some("igb")),
            ("0000:00:01.0", Some("pcieport")),
            ("0000:01:00.2", None),
        ] {
            let mut other = card();
            other.driver = driver;
            state.devices.insert(name.to_owned(), other);
        }
    });
    assert!(said.ends_with("unbind 0000:01:00.1 (igb)"), "{said}");
}

#[test]
fn devices_share_the_container_and_their_group_and_the_last_closes_them() {
    let mut other = card();
    other.group = 8;
    let kernel = Fake::new([
        (NAME, card()),
        ("0000:01:00.1", card()),
        ("0000:02:00.0", other),
    ]);
    let vfio = Vfio::new(Arc::clone(&kernel) as _);
    let ram = TestRam::new(0x4000);
    let open = |name: &str| {
        let said = [("host", Value::String(name.to_owned()))];
        let config = config_of::<VfioPci>("x", &said);
        let host = TestHost::new().host();
        let mut device = VfioPci::with(&config, host, Arc::clone(&vfio)).unwrap();
        device.realize().unwrap();
        device.start(ram.memory()).unwrap();
        device
    };
    let opening = [
        "open_container",
        "open_group 7",
        "set_container 7",
        "set_iommu",
    ];
    let first = open(NAME);
    let calls = kernel.calls();
    assert_eq!(calls[..4], opening);
    assert!(calls.contains(&"map 0x0 0x4000".to_owned()), "{calls:?}");
    let second = open("0000:01:00.1");
    let third = open("0000:02:00.0");
    let mut calls = kernel.calls();
    calls.retain(|call| !call.starts_with("set_irqs"));
    assert_eq!(
        calls,
        [
            "open_device 0000:01:00.1",
            "open_group 8",
            "set_container 8",
            "open_device 0000:02:00.0"
        ]
    );
    drop(first);
    drop(third);
    let device = What::Device("0000:01:00.1".to_owned());
    assert_eq!(kernel.open(), [What::Container, What::Group(7), device]);
    drop(second);
    assert_eq!(kernel.open(), []);
    // Another one begins anew.
    let _again = open(NAME);
    assert_eq!(kernel.calls()[..4], opening);
}

#[test]
fn memory_that_cannot_be_locked_fails_the_start_and_says_how_to() {
    let mut bench = Bench::new();
    let ram = TestRam::new(0x4000);
    for (errno, wanted) in [
        (Errno::ENOMEM, "ulimit -l"),
        (Errno::EOPNOTSUPP, "memory-backend-memfd"),
    ] {
        bench.kernel.state().failing.insert("map", errno);
        let error = bench.device.start(ram.memory()).unwrap_err();
        assert!(error.message.contains(wanted), "{error}");
    }
    bench.kernel.state().failing.clear();
    bench.device.start(ram.memory()).unwrap();
    bench.device.quiesce().unwrap();
    bench.device.start(ram.memory()).unwrap();
    assert_eq!(bench.kernel.state().mapped.len(), 1);
}

#[test]
fn a_group_that_makes_the_container_incoherent_does_not_get_in_unless_kvm_knows() {
    let mut other = card();
    other.group = 8;
    let kernel = Fake::new([(NAME, card()), ("0000:02:00.0", other)]);
    let vfio = Vfio::new(Arc::clone(&kernel) as _);
    let mut first = device(&vfio, &TestHost::new(), &[]);
    first.realize().unwrap();
    let coherent = |it: &Extension| *it == Extension::CacheCoherent;
    kernel.state().extensions.retain(|it| !coherent(it));
    let said = [("host", Value::String("0000:02:00.0".to_owned()))];
    let config = config_of::<VfioPci>("x", &said);
    let host = TestHost::new();
    host.forget_vfio();
    let mut second = VfioPci::with(&config, host.host(), Arc::clone(&vfio)).unwrap();
    let error = second.realize().unwrap_err();
    assert!(error.message.contains("VFIO_DMA_CC_IOMMU"), "{error}");
    let device = What::Device(NAME.to_owned());
    assert_eq!(kernel.open(), [What::Container, What::Group(7), device]);
}
