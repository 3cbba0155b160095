//! Where pages lie, by the kernel's own word: each page of a range, or the policy for pages that are
//! not there yet.

use std::ffi::{c_int, c_ulong, c_void};
use std::io;

use crate::policy::{BITS, NODES_MAX, NodeMask};

/// Pages asked about in one call.
const BATCH: usize = 1024;

/// Returns the node of the page at each address of this process. `None` where there is none to name:
/// nothing is mapped there, the mapping has no page yet, or the kernel is moving it.
///
/// The kernel looks only: no page is touched, none is moved. A page of a shared file counts as there
/// only once this process has touched it.
///
/// # Errors
/// When the kernel does not answer at all: it is built without NUMA, or a filter forbids the call.
pub fn nodes_of_pages(addresses: &[usize]) -> io::Result<Vec<Option<usize>>> {
    let mut nodes = Vec::with_capacity(addresses.len());
    let mut status: [c_int; BATCH] = [0; BATCH];
    for batch in addresses.chunks(BATCH) {
        // SAFETY: process 0 is this one. With a null array of target nodes the call moves nothing and
        // reads no page; addresses are looked up, never followed, so any number is valid. `batch` has
        // `batch.len()` words of a pointer's size, which the kernel reads, and `status` at least as
        // many integers, which it writes; both outlive the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_move_pages,
                0,
                batch.len(),
                batch.as_ptr(),
                std::ptr::null::<c_int>(),
                status.as_mut_ptr(),
                0,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        // Each is a node, or the negative reason why there is none.
        let answers = status.iter().take(batch.len());
        nodes.extend(answers.map(|answer| usize::try_from(*answer).ok()));
    }
    Ok(nodes)
}

/// Returns the node that the page at `address` will come from, where the policy of its mapping (or of
/// the shared file behind it) names one alone.
///
/// # Errors
/// When nothing is mapped there, or the kernel knows no policies.
pub fn node_of_policy(address: usize) -> io::Result<Option<usize>> {
    let mut mode: c_int = 0;
    let mut mask: NodeMask = [0; NODES_MAX / BITS];
    // SAFETY: the kernel writes one integer to `mode` and `NODES_MAX` bits to `mask`, both of which
    // outlive the call; `address` is looked up, never followed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_get_mempolicy,
            &raw mut mode,
            mask.as_mut_ptr(),
            NODES_MAX,
            address as *const c_void,
            MPOL_F_ADDR,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let names_nodes = matches!(
        mode & !MODE_FLAGS,
        libc::MPOL_BIND | libc::MPOL_PREFERRED | MPOL_PREFERRED_MANY
    );
    Ok(only_node(&mask).filter(|_| names_nodes))
}

/// Asks about an address, not about the thread (`linux/mempolicy.h`).
const MPOL_F_ADDR: c_ulong = 1 << 1;

/// Bits beside the mode: static nodes, relative nodes, balancing (`linux/mempolicy.h`).
const MODE_FLAGS: c_int = 0b111 << 13;

/// Since Linux 5.15; libc does not have it.
const MPOL_PREFERRED_MANY: c_int = 5;

fn only_node(mask: &NodeMask) -> Option<usize> {
    let ones: u32 = mask.iter().map(|word| word.count_ones()).sum();
    let word = mask.iter().position(|word| *word != 0)?;
    (ones == 1).then(|| word * BITS + mask[word].trailing_zeros() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_node_is_a_node() {
        let mask = |nodes: &[usize]| {
            let mut mask: NodeMask = [0; NODES_MAX / BITS];
            for node in nodes {
                mask[node / BITS] |= 1 << (node % BITS);
            }
            mask
        };
        assert_eq!(only_node(&mask(&[])), None);
        assert_eq!(only_node(&mask(&[0])), Some(0));
        assert_eq!(only_node(&mask(&[1023])), Some(1023));
        assert_eq!(only_node(&mask(&[1, 2])), None);
        assert_eq!(only_node(&mask(&[1, 65])), None);
    }
}
