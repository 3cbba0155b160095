//! Memory policy: on which node the pages of a mapping are made.

use std::io;

use crate::mapping::Mapping;

/// Nodes that fit the mask below; kernels are built for at most 1024.
const NODES_MAX: usize = 1024;
const BITS: usize = u64::BITS as usize;

/// Returns how many NUMA nodes are online; one when the kernel does not say.
pub(crate) fn online_node_count() -> usize {
    let list = std::fs::read_to_string("/sys/devices/system/node/online").unwrap_or_default();
    count_of_list(&list).max(1)
}

/// Counts the members of a kernel list such as `0-3,8`. What cannot be read counts as nothing.
fn count_of_list(list: &str) -> usize {
    let count_of_range = |range: &str| -> Option<usize> {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        last.checked_sub(first)?.checked_add(1)
    };
    list.trim().split(',').filter_map(count_of_range).sum()
}

/// Makes the pages of `mapping` that are not there yet come from `node`, and from the nearest other
/// node when it is full: a strict binding would let the kernel kill the process instead.
pub(crate) fn prefer_node(mapping: &Mapping, node: usize) -> io::Result<()> {
    if node >= NODES_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut mask = [0u64; NODES_MAX / BITS];
    mask[node / BITS] |= 1 << (node % BITS);
    // SAFETY: the range is exactly `mapping`, which is ours; the policy does not change its
    // contents. `mask` holds `NODES_MAX` bits and outlives the call, which only reads it. The
    // kernel takes one more than the number of bits it reads.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            mapping.start().as_ptr(),
            mapping.bytes(),
            libc::MPOL_PREFERRED,
            mask.as_ptr(),
            NODES_MAX + 1,
            0,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_lists_are_counted() {
        for (list, count) in [
            ("0\n", 1),
            ("0-1\n", 2),
            ("0-3,8,10-11\n", 7),
            ("\n", 0),
            ("3-1", 0),
        ] {
            assert_eq!(count_of_list(list), count, "{list:?}");
        }
    }
}
