//! Who serves the socket: the process that was started, whatever it becomes, and none of its children.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

/// A shell with the library, and the folder of its socket. Its whole group ends with it.
struct Shell {
    child: Child,
    folder: tempfile::TempDir,
}

impl Shell {
    fn run(script: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let child = Command::new("sh")
            .args(["-c", script])
            .env("LD_PRELOAD", library())
            .env("DWCP_UFFD_SOCKET", folder.path().join("uffd.sock"))
            .process_group(0)
            .spawn()
            .unwrap();
        Self { child, folder }
    }

    /// Waits until the started process is `program`, and says who then serves the socket.
    fn server_once_it_is(&self, program: &str) -> Option<i32> {
        let comm = format!("/proc/{}/comm", self.child.id());
        wait_until(|| std::fs::read_to_string(&comm).is_ok_and(|name| name.trim() == program));
        let path = self.folder.path().join("uffd.sock");
        let stream = wait_for_stream(&path)?;
        Some(getsockopt(&stream, PeerCredentials).unwrap().pid())
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let group = nix::unistd::Pid::from_raw(self.child.id() as i32);
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

fn library() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let deps = own.parent().unwrap();
    let built = deps.parent().unwrap().join("libdwcp_preload.so");
    // `cargo test` builds no library of this kind.
    let written = |path: &Path| {
        std::fs::metadata(path)
            .and_then(|file| file.modified())
            .ok()
    };
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let is_current = ["lib.rs", "handout.rs", "uffd.rs"]
        .iter()
        .all(|source| written(&built) >= written(&sources.join(source)));
    assert!(
        is_current,
        "{} is not built, or old: cargo build -p dwcp-preload",
        built.display()
    );
    built
}

fn wait_until(mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "it never came to that");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A connection that is answered: with a byte, as by the library.
fn wait_for_stream(path: &Path) -> Option<UnixStream> {
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline {
        if let Ok(mut stream) = UnixStream::connect(path) {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            assert!(matches!(byte, [b'0' | b'1']), "{byte:?}");
            return Some(stream);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    None
}

#[test]
fn a_wrapper_that_becomes_the_vmm_leaves_the_socket_to_it() {
    let shell = Shell::run("exec sleep 60");
    assert_eq!(
        shell.server_once_it_is("sleep"),
        Some(shell.child.id() as i32)
    );
}

#[test]
fn a_child_does_not_take_the_socket_over() {
    // The child has said that it runs before the shell becomes something else.
    let shell = Shell::run("sh -c 'sleep 60' & sh -c true; exec sleep 61");
    assert_eq!(
        shell.server_once_it_is("sleep"),
        Some(shell.child.id() as i32)
    );
}
