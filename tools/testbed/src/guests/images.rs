//! Where the guests' images come from: next to the program, or built on demand.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::cpio::CpioWriter;
use super::{GuestError, tail};

/// Names a folder with ready-made images.
const IMAGES_VARIABLE: &str = "DWCP_GUESTS";

/// Names a kernel for the Linux guest.
const KERNEL_VARIABLE: &str = "DWCP_GUEST_KERNEL";

/// The target that every x86-64 Linux toolchain has.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Which guest runs in a QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GuestKind {
    /// Our own kernel; up in a quarter of a second, nothing to download.
    #[default]
    Bare,
    /// The distribution's kernel with our own init, fetched by `tools/setup`.
    Linux,
}

/// The files that one kind of guest is started from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Images {
    /// For `-kernel`.
    pub kernel: PathBuf,
    /// For `-initrd`.
    pub initrd: Option<PathBuf>,
}

impl GuestKind {
    /// Finds the images, or builds them: the first of `$DWCP_GUESTS`, the folder of the running
    /// program, and a build from source into `.cache/guests` of the repository.
    ///
    /// # Errors
    /// [`GuestError::NoImage`] says what to do; [`GuestError::Build`] what the build said.
    pub fn images(self) -> Result<Images, GuestError> {
        match self {
            Self::Bare => {
                let kernel = find_or_build("dwcp-guest-bare", "bare")?;
                Ok(Images {
                    kernel,
                    initrd: None,
                })
            }
            Self::Linux => {
                // First what may be missing, then what takes time.
                let kernel = linux_kernel()?;
                let init = linux_init()?;
                Ok(Images {
                    kernel,
                    initrd: Some(initramfs(&init)?),
                })
            }
        }
    }
}

/// The repository that we run in, when we do: above the current folder, the package being run by
/// cargo, or the program.
#[must_use]
pub fn repository_root() -> Option<PathBuf> {
    let starts = [
        env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from),
        env::current_dir().ok(),
        env::current_exe().ok(),
    ];
    starts.into_iter().flatten().find_map(|start| {
        let mut above = start.ancestors();
        above
            .find(|path| path.join("tools/guests/bare/Cargo.toml").is_file())
            .map(Path::to_path_buf)
    })
}

fn find_or_build(name: &'static str, folder: &str) -> Result<PathBuf, GuestError> {
    let beside = env::current_exe()
        .ok()
        .and_then(|exe| exe.parent().map(Path::to_path_buf));
    let folders = [env::var_os(IMAGES_VARIABLE).map(PathBuf::from), beside];
    let ready = folders
        .into_iter()
        .flatten()
        .map(|folder| folder.join(name));
    if let Some(found) = ready.into_iter().find(|path| path.is_file()) {
        return Ok(found);
    }
    let Some(root) = repository_root() else {
        let hint = format!("put it next to this program, or name its folder in {IMAGES_VARIABLE}");
        return Err(GuestError::NoImage { what: name, hint });
    };
    let target = root.join(".cache/guests/target");
    // Run in the guest's folder: its .cargo/config.toml holds the flags, which the environment would
    // override.
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(["build", "--release", "--quiet"])
        .current_dir(root.join("tools/guests").join(folder));
    cargo.env("CARGO_TARGET_DIR", &target);
    for variable in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET"] {
        cargo.env_remove(variable);
    }
    let output = cargo.output().map_err(|error| GuestError::NoImage {
        what: name,
        hint: format!("cargo cannot be run to build it: {error}"),
    })?;
    if !output.status.success() {
        let output = tail(&String::from_utf8_lossy(&output.stderr), 2000);
        return Err(GuestError::Build { what: name, output });
    }
    Ok(target.join(TARGET).join("release").join(name))
}

pub(super) fn linux_kernel() -> Result<PathBuf, GuestError> {
    let named = env::var_os(KERNEL_VARIABLE).map(PathBuf::from);
    let fetched = repository_root().map(|root| root.join(".cache/kernel/vmlinuz"));
    let found = [named, fetched]
        .into_iter()
        .flatten()
        .find(|path| path.is_file());
    found.ok_or_else(|| GuestError::NoImage {
        what: "Linux kernel for the guest",
        hint: format!("run tools/setup, or name one in {KERNEL_VARIABLE}"),
    })
}

/// The init itself, for an archive of another making.
pub(super) fn linux_init() -> Result<PathBuf, GuestError> {
    find_or_build("dwcp-guest-init", "linux-init")
}

/// An archive that begins with the init and what the kernel needs to start it.
pub(super) fn archive_of(init: &Path) -> Result<CpioWriter, GuestError> {
    let program = read(init)?;
    let mut cpio = CpioWriter::new();
    cpio.folder("dev", 0o755);
    cpio.device("dev/console", 0o600, 5, 1);
    cpio.folder("proc", 0o755);
    cpio.file("init", 0o755, &program);
    Ok(cpio)
}

pub(super) fn read(file: &Path) -> Result<Vec<u8>, GuestError> {
    fs::read(file).map_err(|source| GuestError::File {
        path: file.into(),
        source,
    })
}

/// Packs the init.
fn initramfs(init: &Path) -> Result<PathBuf, GuestError> {
    rewrite("dwcp-guest-init.cpio", &archive_of(init)?.finish())
}

/// An archive's file; rewritten only when it differs, so that several may run at once.
pub(super) fn rewrite(name: &str, bytes: &[u8]) -> Result<PathBuf, GuestError> {
    let folder = repository_root().map_or_else(env::temp_dir, |root| root.join(".cache/guests"));
    let path = folder.join(name);
    if fs::read(&path).is_ok_and(|present| present == bytes) {
        return Ok(path);
    }
    let file_error = |source| GuestError::File {
        path: path.clone(),
        source,
    };
    fs::create_dir_all(&folder).map_err(file_error)?;
    let mut file = tempfile::NamedTempFile::new_in(&folder).map_err(file_error)?;
    std::io::Write::write_all(&mut file, bytes).map_err(file_error)?;
    file.persist(&path)
        .map_err(|error| file_error(error.error))?;
    Ok(path)
}
