//! The "newc" cpio archive, as far as an initramfs needs it.

/// Writes an archive in memory.
#[derive(Debug, Default)]
pub struct CpioWriter {
    out: Vec<u8>,
    inodes: u32,
}

/// What an entry is; the numbers are the kernel's `S_IF…`.
const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// Bytes of a header, before the name.
const HEADER_BYTES: usize = 110;

impl CpioWriter {
    /// An empty archive.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a folder; the ones above it must come before.
    pub fn folder(&mut self, name: &str, mode: u32) {
        self.entry(name, FOLDER | mode, (0, 0), &[]);
    }

    /// Adds a file.
    pub fn file(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entry(name, FILE | mode, (0, 0), content);
    }

    /// Adds a character device.
    pub fn device(&mut self, name: &str, mode: u32, major: u32, minor: u32) {
        self.entry(name, CHARACTER_DEVICE | mode, (major, minor), &[]);
    }

    /// Ends the archive.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.inodes = 0;
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.out
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.inodes += 1;
        let links = if mode & FOLDER == FOLDER { 2 } else { 1 };
        // An initramfs has no file of 4 GiB: the format could not say so.
        let content_bytes = u32::try_from(content.len()).unwrap_or(u32::MAX);
        let name_bytes = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        let fields = [
            self.inodes,
            mode,
            0,
            0,
            links,
            0,
            content_bytes,
            0,
            0,
            device.0,
            device.1,
            name_bytes,
            0,
        ];
        self.out.extend_from_slice(b"070701");
        for field in fields {
            self.out
                .extend_from_slice(format!("{field:08X}").as_bytes());
        }
        debug_assert_eq!(6 + fields.len() * 8, HEADER_BYTES);
        self.out.extend_from_slice(name.as_bytes());
        self.out.push(0);
        self.pad();
        self.out.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.out.resize(self.out.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_the_one_the_kernel_reads() {
        let mut cpio = CpioWriter::new();
        cpio.folder("dev", 0o755);
        cpio.file("init", 0o755, b"hello");
        let bytes = cpio.finish();
        assert!(bytes.len().is_multiple_of(4));
        let first = std::str::from_utf8(&bytes[..HEADER_BYTES + 3]).expect("text");
        assert!(first.starts_with("07070100000001000041ED") && first.ends_with("dev"));
        let second = HEADER_BYTES + 4 + 2;
        assert_eq!(&bytes[second..second + 6], b"070701");
        assert_eq!(&bytes[second + 54..second + 62], b"00000005");
        let content = (second + HEADER_BYTES + 5).next_multiple_of(4);
        assert_eq!(&bytes[content..content + 8], b"hello\0\0\0");
        assert!(bytes.windows(10).any(|window| window == b"TRAILER!!!"));
    }
}
