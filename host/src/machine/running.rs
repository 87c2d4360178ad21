//! The machine from power-on to its guest's end: it starts, stops, sleeps, wakes and is reset.

use std::time::{Duration, Instant, SystemTime};

use baton_migration::HostError;
use baton_plugin_api::BusClass;
use kvm_bindings::{kvm_regs, kvm_sregs};

use super::pci::{self, PciWindows};
use super::power::WakeSource;
use super::waking::WakingVector;
use super::{Machine, MachineDevice, boot, kvm, sections};
use crate::runstate::RunState;
use crate::vcpu::{Vcpu, msrs};

/// How long the devices' start waits for the vCPUs' threads. With fewer CPUs than vCPUs a thread may
/// get its turn only after another has run the guest for a while.
const ENTRY: Duration = Duration::from_millis(2);

impl Machine {
    /// Brings the machine to where a firmware hands over to the kernel.
    pub fn boot(&mut self) -> Result<(), HostError> {
        let windows = PciWindows::new(self.around.ram.end());
        pci::assign(&self.pci, windows)?;
        let memory = self.around.ram.memory();
        // An error may come after some of it; the guest runs only after all of it.
        self.around.ram.host_wrote();
        self.tables.write(memory)?;
        let kernel = self
            .kernel
            .as_ref()
            .ok_or("There is no kernel to boot; say -kernel FILE")?;
        let entry = kernel.load(memory, self.around.ram.ranges(), self.tables.rsdp)?;
        let registers = boot::bsp_registers(entry, memory)?;
        self.prepare_vcpus(move |sregs| registers.apply(sregs), registers.regs)
    }

    /// Brings the vCPUs from power-on to where the first enters the guest, with these registers, and
    /// the others wait for it to start them.
    fn prepare_vcpus(
        &self,
        special: impl Fn(&mut kvm_sregs) + Copy + Send + 'static,
        regs: kvm_regs,
    ) -> Result<(), HostError> {
        for vcpu in &self.vcpus {
            let first = vcpu.id() == 0;
            let prepared = vcpu.with(move |vcpu| {
                prepare_vcpu(vcpu)?;
                if first {
                    let mut sregs = vcpu.get_sregs()?;
                    special(&mut sregs);
                    vcpu.set_sregs(&sregs)?;
                    vcpu.set_regs(&regs)?;
                }
                Ok(())
            })?;
            prepared.map_err(kvm::ioctl("prepare a vCPU for the guest"))?;
        }
        Ok(())
    }

    /// The guest runs, or sleeps on: gives which. [`Self::enter`], then [`Self::start_devices`].
    pub fn start(&self) -> Result<RunState, HostError> {
        let runstate = self.enter()?;
        if runstate == RunState::Running {
            self.start_devices();
        }
        Ok(runstate)
    }

    /// The vCPUs enter the guest, before the devices start: a notification that comes before its
    /// device is up waits in an eventfd. They do not if it sleeps; gives which.
    ///
    /// Waits for the vCPUs' threads to get there. That is what ends a blackout, and a thread that
    /// waits leaves its CPU to the one it woke, which a scheduler may have put behind it.
    pub fn enter(&self) -> Result<RunState, HostError> {
        if self.is_asleep() {
            return Ok(RunState::Suspended);
        }
        let (entering, entered) = std::sync::mpsc::channel();
        for vcpu in &self.vcpus {
            vcpu.run(entering.clone())?;
        }
        drop(entering);
        let deadline = Instant::now() + ENTRY;
        for _ in &self.vcpus {
            let left = deadline.saturating_duration_since(Instant::now());
            if entered.recv_timeout(left).is_err() {
                break;
            }
        }
        Ok(RunState::Running)
    }

    /// The devices start. One that fails to is that device's failure alone.
    pub fn start_devices(&self) {
        for device in &self.devices {
            if let Err(e) = device.start() {
                self.around.reports.failures.add(device.id(), &e.message);
            }
        }
    }

    /// The guest is about to stop, and runs meanwhile: the virtio backends stop first, so that a
    /// disk's last requests are finished while the vCPUs go on. What the guest asks of them from here
    /// on waits in the queues. [`Self::stop`] follows, and tells of errors.
    pub fn settle(&self) {
        let virtio = |device: &&MachineDevice| device.device_type().bus == BusClass::Virtio;
        self.devices
            .iter()
            .filter(virtio)
            .for_each(MachineDevice::settle);
        // The others only get a hint, as late as may be: their timers rest from here on.
        let others = self.devices.iter().filter(|device| !virtio(device));
        others.for_each(MachineDevice::settle);
    }

    /// The guest stops: vCPUs, then devices. With `save` the vCPUs' states are read on the way, for
    /// [`Self::save`]. Everything that can be stopped is, even after an error.
    pub fn stop(&mut self, save: bool) -> Result<(), HostError> {
        for vcpu in &self.vcpus {
            vcpu.stop(save);
        }
        self.stopped.clear();
        let mut outcome = Ok(());
        for vcpu in &self.vcpus {
            match vcpu.wait_stopped() {
                Ok(Some(state)) => self.stopped.push(state),
                Ok(None) => {}
                Err(e) => {
                    outcome = outcome.and(Err(format!("vCPU {}: {e}", vcpu.id()).into()));
                }
            }
        }
        for device in &self.devices {
            if let Err(e) = device.quiesce() {
                // That a broken device does not stop well is nothing new; only its state would miss.
                let known = self.around.reports.failures.get(device.id()).is_some();
                self.around.reports.failures.add(device.id(), &e.message);
                if save || !known {
                    outcome = outcome.and(Err(e.into()));
                }
            }
        }
        outcome
    }

    /// Power-on again, and boots anew. The guest does not run.
    pub fn reset(&mut self) -> Result<(), HostError> {
        self.power_cycle()?;
        self.hotplug.reset();
        self.boot()
    }

    /// Whether the guest sleeps (ACPI S3). It is known from the guest's last access on, before the
    /// vCPUs have been stopped.
    pub fn is_asleep(&self) -> bool {
        self.power.is_asleep()
    }

    /// When the sleeping guest's clock wakes it, if the guest lets it: RTC_EN.
    pub fn alarm(&self) -> Option<SystemTime> {
        if !self.power.takes_alarm() {
            return None;
        }
        let time = |device: &MachineDevice| {
            device.wake_time().unwrap_or_else(|e| {
                tracing::warn!("it will not wake the guest: {e}");
                None
            })
        };
        self.devices.iter().filter_map(time).min()
    }

    /// Where the sleeping guest would go on.
    ///
    /// # Errors
    ///
    /// It has left no address to go on at.
    pub fn waking_vector(&self) -> Result<WakingVector, HostError> {
        Ok(WakingVector::read(self.around.ram.memory())?)
    }

    /// Ends the guest's sleep: everything but RAM and time is as at power-on, and the first vCPU goes
    /// on at `vector`. The guest does not run yet.
    pub fn wake(&mut self, vector: WakingVector, source: WakeSource) -> Result<(), HostError> {
        let offsets = self.vcpus.iter().map(Vcpu::tsc_offset);
        let offsets = offsets.collect::<Result<Vec<_>, _>>()?;
        self.power_cycle()?;
        // ACPI leaves open what becomes of the time stamp counter; one that goes on is the kindest.
        for (vcpu, offset) in self.vcpus.iter().zip(offsets) {
            offset.map_or(Ok(()), |offset| vcpu.set_tsc_offset(offset))?;
        }
        pci::assign(&self.pci, PciWindows::new(self.around.ram.end()))?;
        self.prepare_vcpus(move |sregs| vector.apply(sregs), vector.regs())?;
        self.hotplug.wake();
        self.power.wake(source);
        Ok(())
    }

    /// Everything but RAM and time is as at power-on.
    fn power_cycle(&mut self) -> Result<(), HostError> {
        // What the vCPUs had when they stopped is nothing now.
        self.stopped.clear();
        for device in &self.devices {
            if let Err(e) = device.reset() {
                self.around.reports.failures.add(device.id(), &e.message);
            }
        }
        self.power.reset();
        sections::load_vcpus(&self.vcpus, &self.power_on.vcpus)?;
        Ok(self.power_on.controllers.load(&self.around.vm)?)
    }

    /// Tells a paravirtual guest that it was stopped for a while, so that its watchdogs keep calm.
    pub fn announce_pause(&self) {
        for vcpu in &self.vcpus {
            // A guest without the paravirtual clock gives an error that means just that.
            let _ = vcpu.with(|vcpu| vcpu.kvmclock_ctrl());
        }
    }

    /// Somebody presses the power button.
    pub fn press_power_button(&self) {
        self.power.press_power_button();
    }
}

/// Gives a vCPU at power-on what a firmware would.
fn prepare_vcpu(vcpu: &kvm_ioctls::VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let entries: Vec<_> = msrs::at_reset()
        .iter()
        .map(|&(index, data)| kvm_bindings::kvm_msr_entry {
            index,
            data,
            ..Default::default()
        })
        .collect();
    if let Ok(msrs) = kvm_bindings::Msrs::from_entries(&entries) {
        vcpu.set_msrs(&msrs)?;
    }
    Ok(())
}
