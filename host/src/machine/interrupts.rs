//! Interrupt routing: lines of the interrupt controllers, and MSI vectors wired to eventfds.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use baton_plugin_api::protocol::MsiMessage;
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry,
};
use kvm_ioctls::VmFd;
use nix::errno::Errno;
use vmm_sys_util::eventfd::EventFd;

use super::kvm::{KvmError, ioctl};
use super::layout::{FIRST_MSI_GSI, IOAPIC_PINS};

/// The routing table of a VM.
pub struct Interrupts {
    vm: Arc<VmFd>,
    table: Mutex<Table>,
}

struct Table {
    next: u32,
    /// GSIs that were used, and are not any more.
    free: Vec<u32>,
    /// What each MSI GSI sends.
    messages: BTreeMap<u32, MsiMessage>,
    /// Changes are collected while this is above zero.
    held: u32,
    changed: bool,
}

impl Interrupts {
    /// The routing of a new VM, with the lines of its controllers.
    pub fn new(vm: Arc<VmFd>) -> Result<Arc<Self>, KvmError> {
        let table = Table {
            next: FIRST_MSI_GSI,
            free: Vec::new(),
            messages: BTreeMap::new(),
            held: 0,
            changed: false,
        };
        let this = Arc::new(Self {
            vm,
            table: Mutex::new(table),
        });
        this.write(&this.lock())?;
        Ok(this)
    }

    /// An MSI vector that nothing else uses.
    pub fn vector(self: &Arc<Self>, event: EventFd) -> Vector {
        let mut table = self.lock();
        let gsi = table.free.pop().unwrap_or_else(|| {
            table.next += 1;
            table.next - 1
        });
        Vector {
            interrupts: Arc::clone(self),
            gsi,
            event,
            message: None,
            wired: false,
        }
    }

    /// Wires an eventfd to a line of the controllers, as an edge for each write.
    pub fn wire_line(&self, gsi: u32, event: &EventFd) -> Result<(), KvmError> {
        self.vm
            .register_irqfd(event, gsi)
            .map_err(ioctl("wire an interrupt line"))
    }

    /// Sets a level-triggered line of the controllers.
    pub fn set_line(&self, gsi: u32, level: bool) {
        if let Err(e) = self.vm.set_irq_line(gsi, level) {
            tracing::error!(gsi, "cannot set an interrupt line: {e}");
        }
    }

    /// Collects changes of routes until [`Self::release`], so that the kernel is told once: each
    /// time it waits until no vCPU looks at the old table.
    pub fn hold(&self) {
        self.lock().held += 1;
    }

    /// Ends what [`Self::hold`] began.
    pub fn release(&self) -> Result<(), KvmError> {
        let mut table = self.lock();
        table.held = table.held.saturating_sub(1);
        self.commit(&mut table)
    }

    fn set_message(&self, gsi: u32, message: MsiMessage) -> Result<(), KvmError> {
        let mut table = self.lock();
        if table.messages.insert(gsi, message) != Some(message) {
            table.changed = true;
        }
        self.commit(&mut table)
    }

    fn commit(&self, table: &mut Table) -> Result<(), KvmError> {
        if table.held > 0 || !table.changed {
            return Ok(());
        }
        self.write(table)?;
        table.changed = false;
        Ok(())
    }

    fn write(&self, table: &Table) -> Result<(), KvmError> {
        let msis = table
            .messages
            .iter()
            .map(|(&gsi, message)| msi_entry(gsi, message));
        let entries: Vec<_> = line_entries().chain(msis).collect();
        let routing = KvmIrqRouting::from_entries(&entries).map_err(|_| KvmError::Ioctl {
            what: "route that many interrupts",
            source: Errno::E2BIG,
        })?;
        self.vm
            .set_gsi_routing(&routing)
            .map_err(ioctl("set the interrupt routes"))
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The lines: ISA interrupts go to both controllers, as on a PC; the timer's is pin 2 of the I/O
/// APIC, which the MADT says too.
fn line_entries() -> impl Iterator<Item = kvm_irq_routing_entry> {
    let pic = (0..16).filter(|&gsi| gsi != 2).map(|gsi| {
        if gsi < 8 {
            line_entry(gsi, KVM_IRQCHIP_PIC_MASTER, gsi)
        } else {
            line_entry(gsi, KVM_IRQCHIP_PIC_SLAVE, gsi - 8)
        }
    });
    let ioapic = (0..IOAPIC_PINS)
        .filter(|&gsi| gsi != 2)
        .map(|gsi| line_entry(gsi, KVM_IRQCHIP_IOAPIC, if gsi == 0 { 2 } else { gsi }));
    pic.chain(ioapic)
}

fn line_entry(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        ..Default::default()
    };
    entry.u.irqchip.irqchip = irqchip;
    entry.u.irqchip.pin = pin;
    entry
}

fn msi_entry(gsi: u32, message: &MsiMessage) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    entry.u.msi.address_lo = message.address as u32;
    entry.u.msi.address_hi = (message.address >> 32) as u32;
    entry.u.msi.data = message.data;
    entry
}

/// An eventfd that sends an MSI message.
///
/// While it has no message (the guest has masked it) what is written to the eventfd stays there,
/// and is sent once it has one: that is the pending bit of MSI-X.
pub struct Vector {
    interrupts: Arc<Interrupts>,
    gsi: u32,
    event: EventFd,
    message: Option<MsiMessage>,
    wired: bool,
}

impl Vector {
    /// The eventfd.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// What the vector sends from now on, or nothing.
    pub fn set(&mut self, message: Option<MsiMessage>) -> Result<(), KvmError> {
        if self.message == message {
            return Ok(());
        }
        if let Some(message) = message {
            self.interrupts.set_message(self.gsi, message)?;
        }
        match (self.wired, message.is_some()) {
            (false, true) => self
                .interrupts
                .vm
                .register_irqfd(&self.event, self.gsi)
                .map_err(ioctl("wire an MSI vector"))?,
            (true, false) => self
                .interrupts
                .vm
                .unregister_irqfd(&self.event, self.gsi)
                .map_err(ioctl("unwire an MSI vector"))?,
            _ => {}
        }
        self.wired = message.is_some();
        self.message = message;
        Ok(())
    }

    /// Whether an interrupt waits for the vector to have a message.
    pub fn pending(&self) -> bool {
        !self.wired && crate::fd::readable(self.event.as_raw_fd())
    }
}

impl Drop for Vector {
    fn drop(&mut self) {
        if let Err(e) = self.set(None) {
            // Its GSI is not given to another, which would get its interrupts.
            tracing::debug!("while a vector ended: {e}");
            return;
        }
        let mut table = self.interrupts.lock();
        // The kernel forgets the route when it is told of others; until then nothing is wired to it.
        table.messages.remove(&self.gsi);
        table.free.push(self.gsi);
    }
}
