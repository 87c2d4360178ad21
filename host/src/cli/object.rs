//! `-object`: memory backends, and what devices name.

use std::collections::BTreeMap;
use std::path::PathBuf;

use baton_plugin_api::Object;
use serde_json::{Map, Value};

use super::id::Id;
use super::nearest::hint;
use super::pairs::Pairs;

/// The page size of x86.
const PAGE: u64 = 4096;

/// The id of RAM that no `-object` describes. It is part of the machine type: a handed over
/// descriptor is found by it.
pub const IMPLICIT_RAM_ID: &str = "baton.ram";

/// The kinds of object, each with the properties it has beside `id`, and what they mean.
pub(super) const KINDS: [(&str, &[(&str, &str)]); 6] = [
    (
        "memory-backend-file",
        &[
            SIZE,
            (
                "mem-path=PATH",
                "the file, or a directory to make an unnamed one in",
            ),
            (
                "share=on|off",
                "whether writes reach the file (default off)",
            ),
            PREALLOC,
            ("align=SIZE", "the alignment of the mapping"),
            (
                "discard-data=on|off",
                "do not write the content back at the end (default off)",
            ),
        ],
    ),
    (
        "memory-backend-memfd",
        &[
            SIZE,
            (
                "share=on|off",
                "whether a successor can take the memory over (default on)",
            ),
            PREALLOC,
            ("hugetlb=on|off", "use huge pages (default off)"),
            (
                "hugetlbsize=SIZE",
                "the size of the huge pages (default: the system's)",
            ),
            (
                "seal=on|off",
                "forbid that the file changes its size (default on)",
            ),
            (
                "fdstore=on|off",
                "the service manager holds it during cpr-reboot (default off)",
            ),
        ],
    ),
    (
        "memory-backend-ram",
        &[
            SIZE,
            ("share=on|off", "use a memfd (default off)"),
            PREALLOC,
        ],
    ),
    (
        "memory-backend-shm",
        &[SIZE, ("share=on", "always on"), PREALLOC],
    ),
    (RNG_BUILTIN, &[]),
    (
        RNG_RANDOM,
        &[(
            "filename=PATH",
            "where the entropy comes from (default /dev/urandom)",
        )],
    ),
];
/// The kernel's own entropy.
const RNG_BUILTIN: &str = "rng-builtin";
/// The entropy of a file.
const RNG_RANDOM: &str = "rng-random";
const SIZE: (&str, &str) = ("size=SIZE", "bytes, with a suffix K, M, G or T");
const PREALLOC: (&str, &str) = (
    "prealloc=on|off",
    "allocate all pages at start (default off)",
);

/// What QEMU's backends also have. Refused, since Baton does not do it.
const NOT_SUPPORTED: [&str; 12] = [
    "dump",
    "host-nodes",
    "merge",
    "offset",
    "pmem",
    "policy",
    "prealloc-context",
    "prealloc-threads",
    "readonly",
    "reserve",
    "rom",
    "x-use-canonical-path-for-ramblock-id",
];

/// Where guest RAM comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryBackend {
    /// Its id; [`IMPLICIT_RAM_ID`] when no `-object` describes the RAM.
    pub id: Id,
    /// Bytes, a multiple of the page size (the huge page's if there are).
    pub size: u64,
    /// Whether other processes see what the guest writes (`MAP_SHARED`).
    pub share: bool,
    /// Whether all pages are allocated before the guest starts.
    pub prealloc: bool,
    /// What it is made of.
    pub kind: BackendKind,
}

/// What a memory backend is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackendKind {
    /// `memory-backend-file`.
    File {
        /// `mem-path=`: a file, or a directory in which an unnamed file is made.
        path: PathBuf,
        /// `align=`: the mapping's alignment in bytes, a power of two.
        align: Option<u64>,
        /// `discard-data=`: the file's content need not be written back at the end.
        discard_data: bool,
    },
    /// `memory-backend-memfd`.
    Memfd {
        /// `hugetlb=on`: the size of its pages.
        hugetlb: Option<HugePages>,
        /// `seal=`: the memfd cannot change its size.
        seal: bool,
        /// `fdstore=`: the service manager holds it while no process has it open.
        fdstore: bool,
    },
    /// `memory-backend-ram`: anonymous memory.
    Ram,
    /// `memory-backend-shm`: an unnamed POSIX shared memory object.
    Shm,
}

/// The size of huge pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HugePages {
    /// The system's default size.
    Default,
    /// This many bytes, a power of two.
    Of(u64),
}

/// What one `-object` describes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ObjectOption {
    /// Guest RAM.
    Memory(MemoryBackend),
    /// What a device can name.
    ForDevices(Object),
}

impl ObjectOption {
    /// The value of one `-object`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut pairs = Pairs::parse_or_json(text, "qom-type")?;
        let name = pairs.require("qom-type")?;
        match name.as_str() {
            RNG_BUILTIN | RNG_RANDOM => for_devices(name, pairs).map(Self::ForDevices),
            _ => MemoryBackend::described(&name, pairs).map(Self::Memory),
        }
    }

    pub(super) fn id(&self) -> &str {
        match self {
            Self::Memory(memory) => memory.id.as_str(),
            Self::ForDevices(object) => &object.id,
        }
    }
}

/// The object that the JSON of one `-object` describes, if it is for devices.
pub fn added(text: &str) -> Result<Object, String> {
    match ObjectOption::parse(text)? {
        ObjectOption::ForDevices(object) => Ok(object),
        ObjectOption::Memory(memory) => Err(format!(
            "Memory backend '{}' would be of no use: guest RAM does not change while the guest runs; \
             say -object when it is started",
            memory.id
        )),
    }
}

/// The arguments of the QMP command that adds the object which `text` describes.
pub fn arguments_of(text: &str) -> Result<Map<String, Value>, String> {
    let pairs = Pairs::parse(text, Some("qom-type"))?;
    let pairs = pairs.rest().into_iter();
    Ok(pairs.map(|(key, value)| (key, value.into())).collect())
}

fn for_devices(kind: String, mut pairs: Pairs) -> Result<Object, String> {
    let id: Id = pairs.require("id")?.parse()?;
    let mut options = BTreeMap::new();
    if kind == RNG_RANDOM {
        let filename = pairs.take("filename");
        let filename = filename.unwrap_or_else(|| "/dev/urandom".to_owned());
        options.insert("filename".to_owned(), filename);
    }
    pairs.finish(&format!("{kind}."))?;
    Ok(Object {
        id: id.to_string(),
        kind,
        options,
    })
}

impl MemoryBackend {
    fn described(name: &str, mut pairs: Pairs) -> Result<Self, String> {
        if name == "memory-backend-epc" {
            return Err(
                "Object type 'memory-backend-epc' is not supported: no other process can map its \
                 memory, so that the guest could not be handed over; use memory-backend-memfd"
                    .to_owned(),
            );
        }
        if !KINDS.iter().any(|(known, _)| *known == name) {
            let near = hint(name, KINDS.map(|(known, _)| known));
            return Err(format!("Object type '{name}' is not supported{near}"));
        }
        let owner = format!("{name}.");
        for key in NOT_SUPPORTED {
            if pairs.take(key).is_some() {
                return Err(format!("Property '{owner}{key}' is not supported"));
            }
        }
        // They are no help to someone who mistyped a name.
        pairs.forget_known();
        let id: Id = pairs.require("id")?.parse()?;
        let size = pairs
            .size("size")?
            .filter(|size| *size > 0)
            .ok_or("Parameter 'size' is missing")?;
        let share = pairs.switch("share")?;
        let prealloc = pairs.switch("prealloc")?.unwrap_or(false);
        let (kind, share) = match name {
            "memory-backend-file" => (file(&mut pairs)?, share.unwrap_or(false)),
            "memory-backend-memfd" => (memfd(&mut pairs)?, share.unwrap_or(true)),
            "memory-backend-shm" if share == Some(false) => {
                return Err("Property 'memory-backend-shm.share' must be on".to_owned());
            }
            "memory-backend-shm" => (BackendKind::Shm, true),
            _ => (BackendKind::Ram, share.unwrap_or(false)),
        };
        if !share && matches!(kind, BackendKind::Memfd { fdstore: true, .. }) {
            return Err(
                "Parameter 'fdstore' needs share=on: what is written to memory that is not shared \
                 is gone with the process"
                    .to_owned(),
            );
        }
        pairs.finish(&owner)?;
        let backend = Self {
            id,
            size,
            share,
            prealloc,
            kind,
        };
        check_size(size, backend.page_size())?;
        Ok(backend)
    }

    /// RAM of `size` bytes that no `-object` describes.
    pub(super) fn implicit(size: u64, share: bool) -> Result<Self, String> {
        check_size(size, PAGE)?;
        let kind = match share {
            true => BackendKind::Memfd {
                hugetlb: None,
                seal: true,
                fdstore: false,
            },
            false => BackendKind::Ram,
        };
        Ok(Self {
            id: IMPLICIT_RAM_ID.parse()?,
            size,
            share,
            prealloc: false,
            kind,
        })
    }

    fn page_size(&self) -> u64 {
        match self.kind {
            BackendKind::Memfd {
                hugetlb: Some(HugePages::Of(bytes)),
                ..
            } => bytes,
            _ => PAGE,
        }
    }
}

fn check_size(size: u64, page: u64) -> Result<(), String> {
    match size % page {
        0 => Ok(()),
        _ => Err(format!(
            "Parameter 'size' must be a multiple of the page size, {page} bytes"
        )),
    }
}

fn file(pairs: &mut Pairs) -> Result<BackendKind, String> {
    Ok(BackendKind::File {
        path: pairs.require("mem-path")?.into(),
        align: pairs
            .size("align")?
            .map(|align| page_sized("align", align))
            .transpose()?,
        discard_data: pairs.switch("discard-data")?.unwrap_or(false),
    })
}

fn memfd(pairs: &mut Pairs) -> Result<BackendKind, String> {
    let huge = pairs.switch("hugetlb")?.unwrap_or(false);
    let hugetlb = match (huge, pairs.size("hugetlbsize")?) {
        (false, Some(_)) => {
            return Err("Parameter 'hugetlbsize' needs hugetlb=on".to_owned());
        }
        (false, None) => None,
        (true, None) => Some(HugePages::Default),
        (true, Some(size)) => Some(HugePages::Of(page_sized("hugetlbsize", size)?)),
    };
    Ok(BackendKind::Memfd {
        hugetlb,
        seal: pairs.switch("seal")?.unwrap_or(true),
        fdstore: pairs.switch("fdstore")?.unwrap_or(false),
    })
}

/// A power of two of at least a page.
fn page_sized(key: &str, size: u64) -> Result<u64, String> {
    if size >= PAGE && size.is_power_of_two() {
        return Ok(size);
    }
    Err(format!(
        "Parameter '{key}' expects a power of two from {PAGE}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<MemoryBackend, String> {
        match ObjectOption::parse(text)? {
            ObjectOption::Memory(memory) => Ok(memory),
            ObjectOption::ForDevices(object) => panic!("{object:?}"),
        }
    }

    #[test]
    fn entropy_comes_from_a_file_or_the_kernel() {
        let object = |kind: &str, options: &[(&str, &str)]| Object {
            id: "r".to_owned(),
            kind: kind.to_owned(),
            options: options
                .iter()
                .map(|(k, v)| (k.to_string(), v.to_string()))
                .collect(),
        };
        for (text, expected) in [
            ("rng-builtin,id=r", object("rng-builtin", &[])),
            (
                "rng-random,id=r",
                object("rng-random", &[("filename", "/dev/urandom")]),
            ),
            (
                r#"{"qom-type": "rng-random", "id": "r", "filename": "/dev/hwrng"}"#,
                object("rng-random", &[("filename", "/dev/hwrng")]),
            ),
        ] {
            assert_eq!(added(text), Ok(expected), "{text}");
        }
        for (text, reason) in [
            (
                "rng-builtin,id=r,filename=/a",
                "Property 'rng-builtin.filename' not found",
            ),
            (
                "rng-random,id=r,file=/a",
                "Property 'rng-random.file' not found; did you mean 'filename'?",
            ),
            ("rng-random", "Parameter 'id' is missing"),
            (
                "memory-backend-ram,id=m,size=1M",
                "Memory backend 'm' would be of no use: guest RAM does not change while the guest \
                 runs; say -object when it is started",
            ),
        ] {
            assert_eq!(added(text).unwrap_err(), reason, "{text}");
        }
    }

    #[test]
    fn each_kind_has_its_own_properties_and_defaults() {
        let file = parse(
            "memory-backend-file,id=ram0,size=4G,mem-path=/dev/shm/a,,b,share=on,align=2M,\
             prealloc=on,discard-data=on",
        );
        assert_eq!(
            file,
            Ok(MemoryBackend {
                id: "ram0".parse().unwrap(),
                size: 4 << 30,
                share: true,
                prealloc: true,
                kind: BackendKind::File {
                    path: "/dev/shm/a,b".into(),
                    align: Some(2 << 20),
                    discard_data: true,
                },
            })
        );
        for (text, share, kind) in [
            (
                "memory-backend-memfd,id=m,size=1G",
                true,
                BackendKind::Memfd {
                    hugetlb: None,
                    seal: true,
                    fdstore: false,
                },
            ),
            (
                "memory-backend-memfd,id=m,size=1G,fdstore=on",
                true,
                BackendKind::Memfd {
                    hugetlb: None,
                    seal: true,
                    fdstore: true,
                },
            ),
            (
                "memory-backend-memfd,id=m,size=1G,hugetlb=on,seal=off,share=off",
                false,
                BackendKind::Memfd {
                    hugetlb: Some(HugePages::Default),
                    seal: false,
                    fdstore: false,
                },
            ),
            (
                "memory-backend-memfd,id=m,size=1G,hugetlb=on,hugetlbsize=2M",
                true,
                BackendKind::Memfd {
                    hugetlb: Some(HugePages::Of(2 << 20)),
                    seal: true,
                    fdstore: false,
                },
            ),
            ("memory-backend-ram,id=m,size=1G", false, BackendKind::Ram),
            ("memory-backend-shm,id=m,size=1G", true, BackendKind::Shm),
            (
                r#"{"qom-type": "memory-backend-ram", "id": "m", "size": 1073741824, "share": true}"#,
                true,
                BackendKind::Ram,
            ),
        ] {
            let backend = parse(text).unwrap();
            assert_eq!((backend.share, backend.kind), (share, kind), "{text}");
            assert_eq!(backend.size, 1 << 30);
        }
    }

    #[test]
    fn what_a_kind_does_not_have_is_refused() {
        for (text, reason) in [
            (
                "memory-backend-mem,id=m,size=1G",
                "Object type 'memory-backend-mem' is not supported; \
                 did you mean 'memory-backend-memfd'?",
            ),
            (
                "memory-backend-epc,id=m,size=1G",
                "Object type 'memory-backend-epc' is not supported: no other process can map its \
                 memory, so that the guest could not be handed over; use memory-backend-memfd",
            ),
            ("rng-egd,id=r", "Object type 'rng-egd' is not supported"),
            ("id=r", "Parameter 'qom-type' is missing"),
            ("memory-backend-ram,size=1G", "Parameter 'id' is missing"),
            ("memory-backend-ram,id=m", "Parameter 'size' is missing"),
            (
                "memory-backend-ram,id=m,size=4097",
                "Parameter 'size' must be a multiple of the page size, 4096 bytes",
            ),
            (
                "memory-backend-memfd,id=m,size=3M,hugetlb=on,hugetlbsize=2M",
                "Parameter 'size' must be a multiple of the page size, 2097152 bytes",
            ),
            (
                "memory-backend-memfd,id=m,size=2M,hugetlbsize=2M",
                "Parameter 'hugetlbsize' needs hugetlb=on",
            ),
            (
                "memory-backend-file,id=m,size=2M",
                "Parameter 'mem-path' is missing",
            ),
            (
                "memory-backend-file,id=m,size=2M,mem-path=a,align=3K",
                "Parameter 'align' expects a power of two from 4096",
            ),
            (
                "memory-backend-file,id=m,size=2M,mem-path=a,pmem=on",
                "Property 'memory-backend-file.pmem' is not supported",
            ),
            (
                "memory-backend-ram,id=m,size=2M,mem-path=a",
                "Property 'memory-backend-ram.mem-path' not found",
            ),
            (
                "memory-backend-ram,id=m,size=2M,shar=on",
                "Property 'memory-backend-ram.shar' not found; did you mean 'share'?",
            ),
            (
                "memory-backend-shm,id=m,size=2M,share=off",
                "Property 'memory-backend-shm.share' must be on",
            ),
            (
                "memory-backend-memfd,id=m,size=2M,share=off,fdstore=on",
                "Parameter 'fdstore' needs share=on: what is written to memory that is not shared \
                 is gone with the process",
            ),
            (
                "memory-backend-ram,id=m,size=2M,share=on,fdstore=on",
                "Property 'memory-backend-ram.fdstore' not found",
            ),
        ] {
            assert_eq!(parse(text).unwrap_err(), reason, "{text}");
        }
    }
}
