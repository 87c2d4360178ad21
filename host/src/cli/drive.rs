//! `-drive`.

use std::os::unix::fs::FileTypeExt;

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

/// What an image may be: the first is what is meant if nothing is said.
pub(super) const FORMATS: [&str; 1] = ["raw"];

/// What an image may be on the host.
pub(super) const PROTOCOLS: [&str; 2] = ["file", "host_device"];

/// `-drive help`: each property and what it does.
pub(super) const PROPERTIES: [(&str, &str); 16] = [
    ("file=PATH", "the image; also file.filename="),
    (
        "if=none|virtio",
        "none: a -device names it; virtio: one is made (default)",
    ),
    (
        "id=ID",
        "the name that -device drive= says; also node-name=",
    ),
    (
        "index=N",
        "its number among all drives, from 0 in the order said",
    ),
    ("format=raw", "also driver="),
    ("media=disk", "always"),
    (
        "readonly=on|off",
        "the guest may only read (default off); also read-only=",
    ),
    (
        "cache=writeback|none|unsafe",
        "none is cache.direct=on, unsafe is cache.no-flush=on",
    ),
    (
        "cache.direct=on|off",
        "bypass the host's page cache (default off)",
    ),
    (
        "cache.no-flush=on|off",
        "do not pass on the guest's flushes (default off)",
    ),
    ("aio=threads|io_uring", "how the image is read and written"),
    (
        "discard=unmap|ignore",
        "whether a discard frees blocks (default ignore)",
    ),
    (
        "file.locking=on|off|auto",
        "lock the image (default auto: on)",
    ),
    (
        "file.driver=file|host_device",
        "what the image is on the host",
    ),
    (
        "werror=report, rerror=report",
        "an error is reported to the guest",
    ),
    ("detect-zeroes, snapshot, copy-on-read=off", "always off"),
];

/// What other options of QEMU's drives are for, so that a refusal can say what to do.
const ELSEWHERE: [(&str, &str); 6] = [
    ("addr", "say it of the -device"),
    ("bps", "throttling is not there"),
    ("iops", "throttling is not there"),
    ("serial", "say it of the -device"),
    ("unit", "give each drive an id"),
    ("bus", "say it of the -device"),
];

/// An image on the host: what is below every drive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Backing {
    pub(super) file: String,
    pub(super) aio: Option<String>,
    pub(super) locking: bool,
}

impl Backing {
    /// The properties of a node of driver `file` or `host_device`.
    pub(super) fn take(pairs: &mut Pairs, driver: &str) -> Result<Self, String> {
        let file = pairs.require("filename")?;
        suits(driver, &file)?;
        Ok(Self {
            file,
            aio: aio(pairs)?,
            locking: locking(pairs)?.unwrap_or(true),
        })
    }
}

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
    let named = one_of(&mut pairs, ["id", "node-name"], Pairs::text)?;
    let id = match (named, interface) {
        (Some(id), _) => id.parse::<Id>()?.to_string(),
        // Names as QEMU makes them.
        (None, Interface::None) => format!("none{count}"),
        (None, Interface::Virtio) => format!("virtio{count}"),
    };
    if let Some(index) = pairs
        .take("index")
        .filter(|index| *index != count.to_string())
    {
        return Err(format!(
            "Parameter 'index' is {index} and this is number {count}: drives are numbered in the \
             order said; leave it out"
        ));
    }
    if let Some(media) = pairs.take("media").filter(|media| media != "disk") {
        return Err(format!(
            "Medium '{media}' is not supported; use disk, with readonly=on for what is only read"
        ));
    }
    let format = one_of(&mut pairs, ["format", "driver"], Pairs::text)?;
    let format = format.unwrap_or_else(|| FORMATS[0].to_owned());
    let mut below = pairs.split_off("file").unwrap_or_default();
    let driver = below.take("driver");
    if let Some(driver) = driver
        .as_deref()
        .filter(|driver| !PROTOCOLS.contains(driver))
    {
        return Err(format!(
            "Unknown driver '{driver}'; use file.driver=file or file.driver=host_device"
        ));
    }
    let file = match (pairs.take("file"), below.take("filename")) {
        (Some(_), Some(_)) => {
            return Err("Parameters 'file' and 'file.filename' are the same; leave one out".into());
        }
        (file, filename) => file
            .or(filename)
            .filter(|file| !file.is_empty())
            .ok_or("Parameter 'file' is missing")?,
    };
    if let Some(driver) = driver {
        suits(&driver, &file)?;
    }
    let read_only = one_of(&mut pairs, ["readonly", "read-only"], Pairs::switch)?.unwrap_or(false);
    // With `on` QEMU opens for reading what cannot be written, and then refuses it to the device.
    pairs.switch("auto-read-only")?;
    let cache = Cache::take(&mut pairs)?;
    let aio = match (aio(&mut pairs)?, aio(&mut below)?) {
        (Some(_), Some(_)) => {
            return Err("Parameters 'aio' and 'file.aio' are the same; leave one out".into());
        }
        (first, second) => first.or(second),
    };
    let discard = discard(&mut pairs)?.unwrap_or(false);
    let locking = match (locking(&mut below)?, locking(&mut pairs)?) {
        (Some(_), Some(_)) => {
            return Err(
                "Parameters 'file.locking' and 'locking' are the same; leave one out".into(),
            );
        }
        (first, second) => first.or(second).unwrap_or(true),
    };
    for key in ["snapshot", "copy-on-read", "detect-zeroes"] {
        only_off(&mut pairs, key)?;
    }
    for key in ["werror", "rerror"] {
        if let Some(action) = pairs.take(key).filter(|action| action != "report") {
            return Err(format!(
                "Parameter '{key}' does not accept value '{action}'; use report: an error is \
                 reported to the guest"
            ));
        }
    }
    below.finish("drive.file.")?;
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

/// Refuses a file that is of the other kind than its driver is for. One that is not there is the
/// device's to refuse, which opens it.
fn suits(driver: &str, file: &str) -> Result<(), String> {
    let Ok(found) = std::fs::metadata(file) else {
        return Ok(());
    };
    // QEMU's texts.
    match driver {
        "file" if found.file_type().is_block_device() => Err(format!(
            "'file' driver requires '{file}' to be a regular file; use host_device"
        )),
        "host_device" if found.is_file() => Err(format!(
            "'host_device' driver requires '{file}' to be either a character or block device; use \
             file"
        )),
        _ => Ok(()),
    }
}

fn aio(pairs: &mut Pairs) -> Result<Option<String>, String> {
    match pairs.take("aio") {
        None => Ok(None),
        Some(word) if ["threads", "io_uring"].contains(&word.as_str()) => Ok(Some(word)),
        Some(word) => Err(format!(
            "Parameter 'aio' does not accept value '{word}'; use threads or io_uring"
        )),
    }
}

/// Whether a discard frees blocks.
pub(super) fn discard(pairs: &mut Pairs) -> Result<Option<bool>, String> {
    match pairs.take("discard").as_deref() {
        None => Ok(None),
        Some("ignore" | "off") => Ok(Some(false)),
        Some("unmap" | "on") => Ok(Some(true)),
        Some(_) => Err("Parameter 'discard' expects 'unmap' or 'ignore'".to_owned()),
    }
}

fn locking(pairs: &mut Pairs) -> Result<Option<bool>, String> {
    match pairs.take("locking").as_deref() {
        None => Ok(None),
        Some("on" | "auto") => Ok(Some(true)),
        Some("off") => Ok(Some(false)),
        Some(_) => Err("Parameter 'locking' expects 'on', 'off' or 'auto'".to_owned()),
    }
}

/// A switch for what there is not.
pub(super) fn only_off(pairs: &mut Pairs, key: &'static str) -> Result<(), String> {
    match pairs.take(key).as_deref() {
        None | Some("off" | "no" | "false") => Ok(()),
        Some(_) => Err(format!("Parameter '{key}' is not supported; use off")),
    }
}

/// A property with two spellings.
fn one_of<T>(
    pairs: &mut Pairs,
    [first, second]: [&'static str; 2],
    take: impl Fn(&mut Pairs, &'static str) -> Result<Option<T>, String>,
) -> Result<Option<T>, String> {
    match (take(pairs, first)?, take(pairs, second)?) {
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
                "if=none,node-name=d,driver=raw,file.driver=file,file.filename=/a,index=0,\
                 snapshot=off,copy-on-read=off,detect-zeroes=off,werror=report,rerror=report,\
                 auto-read-only=on,locking=auto",
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
                "Parameter 'aio' does not accept value 'native'; use threads or io_uring",
            ),
            (
                "file=a,file.aio=threads,aio=threads",
                "Parameters 'aio' and 'file.aio' are the same; leave one out",
            ),
            (
                "file=a,file.filename=a",
                "Parameters 'file' and 'file.filename' are the same; leave one out",
            ),
            (
                "file=a,file.driver=nbd",
                "Unknown driver 'nbd'; use file.driver=file or file.driver=host_device",
            ),
            (
                "file=a,file.lokcing=on",
                "Property 'drive.file.lokcing' not found; did you mean 'locking'?",
            ),
            (
                "file=/proc/self/status,file.driver=host_device",
                "'host_device' driver requires '/proc/self/status' to be either a character or \
                 block device; use file",
            ),
            (
                "file=a,snapshot=on",
                "Parameter 'snapshot' is not supported; use off",
            ),
            (
                "file=a,werror=stop",
                "Parameter 'werror' does not accept value 'stop'; use report: an error is \
                 reported to the guest",
            ),
            (
                "file=a,index=1",
                "Parameter 'index' is 1 and this is number 0: drives are numbered in the order \
                 said; leave it out",
            ),
            (
                "file=a,id=b,node-name=c",
                "Parameters 'id' and 'node-name' are the same; leave one out",
            ),
            (
                "file=a,discard=x",
                "Parameter 'discard' expects 'unmap' or 'ignore'",
            ),
            (
                "file=a,file.locking=x",
                "Parameter 'locking' expects 'on', 'off' or 'auto'",
            ),
            (
                "file=a,readonly=on,read-only=on",
                "Parameters 'readonly' and 'read-only' are the same; leave one out",
            ),
            (
                "file=a,media=cdrom",
                "Medium 'cdrom' is not supported; use disk, with readonly=on for what is only read",
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
