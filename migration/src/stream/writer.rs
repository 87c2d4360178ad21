//! Writes a vmstate stream.

use std::collections::HashSet;
use std::io::Write;

use serde::Serialize;

use super::StreamError;
use super::format::{
    BYTE_ORDER_MARK, FORMAT_VERSION, Header, MAGIC, MAX_FINGERPRINT, MAX_NAME, MAX_PRODUCER,
    MAX_SECTION, MAX_SECTIONS, TAG_END, TAG_SECTION,
};

/// Writes sections one after the other; [`Self::finish`] adds the end mark without which no reader
/// accepts the stream.
///
/// It makes several small writes per section: give it a `Vec<u8>` or a `BufWriter`.
pub struct SectionWriter<'a> {
    out: &'a mut dyn Write,
    crc: u32,
    sections: HashSet<(String, u32)>,
    /// Encoding space, reused: a section costs no allocation once it has grown.
    scratch: Vec<u8>,
}

impl<'a> SectionWriter<'a> {
    /// Writes the header.
    pub fn new(out: &'a mut dyn Write, header: &Header) -> Result<Self, StreamError> {
        let fingerprint =
            rmp_serde::to_vec_named(&header.fingerprint).map_err(|source| StreamError::Encode {
                name: "machine fingerprint".to_owned(),
                source,
            })?;
        bound("the producer", header.producer.len(), MAX_PRODUCER)?;
        bound(
            "the machine fingerprint",
            fingerprint.len(),
            MAX_FINGERPRINT,
        )?;

        let mut head = Vec::with_capacity(64 + header.producer.len() + fingerprint.len());
        head.extend_from_slice(&MAGIC);
        head.extend_from_slice(&BYTE_ORDER_MARK.to_le_bytes());
        head.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        head.push(header.producer.len() as u8);
        head.extend_from_slice(header.producer.as_bytes());
        head.extend_from_slice(&(fingerprint.len() as u32).to_le_bytes());
        head.extend_from_slice(&fingerprint);
        head.extend_from_slice(&crc32c::crc32c(&head).to_le_bytes());

        let mut writer = Self {
            out,
            crc: 0,
            sections: HashSet::new(),
            scratch: Vec::with_capacity(4096),
        };
        writer.write("the header", &head)?;
        Ok(writer)
    }

    /// Writes `state` as a section; see [`super::section_name`] for the name.
    pub fn put<T: Serialize + ?Sized>(
        &mut self,
        name: &str,
        instance: u32,
        version: u32,
        state: &T,
    ) -> Result<(), StreamError> {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        let encoded = state
            .serialize(&mut rmp_serde::Serializer::new(&mut scratch).with_struct_map())
            .map_err(|source| StreamError::Encode {
                name: name.to_owned(),
                source,
            });
        let result = encoded.and_then(|()| self.put_raw(name, instance, version, &scratch));
        self.scratch = scratch;
        result
    }

    /// Writes a payload that is encoded already, such as a plugin's or one saved by another thread.
    pub fn put_raw(
        &mut self,
        name: &str,
        instance: u32,
        version: u32,
        payload: &[u8],
    ) -> Result<(), StreamError> {
        if name.is_empty() {
            return Err(StreamError::Malformed {
                what: "an empty section name".into(),
                offset: 0,
            });
        }
        bound("the name of a section", name.len(), MAX_NAME)?;
        if payload.len() > MAX_SECTION {
            bound(
                &format!("the length of section '{name}'"),
                payload.len(),
                MAX_SECTION,
            )?;
        }
        bound(
            "the number of sections",
            self.sections.len() + 1,
            MAX_SECTIONS,
        )?;
        if !self.sections.insert((name.to_owned(), instance)) {
            return Err(StreamError::Duplicate {
                name: name.to_owned(),
                instance,
            });
        }

        let mut head = [0u8; 2 + MAX_NAME + 12];
        let length = section_head(&mut head, name, instance, version, payload.len() as u32);
        let head = &head[..length];
        let crc = crc32c::crc32c_append(crc32c::crc32c(head), payload);
        self.write(name, head)?;
        self.write(name, &crc.to_le_bytes())?;
        self.write(name, payload)
    }

    /// How many sections were written.
    pub fn sections(&self) -> usize {
        self.sections.len()
    }

    /// Writes the end mark and flushes.
    pub fn finish(mut self) -> Result<(), StreamError> {
        let mut mark = [0u8; 5];
        mark[0] = TAG_END;
        mark[1..].copy_from_slice(&(self.sections.len() as u32).to_le_bytes());
        self.write("the end mark", &mark)?;
        let crc = self.crc.to_le_bytes();
        self.write("the end mark", &crc)?;
        self.out.flush().map_err(|source| StreamError::Write {
            what: "the end mark".to_owned(),
            source,
        })
    }

    fn write(&mut self, what: &str, bytes: &[u8]) -> Result<(), StreamError> {
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        self.out
            .write_all(bytes)
            .map_err(|source| StreamError::Write {
                what: format!("'{what}'"),
                source,
            })
    }
}

/// Lays out what precedes a section's checksum; returns how many bytes of `head` it took.
fn section_head(head: &mut [u8], name: &str, instance: u32, version: u32, length: u32) -> usize {
    head[0] = TAG_SECTION;
    head[1] = name.len() as u8;
    let mut at = 2 + name.len();
    head[2..at].copy_from_slice(name.as_bytes());
    for number in [instance, version, length] {
        head[at..at + 4].copy_from_slice(&number.to_le_bytes());
        at += 4;
    }
    at
}

fn bound(what: &str, found: usize, limit: usize) -> Result<(), StreamError> {
    if found <= limit {
        return Ok(());
    }
    Err(StreamError::TooLarge {
        what: what.to_owned(),
        offset: 0,
        found: found as u64,
        limit: limit as u64,
    })
}
