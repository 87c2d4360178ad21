//! A device at work that moves with its guest from instance to instance.

use baton_plugin_api::fd::duplicate;
use baton_plugin_api::testing::TestRam;
use baton_plugin_api::{GuestRam, MigrationEvent, Mode};

use super::fake::What;
use super::*;
use crate::device::SECTION;
use crate::kernel::DmaRange;

/// A device that a guest has at work.
fn at_work(ram: &TestRam) -> Bench {
    let mut bench = Bench::new();
    bench.place(0xd000_0000);
    bench.program(3, false);
    bench.enable_msix(true);
    bench.device.start(ram.memory()).unwrap();
    bench
}

/// Where the container has the memory now.
fn addresses(bench: &Bench) -> Vec<DmaRange> {
    let state = bench.kernel.state();
    assert_eq!(state.nowhere, [0u64; 0]);
    state.mapped.clone()
}

fn address_of(memory: &GuestRam) -> u64 {
    use baton_plugin_api::vm_memory::{GuestAddress, GuestMemoryBackend};
    memory.get_host_address(GuestAddress(0)).unwrap() as u64
}

/// What the source does until another may start: the state.
fn hand_over(bench: &mut Bench, to: &Arc<TestHost>) -> Vec<u8> {
    bench.device.notify(MigrationEvent::Setup);
    for fd in bench.device.fds(Mode::CprTransfer) {
        to.preserve(&fd.name, fd.instance, duplicate(fd.fd).unwrap());
    }
    bench.device.quiesce().unwrap();
    bench.device.save(SECTION).unwrap()
}

/// What the target does until it may start. Another process has a VFIO of its own.
fn adopt(bench: &Bench, host: &Arc<TestHost>, state: &[u8]) -> VfioPci {
    let vfio = Vfio::new(Arc::clone(&bench.kernel) as _);
    let mut target = device(&vfio, host, &[]);
    target.realize().unwrap();
    assert_eq!(host.unclaimed(), []);
    target.load(SECTION, 1, state).unwrap();
    assert_eq!(target.save(SECTION).unwrap(), state);
    target
}

#[test]
fn container_group_and_device_are_handed_over_where_descriptors_are() {
    let mut bench = Bench::new();
    let declared = VfioPci::device_type().fds;
    for mode in Mode::ALL {
        let fds = bench.device.fds(mode);
        let names: Vec<_> = fds.iter().map(|fd| fd.name.as_str()).collect();
        if mode.preserves_fds() {
            assert_eq!(names, ["container", "group", "device"]);
        } else {
            assert_eq!(names, [""; 0]);
        }
        for fd in fds {
            let declaration = declared.iter().find(|it| it.name == fd.name).unwrap();
            assert!(fd.instance == 0 && declaration.modes.contains(&mode));
        }
    }
}

#[test]
fn a_device_that_moves_is_not_touched_before_it_starts_and_loses_no_interrupt() {
    let (here, there) = (TestRam::new(0x4000), TestRam::new(0x4000));
    let mut source = at_work(&here);
    source.kernel.calls();
    let host = TestHost::new();
    let state = hand_over(&mut source, &host);
    assert_eq!(source.kernel.calls(), ["take_addresses"]);
    let mut target = adopt(&source, &host, &state);
    assert_eq!(source.kernel.calls(), Vec::<String>::new());
    // To the source: nobody hears of it any more.
    source.card(|card| card.interrupt(Irq::Msix, 3));
    target.start(there.memory()).unwrap();
    assert_eq!(
        source.kernel.calls(),
        [
            "give_address 0x0",
            "set_irqs Msix 5",
            "set_irqs Error 1",
            "set_irqs Request 1"
        ]
    );
    assert_eq!(addresses(&source)[0].address, address_of(&there.memory()));
    assert_eq!(host.interrupts(3), 1);
    source.card(|card| card.interrupt(Irq::Msix, 3));
    assert_eq!(host.interrupts(3), 1);
    assert_eq!(host.bar(0), Some(0xd000_0000));
    // The end of the source is not the device's.
    source.device.notify(MigrationEvent::Done);
    let Bench {
        kernel,
        device,
        vfio,
        ..
    } = source;
    drop((device, vfio));
    assert_eq!(kernel.calls(), Vec::<String>::new());
    let device = What::Device(NAME.to_owned());
    assert_eq!(kernel.open(), [What::Container, What::Group(7), device]);
    target.quiesce().unwrap();
    drop(target);
    assert_eq!(kernel.open(), []);
}

#[test]
fn after_a_handover_that_failed_the_device_is_the_sources_again() {
    let ram = TestRam::new(0x4000);
    for event in [MigrationEvent::Failed, MigrationEvent::Cancelled] {
        let mut source = at_work(&ram);
        let host = TestHost::new();
        let state = hand_over(&mut source, &host);
        drop(adopt(&source, &host, &state));
        source.device.notify(event);
        source.kernel.calls();
        source.host.interrupts(3);
        source.device.start(ram.memory()).unwrap();
        let calls = source.kernel.calls();
        assert_eq!(calls[..2], ["give_address 0x0", "set_irqs Msix 5"]);
        assert_eq!(addresses(&source).len(), 1);
        assert_eq!(source.host.interrupts(3), 1);
        // And a pause afterwards is one.
        source.device.quiesce().unwrap();
        source.device.save(SECTION).unwrap();
        source.device.start(ram.memory()).unwrap();
        assert_eq!(addresses(&source).len(), 1);
        assert_eq!(source.host.interrupts(3), 0);
    }
}

#[test]
fn a_guest_may_go_on_before_the_device_hears_that_the_handover_failed() {
    let ram = TestRam::new(0x4000);
    let mut source = at_work(&ram);
    hand_over(&mut source, &TestHost::new());
    source.host.interrupts(3);
    source.device.start(ram.memory()).unwrap();
    source.device.notify(MigrationEvent::Failed);
    assert_eq!(addresses(&source).len(), 1);
    assert_eq!(source.host.interrupts(3), 1);
}

#[test]
fn a_device_may_come_while_a_guest_that_was_to_move_stands_still() {
    let ram = TestRam::new(0x4000);
    let mut source = at_work(&ram);
    let mut other = card();
    other.group = 8;
    let name = "0000:02:00.0";
    let known = (name.to_owned(), other);
    source.kernel.state().devices.extend([known]);
    hand_over(&mut source, &TestHost::new());
    source.device.notify(MigrationEvent::Failed);
    let config = config_of::<VfioPci>("x", &[("host", Value::String(name.to_owned()))]);
    let host = TestHost::new().host();
    let mut second = VfioPci::with(&config, host, Arc::clone(&source.vfio)).unwrap();
    second.realize().unwrap();
    assert_eq!(addresses(&source).len(), 1);
}

#[test]
fn descriptors_that_are_only_looked_at_change_nothing() {
    let ram = TestRam::new(0x4000);
    let mut bench = at_work(&ram);
    bench.kernel.calls();
    bench.device.fds(Mode::CprTransfer);
    bench.device.quiesce().unwrap();
    bench.device.save(SECTION).unwrap();
    assert_eq!(bench.kernel.calls(), Vec::<String>::new());
}

#[test]
fn a_guest_that_was_handed_on_before_it_ran_is_the_third_ones() {
    let (here, there) = (TestRam::new(0x4000), TestRam::new(0x4000));
    let mut source = at_work(&here);
    let (second, third) = (TestHost::new(), TestHost::new());
    let state = hand_over(&mut source, &second);
    let target = adopt(&source, &second, &state);
    let mut between = Bench {
        kernel: Arc::clone(&source.kernel),
        vfio: Arc::clone(&source.vfio),
        host: second,
        device: target,
    };
    source.kernel.calls();
    let state = hand_over(&mut between, &third);
    let mut last = adopt(&source, &third, &state);
    assert_eq!(source.kernel.calls(), Vec::<String>::new());
    last.start(there.memory()).unwrap();
    assert_eq!(addresses(&source)[0].address, address_of(&there.memory()));
}

#[test]
fn a_build_that_replaces_another_in_the_process_finds_the_memory_where_it_was() {
    let ram = TestRam::new(0x4000);
    let mut old = at_work(&ram);
    old.device.notify(MigrationEvent::Setup);
    old.device.quiesce().unwrap();
    let state = old.device.save(SECTION).unwrap();
    for fd in old.device.fds(Mode::CprTransfer) {
        old.host
            .preserve(&fd.name, fd.instance, duplicate(fd.fd).unwrap());
    }
    let host = Arc::clone(&old.host);
    let mut new = adopt(&old, &host, &state);
    host.interrupts(3);
    new.start(ram.memory()).unwrap();
    assert_eq!(addresses(&old)[0].address, address_of(&ram.memory()));
    assert_eq!(host.interrupts(3), 1);
    // It is taken back.
    new.quiesce().unwrap();
    let state = new.save(SECTION).unwrap();
    old.device.load(SECTION, 1, &state).unwrap();
    drop(new);
    old.device.notify(MigrationEvent::Failed);
    old.device.start(ram.memory()).unwrap();
    assert_eq!(old.card(|card| card.told(Irq::Msix)), 5);
    assert_eq!(host.interrupts(3), 1);
    assert_eq!(host.failures(), Vec::<String>::new());
}

#[test]
fn a_device_that_was_handed_over_asleep_is_reset_whole() {
    let (here, there) = (TestRam::new(0x4000), TestRam::new(0x4000));
    let mut source = at_work(&here);
    let host = TestHost::new();
    let state = hand_over(&mut source, &host);
    let mut target = adopt(&source, &host, &state);
    source.kernel.calls();
    target.reset().unwrap();
    assert_eq!(
        source.kernel.calls(),
        ["set_irqs Msix 0", "config 0x4 [00, 00]", "reset"]
    );
    target.start(there.memory()).unwrap();
    assert_eq!(host.interrupts(3), 0);
    assert_eq!(addresses(&source)[0].address, address_of(&there.memory()));
}

#[test]
fn memory_that_is_not_the_same_is_refused() {
    let (here, there) = (TestRam::new(0x4000), TestRam::new(0x8000));
    let mut source = at_work(&here);
    let host = TestHost::new();
    let state = hand_over(&mut source, &host);
    let mut target = adopt(&source, &host, &state);
    let error = target.start(there.memory()).unwrap_err();
    assert!(error.message.contains("must be the same"), "{error}");
}

#[test]
fn a_target_that_names_a_device_of_another_group_is_refused() {
    let ram = TestRam::new(1 << 20);
    let mut bench = at_work(&ram);
    let host = TestHost::new();
    hand_over(&mut bench, &host);
    bench.kernel.state().devices.get_mut(NAME).unwrap().group = 9;
    let vfio = Vfio::new(Arc::clone(&bench.kernel) as _);
    let error = device(&vfio, &host, &[]).realize().unwrap_err();
    let expected = "The guest's device is in IOMMU group 7, and 0000:01:00.0 in group 9; name the same \
                    device as the source";
    assert_eq!(error.message, expected);
}

#[test]
fn descriptors_that_came_in_part_are_refused() {
    let mut source = Bench::new();
    let host = TestHost::new();
    for fd in source.device.fds(Mode::CprExec).into_iter().skip(1) {
        host.preserve(&fd.name, fd.instance, duplicate(fd.fd).unwrap());
    }
    let error = device(&source.vfio, &host, &[]).realize().unwrap_err();
    assert!(error.message.contains("Only some"), "{error}");
}

#[test]
fn devices_that_move_together_share_one_container() {
    let ram = TestRam::new(0x4000);
    let there = TestRam::new(0x4000);
    let mut other = card();
    other.group = 8;
    let kernel = Fake::new([(NAME, card()), ("0000:01:00.1", other)]);
    let of = |vfio: &Arc<Vfio>, host: &Arc<TestHost>, name: &str| {
        let said = [("host", Value::String(name.to_owned()))];
        let config = config_of::<VfioPci>(name, &said);
        let mut device = VfioPci::with(&config, host.host(), Arc::clone(vfio)).unwrap();
        device.realize().unwrap();
        device
    };
    let names = [NAME, "0000:01:00.1"];
    let hosts = [TestHost::new(), TestHost::new()];
    let vfio = Vfio::new(Arc::clone(&kernel) as _);
    let mut sources = names.map(|name| of(&vfio, &TestHost::new(), name));
    for source in &mut sources {
        source.start(ram.memory()).unwrap();
    }
    let mut states = Vec::new();
    for source in &mut sources {
        source.notify(MigrationEvent::Setup);
    }
    for (source, host) in sources.iter_mut().zip(&hosts) {
        for fd in source.fds(Mode::CprTransfer) {
            host.preserve(&fd.name, fd.instance, duplicate(fd.fd).unwrap());
        }
        source.quiesce().unwrap();
    }
    for source in &mut sources {
        states.push(source.save(SECTION).unwrap());
    }
    let vfio = Vfio::new(Arc::clone(&kernel) as _);
    let mut targets = [0, 1].map(|nth| of(&vfio, &hosts[nth], names[nth]));
    drop(sources);
    kernel.calls();
    for (target, state) in targets.iter_mut().zip(&states) {
        target.load(SECTION, 1, state).unwrap();
        target.start(there.memory()).unwrap();
    }
    let mut calls = kernel.calls();
    calls.retain(|call| !call.starts_with("set_irqs"));
    assert_eq!(calls, ["give_address 0x0"]);
    drop(targets);
    assert_eq!(kernel.open(), []);
}
