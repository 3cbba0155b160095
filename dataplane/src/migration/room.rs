//! Whether a guest fits here.

use dwcp_wire::RefuseCode;

use super::destination_actions::Refusal;
use crate::ram::RamLayout;

/// Whether there is room for a guest that is not held yet: in the files' file system, and in memory.
/// A page that finds none later would end this process, and every migration in it, with SIGBUS.
pub(super) fn check_room(layout: &RamLayout) -> Result<(), Refusal> {
    let mut wanted_bytes = 0;
    for block in layout.blocks() {
        let room = block
            .room()
            .map_err(|error| (RefuseCode::Other, error.to_string()))?;
        if !room.is_reserved {
            wanted_bytes += block.bytes().saturating_sub(room.held_bytes);
        }
        if let Some(free_bytes) = room.file_system_bytes
            && block.bytes() > free_bytes + room.held_bytes
        {
            let text = format!(
                "destination is too small: RAM block {} has {} MiB, the file system of its \
                 mem-path has {} MiB free",
                block.name(),
                block.bytes() >> 20,
                free_bytes >> 20
            );
            return Err((RefuseCode::TooSmall, text));
        }
    }
    let Some(available_bytes) = available_bytes() else {
        return Ok(());
    };
    if wanted_bytes <= available_bytes {
        return Ok(());
    }
    let text = format!(
        "destination is too small: the guest needs {} MiB of RAM, {} MiB are available",
        wanted_bytes >> 20,
        available_bytes >> 20
    );
    Err((RefuseCode::TooSmall, text))
}

/// `MemAvailable`, see proc_meminfo(5).
fn available_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(
        line.trim()
            .trim_end_matches(" kB")
            .trim()
            .parse::<u64>()
            .ok()?
            * 1024,
    )
}
