//! `baton state show`: a state file as JSON.

use std::path::Path;

use baton_migration::HostError;
use baton_migration::stream::FORMAT_VERSION;
use serde_json::{Value, json};

use super::{StateFile, value};

/// The state that begins at byte `offset` of `path`, as JSON. With `full`, long binary is not cut.
/// What follows the state is not looked at.
pub(crate) fn show(path: &Path, offset: u64, full: bool) -> Result<String, HostError> {
    let StateFile { image, size } = StateFile::read(path, offset)?;
    let header = image.header();
    let sections: Vec<Value> = image
        .sections()
        .map(|section| {
            let state = value::payload(&section.payload, full)
                .unwrap_or_else(|| value::binary(&section.payload, full));
            json!({
                "name": section.name,
                "instance": section.instance,
                "version": section.version,
                "size": section.payload.len(),
                "state": state,
            })
        })
        .collect();
    Ok(serde_json::to_string_pretty(&json!({
        "format-version": FORMAT_VERSION,
        "producer": header.producer,
        "size": size,
        "fingerprint": header.fingerprint,
        "sections": sections,
    }))?)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use baton_migration::fingerprint::MachineFingerprint;
    use baton_migration::stream::{Header, SectionWriter};

    use super::*;

    /// A file of this test alone, with a state of two sections at byte 100 and more behind it.
    fn file(name: &str) -> (PathBuf, Vec<u8>) {
        let mut stream = Vec::new();
        let header = Header {
            producer: "baton test".into(),
            fingerprint: MachineFingerprint::default(),
        };
        let mut writer = SectionWriter::new(&mut stream, &header).unwrap();
        writer
            .put("machine/clock", 2, 7, &json!({ "ns": 5 }))
            .unwrap();
        writer.put_raw("d/raw", 0, 1, &[0xc1, 0xff]).unwrap();
        writer.finish().unwrap();
        let file = std::env::temp_dir().join(format!("baton-show-{name}-{}", std::process::id()));
        std::fs::write(&file, [&[9; 100], &stream[..], &[0; 50]].concat()).unwrap();
        (file, stream)
    }

    #[test]
    fn a_state_within_a_file_is_json() {
        let (file, stream) = file("within");
        let shown: Value = serde_json::from_str(&show(&file, 100, false).unwrap()).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert_eq!(shown["producer"], "baton test");
        assert_eq!(shown["size"], stream.len());
        assert_eq!(shown["fingerprint"]["vcpus"], 0);
        assert_eq!(
            shown["sections"],
            json!([
                { "name": "machine/clock", "instance": 2, "version": 7, "size": 5,
                  "state": { "ns": 5 } },
                { "name": "d/raw", "instance": 0, "version": 1, "size": 2, "state": "hex:c1ff" },
            ])
        );
    }

    #[test]
    fn a_state_that_is_cut_short_anywhere_or_damaged_is_one_line_that_names_the_file() {
        let (file, stream) = file("cut");
        let mut damaged = stream.clone();
        damaged[40] ^= 1;
        let cuts = (0..stream.len()).map(|end| stream[..end].to_vec());
        for bytes in cuts.chain([damaged]) {
            std::fs::write(&file, bytes).unwrap();
            let error = show(&file, 0, false).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("{}: ", file.display())),
                "{error}"
            );
            assert_eq!(error.lines().count(), 1, "{error}");
        }
        std::fs::remove_file(&file).unwrap();
    }
}
