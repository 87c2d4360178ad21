//! The kernel's command line: checked against what the kernel can take, then written.

use vm_memory::GuestMemoryMmap;

use super::Error;
use super::low_memory::{COMMAND_LINE, COMMAND_LINE_ROOM, write_bytes};

/// Writes `text` and a NUL to [`COMMAND_LINE`].
///
/// `limit` is in bytes without the NUL, as the kernel `name` states it: a longer line would be cut
/// off silently in the guest. The room there is bounds it whatever the kernel says.
pub(super) fn write(
    memory: &GuestMemoryMmap<()>,
    name: &str,
    text: &str,
    limit: usize,
) -> Result<(), Error> {
    let limit = limit.min(COMMAND_LINE_ROOM - 1);
    if text.len() > limit {
        return Err(Error::CommandLineTooLong {
            name: name.to_owned(),
            length: text.len(),
            limit,
        });
    }
    if let Some(offset) = text.bytes().position(|b| b == 0) {
        return Err(Error::CommandLineNul { offset });
    }
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    write_bytes(memory, "command line", COMMAND_LINE, &bytes)
}
