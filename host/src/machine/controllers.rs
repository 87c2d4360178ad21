//! The interrupt controllers, the timer and the paravirtual clock, which KVM keeps for the VM.

use std::sync::Arc;

use baton_plugin_api::Section;
use kvm_bindings::{
    KVM_CLOCK_REALTIME, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    kvm_clock_data, kvm_irqchip, kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use super::kvm::{KvmError, ioctl};
use super::power::monotonic_ns;

/// The controllers and the timer.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControllersState {
    pic_master: kvm_irqchip,
    pic_slave: kvm_irqchip,
    ioapic: kvm_irqchip,
    pit: kvm_pit_state2,
}

/// The paravirtual clock.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClockState {
    clock: kvm_clock_data,
    /// CLOCK_MONOTONIC just after `clock` was read, in nanoseconds.
    monotonic: u64,
}

/// The sections' names and versions.
pub fn controllers_section() -> Section {
    Section::new("irqchip", 1, 1)
}

/// As above.
pub fn clock_section() -> Section {
    Section::new("kvmclock", 1, 1)
}

impl ControllersState {
    /// Reads the state; no vCPU runs.
    pub fn save(vm: &Arc<VmFd>) -> Result<Self, KvmError> {
        let chip = |chip_id| {
            let mut chip = kvm_irqchip {
                chip_id,
                ..Default::default()
            };
            vm.get_irqchip(&mut chip)
                .map_err(ioctl("read an interrupt controller"))?;
            Ok(chip)
        };
        Ok(Self {
            pic_master: chip(KVM_IRQCHIP_PIC_MASTER)?,
            pic_slave: chip(KVM_IRQCHIP_PIC_SLAVE)?,
            ioapic: chip(KVM_IRQCHIP_IOAPIC)?,
            pit: vm.get_pit2().map_err(ioctl("read the timer"))?,
        })
    }

    /// Writes the state; no vCPU runs, and their local APICs have theirs, since the I/O APIC sends
    /// on what is pending.
    pub fn load(&self, vm: &Arc<VmFd>) -> Result<(), KvmError> {
        for (chip, chip_id) in [
            (&self.pic_master, KVM_IRQCHIP_PIC_MASTER),
            (&self.pic_slave, KVM_IRQCHIP_PIC_SLAVE),
            (&self.ioapic, KVM_IRQCHIP_IOAPIC),
        ] {
            let chip = kvm_irqchip { chip_id, ..*chip };
            vm.set_irqchip(&chip)
                .map_err(ioctl("write an interrupt controller"))?;
        }
        vm.set_pit2(&self.pit).map_err(ioctl("write the timer"))
    }
}

impl ClockState {
    /// Reads the clock; no vCPU runs.
    pub fn save(vm: &Arc<VmFd>) -> Result<Self, KvmError> {
        let clock = vm
            .get_clock()
            .map_err(ioctl("read the paravirtual clock"))?;
        Ok(Self {
            clock,
            monotonic: monotonic_ns(),
        })
    }

    /// Changes the time at which it was read.
    pub fn shift(&mut self, monotonic: impl FnOnce(u64) -> u64) {
        self.monotonic = monotonic(self.monotonic);
    }

    /// Sets the clock to what it would show now had it gone on, before any vCPU runs.
    ///
    /// Where the kernel saved the real time with it, it does that sum itself (since Linux 5.16);
    /// otherwise it is done here, which is late by the time this takes and never early.
    pub fn load(&self, vm: &Arc<VmFd>) -> Result<(), KvmError> {
        let mut clock = self.clock;
        clock.flags &= KVM_CLOCK_REALTIME;
        if clock.flags == 0 {
            let passed = later_by(self.monotonic);
            clock.clock = clock.clock.wrapping_add(passed);
        }
        vm.set_clock(&clock)
            .map_err(ioctl("set the paravirtual clock"))
    }
}

/// Nanoseconds since a time of CLOCK_MONOTONIC, which may be before the host's start.
fn later_by(then: u64) -> u64 {
    let passed = monotonic_ns().wrapping_sub(then);
    // Of a time to come nothing has passed.
    if passed > u64::MAX / 2 { 0 } else { passed }
}
