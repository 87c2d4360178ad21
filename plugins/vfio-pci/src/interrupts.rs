//! The device's interrupts, which signal the eventfds of the guest's vectors.

use baton_plugin_api::pci::{Enabled, Function};
use baton_plugin_api::{Result, tracing};

use crate::hardware::Hardware;
use crate::kernel::Irq;

/// What of the device's interrupts is switched on.
///
/// All vectors of a kind are, when the guest switches the kind on. One that it masks, or has not
/// programmed, is masked by the host, which gives its eventfd no route: what the device sends meanwhile
/// waits there, as the pending bit.
#[derive(Debug, Default)]
pub(crate) struct Interrupts(Option<Enabled>);

fn kind(enabled: Enabled) -> (Irq, u16) {
    match enabled {
        Enabled::Msix(vectors) => (Irq::Msix, vectors),
        Enabled::Msi(vectors) => (Irq::Msi, vectors),
    }
}

impl Interrupts {
    /// Those of a device that was handed over with this state are on already.
    pub(crate) fn are_on(&mut self, function: &Function) {
        self.0 = function.enabled();
    }

    /// Switches on and off what the guest has.
    pub(crate) fn follow(&mut self, hardware: &Hardware, function: &Function) -> Result<()> {
        let wanted = function.enabled();
        if self.0 == wanted {
            return Ok(());
        }
        self.off(hardware)?;
        self.bind(hardware, function)
    }

    /// Lets them signal this process's eventfds, whoever's they signalled before: what the device sends
    /// is not held up by that.
    pub(crate) fn bind(&mut self, hardware: &Hardware, function: &Function) -> Result<()> {
        let Some(enabled) = function.enabled() else {
            return Ok(());
        };
        let (irq, vectors) = kind(enabled);
        let events = &function.irqfds()[..usize::from(vectors)];
        let signal = hardware.set_irqs(irq, events)?;
        if signal < events.len() {
            tracing::warn!(
                "the host has {signal} interrupts for the {vectors} of {}",
                hardware.name()
            );
        }
        self.0 = Some(enabled);
        Ok(())
    }

    /// None signals any more.
    pub(crate) fn off(&mut self, hardware: &Hardware) -> Result<()> {
        if let Some(enabled) = self.0.take() {
            hardware.set_irqs(kind(enabled).0, &[])?;
        }
        Ok(())
    }
}
