//! `-chardev` and `-serial`.

use std::path::PathBuf;

use super::id::Id;
use super::pairs::Pairs;

/// A `-chardev`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chardev {
    /// Its id; those of `-serial` are `serial0`, `serial1`, ...
    pub id: Id,
    /// Where its bytes go and come from.
    pub backend: ChardevBackend,
}

/// Where the bytes of a character device go and come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChardevBackend {
    /// Nowhere.
    Null,
    /// Standard input and output.
    Stdio,
    /// Output only.
    File {
        /// The file, which is made if need be.
        path: PathBuf,
        /// Whether what it holds stays.
        append: bool,
    },
}

/// One value of `-serial`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Serial {
    /// `none`: no serial line.
    None,
    /// A character device of its own.
    Backend(ChardevBackend),
    /// `chardev:ID`.
    Existing(Id),
}

impl Chardev {
    /// One value of `-chardev`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut pairs = Pairs::parse(text, Some("backend"))?;
        let name = pairs.require("backend")?;
        let id = pairs.require("id")?.parse()?;
        let backend = match name.as_str() {
            "null" => ChardevBackend::Null,
            "stdio" => ChardevBackend::Stdio,
            "file" => ChardevBackend::File {
                path: pairs.require("path")?.into(),
                append: pairs.switch("append")?.unwrap_or(false),
            },
            other => {
                return Err(format!(
                    "Character device backend '{other}' is not supported; use null, stdio or file"
                ));
            }
        };
        pairs.finish("chardev.")?;
        Ok(Self { id, backend })
    }
}

impl Serial {
    /// One value of `-serial`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let empty = |what: &str| format!("The {what} is missing after '{text}'");
        Ok(match text.split_once(':').unwrap_or((text, "")) {
            ("none", "") => Self::None,
            ("null", "") => Self::Backend(ChardevBackend::Null),
            ("stdio", "") => Self::Backend(ChardevBackend::Stdio),
            ("file", "") => return Err(empty("file's path")),
            // The path is all that follows, commas included, as in QEMU.
            ("file", path) => Self::Backend(ChardevBackend::File {
                path: path.into(),
                append: false,
            }),
            ("chardev", "") => return Err(empty("id of a -chardev")),
            ("chardev", id) => Self::Existing(id.parse()?),
            _ => {
                return Err(format!(
                    "Serial line to '{text}' is not supported; use stdio, null, none, file:PATH or \
                     chardev:ID"
                ));
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn character_devices_are_null_stdio_or_a_file() {
        for (text, backend) in [
            ("null,id=c", ChardevBackend::Null),
            ("stdio,id=c", ChardevBackend::Stdio),
            (
                "file,id=c,path=/a,append=on",
                ChardevBackend::File {
                    path: "/a".into(),
                    append: true,
                },
            ),
        ] {
            let chardev = Chardev::parse(text).unwrap();
            assert_eq!((chardev.id.as_str(), chardev.backend), ("c", backend));
        }
        for (text, reason) in [
            (
                "pty,id=c",
                "Character device backend 'pty' is not supported; use null, stdio or file",
            ),
            ("null", "Parameter 'id' is missing"),
            ("file,id=c", "Parameter 'path' is missing"),
            ("null,id=c,path=x", "Property 'chardev.path' not found"),
        ] {
            assert_eq!(Chardev::parse(text).unwrap_err(), reason);
        }
    }

    #[test]
    fn a_serial_line_makes_its_character_device_or_names_one() {
        assert_eq!(Serial::parse("none"), Ok(Serial::None));
        assert_eq!(
            Serial::parse("stdio"),
            Ok(Serial::Backend(ChardevBackend::Stdio))
        );
        assert_eq!(
            Serial::parse("file:/a,b:c"),
            Ok(Serial::Backend(ChardevBackend::File {
                path: "/a,b:c".into(),
                append: false
            }))
        );
        assert_eq!(
            Serial::parse("chardev:c"),
            Ok(Serial::Existing("c".parse().unwrap()))
        );
        for (text, reason) in [
            (
                "pty",
                "Serial line to 'pty' is not supported; use stdio, null, none, file:PATH or \
                 chardev:ID",
            ),
            ("file:", "The file's path is missing after 'file:'"),
            ("chardev", "The id of a -chardev is missing after 'chardev'"),
        ] {
            assert_eq!(Serial::parse(text).unwrap_err(), reason);
        }
    }
}
