//! Memory that the allocator keeps.

/// Heaps that threads share. A data plane allocates nothing on the path of a page, so nobody waits long.
const ARENAS: nix::libc::c_int = 2;

/// Lets all threads of this process take memory from few heaps. glibc gives eight to each core, and each keeps what was
/// freed in it: a daemon whose threads come and go with migrations would hold more after every one, for days.
/// To be called before there are threads.
pub fn use_few_heaps() {
    // SAFETY: mallopt(3) takes two numbers and touches no memory of ours; its lock makes it safe among threads.
    let set = unsafe { nix::libc::mallopt(nix::libc::M_ARENA_MAX, ARENAS) };
    debug_assert_eq!(set, 1, "M_ARENA_MAX is as old as glibc 2.10");
}
