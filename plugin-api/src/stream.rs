//! A character device's descriptor, read and written without ever waiting for the other end.
//!
//! The open file behind it may be shared with others, such as the shell a terminal belongs to, so
//! it is not made non-blocking: that would change it under them, and stay when the VMM is gone.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv, send};
use nix::sys::stat::{Mode, SFlag, fstat, major, minor};
use nix::unistd;

/// Which way a descriptor is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// It is read.
    Input,
    /// It is written.
    Output,
}

/// A descriptor that is never waited for. Any thread may use it.
pub struct Stream {
    fd: OwnedFd,
    how: How,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// A file, whose reads and writes do not depend on anybody.
    File,
    /// A non-blocking open file.
    NonBlocking,
    /// A socket takes a flag with every call.
    Socket,
    /// Everything else is asked first.
    Asked,
}

impl Stream {
    /// Looks at `fd` and chooses how to use it.
    pub fn new(fd: OwnedFd, direction: Direction) -> io::Result<Self> {
        let stat = fstat(&fd)?;
        let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
        if kind == SFlag::S_IFREG || kind == SFlag::S_IFBLK {
            return Ok(Self { fd, how: How::File });
        }
        if kind == SFlag::S_IFSOCK {
            let how = How::Socket;
            return Ok(Self { fd, how });
        }
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        if flags.contains(OFlag::O_NONBLOCK) {
            let how = How::NonBlocking;
            return Ok(Self { fd, how });
        }
        // Opening the master side of a pseudo-terminal makes another pseudo-terminal.
        let master = (major(stat.st_rdev), minor(stat.st_rdev)) == (5, 2);
        let terminal = kind == SFlag::S_IFCHR && !master && unistd::isatty(&fd)?;
        if (terminal || kind == SFlag::S_IFIFO)
            && let Ok(fd) = open_again(&fd, direction)
        {
            let how = How::NonBlocking;
            return Ok(Self { fd, how });
        }
        let how = How::Asked;
        Ok(Self { fd, how })
    }

    /// Whether writes are complete when they return, so that nothing ever has to wait.
    pub fn is_file(&self) -> bool {
        self.how == How::File
    }

    /// Reads; 0 at the end, `WouldBlock` if there is nothing now.
    pub fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        retried(|| match self.how {
            How::File | How::NonBlocking => unistd::read(&self.fd, into),
            How::Socket => recv(self.fd.as_raw_fd(), into, MsgFlags::MSG_DONTWAIT),
            How::Asked => {
                self.ask(PollFlags::POLLIN)?;
                unistd::read(&self.fd, into)
            }
        })
    }

    /// Writes as much as is taken now; `WouldBlock` if that is nothing.
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let written = retried(|| match self.how {
            How::File | How::NonBlocking => unistd::write(&self.fd, bytes),
            How::Socket => {
                let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                send(self.fd.as_raw_fd(), bytes, flags)
            }
            How::Asked => {
                self.ask(PollFlags::POLLOUT)?;
                // "Ready" promises room for one byte.
                unistd::write(&self.fd, &bytes[..bytes.len().min(1)])
            }
        })?;
        if written == 0 && !bytes.is_empty() {
            return Err(ErrorKind::WriteZero.into());
        }
        Ok(written)
    }

    fn ask(&self, flags: PollFlags) -> nix::Result<()> {
        match poll(
            &mut [PollFd::new(self.fd.as_fd(), flags)],
            PollTimeout::ZERO,
        )? {
            0 => Err(Errno::EAGAIN),
            _ => Ok(()),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// The same pipe or terminal as an open file of our own, which can be non-blocking.
fn open_again(fd: &OwnedFd, direction: Direction) -> nix::Result<OwnedFd> {
    let access = match direction {
        Direction::Input => OFlag::O_RDONLY,
        Direction::Output => OFlag::O_WRONLY,
    };
    let flags = access | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    open(path.as_str(), flags, Mode::empty())
}

fn retried(mut call: impl FnMut() -> nix::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            other => return other.map_err(io::Error::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn would_block<T: std::fmt::Debug>(result: io::Result<T>) -> bool {
        matches!(result, Err(e) if e.kind() == ErrorKind::WouldBlock)
    }

    /// Writes until nothing more is taken, which is the point: it must come to an end.
    fn fill(stream: &Stream) -> usize {
        let mut written = 0;
        loop {
            match stream.write(&[0; 5000]) {
                Ok(n) => written += n,
                Err(e) => {
                    assert_eq!(e.kind(), ErrorKind::WouldBlock);
                    return written;
                }
            }
        }
    }

    fn is_non_blocking(fd: &impl AsFd) -> bool {
        let flags = fcntl(fd.as_fd(), FcntlArg::F_GETFL).unwrap();
        OFlag::from_bits_retain(flags).contains(OFlag::O_NONBLOCK)
    }

    #[test]
    fn a_full_pipe_is_not_waited_for_and_stays_as_it_was_for_others() {
        let (reader, writer) = unistd::pipe().unwrap();
        let mine = writer.try_clone().unwrap();
        let stream = Stream::new(mine, Direction::Output).unwrap();
        assert_eq!(stream.how, How::NonBlocking);
        assert!(fill(&stream) > 0);
        assert!(!is_non_blocking(&writer));
        let stream = Stream::new(reader.try_clone().unwrap(), Direction::Input).unwrap();
        while stream.read(&mut [0; 4096]).is_ok() {}
        assert!(would_block(stream.read(&mut [0; 1])));
        assert!(!is_non_blocking(&reader));
    }

    #[test]
    fn a_terminal_nobody_reads_is_not_waited_for_and_stays_as_it_was_for_others() {
        let pty = nix::pty::openpty(None, None).unwrap();
        let mine = pty.slave.try_clone().unwrap();
        let stream = Stream::new(mine, Direction::Output).unwrap();
        assert_eq!(stream.how, How::NonBlocking);
        assert!(fill(&stream) > 0);
        assert!(!is_non_blocking(&pty.slave));
        let stream = Stream::new(pty.slave.try_clone().unwrap(), Direction::Input).unwrap();
        assert!(would_block(stream.read(&mut [0; 1])));
        assert!(!is_non_blocking(&pty.slave));
    }

    #[test]
    fn the_master_of_a_terminal_is_asked_and_not_opened_again() {
        let pty = nix::pty::openpty(None, None).unwrap();
        let mine = pty.master.try_clone().unwrap();
        let stream = Stream::new(mine, Direction::Output).unwrap();
        assert_eq!(stream.how, How::Asked);
        assert!(would_block(stream.read(&mut [0; 1])));
        unistd::write(&pty.slave, b"x").unwrap();
        let mut byte = [0];
        assert_eq!((stream.read(&mut byte).unwrap(), byte), (1, *b"x"));
    }

    #[test]
    fn a_socket_is_not_waited_for_and_stays_as_it_was_for_others() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let stream = Stream::new(ours.try_clone().unwrap().into(), Direction::Output).unwrap();
        assert_eq!(stream.how, How::Socket);
        assert!(would_block(stream.read(&mut [0; 1])));
        assert!(fill(&stream) > 0);
        assert!(!is_non_blocking(&ours));
        drop(theirs);
        assert_eq!(
            stream.write(b"x").unwrap_err().kind(),
            ErrorKind::BrokenPipe
        );
    }

    #[test]
    fn what_can_not_be_opened_again_is_asked_first() {
        let (_reader, writer) = unistd::pipe().unwrap();
        let how = How::Asked;
        let stream = Stream { fd: writer, how };
        assert!(fill(&stream) > 0);
    }
}
