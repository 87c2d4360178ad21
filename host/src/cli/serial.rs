//! `-serial`.

use super::chardev;
use super::id::Id;
use crate::chardev::ChardevBackend;

/// One value of `-serial`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Serial {
    /// `none`: no serial line.
    None,
    /// A character device of its own.
    Backend(ChardevBackend),
    /// `mon:`: the same with a monitor on it.
    WithMonitor(ChardevBackend),
    /// `chardev:ID`.
    Existing(Id),
}

impl Serial {
    /// One value of `-serial`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text.split_once(':').unwrap_or((text, "")) {
            ("none", "") => Ok(Self::None),
            ("chardev", "") => Err(format!("The id of a -chardev is missing after '{text}'")),
            ("chardev", id) => Ok(Self::Existing(id.parse()?)),
            ("mon", with) => match chardev::short(with)? {
                // Ctrl-C is the guest's, as in QEMU.
                Some(ChardevBackend::Stdio { .. }) => Ok(Self::MON_STDIO),
                Some(backend) => Ok(Self::WithMonitor(backend)),
                None => Err(unsupported(text)),
            },
            _ => chardev::short(text)?
                .map(Self::Backend)
                .ok_or_else(|| unsupported(text)),
        }
    }

    /// `mon:stdio`
    pub(super) const MON_STDIO: Self = Self::WithMonitor(ChardevBackend::Stdio { signal: false });
}

fn unsupported(text: &str) -> String {
    format!(
        "Serial line to '{text}' is not supported; use stdio, pty, null, none, file:PATH, pipe:PATH, \
         unix:PATH, tcp:HOST:PORT or chardev:ID, or one of them but the last after mon:"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chardev::{ChardevAddress, ChardevSocket, SocketRole};

    #[test]
    fn a_serial_line_makes_its_character_device_or_names_one() {
        assert_eq!(Serial::parse("none"), Ok(Serial::None));
        let pty = |link: Option<&str>| ChardevBackend::Pty {
            link: link.map(Into::into),
        };
        let server = SocketRole::Server { wait: false };
        let socket = |address, nodelay| {
            ChardevBackend::Socket(ChardevSocket {
                address,
                role: server,
                nodelay,
            })
        };
        for (text, backend) in [
            ("stdio", ChardevBackend::Stdio { signal: true }),
            ("null", ChardevBackend::Null),
            ("pty", pty(None)),
            ("pty:/tty", pty(Some("/tty"))),
            ("pipe:/p", ChardevBackend::Pipe { path: "/p".into() }),
            (
                "file:/a,b:c",
                ChardevBackend::File {
                    path: "/a,b:c".into(),
                    append: false,
                    input: None,
                },
            ),
            (
                "unix:a,,b:c,server=on,wait=off",
                socket(ChardevAddress::Unix("a,b:c".into()), false),
            ),
            (
                "tcp::44,server,nowait,nodelay",
                socket(
                    ChardevAddress::Tcp {
                        host: String::new(),
                        port: 44,
                    },
                    true,
                ),
            ),
        ] {
            assert_eq!(Serial::parse(text), Ok(Serial::Backend(backend)), "{text}");
        }
        assert_eq!(Serial::parse("mon:stdio"), Ok(Serial::MON_STDIO));
        assert_eq!(Serial::parse("mon:pty"), Ok(Serial::WithMonitor(pty(None))));
        assert_eq!(
            Serial::parse("chardev:c"),
            Ok(Serial::Existing("c".parse().unwrap()))
        );
    }

    #[test]
    fn other_serial_lines_are_refused() {
        for (text, reason) in [
            (
                "vc",
                "Serial line to 'vc' is not supported; use stdio, pty, null, none, file:PATH, \
                 pipe:PATH, unix:PATH, tcp:HOST:PORT or chardev:ID, or one of them but the last \
                 after mon:",
            ),
            ("file:", "The file's path is missing after 'file:'"),
            ("unix:", "The socket's address is missing after 'unix:'"),
            ("tcp:44", "The port is missing; write tcp:HOST:PORT"),
            (
                "unix:a,server=on,wiat=off",
                "Property 'socket.wiat' not found; did you mean 'wait'?",
            ),
            ("chardev", "The id of a -chardev is missing after 'chardev'"),
        ] {
            assert_eq!(Serial::parse(text).unwrap_err(), reason);
        }
    }
}
