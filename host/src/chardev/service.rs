//! The thread that moves bytes between character devices and their users.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::Shared;

/// Something to wait for. It stays open while it is waited for.
pub(super) type Watch = (Arc<dyn AsFd + Send + Sync>, PollFlags);

/// Makes the thread look again.
#[derive(Clone)]
pub(super) struct Wake(Arc<EventFd>);

impl Wake {
    pub(super) fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self(Arc::new(EventFd::from_value_and_flags(0, flags)?)))
    }

    pub(super) fn signal(&self) {
        // It fails only when the thread has been woken 2^64 times and has not looked yet.
        let _ = self.0.write(1);
    }
}

/// Starts it; it ends when nobody has the character devices any more.
pub(super) fn start(shared: &Arc<Shared>) -> io::Result<()> {
    let (wake, shared) = (shared.wake.clone(), Arc::downgrade(shared));
    let thread = std::thread::Builder::new().name("chardev".into());
    let body = move || {
        loop {
            let Some(all) = shared.upgrade() else { return };
            let (wish, watches, deadline) = {
                let mut state = all.state();
                state.pump();
                let (watches, deadline) = state.watches();
                (state.wish.take(), watches, deadline)
            };
            all.fulfil(wish);
            drop(all);
            wait(&wake, &watches, deadline);
        }
    };
    thread.spawn(body).map(drop)
}

/// Waits until something can be done, or for a short while.
pub(super) fn wait_a_moment(watches: &[Watch]) {
    let watches = watches.iter();
    let mut fds: Vec<_> = watches
        .map(|(fd, flags)| PollFd::new(fd.as_fd(), *flags))
        .collect();
    let _ = poll(&mut fds, PollTimeout::from(20u8));
}

fn wait(wake: &Wake, watches: &[Watch], deadline: Option<Instant>) {
    let timeout = deadline.map_or(PollTimeout::NONE, |at| {
        // Rounded up, so that it is not looked again and again for less than a millisecond.
        let ms = at
            .saturating_duration_since(Instant::now())
            .as_millis()
            .saturating_add(1);
        PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX)
    });
    let mut fds = vec![PollFd::new(wake.0.as_fd(), PollFlags::POLLIN)];
    let watches = watches.iter();
    fds.extend(watches.map(|(fd, flags)| PollFd::new(fd.as_fd(), *flags)));
    if let Err(e) = poll(&mut fds, timeout)
        && e != nix::errno::Errno::EINTR
    {
        tracing::error!("character devices cannot be waited for: {e}");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let _ = wake.0.read();
}
