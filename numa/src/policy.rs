//! Memory policy: on which node the pages of a mapping are made.

use std::io;

/// Nodes that fit a mask; kernels are built for at most 1024.
pub(crate) const NODES_MAX: usize = 1024;
pub(crate) const BITS: usize = u64::BITS as usize;

/// A bit per node.
pub(crate) type NodeMask = [u64; NODES_MAX / BITS];

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

/// Makes the pages of a range of this process that are not there yet come from `node`, and from the
/// nearest other node when it is full: a strict binding would let the kernel kill the process instead.
/// For a shared file the wish belongs to the file: whoever maps it gets such pages.
///
/// # Errors
/// When the node does not exist, or the range is not mapped or does not begin at a page.
pub fn prefer_node(address: usize, bytes: usize, node: usize) -> io::Result<()> {
    if node >= NODES_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut mask: NodeMask = [0; NODES_MAX / BITS];
    mask[node / BITS] |= 1 << (node % BITS);
    // SAFETY: a policy without flags says where pages come from that are made later; it changes no
    // page that is there and no contents, and a range that is not mapped is refused: so any range is
    // sound. `mask` holds `NODES_MAX` bits and outlives the call, which only reads it. The kernel
    // takes one more than the number of bits it reads.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            address,
            bytes,
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
