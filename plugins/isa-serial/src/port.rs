//! The port: a chip between the guest and a character device. vCPUs and the device's thread share
//! it.

use std::io::ErrorKind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use baton_plugin_api::vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use baton_plugin_api::{Error, Readiness, Result, Stream, Waiter};

use crate::PORTS;
use crate::output::Output;
use crate::state::SerialSection;
use crate::uart::{FIFO, Uart};

/// How much room there must be again before the thread is woken to look for input: a system call
/// for every byte the guest reads would be many.
const ROOM_WORTH_WAKING: usize = FIFO / 2;

/// A serial port.
pub(crate) struct Port {
    shared: Mutex<Shared>,
    input: Option<Arc<Stream>>,
    output: Option<Arc<Stream>>,
    irq: EventFd,
    /// Makes the thread look again at what it waits for.
    wake: EventFd,
}

struct Shared {
    uart: Uart,
    output: Output,
    /// Input is over: the other end has closed it.
    at_end: bool,
    /// The thread does not wait for input, since there was no room for it.
    parked: bool,
}

impl Port {
    pub(crate) fn new(input: Option<Arc<Stream>>, output: Output, irq: EventFd) -> Result<Self> {
        let wake = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)
            .map_err(|e| Error::io("Cannot make an eventfd", &e))?;
        Ok(Self {
            input,
            output: output.stream().cloned(),
            shared: Mutex::new(Shared {
                uart: Uart::new(),
                output,
                at_end: false,
                parked: false,
            }),
            irq,
            wake,
        })
    }

    /// The guest reads registers: a wide access is several narrow ones.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        let mut shared = self.shared();
        for (register, byte) in (offset..PORTS).zip(data) {
            *byte = shared.uart.read(register as u8);
        }
        self.after_access(&mut shared);
    }

    /// The guest writes registers.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) {
        let mut shared = self.shared();
        let waited = shared.output.is_waiting();
        for (register, &byte) in (offset..PORTS).zip(data) {
            if let Some(sent) = shared.uart.write(register as u8, byte) {
                shared.output.send(sent);
            }
        }
        if !waited && shared.output.is_waiting() {
            self.wake();
        }
        self.after_access(&mut shared);
    }

    /// Back to power-on. What the guest has sent is on its way all the same.
    pub(crate) fn reset(&self) {
        self.shared().uart = Uart::new();
    }

    pub(crate) fn save(&self) -> SerialSection {
        SerialSection::new(&self.shared().uart)
    }

    /// Takes the registers; nothing waits to be sent.
    pub(crate) fn load(&self, uart: Uart) {
        let mut shared = self.shared();
        shared.uart = uart;
        shared.output.restore(Vec::new());
    }

    /// What waits to be sent.
    pub(crate) fn unsent(&self) -> Vec<u8> {
        self.shared().output.unsent()
    }

    pub(crate) fn load_unsent(&self, unsent: Vec<u8>) {
        self.shared().output.restore(unsent);
    }

    /// Whether anything can come in, or has to wait to go out.
    pub(crate) fn needs_thread(&self) -> bool {
        self.input.is_some() || self.output.as_ref().is_some_and(|o| !o.is_file())
    }

    /// The guest runs: it gets the interrupt that was pending where the state came from.
    pub(crate) fn start(&self) -> Result<()> {
        let mut shared = self.shared();
        shared.parked = false;
        if !self.needs_thread() {
            shared.output.drain();
        }
        if shared.uart.take_interrupt() {
            self.irq
                .write(1)
                .map_err(|e| Error::io("Cannot raise the interrupt", &e))?;
        }
        Ok(())
    }

    /// The guest has stopped, and so has the thread.
    pub(crate) fn quiesced(&self) {
        self.shared().output.tell_dropped();
    }

    /// The device's thread.
    pub(crate) fn serve(&self, waiter: &Waiter) -> Result<()> {
        loop {
            let (listen, send) = self.wanted();
            let input = self.input.as_deref().filter(|_| listen);
            let output = self.output.as_deref().filter(|_| send);
            let ready = waiter.wait([
                Some((&self.wake, Readiness::Readable)),
                input.map(|fd| (fd as _, Readiness::Readable)),
                output.map(|fd| (fd as _, Readiness::Writable)),
            ])?;
            let Some([woken, readable, writable]) = ready else {
                return Ok(());
            };
            if woken {
                // The state tells what there is to do.
                let _ = self.wake.read();
            }
            if writable {
                self.shared().output.drain();
            }
            if let (true, Some(input)) = (readable, input) {
                self.listen(input);
            }
        }
    }

    /// Whether to wait for input, and whether to wait to send.
    fn wanted(&self) -> (bool, bool) {
        let mut shared = self.shared();
        let room = shared.uart.room() > 0;
        shared.parked = !room;
        (room && !shared.at_end, shared.output.is_waiting())
    }

    fn listen(&self, input: &Stream) {
        let mut shared = self.shared();
        let mut bytes = [0; FIFO];
        let room = shared.uart.room();
        if room == 0 {
            return;
        }
        match input.read(&mut bytes[..room]) {
            Ok(0) => shared.at_end = true,
            Ok(n) => shared.uart.receive(&bytes[..n]),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            // A connection that was reset, a terminal that was hung up.
            Err(_) => shared.at_end = true,
        }
        self.after_access(&mut shared);
    }

    fn after_access(&self, shared: &mut Shared) {
        if shared.uart.take_interrupt() {
            // An eventfd fails only when nobody has taken from it 2^64 times.
            let _ = self.irq.write(1);
        }
        if shared.parked && shared.uart.room() >= ROOM_WORTH_WAKING {
            shared.parked = false;
            self.wake();
        }
    }

    fn wake(&self) {
        // As above; if it is that full the thread is awake.
        let _ = self.wake.write(1);
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        // A panic is caught and told further up; registers are valid at every point.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
impl Port {
    /// Whether input is waited for when there is room.
    pub(crate) fn waits_for_input(&self) -> bool {
        self.wanted().0
    }
}
