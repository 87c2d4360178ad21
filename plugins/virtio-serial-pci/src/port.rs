//! One port: a queue each way, and a character device at the other end.

use std::io::ErrorKind;
use std::sync::Arc;

use baton_plugin_api::virtio_queue::desc::split::Descriptor;
use baton_plugin_api::vm_memory::{Address, Bytes};
use baton_plugin_api::{Direction, Error, GuestRam, Host, Result, Stream, VirtQueue};

/// The queue that brings the guest input of port `number` (VIRTIO 1.3 section 5.3.2).
pub(crate) fn receive_queue(number: u32) -> u16 {
    match number {
        0 => 0,
        n => 2 * n as u16 + 2,
    }
}

/// The port whose queue this is, and whether it brings the guest input; not of the two in between,
/// which are for control messages.
pub(crate) fn port_of(queue: u16) -> (u32, bool) {
    let number = match queue / 2 {
        0 => 0,
        n => u32::from(n) - 1,
    };
    (number, queue.is_multiple_of(2))
}

/// How much goes through at once, in bytes: a device that stops waits for no more than this.
const TURN: usize = 256 << 10;
/// How much a system call moves.
const CHUNK: usize = 4 << 10;

/// A port.
#[derive(Default)]
pub(crate) struct Port {
    /// The child's id.
    pub(crate) id: String,
    pub(crate) number: u32,
    /// Whether the number was said, and not chosen.
    pub(crate) fixed: bool,
    /// What the guest finds it by, if not empty.
    pub(crate) name: String,
    pub(crate) console: bool,
    /// The character device, if there is one.
    pub(crate) chardev: Option<String>,
    pub(crate) input: Option<Arc<Stream>>,
    pub(crate) output: Option<Arc<Stream>>,
    /// A program in the guest has opened it.
    pub(crate) open: bool,
    /// What the host was told of that.
    pub(crate) told: bool,
    /// How much of the first buffer that waits to be sent has been sent.
    pub(crate) sent: u32,
    /// There is no more input.
    pub(crate) at_end: bool,
}

impl Port {
    /// Gets its ends of the character device.
    pub(crate) fn connect(&mut self, host: &Host) -> Result<()> {
        let Some(id) = &self.chardev else {
            return Ok(());
        };
        let found = host.chardev(id)?;
        let stream = |fd: Option<_>, direction| {
            fd.map(|fd| Stream::new(fd, direction).map(Arc::new))
                .transpose()
                .map_err(|e| Error::io(format!("Cannot use chardev '{id}'"), &e))
        };
        self.input = stream(found.input, Direction::Input)?;
        self.output = stream(found.output, Direction::Output)?;
        Ok(())
    }

    /// Tells the host whether the guest has it open, if that has changed.
    pub(crate) fn tell(&mut self, host: &Host) -> Result<()> {
        if self.told != self.open {
            host.guest_opened(&self.id, self.open)?;
            self.told = self.open;
        }
        Ok(())
    }

    /// Gives the guest of the input what it has buffers for. True when there may be more to give.
    pub(crate) fn receive(&mut self, queue: &mut VirtQueue, memory: &GuestRam) -> Result<bool> {
        let (Some(input), false) = (&self.input, self.at_end) else {
            return Ok(false);
        };
        let mut bytes = [0; CHUNK];
        let mut given = 0;
        let more = loop {
            if given >= TURN {
                break true;
            }
            let Some(chain) = queue.pop(memory)? else {
                break false;
            };
            let head = chain.head_index();
            let buffers: Vec<_> = chain.writable().collect();
            let room = buffers.iter().map(|b| b.len() as usize).sum::<usize>();
            if room == 0 {
                queue.complete(memory, head, 0)?;
                // So that a driver that gives back such buffers again and again is no endless loop.
                given += CHUNK;
                continue;
            }
            match input.read(&mut bytes[..room.min(CHUNK)]) {
                Ok(n) if n > 0 => {
                    let written = scatter(memory, &buffers, &bytes[..n]);
                    queue.complete(memory, head, written)?;
                    given += n;
                    continue;
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                // The end, a connection that was reset, a terminal that was hung up.
                _ => self.at_end = true,
            }
            queue.undo_pop();
            break false;
        };
        if given > 0 {
            queue.notify(memory)?;
        }
        Ok(more)
    }

    /// Sends what the guest has written, as far as the other end takes it now; what nobody can take
    /// is dropped. True when there may be more to send that would be taken.
    pub(crate) fn transmit(&mut self, queue: &mut VirtQueue, memory: &GuestRam) -> Result<bool> {
        let mut left = TURN;
        let mut done = false;
        let more = loop {
            if left == 0 {
                break true;
            }
            let Some(chain) = queue.pop(memory)? else {
                break false;
            };
            let head = chain.head_index();
            let buffers: Vec<_> = chain.readable().collect();
            match self.send(memory, &buffers, &mut left) {
                Sent::Whole => {
                    self.sent = 0;
                    queue.complete(memory, head, 0)?;
                    done = true;
                    // As above.
                    left = left.saturating_sub(1);
                }
                Sent::TurnIsOver => {
                    queue.undo_pop();
                    break true;
                }
                Sent::IsFull => {
                    queue.undo_pop();
                    break false;
                }
            }
        };
        if done {
            queue.notify(memory)?;
        }
        Ok(more)
    }

    /// Sends the rest of these buffers.
    fn send(&mut self, memory: &GuestRam, buffers: &[Descriptor], left: &mut usize) -> Sent {
        let Some(output) = &self.output else {
            return Sent::Whole;
        };
        let mut skip = self.sent;
        let mut bytes = [0; CHUNK];
        for buffer in buffers {
            let mut at = skip.min(buffer.len());
            skip -= at;
            while at < buffer.len() {
                if *left == 0 {
                    return Sent::TurnIsOver;
                }
                let wanted = (buffer.len() - at).min(CHUNK as u32) as usize;
                let chunk = &mut bytes[..wanted.min(*left)];
                let from = buffer.addr().checked_add(u64::from(at));
                let read = from.map(|from| memory.read_slice(chunk, from));
                let Some(Ok(())) = read else {
                    // The driver named an address that is no memory.
                    return Sent::Whole;
                };
                match output.write(chunk) {
                    Ok(n) => {
                        at += n as u32;
                        self.sent += n as u32;
                        *left -= n;
                    }
                    Err(e) if e.kind() == ErrorKind::WouldBlock => return Sent::IsFull,
                    // A pipe with no reader, a full disk: it will not get better by trying again.
                    Err(_) => return Sent::Whole,
                }
            }
        }
        Sent::Whole
    }
}

enum Sent {
    /// All of it, or what is left can never be sent.
    Whole,
    /// The other end takes no more now.
    IsFull,
    /// Somebody else's turn.
    TurnIsOver,
}

/// Writes `bytes` into the buffers of a driver; how many were written. It ends early at an address
/// that is no memory.
pub(crate) fn scatter(memory: &GuestRam, buffers: &[Descriptor], mut bytes: &[u8]) -> u32 {
    let mut written = 0;
    for buffer in buffers {
        let (now, later) = bytes.split_at(bytes.len().min(buffer.len() as usize));
        if memory.write_slice(now, buffer.addr()).is_err() {
            break;
        }
        written += now.len() as u32;
        bytes = later;
    }
    written
}
