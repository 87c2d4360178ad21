//! A thread of a device, from `start` to `quiesce`.

use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::error::{Error, ErrorKind, Result};
use crate::fd::borrow;
use crate::host::Host;

/// A thread that lives between `start` and `quiesce`. Dropping it ends it too.
pub struct DeviceThread {
    thread: Option<JoinHandle<Result<()>>>,
    stop: EventFd,
}

/// What a thread waits for a descriptor to become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// It can be read, or is at its end.
    Readable,
    /// It can be written, or nobody reads it any more.
    Writable,
}

/// A descriptor to wait for, or nothing in its place.
pub type Watch<'a> = Option<(&'a dyn AsRawFd, Readiness)>;

/// How the thread sleeps.
pub struct Waiter {
    stop: EventFd,
}

impl DeviceThread {
    /// Starts a thread that runs `body` until [`Waiter::wait`] tells it to end.
    ///
    /// If `body` fails or panics, the host is told that the device is broken.
    pub fn spawn(
        name: &str,
        host: Host,
        body: impl FnOnce(&Waiter) -> Result<()> + Send + 'static,
    ) -> Result<Self> {
        let stop = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)
            .map_err(|e| Error::io("Cannot make an eventfd", &e))?;
        let waiter = Waiter {
            stop: stop
                .try_clone()
                .map_err(|e| Error::io("Cannot duplicate an eventfd", &e))?,
        };
        let thread = thread::Builder::new()
            // What the kernel keeps of a thread's name.
            .name(name.chars().take(15).collect())
            .spawn(move || {
                let outcome =
                    catch_unwind(AssertUnwindSafe(|| body(&waiter))).unwrap_or_else(|payload| {
                        // A payload's own destructor may panic again.
                        std::mem::forget(payload);
                        Err(Error::new(ErrorKind::Panicked, "Panicked in its thread"))
                    });
                if let Err(error) = &outcome {
                    host.failed(&error.message);
                }
                outcome
            })
            .map_err(|e| Error::io("Cannot start a thread", &e))?;
        Ok(Self {
            thread: Some(thread),
            stop,
        })
    }

    /// Tells the thread to end, and does not wait for it; [`Self::stop`] does.
    pub fn settle(&self) {
        // An eventfd takes as many signals as there are; only the first counts.
        let _ = self.stop.write(1);
    }

    /// Ends the thread, and tells what went wrong in it.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        self.stop
            .write(1)
            .map_err(|e| Error::io("Cannot signal a thread", &e))?;
        thread
            .join()
            .unwrap_or_else(|_| Err(Error::new(ErrorKind::Panicked, "Its thread panicked")))
    }
}

impl Drop for DeviceThread {
    fn drop(&mut self) {
        // The host has heard of an error in the thread already.
        let _ = self.end();
    }
}

impl Waiter {
    /// Sleeps until a descriptor is ready, and tells which are; `None` when the thread is to end.
    pub fn wait<const N: usize>(&self, watched: [Watch<'_>; N]) -> Result<Option<[bool; N]>> {
        let mut fds = Vec::with_capacity(N + 1);
        fds.push(PollFd::new(borrow(&self.stop), PollFlags::POLLIN));
        fds.extend(watched.iter().flatten().map(|(fd, readiness)| {
            let flags = match readiness {
                Readiness::Readable => PollFlags::POLLIN,
                Readiness::Writable => PollFlags::POLLOUT,
            };
            PollFd::new(borrow(*fd), flags)
        }));
        loop {
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) => break,
                Err(Errno::EINTR) => {}
                Err(e) => return Err(Error::io("Cannot wait for a descriptor", &e.into())),
            }
        }
        let mut ready = fds.iter().map(|fd| fd.any().unwrap_or(true));
        if ready.next() == Some(true) {
            return Ok(None);
        }
        Ok(Some(watched.map(|watch| {
            watch.is_some() && ready.next() == Some(true)
        })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestHost;

    fn eventfd() -> EventFd {
        EventFd::new(EFD_NONBLOCK).unwrap()
    }

    #[test]
    fn a_thread_hears_of_the_descriptor_that_is_ready_and_of_its_end() {
        let (quiet, loud, heard) = (eventfd(), eventfd(), TestHost::new());
        let (tell, told) = std::sync::mpsc::channel();
        let rung = loud.try_clone().unwrap();
        let thread = DeviceThread::spawn("test", heard.host(), move |waiter| {
            while let Some(ready) = waiter.wait([
                Some((&quiet, Readiness::Readable)),
                None,
                Some((&rung, Readiness::Readable)),
            ])? {
                let _ = rung.read();
                tell.send(ready).unwrap();
            }
            Ok(())
        })
        .unwrap();
        loud.write(1).unwrap();
        assert_eq!(
            told.recv_timeout(crate::testing::DEADLINE),
            Ok([false, false, true])
        );
        thread.stop().unwrap();
        assert_eq!(heard.failures(), Vec::<String>::new());
    }

    #[test]
    fn a_thread_that_panics_makes_the_device_a_broken_one() {
        let host = TestHost::new();
        let thread = DeviceThread::spawn("test", host.host(), |_| panic!("no more")).unwrap();
        assert_eq!(thread.stop().unwrap_err().kind, ErrorKind::Panicked);
        assert_eq!(host.failures(), ["Panicked in its thread"]);
    }

    #[test]
    fn a_thread_that_is_told_to_settle_ends_before_it_is_stopped() {
        let (tell, told) = std::sync::mpsc::channel();
        let thread = DeviceThread::spawn("test", TestHost::new().host(), move |waiter| {
            let ended = waiter.wait([])?.is_none();
            tell.send(ended).unwrap();
            Ok(())
        })
        .unwrap();
        thread.settle();
        assert_eq!(told.recv_timeout(crate::testing::DEADLINE), Ok(true));
        thread.stop().unwrap();
    }

    #[test]
    fn a_thread_that_is_dropped_ends() {
        let alive = std::sync::Arc::new(());
        let inside = alive.clone();
        let thread = DeviceThread::spawn("test", TestHost::new().host(), move |waiter| {
            let _inside = inside;
            waiter.wait([]).map(drop)
        })
        .unwrap();
        drop(thread);
        assert_eq!(std::sync::Arc::strong_count(&alive), 1);
    }
}
