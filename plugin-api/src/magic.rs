//! Layer 1 of the contract: a plain-C block that the host reads before any code of the plugin runs.

/// The first eight bytes of the block.
pub const MAGIC: [u8; 8] = *b"BATONPLG";

/// Plugins of another major version are refused.
pub const ABI_MAJOR: u16 = 1;

/// A host loads plugins of its own and of every older minor version. A newer minor is refused,
/// since such a plugin may need services this host does not have.
pub const ABI_MINOR: u16 = 0;

/// The symbol the block is exported under.
pub const MAGIC_SYMBOL: &str = "baton_plugin_magic";

/// The block itself. Its layout never changes within all majors: fields are only added at the end,
/// and `size` tells how many bytes there are.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct MagicBlock {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// Bytes in this block.
    pub size: u32,
    /// [`ABI_MAJOR`] of the API crate the plugin was built with.
    pub abi_major: u16,
    /// [`ABI_MINOR`] of the API crate the plugin was built with.
    pub abi_minor: u16,
    /// The plugin's name, UTF-8, padded with zeroes.
    pub name: [u8; 64],
    /// The plugin's version, UTF-8, padded with zeroes.
    pub version: [u8; 32],
    /// The version of the API crate, UTF-8, padded with zeroes.
    pub api_version: [u8; 32],
}

impl MagicBlock {
    /// The block of a plugin built with this API crate; used by the export macro.
    ///
    /// A name or version that is too long fails the build.
    pub const fn new(name: &str, version: &str) -> Self {
        Self {
            magic: MAGIC,
            size: size_of::<Self>() as u32,
            abi_major: ABI_MAJOR,
            abi_minor: ABI_MINOR,
            name: padded(name),
            version: padded(version),
            api_version: padded(env!("CARGO_PKG_VERSION")),
        }
    }

    /// The plugin's name.
    pub fn name(&self) -> String {
        text(&self.name)
    }

    /// The plugin's version.
    pub fn version(&self) -> String {
        text(&self.version)
    }

    /// The API crate's version.
    pub fn api_version(&self) -> String {
        text(&self.api_version)
    }
}

const fn padded<const N: usize>(text: &str) -> [u8; N] {
    let bytes = text.as_bytes();
    assert!(
        bytes.len() < N,
        "a plugin's name or version is too long for the magic block"
    );
    let mut out = [0; N];
    let mut i = 0;
    while i < bytes.len() {
        out[i] = bytes[i];
        i += 1;
    }
    out
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn the_magic_block_has_its_frozen_layout() {
        assert_eq!(size_of::<MagicBlock>(), 144);
        assert_eq!(offset_of!(MagicBlock, size), 8);
        assert_eq!(offset_of!(MagicBlock, abi_major), 12);
        assert_eq!(offset_of!(MagicBlock, abi_minor), 14);
        assert_eq!(offset_of!(MagicBlock, name), 16);
        assert_eq!(offset_of!(MagicBlock, version), 80);
        assert_eq!(offset_of!(MagicBlock, api_version), 112);
    }

    #[test]
    fn the_crate_has_the_version_of_the_abi() {
        let major_minor = format!("{ABI_MAJOR}.{ABI_MINOR}.");
        assert!(env!("CARGO_PKG_VERSION").starts_with(&major_minor));
    }

    #[test]
    fn names_read_back() {
        let block = MagicBlock::new("virtio-rng-pci", "1.2.3");
        assert_eq!(
            (block.name().as_str(), block.version().as_str()),
            ("virtio-rng-pci", "1.2.3")
        );
    }
}
