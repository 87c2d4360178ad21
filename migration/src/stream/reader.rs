//! Reads a vmstate stream.

use std::io::{ErrorKind, Read};

use super::format::{
    BYTE_ORDER_MARK, FORMAT_VERSION, Header, MAGIC, MAX_FINGERPRINT, MAX_SECTION, MAX_SECTIONS,
    TAG_END, TAG_SECTION,
};
use super::{SectionData, StateImage, StreamError, payload};
use crate::fingerprint::MachineFingerprint;

/// A payload is read in steps of this many bytes, so that a stream that promises much and delivers
/// little costs no more memory than it delivers.
const STEP: usize = 1 << 20;

/// A stream whose header was read; the sections follow with [`Self::into_image`].
pub struct StateReader<R: Read> {
    input: Counted<R>,
    header: Header,
}

impl<R: Read> StateReader<R> {
    /// Reads and checks the header, nothing more.
    pub fn new(input: R) -> Result<Self, StreamError> {
        let mut input = Counted {
            input,
            offset: 0,
            crc: 0,
        };

        let magic: [u8; 8] = input.array("the magic")?;
        if magic != MAGIC {
            let found = magic.iter().map(|byte| format!("{byte:02x}")).collect();
            return Err(StreamError::BadMagic { found });
        }
        let mark = input.u32("the byte order mark")?;
        if mark != BYTE_ORDER_MARK {
            return Err(StreamError::ByteOrder {
                found: mark,
                expected: BYTE_ORDER_MARK,
            });
        }
        let version = input.u32("the format version")?;
        if version != FORMAT_VERSION {
            return Err(StreamError::FormatVersion {
                found: version,
                supported: FORMAT_VERSION,
            });
        }
        let length = input.array::<1>("the length of the producer")?[0];
        let producer = input.text("the producer", length.into())?;
        let length = input.u32("the length of the machine fingerprint")?;
        input.bound(
            "the length of the machine fingerprint",
            length,
            MAX_FINGERPRINT,
        )?;
        let bytes = input.bytes("the machine fingerprint", length as usize)?;
        input.checksum("the header")?;
        let fingerprint: MachineFingerprint = payload::decode("machine fingerprint", &bytes)?;

        Ok(Self {
            input,
            header: Header {
                producer,
                fingerprint,
            },
        })
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Reads all sections up to and with the end mark, and not a byte more.
    pub fn into_image(mut self) -> Result<StateImage, StreamError> {
        let mut image = StateImage::new(self.header);
        let input = &mut self.input;
        loop {
            let start = input.offset;
            let mut crc = 0;
            let [tag] = input.part("a section or the end mark", &mut crc)?;
            match tag {
                TAG_SECTION if image.len() == MAX_SECTIONS => {
                    return Err(StreamError::TooLarge {
                        what: "the number of sections".to_owned(),
                        offset: start,
                        found: MAX_SECTIONS as u64 + 1,
                        limit: MAX_SECTIONS as u64,
                    });
                }
                TAG_SECTION => image.push(input.section(start, crc)?)?,
                TAG_END => break,
                _ => {
                    let what = "a section's tag".to_owned();
                    return Err(StreamError::Malformed {
                        what,
                        offset: start,
                    });
                }
            }
        }
        let count = input.u32("the number of sections")?;
        input.checksum("the whole state")?;
        if count as usize != image.len() {
            return Err(StreamError::Malformed {
                what: "the number of sections".to_owned(),
                offset: input.offset,
            });
        }
        Ok(image)
    }
}

/// Knows how far it has read and the checksum of all of it.
struct Counted<R> {
    input: R,
    offset: u64,
    crc: u32,
}

impl<R: Read> Counted<R> {
    fn fill(&mut self, what: &str, into: &mut [u8]) -> Result<(), StreamError> {
        self.input
            .read_exact(into)
            .map_err(|source| match source.kind() {
                ErrorKind::UnexpectedEof => StreamError::Truncated {
                    what: what.to_owned(),
                    offset: self.offset,
                },
                _ => StreamError::Read {
                    what: what.to_owned(),
                    offset: self.offset,
                    source,
                },
            })?;
        self.offset += into.len() as u64;
        self.crc = crc32c::crc32c_append(self.crc, into);
        Ok(())
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], StreamError> {
        let mut bytes = [0; N];
        self.fill(what, &mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self, what: &str) -> Result<u32, StreamError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    /// Reads `N` bytes that also count towards a section's own checksum.
    fn part<const N: usize>(&mut self, what: &str, crc: &mut u32) -> Result<[u8; N], StreamError> {
        let bytes = self.array(what)?;
        *crc = crc32c::crc32c_append(*crc, &bytes);
        Ok(bytes)
    }

    /// Reads `length` bytes; the caller has bounded it.
    fn bytes(&mut self, what: &str, length: usize) -> Result<Vec<u8>, StreamError> {
        let mut bytes = Vec::with_capacity(length.min(STEP));
        while bytes.len() < length {
            let done = bytes.len();
            bytes.resize(length.min(done + STEP), 0);
            self.fill(what, &mut bytes[done..])?;
        }
        Ok(bytes)
    }

    fn text(&mut self, what: &str, length: usize) -> Result<String, StreamError> {
        let offset = self.offset;
        String::from_utf8(self.bytes(what, length)?).map_err(|_| StreamError::Malformed {
            what: what.to_owned(),
            offset,
        })
    }

    fn bound(&self, what: &str, found: u32, limit: usize) -> Result<(), StreamError> {
        if found as usize <= limit {
            return Ok(());
        }
        Err(StreamError::TooLarge {
            what: what.to_owned(),
            offset: self.offset,
            found: found.into(),
            limit: limit as u64,
        })
    }

    /// Reads a checksum and compares it with that of everything before it.
    fn checksum(&mut self, what: &str) -> Result<(), StreamError> {
        let computed = self.crc;
        let found = self.u32(&format!("the checksum of {what}"))?;
        check(what, found, computed)
    }

    /// Reads a section whose tag, at `start` and in `crc`, was read.
    fn section(&mut self, start: u64, mut crc: u32) -> Result<SectionData, StreamError> {
        let [length] = self.part("the length of a section's name", &mut crc)?;
        if length == 0 {
            let what = "the empty name of a section".to_owned();
            return Err(StreamError::Malformed {
                what,
                offset: start,
            });
        }
        let name = self.text("a section's name", length.into())?;
        crc = crc32c::crc32c_append(crc, name.as_bytes());
        let what = format!("section '{name}'");
        let instance = u32::from_le_bytes(self.part(&what, &mut crc)?);
        let version = u32::from_le_bytes(self.part(&what, &mut crc)?);
        let length = u32::from_le_bytes(self.part(&what, &mut crc)?);
        if length as usize > MAX_SECTION {
            self.bound(&format!("the length of {what}"), length, MAX_SECTION)?;
        }
        let found = self.u32(&what)?;
        let payload = self.bytes(&what, length as usize)?;
        check(&what, found, crc32c::crc32c_append(crc, &payload))?;
        Ok(SectionData {
            name,
            instance,
            version,
            payload,
        })
    }
}

fn check(what: &str, found: u32, computed: u32) -> Result<(), StreamError> {
    if found == computed {
        return Ok(());
    }
    Err(StreamError::Checksum {
        what: what.to_owned(),
        found,
        computed,
    })
}
