//! Moves bytes between the outer end of a character device and its users.
//!
//! Nothing waits for anybody: what one side does not take stays with the other, in the kernel's
//! buffers, until these are full and whoever fills them has to deal with that. A device has a buffer
//! for it and drops more, so that the guest goes on.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use nix::poll::PollFlags;

use super::carried::{Carried, carrier};
use super::frontend::Frontend;
use super::link::Link;
use super::mux::{Key, Mux};
use super::ring::Ring;
use super::service::{Wake, Watch};

/// How much is moved at once.
pub(super) const CHUNK: usize = 4096;
/// How often, before others have their turn.
const ROUNDS: usize = 64;
/// The most text of a multiplexer that waits: help that nobody reads.
pub(super) const AHEAD_MAX: usize = 4096;

/// A character device whose bytes are moved.
pub(super) struct Relay {
    pub(super) link: Link,
    /// Its users, in the order in which a multiplexer switches.
    pub(super) frontends: Vec<Frontend>,
    mux: Option<Mux>,
    /// The user who gets the input, if somebody has chosen.
    focus: Option<usize>,
    /// Input on its way to a user.
    input: VecDeque<u8>,
    input_ended: bool,
    /// Text that comes before all other output.
    ahead: VecDeque<u8>,
    /// The other end was full.
    full: bool,
    /// Another process may be moving the same bytes: this one does not.
    pub(super) held: bool,
    /// What the rest of the state is carried in.
    carrier: Option<File>,
}

/// Takes the monitor's end of a session that begins: the monitor's number, and whether it is a
/// terminal that sends keys as they are struck. Tells whether it is served.
pub(super) type Begin<'a> = &'a dyn Fn(usize, UnixStream, bool) -> bool;

/// What a person at the keys wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// The process shall end.
    Exit,
}

impl Relay {
    pub(super) fn new(link: Link, mux: bool) -> Self {
        Self {
            link,
            frontends: Vec::new(),
            mux: mux.then(Mux::default),
            focus: None,
            input: VecDeque::new(),
            input_ended: false,
            ahead: VecDeque::new(),
            full: false,
            held: false,
            carrier: None,
        }
    }

    /// Moves what can be moved now.
    pub(super) fn pump(
        &mut self,
        now: Instant,
        frozen: bool,
        wake: &Wake,
        begin: Option<Begin<'_>>,
    ) -> Option<Wish> {
        if self.held {
            return None;
        }
        self.link.advance(now, frozen, wake);
        self.begin_sessions(begin);
        self.send(now);
        let mut wish = self.receive(now);
        // A key may have chosen a monitor, for which there is more.
        while wish.is_none() && self.begin_sessions(begin) {
            wish = self.receive(now);
        }
        if !self.listens() && self.link.was_left() {
            self.close(now);
        }
        wish
    }

    /// Lets a session of each monitor begin that has somebody to talk to; tells whether one did.
    fn begin_sessions(&mut self, begin: Option<Begin<'_>>) -> bool {
        let (Some(begin), true) = (begin, self.link.is_open()) else {
            return false;
        };
        let mut any = false;
        let keys = self.link.sends_keys();
        let all = 0..self.frontends.len();
        let turn = match self.mux {
            Some(_) => self.focused()..(self.focused() + 1).min(all.end),
            None => all,
        };
        for frontend in &mut self.frontends[turn] {
            if let (Some(number), true) = (frontend.monitor, frontend.wants_session()) {
                match frontend.begin() {
                    Ok(far) => match begin(number, far, keys) {
                        true => any = true,
                        // Nobody serves just now: whoever does tells us.
                        false => frontend.end(false),
                    },
                    Err(e) => tracing::error!("a monitor cannot be reached: {e}"),
                }
            }
        }
        any
    }

    /// From the users to the other end.
    pub(super) fn send(&mut self, now: Instant) {
        self.full = false;
        let mut buffer = [0; CHUNK];
        for _ in 0..ROUNDS {
            let mut moved = false;
            for at in 0..self.frontends.len() {
                if !self.send_ahead(now) {
                    return;
                }
                let Ok(seen) = self.frontends[at].peek(&mut buffer) else {
                    continue;
                };
                if seen == 0 {
                    self.frontends[at].end(true);
                    continue;
                }
                let Some(sent) = self.send_some(&buffer[..seen], now) else {
                    return;
                };
                if let Err(e) = self.frontends[at].take(sent) {
                    tracing::error!("output is doubled: {e}");
                }
                moved = true;
            }
            if !moved {
                self.send_ahead(now);
                return;
            }
        }
    }

    /// Sends the text that comes first; false if not all of it could be.
    fn send_ahead(&mut self, now: Instant) -> bool {
        if !self.link.is_open() {
            self.ahead.clear();
        }
        while !self.ahead.is_empty() {
            match self.link.write(self.ahead.as_slices().0) {
                Ok(sent) => drop(self.ahead.drain(..sent)),
                Err(e) => {
                    self.failed(&e, now);
                    return !self.full;
                }
            }
        }
        true
    }

    /// Sends some of what a user has written: nothing if nothing can be sent now.
    fn send_some(&mut self, bytes: &[u8], now: Instant) -> Option<usize> {
        if !self.link.is_open() {
            return Some(bytes.len());
        }
        let (stamp, whole) = match &mut self.mux {
            Some(mux) => mux.cut(bytes, now),
            None => (None, bytes.len()),
        };
        if let Some(stamp) = stamp {
            self.ahead.extend(stamp.bytes());
            if !self.send_ahead(now) {
                return None;
            }
        }
        match self.link.write(&bytes[..whole]) {
            Ok(sent) => {
                if let Some(mux) = &mut self.mux {
                    mux.written(&bytes[..sent]);
                }
                Some(sent)
            }
            Err(e) => {
                self.failed(&e, now);
                // What nobody can take is gone, as for nobody at all.
                (!self.full).then_some(bytes.len())
            }
        }
    }

    fn failed(&mut self, error: &io::Error, now: Instant) {
        if error.kind() == ErrorKind::WouldBlock {
            self.full = true;
        } else {
            tracing::debug!("the other end of a character device is gone: {error}");
            self.ahead.clear();
            if self.link.comes_and_goes() {
                self.close(now);
            }
        }
    }

    /// There is no more input from whoever is at the other end.
    fn close(&mut self, now: Instant) {
        self.link.close(now);
        self.input_ended = !self.link.comes_and_goes();
        if let Some(mux) = &mut self.mux {
            mux.escape = false;
        }
        if self.link.comes_and_goes() {
            self.frontends.iter_mut().for_each(|f| f.end(false));
        }
    }

    /// From the other end to the user whose turn it is.
    fn receive(&mut self, now: Instant) -> Option<Wish> {
        let mut buffer = [0; CHUNK];
        for _ in 0..ROUNDS {
            let wish = self.deliver();
            if wish.is_some() {
                return wish;
            }
            if !self.listens() {
                return None;
            }
            match self.link.read(&mut buffer) {
                Ok(0) => self.close(now),
                Ok(read) => self.input.extend(&buffer[..read]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return None,
                Err(_) => self.close(now),
            }
        }
        self.deliver()
    }

    /// Whether there is anybody for more input.
    fn listens(&self) -> bool {
        self.input.is_empty()
            && !self.input_ended
            && self.link.is_open()
            && (self.mux.is_some() || self.frontends.iter().any(|f| !f.wants_session()))
    }

    /// Gives the user what has come, and finds the orders in it.
    fn deliver(&mut self) -> Option<Wish> {
        while !self.input.is_empty() {
            let plain = match &self.mux {
                Some(mux) if mux.escape => Some(0),
                Some(_) => self.input.iter().position(|b| *b == 1),
                None => None,
            };
            let plain = plain.unwrap_or(self.input.len());
            if plain > 0 {
                let (first, _) = self.input.as_slices();
                let bytes = &first[..plain.min(first.len())];
                let given = match self.frontends.get(self.focused()) {
                    Some(user) if user.wants_session() => Err(ErrorKind::WouldBlock.into()),
                    Some(user) => user.give(bytes),
                    None => Ok(bytes.len()),
                };
                match given {
                    Ok(given) => drop(self.input.drain(..given)),
                    Err(e) if e.kind() == ErrorKind::WouldBlock => return None,
                    Err(e) => {
                        tracing::debug!("the user of a character device is gone: {e}");
                        self.input.clear();
                    }
                }
                continue;
            }
            let key = self.input.pop_front().unwrap_or_default();
            match self.mux.as_mut().map(|mux| mux.press(key)) {
                Some(Key::Input(key)) => {
                    // The escape itself, as input: there is room for a byte or it waits again.
                    let given = match self.frontends.get(self.focused()) {
                        Some(user) => user.give(&[key]),
                        None => Ok(1),
                    };
                    if given.is_err_and(|e| e.kind() == ErrorKind::WouldBlock) {
                        self.input.push_front(key);
                        if let Some(mux) = &mut self.mux {
                            mux.escape = true;
                        }
                        return None;
                    }
                }
                Some(Key::Say(text)) if self.ahead.len() + text.len() <= AHEAD_MAX => {
                    self.ahead.extend(text.bytes());
                }
                Some(Key::Switch) if !self.frontends.is_empty() => {
                    let next = (self.focused() + 1) % self.frontends.len();
                    self.focus = Some(next);
                    self.frontends[next].renew();
                }
                Some(Key::Exit) => return Some(Wish::Exit),
                _ => {}
            }
        }
        None
    }

    /// The user who gets the input: before anybody chooses, the first device.
    fn focused(&self) -> usize {
        let device = |frontend: &Frontend| frontend.monitor.is_none();
        let first = || self.frontends.iter().position(device).unwrap_or(0);
        self.focus.unwrap_or_else(first)
    }

    /// Adds what to wait for.
    pub(super) fn watch(&self, frozen: bool, watches: &mut Vec<Watch>) {
        if self.held {
            return;
        }
        let full = self.full || !self.ahead.is_empty();
        self.link.watch(self.listens(), full, frozen, watches);
        if !self.full {
            let near = self.frontends.iter().filter_map(Frontend::near);
            watches.extend(near.map(|near| (Arc::clone(near) as _, PollFlags::POLLIN)));
        }
        if let Some(near) = self.frontends.get(self.focused()).and_then(Frontend::near)
            && !self.input.is_empty()
        {
            watches.push((Arc::clone(near) as _, PollFlags::POLLOUT));
        }
    }

    /// When to look again without being told.
    pub(super) fn deadline(&self, frozen: bool) -> Option<Instant> {
        match self.held {
            true => None,
            false => self.link.deadline(frozen),
        }
    }

    /// Adds a user.
    pub(super) fn attach(&mut self, frontend: Frontend) {
        self.frontends.push(frontend);
    }

    /// A user is gone; what it has written still goes out if there is room.
    pub(super) fn detach(&mut self, user: &str, now: Instant) {
        if !self.held {
            self.send(now);
        }
        let Some(at) = self.frontends.iter().position(|f| f.user == user) else {
            return;
        };
        self.frontends.remove(at);
        if at == self.focused() {
            self.input.clear();
        }
        self.focus = self.focus.filter(|focus| *focus != at);
        if let Some(focus) = self.focus.as_mut().filter(|focus| **focus > at) {
            *focus -= 1;
        }
    }

    /// The ring buffer, if that is what it is.
    pub(super) fn ring(&mut self) -> Option<&mut Ring> {
        match &mut self.link {
            Link::Ring(ring) => Some(ring),
            _ => None,
        }
    }

    /// Whether something waits that could still go out.
    pub(super) fn has_output(&self) -> bool {
        self.full && self.link.is_open() && !self.held
    }

    /// A descriptor of what the state is carried in, for another process.
    pub(super) fn carrier(&mut self) -> io::Result<OwnedFd> {
        let file = match self.carrier.take() {
            Some(file) => file,
            None => carrier()?,
        };
        let copy = file.try_clone();
        self.carrier = Some(file);
        copy.map(OwnedFd::from)
    }

    /// What another process will carry its state in.
    pub(super) fn inherit(&mut self, carrier: OwnedFd) {
        self.carrier = Some(carrier.into());
    }

    /// Moves nothing any more, and writes down where everything stands.
    pub(super) fn hold(&mut self) -> Result<(), String> {
        self.held = true;
        let Some(file) = &self.carrier else {
            return Ok(());
        };
        let bytes = |of: &VecDeque<u8>| of.iter().copied().collect::<Vec<u8>>().into();
        let user = |at: usize| self.frontends.get(at).map(|f| f.user.clone());
        let carried = Carried {
            input: bytes(&self.input),
            ahead: bytes(&self.ahead),
            input_ended: self.input_ended,
            focus: self.focus.and_then(user),
            escape: self.mux.as_ref().is_some_and(|mux| mux.escape),
            timestamps: self.mux.as_ref().is_some_and(Mux::stamps),
            ring: match &self.link {
                Link::Ring(ring) => ring.bytes().into(),
                _ => Vec::new().into(),
            },
            path: match &self.link {
                Link::Socket(socket) => socket.identity(),
                _ => None,
            },
        };
        carried.write(file)
    }

    /// Goes on where another process stopped, once it may.
    pub(super) fn load(&mut self, ring_max: usize) -> Result<(), String> {
        let Some(file) = &self.carrier else {
            return Ok(());
        };
        let carried = Carried::read(file, ring_max)?;
        if !carried.ahead.is_empty() && self.mux.is_none() {
            return Err("its state is that of a multiplexer; say mux=on".to_owned());
        }
        self.input = carried.input.into_vec().into();
        self.ahead = carried.ahead.into_vec().into();
        // Each process's own standard input has an end of its own.
        self.input_ended = carried.input_ended && self.link.comes_and_goes();
        let user = |name: &String| self.frontends.iter().position(|f| f.user == *name);
        self.focus = carried.focus.as_ref().and_then(user);
        if let Some(mux) = &mut self.mux {
            mux.escape = carried.escape;
            mux.set_stamps(carried.timestamps);
        }
        match &mut self.link {
            Link::Ring(ring) => ring.push(&carried.ring),
            Link::Socket(socket) => {
                carried
                    .path
                    .into_iter()
                    .for_each(|id| socket.inherit_path(id));
            }
            _ => {}
        }
        Ok(())
    }

    /// The bytes are this process's to move from here on.
    pub(super) fn own(&mut self, now: Instant) {
        self.held = false;
        match &mut self.link {
            Link::Socket(socket) => socket.own(now),
            Link::Pty(pty) => {
                pty.own();
                pty.look(now);
            }
            _ => {}
        }
    }

    /// They are another's from here on, and so is what is to be removed in the end.
    pub(super) fn give_up(&mut self) {
        match &mut self.link {
            Link::Socket(socket) => socket.give_up(),
            Link::Pty(pty) => pty.give_up(),
            _ => {}
        }
    }
}

#[cfg(test)]
impl Relay {
    /// Whether the key before was the escape.
    pub(super) fn escape_is_down(&self) -> bool {
        self.mux.as_ref().is_some_and(|mux| mux.escape)
    }
}
