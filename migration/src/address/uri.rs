//! URIs: `tcp:host:port`, `unix:path`, `fd:number-or-name`, `file:path[,offset=n]`, `exec:command`.

use super::{AddressError, InetAddress, MigrationAddress, SocketAddress};

/// The address a migration URI stands for.
pub fn parse_uri(uri: &str) -> Result<MigrationAddress, AddressError> {
    let unknown = || AddressError::UnknownProtocol(uri.to_owned());
    let (protocol, rest) = uri.split_once(':').ok_or_else(unknown)?;
    let bad = |reason| AddressError::BadUri {
        address: rest.to_owned(),
        reason,
    };
    let socket = match protocol {
        "tcp" => SocketAddress::Inet(host_and_port(rest)?),
        "unix" if rest.is_empty() => return Err(bad("the socket's path is missing")),
        "unix" => SocketAddress::Unix { path: rest.into() },
        "fd" if rest.is_empty() => return Err(bad("the descriptor's number or name is missing")),
        "fd" => SocketAddress::Fd {
            str: rest.to_owned(),
        },
        "vsock" => {
            let (cid, port) = rest
                .split_once(':')
                .ok_or_else(|| bad("write vsock:cid:port"))?;
            SocketAddress::Vsock {
                cid: cid.to_owned(),
                port: port.to_owned(),
            }
        }
        "rdma" => return Ok(MigrationAddress::Rdma(host_and_port(rest)?)),
        "exec" if rest.trim().is_empty() => return Err(bad("the command is missing")),
        "exec" => {
            // As QEMU does: the whole command goes to the shell.
            let args = ["/bin/sh", "-c", rest].map(str::to_owned).to_vec();
            return Ok(MigrationAddress::Exec { args });
        }
        "file" => return file(rest),
        _ => return Err(unknown()),
    };
    Ok(MigrationAddress::Socket(socket))
}

/// `host:port`, `:port` or `[v6-address]:port`.
fn host_and_port(text: &str) -> Result<InetAddress, AddressError> {
    let bad = |reason| AddressError::BadUri {
        address: text.to_owned(),
        reason,
    };
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => rest
            .split_once("]:")
            .ok_or_else(|| bad("write tcp:[address]:port"))?,
        None => text
            .split_once(':')
            .ok_or_else(|| bad("write tcp:host:port"))?,
    };
    if port.is_empty()
        || !port
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    {
        return Err(bad(
            "the port must be a number; options after it are not supported",
        ));
    }
    Ok(InetAddress {
        host: host.to_owned(),
        port: port.to_owned(),
    })
}

/// `path` or `path,offset=n`.
fn file(text: &str) -> Result<MigrationAddress, AddressError> {
    let bad = |reason| AddressError::BadUri {
        address: text.to_owned(),
        reason,
    };
    let (filename, offset) = match text.rsplit_once(",offset=") {
        None => (text, 0),
        Some((filename, offset)) => (
            filename,
            size(offset).ok_or_else(|| bad("offset must be a number of bytes"))?,
        ),
    };
    if filename.is_empty() {
        return Err(bad("the file's path is missing"));
    }
    Ok(MigrationAddress::File {
        filename: filename.to_owned(),
        offset,
    })
}

/// A number of bytes, decimal or hexadecimal, with an optional binary suffix `K`, `M`, `G`.
fn size(text: &str) -> Option<u64> {
    if let Some(hex) = text.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).ok();
    }
    let (digits, shift) = match text.as_bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 10),
        b'm' | b'M' => (&text[..text.len() - 1], 20),
        b'g' | b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}
