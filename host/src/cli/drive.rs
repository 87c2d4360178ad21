//! `-drive`.

use baton_plugin_api::Drive;

use super::id::Id;
use super::pairs::Pairs;

/// What a drive is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Interface {
    /// To the `-device` that names it.
    None,
    /// To a `virtio-blk-pci` made for it.
    Virtio,
}

/// What other options of QEMU's drives are for, so that a refusal can say what to do.
const ELSEWHERE: [(&str, &str); 12] = [
    ("addr", "say it of the -device"),
    ("bps", "throttling is not there"),
    ("copy-on-read", "images are raw files"),
    ("detect-zeroes", "it is always off"),
    ("index", "give each drive an id"),
    ("iops", "throttling is not there"),
    ("rerror", "an error is reported to the guest"),
    ("serial", "say it of the -device"),
    ("snapshot", "images are raw files"),
    ("unit", "give each drive an id"),
    ("bus", "say it of the -device"),
    ("werror", "an error is reported to the guest"),
];

/// One value of `-drive`, the `count`-th.
pub(super) fn parse(text: &str, count: usize) -> Result<(Interface, Drive), String> {
    let mut pairs = Pairs::parse(text, Some("file"))?;
    for (key, instead) in ELSEWHERE {
        if pairs.take(key).is_some() {
            return Err(format!("Parameter '{key}' is not supported: {instead}"));
        }
    }
    pairs.forget_known();
    let interface = match pairs.take("if").as_deref() {
        Some("none") => Interface::None,
        // The machine's usual one, as in QEMU's machines without IDE.
        None | Some("virtio") => Interface::Virtio,
        Some(other) => {
            return Err(format!(
                "Interface '{other}' is not supported; use if=none with a -device, or if=virtio"
            ));
        }
    };
    let id = match (pairs.take("id"), interface) {
        (Some(id), _) => id.parse::<Id>()?.to_string(),
        // Names as QEMU makes them.
        (None, Interface::None) => format!("none{count}"),
        (None, Interface::Virtio) => format!("virtio{count}"),
    };
    if let Some(media) = pairs.take("media").filter(|media| media != "disk") {
        return Err(format!("Medium '{media}' is not supported; use disk"));
    }
    let file = pairs.require("file")?;
    let format = pairs.take("format").unwrap_or_else(|| "raw".to_owned());
    let read_only = one_of(&mut pairs, "readonly", "read-only")?.unwrap_or(false);
    let cache = Cache::take(&mut pairs)?;
    let aio = match pairs.take("aio").as_deref() {
        None => None,
        Some(word @ ("threads" | "io_uring")) => Some(word.to_owned()),
        Some(_) => return Err("Parameter 'aio' expects 'threads' or 'io_uring'".to_owned()),
    };
    let discard = match pairs.take("discard").as_deref() {
        None | Some("ignore" | "off") => false,
        Some("unmap" | "on") => true,
        Some(_) => return Err("Parameter 'discard' expects 'unmap' or 'ignore'".to_owned()),
    };
    let locking = match pairs
        .take("file.locking")
        .or(pairs.take("locking"))
        .as_deref()
    {
        None | Some("on" | "auto") => true,
        Some("off") => false,
        Some(_) => {
            return Err("Parameter 'file.locking' expects 'on', 'off' or 'auto'".to_owned());
        }
    };
    pairs.finish("drive.")?;
    let drive = Drive {
        id,
        file,
        format,
        read_only,
        discard,
        aio,
        direct: cache.direct,
        no_flush: cache.no_flush,
        locking,
    };
    Ok((interface, drive))
}

/// A switch with two spellings.
fn one_of(
    pairs: &mut Pairs,
    first: &'static str,
    second: &'static str,
) -> Result<Option<bool>, String> {
    match (pairs.switch(first)?, pairs.switch(second)?) {
        (Some(_), Some(_)) => Err(format!(
            "Parameters '{first}' and '{second}' are the same; leave one out"
        )),
        (first, second) => Ok(first.or(second)),
    }
}

/// `cache=` and the switches that it sums up.
#[derive(Default)]
struct Cache {
    direct: bool,
    no_flush: bool,
}

impl Cache {
    fn take(pairs: &mut Pairs) -> Result<Self, String> {
        let mode = pairs.take("cache");
        let direct = pairs.switch("cache.direct")?;
        let no_flush = pairs.switch("cache.no-flush")?;
        let back = pairs.switch("cache.writeback")?;
        let mut cache = match mode.as_deref() {
            None | Some("writeback") => Self::default(),
            Some("none") => Self {
                direct: true,
                no_flush: false,
            },
            Some("unsafe") => Self {
                direct: false,
                no_flush: true,
            },
            Some(word @ ("writethrough" | "directsync")) => {
                return Err(format!(
                    "Cache mode '{word}' is not supported: the guest flushes; use writeback or none"
                ));
            }
            Some(word) => {
                return Err(format!(
                    "Cache mode '{word}' is not known; use writeback, none or unsafe"
                ));
            }
        };
        if back == Some(false) {
            return Err("Parameter 'cache.writeback' must be on: the guest flushes".to_owned());
        }
        cache.direct = direct.unwrap_or(cache.direct);
        cache.no_flush = no_flush.unwrap_or(cache.no_flush);
        Ok(cache)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drive() -> Drive {
        Drive {
            id: "d".into(),
            file: "/a".into(),
            format: "raw".into(),
            locking: true,
            ..Drive::default()
        }
    }

    #[test]
    fn a_drive_is_what_was_said_of_it() {
        for (text, expected) in [
            ("if=none,id=d,file=/a", drive()),
            (
                "file=/a,if=none,id=d,format=raw,media=disk,cache=writeback",
                drive(),
            ),
            (
                "if=none,id=d,file=/a,,b,readonly=on",
                Drive {
                    file: "/a,b".into(),
                    read_only: true,
                    ..drive()
                },
            ),
            (
                "if=none,id=d,file=/a,cache=none,aio=io_uring,discard=unmap",
                Drive {
                    direct: true,
                    aio: Some("io_uring".into()),
                    discard: true,
                    ..drive()
                },
            ),
            (
                "if=none,id=d,file=/a,cache=unsafe,file.locking=off",
                Drive {
                    no_flush: true,
                    locking: false,
                    ..drive()
                },
            ),
            (
                "if=none,id=d,file=/a,cache.direct=on,cache.no-flush=on,cache.writeback=on",
                Drive {
                    direct: true,
                    no_flush: true,
                    ..drive()
                },
            ),
        ] {
            assert_eq!(parse(text, 0), Ok((Interface::None, expected)), "{text}");
        }
    }

    #[test]
    fn a_drive_without_an_id_gets_one() {
        let (interface, drive) = parse("/a,if=virtio", 3).unwrap();
        assert_eq!(
            (interface, drive.id.as_str()),
            (Interface::Virtio, "virtio3")
        );
        assert_eq!(parse("if=none,file=a", 1).unwrap().1.id, "none1");
    }

    #[test]
    fn what_a_drive_cannot_be_is_refused() {
        for (text, reason) in [
            (
                "if=ide,file=a",
                "Interface 'ide' is not supported; use if=none with a -device, or if=virtio",
            ),
            ("if=none,id=d", "Parameter 'file' is missing"),
            (
                "file=a,cache=directsync",
                "Cache mode 'directsync' is not supported: the guest flushes; \
                 use writeback or none",
            ),
            (
                "file=a,cache=fast",
                "Cache mode 'fast' is not known; use writeback, none or unsafe",
            ),
            (
                "file=a,cache.writeback=off",
                "Parameter 'cache.writeback' must be on: the guest flushes",
            ),
            (
                "file=a,aio=native",
                "Parameter 'aio' expects 'threads' or 'io_uring'",
            ),
            (
                "file=a,discard=x",
                "Parameter 'discard' expects 'unmap' or 'ignore'",
            ),
            (
                "file=a,file.locking=x",
                "Parameter 'file.locking' expects 'on', 'off' or 'auto'",
            ),
            (
                "file=a,readonly=on,read-only=on",
                "Parameters 'readonly' and 'read-only' are the same; leave one out",
            ),
            (
                "file=a,media=cdrom",
                "Medium 'cdrom' is not supported; use disk",
            ),
            (
                "file=a,serial=x",
                "Parameter 'serial' is not supported: say it of the -device",
            ),
            (
                "file=a,formt=raw",
                "Property 'drive.formt' not found; did you mean 'format'?",
            ),
        ] {
            assert_eq!(parse(text, 0).unwrap_err(), reason, "{text}");
        }
    }
}
