//! Preloaded into a VMM, this library does one thing: it makes a userfaultfd and hands it out.
//!
//! A userfaultfd belongs to the address space that made it, so only the VMM can make one for guest
//! RAM; everything else (`UFFDIO_API`, registering ranges, tracking, serving faults) the mover does
//! with the descriptor it was given. The library keeps its own copy for life: closing the last one
//! would turn missing pages into silent zeros.
//!
//! ```text
//! LD_PRELOAD=libdwcp_preload.so DWCP_UFFD_SOCKET=/run/dwcp/vm1.uffd qemu-system-x86_64 …
//! ```
//! Each client of the socket gets one byte, `1` with a descriptor, `2` with one that does not tell faults of
//! the kernel itself, or `0` without (the kernel refuses userfaultfd). Only root and the VMM's own user are served. The VMM may be started by a script that
//! ends with `exec`. One that forks, or a VMM that forks into the background after its start
//! (`-daemonize`), is not supported: the descriptor would belong to the parent.

mod handout;
mod uffd;

/// Run by the dynamic loader before `main`.
#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = start;

const SOCKET_ENV: &str = "DWCP_UFFD_SOCKET";

/// The process that serves the socket. A wrapper script becomes the VMM by `exec`: another program in
/// the same process, which must serve anew. What a VMM starts is another process, and must not.
const OWNER_ENV: &str = "DWCP_UFFD_OWNER";

extern "C" fn start() {
    let Some(path) = std::env::var_os(SOCKET_ENV) else {
        return;
    };
    let own = std::process::id().to_string();
    match std::env::var_os(OWNER_ENV) {
        Some(owner) if owner != *own => return,
        Some(_) => {}
        // SAFETY: the loader runs constructors before `main` and before any thread exists, so nobody
        // reads the environment meanwhile.
        None => unsafe { std::env::set_var(OWNER_ENV, own) },
    }
    if let Err(error) = handout::serve(path.as_ref(), uffd::create()) {
        eprintln!("dwcp-preload: {}: {error}", path.display());
    }
}
