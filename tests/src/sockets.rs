//! Whether somebody listens on a socket, asked without connecting to it.

use anyhow::{Context, Result};
use std::fs;
use std::path::Path;

/// True when a UNIX socket of that path accepts connections. Its file is there a moment earlier.
///
/// # Errors
/// When the system's list of sockets cannot be read.
pub fn listens(path: &Path) -> Result<bool> {
    let sockets = fs::read_to_string("/proc/net/unix").context("Cannot list sockets")?;
    Ok(listed(&sockets, &path.to_string_lossy()))
}

/// A TCP port of this machine that nobody uses now.
///
/// # Errors
/// When there is none.
pub fn free_port() -> Result<u16> {
    let listener =
        std::net::TcpListener::bind(("0.0.0.0", 0)).context("Cannot find a free port")?;
    let address = listener
        .local_addr()
        .context("Cannot ask for the free port's number")?;
    Ok(address.port())
}

fn listed(sockets: &str, path: &str) -> bool {
    // Columns: address, references, protocol, flags (__SO_ACCEPTCON), type, state, inode, path.
    sockets.lines().any(|line| {
        let mut words = line.split_whitespace();
        words.nth(3) == Some("00010000") && words.next_back() == Some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_socket_that_accepts_counts_as_listening() {
        let sockets = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 31 /tmp/a.sock\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 32 /tmp/b.sock\n";
        assert!(listed(sockets, "/tmp/a.sock"));
        assert!(!listed(sockets, "/tmp/b.sock"));
        assert!(!listed(sockets, "/tmp/c.sock"));
    }
}
