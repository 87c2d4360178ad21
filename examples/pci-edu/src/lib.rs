//! A PCI function to learn from: the educational device of QEMU's `docs/specs/edu`.
//!
//! It inverts a number at once, computes factorials and copies memory in a thread of its own, and
//! interrupts by MSI-X (QEMU's does by MSI or a line).

mod registers;
mod state;

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use baton_plugin_api::pci::{BarKind, ConfigSpace, Function, Identity, MsixPlace};
use baton_plugin_api::vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use baton_plugin_api::{
    BusClass, Config, Device, DeviceThread, DeviceType, Error, GuestRam, Host, PciDevice, PciInfo,
    Readiness, Result, Section, Waiter, no_such_section, tracing, wire,
};

use registers::{Effect, Registers, Work};
use state::EduSection;

baton_plugin_api::export_plugin! {
    description: "A PCI function to learn from",
    devices: [pci Edu],
}

const SECTION: &str = "edu";
const IDENTITY: Identity = Identity {
    vendor: 0x1234,
    device: 0x11e8,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
    // "Unclassified".
    class: 0x00ff00,
    revision: 0x10,
};
const REGISTERS_BAR: u32 = 0;
const REGISTERS_SIZE: u64 = 1 << 20;
const MSIX: MsixPlace = MsixPlace {
    vectors: 1,
    bar: 1,
    table: 0,
    pending: 0x800,
};
const MSIX_SIZE: u64 = 0x1000;

struct Edu {
    id: String,
    host: Host,
    shared: Option<Arc<Shared>>,
    thread: Option<DeviceThread>,
}

/// What the vCPUs and the thread share.
struct Shared {
    inner: Mutex<Inner>,
    /// There is work for the thread.
    wake: EventFd,
}

struct Inner {
    function: Function,
    registers: Registers,
}

impl Device for Edu {
    fn device_type() -> DeviceType {
        DeviceType {
            sections: vec![Section::new(SECTION, 1, 1)],
            ..DeviceType::new("edu", BusClass::Pci, "Educational device")
        }
    }

    fn create(config: Config, host: Host) -> Result<Self> {
        Ok(Self {
            id: config.id,
            host,
            shared: None,
            thread: None,
        })
    }

    fn realize(&mut self) -> Result<()> {
        let mut config = ConfigSpace::new(IDENTITY);
        config.add_bar(REGISTERS_BAR as usize, BarKind::Memory32, REGISTERS_SIZE)?;
        config.add_bar(usize::from(MSIX.bar), BarKind::Memory32, MSIX_SIZE)?;
        let function = Function::new(self.host.clone(), config, Some(MSIX))?;
        let wake = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)
            .map_err(|e| Error::io("Cannot make an eventfd", &e))?;
        let registers = Registers::default();
        let inner = Mutex::new(Inner {
            function,
            registers,
        });
        self.shared = Some(Arc::new(Shared { inner, wake }));
        Ok(())
    }

    fn reset(&mut self) -> Result<()> {
        let mut inner = self.shared()?.lock();
        inner.function.reset();
        inner.registers = Registers::default();
        Ok(())
    }

    fn save(&mut self, section: &str) -> Result<Vec<u8>> {
        if section != SECTION {
            return Err(no_such_section(section));
        }
        let inner = self.shared()?.lock();
        wire::encode(&EduSection::new(&inner.function, &inner.registers))
    }

    fn load(&mut self, section: &str, _version: u32, data: &[u8]) -> Result<()> {
        if section != SECTION {
            return Err(no_such_section(section));
        }
        let section: EduSection = wire::decode("the device's state", data)?;
        let (function, registers) = section.checked()?;
        let mut inner = self.shared()?.lock();
        inner.function.load(&function)?;
        inner.registers = registers;
        Ok(())
    }
}

impl PciDevice for Edu {
    fn pci(&self) -> PciInfo {
        self.shared
            .as_ref()
            .map_or_else(PciInfo::default, |s| s.lock().function.info())
    }

    fn read(&mut self, region: u32, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let Some(shared) = &self.shared else {
            return;
        };
        let inner = shared.lock();
        if !inner.function.read(region, offset, data) && region == REGISTERS_BAR {
            inner.registers.read(offset, data);
        }
    }

    fn write(&mut self, region: u32, offset: u64, data: &[u8]) {
        let Some(shared) = &self.shared else {
            return;
        };
        let mut inner = shared.lock();
        if inner.function.write(region, offset, data) || region != REGISTERS_BAR {
            return;
        }
        let effect = inner.registers.write(offset, data);
        if let Err(error) = shared.take_effect(&inner, effect) {
            self.host.failed(&error.message);
        }
    }

    fn start(&mut self, memory: GuestRam) -> Result<()> {
        let shared = self.shared()?.clone();
        // Whether the last interrupt arrived where the state came from nobody knows, and work may
        // have been left: both are looked at once more.
        let pending = shared.lock().registers.interrupts != 0;
        if pending {
            shared.take_effect(&shared.lock(), Effect::Interrupt)?;
        }
        shared.take_effect(&shared.lock(), Effect::Work)?;
        let body = move |waiter: &_| shared.serve(waiter, &memory);
        self.thread = Some(DeviceThread::spawn(&self.id, self.host.clone(), body)?);
        Ok(())
    }

    fn quiesce(&mut self) -> Result<()> {
        self.thread.take().map_or(Ok(()), DeviceThread::stop)
    }
}

impl Edu {
    fn shared(&self) -> Result<&Arc<Shared>> {
        self.shared
            .as_ref()
            .ok_or_else(|| Error::state("It is not realized"))
    }
}

impl Shared {
    /// The device's thread. Work is done without the lock, so that the guest can read registers
    /// meanwhile.
    fn serve(&self, waiter: &Waiter, memory: &GuestRam) -> Result<()> {
        while waiter
            .wait([Some((&self.wake, Readiness::Readable))])?
            .is_some()
        {
            // The registers tell what there is to do.
            let _ = self.wake.read();
            while let Some(work) = self.next_work() {
                let done = work.run(memory);
                let mut inner = self.lock();
                let effect = inner.registers.done(done);
                self.take_effect(&inner, effect)?;
            }
        }
        Ok(())
    }

    fn next_work(&self) -> Option<Work> {
        self.lock().registers.work().unwrap_or_else(|error| {
            tracing::warn!("{error}");
            None
        })
    }

    fn take_effect(&self, inner: &Inner, effect: Effect) -> Result<()> {
        match effect {
            Effect::Nothing => Ok(()),
            Effect::Interrupt => inner.function.interrupt(0),
            Effect::Work => {
                let wake = self.wake.write(1);
                wake.map_err(|e| Error::io("Cannot wake the thread", &e))
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic is caught and told further up; registers are valid at every point.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
