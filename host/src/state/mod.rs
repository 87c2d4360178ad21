//! What can be said of vmstate without a guest: a state file as JSON, what a build saves and loads,
//! and whether one build can load what another writes.

mod check;
mod description;
mod show;
mod value;

pub(crate) use check::{CANNOT_CHECK, Line, check, compare};
pub(crate) use description::{Description, PluginDescription, dump, of_vm};
pub(crate) use show::show;

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use baton_migration::HostError;
use baton_migration::stream::{StateImage, StateReader};

/// A state in a file.
struct StateFile {
    image: StateImage,
    /// From the header to the end mark, in bytes. Others may follow.
    size: u64,
}

impl StateFile {
    /// Reads the stream that begins at `offset`. The error names the file.
    fn read(path: &Path, offset: u64) -> Result<Self, HostError> {
        let fail = |e: &(dyn std::error::Error + 'static)| {
            format!("{}: {}", path.display(), baton_migration::error_chain(e))
        };
        let mut file = File::open(path).map_err(|e| fail(&e))?;
        // Not all that can be read can be sought in.
        if offset > 0 {
            file.seek(SeekFrom::Start(offset)).map_err(|e| fail(&e))?;
        }
        let mut input = Counted {
            input: BufReader::with_capacity(1 << 20, file),
            count: 0,
        };
        let image = StateReader::new(&mut input)
            .and_then(StateReader::into_image)
            .map_err(|e| fail(&e))?;
        Ok(Self {
            image,
            size: input.count,
        })
    }
}

struct Counted<R> {
    input: R,
    count: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let n = self.input.read(into)?;
        self.count += n as u64;
        Ok(n)
    }
}
