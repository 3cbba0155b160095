//! What QEMU tells a PVH kernel: the command line and the map of RAM.

/// Longest command line that is read; the rest is cut off.
pub const COMMAND_LINE_BYTES_MAX: usize = 1024;

/// Most regions of RAM that are used.
pub const REGIONS_MAX: usize = 8;

const MAGIC: u32 = 0x336E_C578;

/// Type of a region of ordinary RAM.
const TYPE_RAM: u32 = 1;

/// `hvm_start_info`, version 1.
#[repr(C)]
#[derive(Clone, Copy)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    modules_at: u64,
    command_line_at: u64,
    rsdp_at: u64,
    map_at: u64,
    map_entries: u32,
    reserved: u32,
}

/// `hvm_memmap_table_entry`.
#[repr(C)]
#[derive(Clone, Copy)]
struct MapEntry {
    address: u64,
    bytes: u64,
    kind: u32,
    reserved: u32,
}

/// A span of RAM, in bytes.
#[derive(Clone, Copy, Default)]
pub struct Region {
    pub start: u64,
    pub end: u64,
}

/// All that the guest needs to know.
pub struct BootInfo<'a> {
    pub command_line: &'a str,
    pub regions: [Region; REGIONS_MAX],
}

/// Reads everything at once: the pages it lies in may be filled later.
pub fn read(start_info: u64, line: &mut [u8; COMMAND_LINE_BYTES_MAX]) -> Option<BootInfo<'_>> {
    // SAFETY: QEMU hands over the address of its start_info, and all RAM is mapped one to one. If it
    // is something else, the magic tells.
    let info = unsafe { (start_info as *const StartInfo).read_unaligned() };
    if info.magic != MAGIC || info.version < 1 {
        return None;
    }
    let mut regions = [Region::default(); REGIONS_MAX];
    let mut count = 0;
    for index in 0..u64::from(info.map_entries) {
        let at = info.map_at + index * size_of::<MapEntry>() as u64;
        // SAFETY: the table has that many entries, as its owner said.
        let entry = unsafe { (at as *const MapEntry).read_unaligned() };
        if entry.kind == TYPE_RAM && count < REGIONS_MAX {
            regions[count] = Region {
                start: entry.address,
                end: entry.address + entry.bytes,
            };
            count += 1;
        }
    }
    let mut length = 0;
    while info.command_line_at != 0 && length < line.len() {
        // SAFETY: a C string; we stop at its end.
        let byte = unsafe { (info.command_line_at as *const u8).add(length).read() };
        if byte == 0 {
            break;
        }
        line[length] = byte;
        length += 1;
    }
    let command_line = core::str::from_utf8(&line[..length]).unwrap_or("");
    Some(BootInfo {
        command_line,
        regions,
    })
}
