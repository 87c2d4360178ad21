//! The device's thread: what the host says of the device while the guest runs.

use baton_plugin_api::vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use baton_plugin_api::{DeviceThread, Error, Host, Readiness, Result, Waiter, Watch as Watched};

use crate::hardware::Hardware;
use crate::kernel::Irq;

/// A level of [`Host::log`].
pub(crate) const WARNING: u32 = 2;

/// Signalled by the kernel: VFIO_PCI_ERR_IRQ_INDEX and VFIO_PCI_REQ_IRQ_INDEX.
pub(crate) struct Watch {
    error: Option<EventFd>,
    request: Option<EventFd>,
}

impl Watch {
    /// For what of it the device has.
    pub(crate) fn new(hardware: &Hardware) -> Result<Self> {
        let event = |kind| {
            if hardware.irqs(kind)? == 0 {
                return Ok(None);
            }
            EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)
                .map(Some)
                .map_err(|e| Error::io("Cannot make an eventfd", &e))
        };
        Ok(Self {
            error: event(Irq::Error)?,
            request: event(Irq::Request)?,
        })
    }

    /// Starts the thread, if there is anything to hear of.
    pub(crate) fn start(
        &self,
        id: &str,
        host: &Host,
        hardware: &Hardware,
    ) -> Result<Option<DeviceThread>> {
        if self.error.is_none() && self.request.is_none() {
            return Ok(None);
        }
        let hear = |event: &Option<EventFd>, kind| {
            let Some(event) = event else {
                return Ok(None);
            };
            hardware.set_irqs(kind, std::slice::from_ref(event))?;
            event
                .try_clone()
                .map(Some)
                .map_err(|e| Error::io("Cannot duplicate an eventfd", &e))
        };
        let error = hear(&self.error, Irq::Error)?;
        let request = hear(&self.request, Irq::Request)?;
        let (wanted, to) = (wanted(id, hardware.name()), host.clone());
        let broken = format!(
            "The hardware of {} reports an error that it cannot recover from",
            hardware.name()
        );
        let body = move |waiter: &Waiter| {
            loop {
                let Some([failed, requested]) =
                    waiter.wait([watched(&error), watched(&request)])?
                else {
                    return Ok(());
                };
                if failed && taken(&error) {
                    to.failed(&broken);
                }
                if requested && taken(&request) {
                    to.log(WARNING, module_path!(), &wanted);
                }
            }
        };
        DeviceThread::spawn(id, host.clone(), body).map(Some)
    }
}

fn watched(event: &Option<EventFd>) -> Watched<'_> {
    let event = event.as_ref()?;
    Some((event, Readiness::Readable))
}

/// Whether it was signalled, and is not any more.
fn taken(event: &Option<EventFd>) -> bool {
    event.as_ref().is_some_and(|event| event.read().is_ok())
}

fn wanted(id: &str, name: &str) -> String {
    format!("The host wants {name} back and waits for it: device_del {id}, or end the guest")
}
