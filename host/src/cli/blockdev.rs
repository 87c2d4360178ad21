//! `-blockdev`: block nodes, each of which that nothing else uses is a drive by its name
//! (QEMU's qapi/block-core.json, BlockdevOptions).
//!
//! There are two kinds: `file` and `host_device`, which are what the host has, and `raw`, which shows
//! one of those as it is. A `-device` may name either.

use baton_plugin_api::Drive;

use super::drive::{self, Backing, FORMATS};
use super::error::CliError;
use super::id::Id;
use super::nearest::hint;
use super::pairs::Pairs;
use super::said::{Said, Word};

/// Longest name of a node, in bytes; QEMU's.
const LONGEST_NAME: usize = 31;
const DRIVERS: [&str; 3] = ["raw", "file", "host_device"];

/// `-blockdev help`: each property and what it does.
pub(super) const PROPERTIES: [(&str, &str); 13] = [
    ("driver=raw|file|host_device", "what the node is"),
    ("node-name=NAME", "the name that -device drive= says"),
    (
        "file=NODE",
        "raw: the node below, or file.driver=, file.filename=, ... of it",
    ),
    ("filename=PATH", "file and host_device: the image"),
    (
        "aio=threads|io_uring",
        "file and host_device: how it is read and written",
    ),
    (
        "locking=on|off|auto",
        "file and host_device: lock the image (default auto: on)",
    ),
    ("read-only=on|off", "the guest may only read (default off)"),
    (
        "auto-read-only=on|off",
        "open the image as the node above needs it",
    ),
    (
        "cache.direct=on|off",
        "bypass the host's page cache (default off)",
    ),
    (
        "cache.no-flush=on|off",
        "do not pass on the guest's flushes (default off)",
    ),
    (
        "discard=unmap|ignore",
        "whether a discard frees blocks (default ignore)",
    ),
    ("detect-zeroes=off", "always off"),
    ("force-share=off", "always off"),
];

/// A node, not yet connected to others.
struct Node {
    /// Empty for one that is described within another.
    name: String,
    common: Common,
    kind: Kind,
}

enum Kind {
    Raw(Below),
    Protocol(Backing),
}

enum Below {
    Named(String),
    Nested(Box<Node>),
}

/// What every node has. What was not said may come from the node above.
#[derive(Clone, Copy, Default)]
struct Common {
    read_only: Option<bool>,
    direct: Option<bool>,
    no_flush: Option<bool>,
    discard: Option<bool>,
}

/// The drives that all `-blockdev` make together.
pub(super) fn drives(said: &Said) -> Result<Vec<(Drive, &Word)>, CliError> {
    let nodes = said
        .words("blockdev")
        .map(|word| {
            Ok((
                parse(&word.value).map_err(|reason| word.error(reason))?,
                word,
            ))
        })
        .collect::<Result<Vec<_>, CliError>>()?;
    let mut used: Vec<(&str, &str)> = Vec::new();
    let mut drives = Vec::new();
    for (node, word) in &nodes {
        let Kind::Raw(Below::Named(below)) = &node.kind else {
            continue;
        };
        if let Some((_, by)) = used.iter().find(|(used, _)| used == below) {
            return Err(word.error(format!(
                "Node '{below}' is used by node '{by}' already; describe another"
            )));
        }
        used.push((below, &node.name));
    }
    for (node, word) in &nodes {
        if used.iter().any(|(used, _)| *used == node.name) {
            continue;
        }
        let find = |name: &str| {
            nodes
                .iter()
                .map(|(node, _)| node)
                .find(|one| one.name == name)
        };
        let names = || nodes.iter().map(|(node, _)| node.name.as_str());
        let drive = drive(node, find, names).map_err(|reason| word.error(reason))?;
        drives.push((drive, *word));
    }
    Ok(drives)
}

/// The name of the node that the JSON of one `-blockdev` describes.
pub fn node_name(text: &str) -> Result<String, String> {
    parse(text).map(|node| node.name)
}

/// The drives that nodes make which have come later, each as the JSON of a `-blockdev`.
pub fn drives_of(texts: &[String]) -> Result<Vec<Drive>, String> {
    let option = super::definition::option("blockdev").ok_or("There is no -blockdev")?;
    let words = texts
        .iter()
        .map(|text| Word::new(option, Some(text.clone())));
    let said = Said::new(words.collect());
    let drives = drives(&said).map_err(|error| error.reason)?;
    Ok(drives.into_iter().map(|(drive, _)| drive).collect())
}

/// What `-device drive=` of this node means.
fn drive<'a, I: Iterator<Item = &'a str>>(
    node: &Node,
    find: impl Fn(&str) -> Option<&'a Node>,
    names: impl Fn() -> I,
) -> Result<Drive, String> {
    let (top, own) = (node.common, Common::default());
    let (below, inherited) = match &node.kind {
        Kind::Protocol(_) => (node, own),
        Kind::Raw(Below::Nested(below)) => (&**below, top),
        Kind::Raw(Below::Named(name)) => {
            let found = find(name).ok_or_else(|| {
                // QEMU's text.
                let near = hint(name, names().filter(|other| *other != node.name));
                format!("Cannot find device='' nor node-name='{name}'{near}")
            })?;
            (found, own)
        }
    };
    let Kind::Protocol(backing) = &below.kind else {
        return Err(format!(
            "Node '{}' is raw already; name the file or host_device below it",
            below.name
        ));
    };
    let read_only = top.read_only.unwrap_or(false);
    if !read_only && below.common.read_only == Some(true) {
        return Err(
            "Block node is read-only; say read-only=on of the node above it too".to_owned(),
        );
    }
    let nested_discard = inherited.discard.is_some();
    Ok(Drive {
        id: node.name.clone(),
        file: backing.file.clone(),
        format: FORMATS[0].to_owned(),
        read_only,
        // Every node on the way must let a discard through.
        discard: top.discard.unwrap_or(false) && below.common.discard.unwrap_or(nested_discard),
        aio: backing.aio.clone(),
        // What reaches the file decides.
        direct: below.common.direct.or(inherited.direct).unwrap_or(false),
        no_flush: below
            .common
            .no_flush
            .or(inherited.no_flush)
            .unwrap_or(false),
        locking: backing.locking,
    })
}

/// The value of one `-blockdev`.
fn parse(text: &str) -> Result<Node, String> {
    let mut pairs = Pairs::parse_or_json(text, "driver")?;
    let name = pairs
        .take("node-name")
        .ok_or("'node-name' must be specified for the root node")?;
    if name.parse::<Id>().is_err() {
        return Err(format!("Invalid node-name: '{name}'"));
    }
    if name.len() > LONGEST_NAME {
        return Err(format!(
            "Node name too long; the most is {LONGEST_NAME} bytes"
        ));
    }
    node(name, pairs, "blockdev.")
}

fn node(name: String, mut pairs: Pairs, owner: &str) -> Result<Node, String> {
    let driver = pairs.require("driver")?;
    let common = Common {
        read_only: pairs.switch("read-only")?,
        direct: pairs.switch("cache.direct")?,
        no_flush: pairs.switch("cache.no-flush")?,
        discard: drive::discard(&mut pairs)?,
    };
    // Which way it is opened follows from the node above, be it on or off.
    pairs.switch("auto-read-only")?;
    drive::only_off(&mut pairs, "force-share")?;
    drive::only_off(&mut pairs, "detect-zeroes")?;
    let kind = match driver.as_str() {
        "raw" => Kind::Raw(below(&mut pairs, owner)?),
        "file" | "host_device" => Kind::Protocol(Backing::take(&mut pairs, &driver)?),
        other => {
            let near = hint(other, DRIVERS);
            let most = DRIVERS.join(", ");
            return Err(format!(
                "Unknown driver '{other}'{}",
                if near.is_empty() {
                    format!("; use {most}")
                } else {
                    near
                }
            ));
        }
    };
    pairs.finish(owner)?;
    Ok(Node { name, common, kind })
}

/// What a raw node shows.
fn below(pairs: &mut Pairs, owner: &str) -> Result<Below, String> {
    for part in ["offset", "size"] {
        if pairs.take(part).is_some() {
            return Err(format!(
                "Parameter '{part}' is not supported: an image is shown whole"
            ));
        }
    }
    let nested = pairs.split_off("file");
    match (pairs.take("file"), nested) {
        (Some(_), Some(_)) => {
            Err("Parameter 'file' is a node's name or has parts, not both".to_owned())
        }
        (Some(name), None) => Ok(Below::Named(name)),
        // A name of its own would only be good for changing it later.
        (None, Some(mut nested)) => {
            let name = nested.take("node-name").unwrap_or_default();
            let node = node(name, nested, &format!("{owner}file."))?;
            Ok(Below::Nested(Box::new(node)))
        }
        (None, None) => Err("A block device must be specified for \"file\"".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::definition;

    fn said(texts: &[&str]) -> Said {
        let option = definition::option("blockdev").unwrap();
        Said::new(
            texts
                .iter()
                .map(|text| Word::new(option, Some((*text).to_owned())))
                .collect(),
        )
    }

    fn made(texts: &[&str]) -> Result<Vec<Drive>, String> {
        let said = said(texts);
        let drives = drives(&said).map_err(|error| error.reason)?;
        Ok(drives.into_iter().map(|(drive, _)| drive).collect())
    }

    fn plain() -> Drive {
        Drive {
            id: "d".into(),
            file: "/a".into(),
            format: "raw".into(),
            locking: true,
            ..Drive::default()
        }
    }

    #[test]
    fn nodes_make_a_drive_however_they_are_written() {
        let nested = r#"{"node-name": "d", "driver": "raw",
                         "file": {"driver": "file", "filename": "/a"}}"#;
        for texts in [
            &["driver=file,node-name=d,filename=/a"][..],
            &["host_device,node-name=d,filename=/a"],
            &["driver=raw,node-name=d,file.driver=file,file.filename=/a"],
            &[
                "driver=raw,node-name=d,file=f",
                "driver=file,node-name=f,filename=/a,auto-read-only=on",
            ],
            &[nested],
        ] {
            assert_eq!(made(texts), Ok(vec![plain()]), "{texts:?}");
        }
    }

    #[test]
    fn what_libvirt_writes_is_understood() {
        let texts = [
            r#"{"driver":"file","filename":"/a","aio":"io_uring","node-name":"libvirt-1-storage",
                "auto-read-only":true,"discard":"unmap","cache":{"direct":true,"no-flush":false}}"#,
            r#"{"node-name":"d","read-only":false,"discard":"unmap",
                "cache":{"direct":true,"no-flush":false},"driver":"raw","file":"libvirt-1-storage"}"#,
        ];
        let expected = Drive {
            aio: Some("io_uring".into()),
            discard: true,
            direct: true,
            ..plain()
        };
        assert_eq!(made(&texts), Ok(vec![expected]));
    }

    #[test]
    fn a_nested_node_takes_after_the_one_above_and_a_named_one_does_not() {
        let nested = "driver=raw,node-name=d,cache.direct=on,discard=unmap,read-only=on,\
                      file.driver=file,file.filename=/a,file.locking=off";
        let expected = Drive {
            read_only: true,
            discard: true,
            direct: true,
            locking: false,
            ..plain()
        };
        assert_eq!(made(&[nested]), Ok(vec![expected]));
        let named = [
            "driver=raw,node-name=d,file=f,cache.direct=on,discard=unmap",
            "driver=file,node-name=f,filename=/a",
        ];
        assert_eq!(made(&named), Ok(vec![plain()]));
    }

    #[test]
    fn nodes_that_make_no_drive_are_refused() {
        let file = "driver=file,node-name=f,filename=/a";
        for (texts, reason) in [
            (&["node-name=d"][..], "Parameter 'driver' is missing"),
            (
                &["driver=file,filename=/a"],
                "'node-name' must be specified for the root node",
            ),
            (
                &["driver=file,node-name=1,filename=/a"],
                "Invalid node-name: '1'",
            ),
            (
                &["driver=file,node-name=abcdefghijabcdefghijabcdefghij12"],
                "Node name too long; the most is 31 bytes",
            ),
            (
                &["driver=qcow2,node-name=d,file=f", file],
                "Unknown driver 'qcow2'; use raw, file, host_device",
            ),
            (
                &["driver=rw,node-name=d"],
                "Unknown driver 'rw'; did you mean 'raw'?",
            ),
            (
                &["driver=raw,node-name=d"],
                "A block device must be specified for \"file\"",
            ),
            (
                &["driver=raw,node-name=d,file=ff", file],
                "Cannot find device='' nor node-name='ff'; did you mean 'f'?",
            ),
            (
                &[
                    "driver=raw,node-name=d,file=f",
                    "driver=raw,node-name=e,file=f",
                    file,
                ],
                "Node 'f' is used by node 'd' already; describe another",
            ),
            (
                &[
                    "driver=raw,node-name=d,file=e",
                    "driver=raw,node-name=e,file=f",
                    file,
                ],
                "Node 'e' is raw already; name the file or host_device below it",
            ),
            (
                &[
                    "driver=raw,node-name=d,file=f",
                    "driver=file,node-name=f,filename=/a,read-only=on",
                ],
                "Block node is read-only; say read-only=on of the node above it too",
            ),
            (
                &["driver=raw,node-name=d,file.driver=file,file.filenam=/a"],
                "Parameter 'filename' is missing",
            ),
            (
                &["driver=file,node-name=d,filename=/a,lokcing=off"],
                "Property 'blockdev.lokcing' not found; did you mean 'locking'?",
            ),
            (
                &["driver=raw,node-name=d,file.driver=file,file.filename=/a,file.x=1"],
                "Property 'blockdev.file.x' not found",
            ),
            (
                &["driver=raw,node-name=d,offset=4096,file=f", file],
                "Parameter 'offset' is not supported: an image is shown whole",
            ),
            (
                &["driver=file,node-name=d,filename=/a,detect-zeroes=on"],
                "Parameter 'detect-zeroes' is not supported; use off",
            ),
        ] {
            assert_eq!(made(texts).unwrap_err(), reason, "{texts:?}");
        }
    }
}
