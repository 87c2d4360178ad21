//! `-add-fd`.

use std::os::fd::RawFd;
use std::str::FromStr;

use super::pairs::Pairs;

/// A descriptor that the process inherits, for a set: see [`fdset`](crate::fdset).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddFd {
    /// Its number.
    pub fd: RawFd,
    /// The set.
    pub set: u32,
    /// What `query-fdsets` tells beside it.
    pub opaque: Option<String>,
}

impl AddFd {
    /// One value of `-add-fd`. The refusals are QEMU's.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut pairs = Pairs::parse(text, None)?;
        let fd: RawFd = number("fd", &pairs.require("fd")?)?;
        let set = number("set", &pairs.require("set")?)?;
        let opaque = pairs.take("opaque");
        pairs.finish("add-fd.")?;
        if fd <= 2 {
            return Err("fd cannot be a standard I/O stream".to_owned());
        }
        Ok(Self { fd, set, opaque })
    }
}

fn number<T: FromStr>(key: &str, text: &str) -> Result<T, String> {
    text.parse()
        .map_err(|_| format!("Parameter '{key}' expects a number"))
}

#[test]
fn a_descriptor_needs_a_set_and_is_no_standard_stream() {
    let parse = AddFd::parse;
    let opaque = Some("rw:x".to_owned());
    let (fd, set) = (5, 1);
    assert_eq!(
        parse("fd=5,set=1,opaque=rw:x"),
        Ok(AddFd { fd, set, opaque })
    );
    for (text, refusal) in [
        ("fd=2,set=1", "fd cannot be a standard I/O stream"),
        ("fd=x,set=1", "Parameter 'fd' expects a number"),
        ("fd=3,set=-1", "Parameter 'set' expects a number"),
    ] {
        assert_eq!(parse(text).unwrap_err(), refusal);
    }
    assert!(parse("fd=3").is_err() && parse("set=3").is_err());
}
