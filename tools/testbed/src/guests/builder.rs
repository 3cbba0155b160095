//! How a QEMU with one of our guests is started.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use super::images::{GuestKind, Images};
use super::program::Program;
use super::qemu::QemuGuest;
use super::serial::SerialLog;
use super::workload::{self, WorkloadGuest};
use super::{GuestError, GuestOptions};

/// Names the QEMU to use.
const QEMU_VARIABLE: &str = "DWCP_QEMU";

/// The QEMU to use: `$DWCP_QEMU`, or the one in `PATH`.
#[must_use]
pub fn qemu_binary() -> OsString {
    env::var_os(QEMU_VARIABLE).unwrap_or_else(|| "qemu-system-x86_64".into())
}

/// A path that no other guest has, not even one of the same name in this process: two QEMUs on one
/// RAM file destroy each other's guest.
fn own_ram_path(name: &str) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    Path::new("/dev/shm").join(format!("dwcp-{}-{number}-{name}.ram", std::process::id()))
}

/// What guest RAM is made of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Backend {
    /// A plain `-m`: private memory, nobody else sees it.
    Private,
    /// A shared file of our own on `/dev/shm`, removed at the end.
    #[default]
    Shared,
    /// A shared file of the caller's.
    SharedFile(PathBuf),
    /// As many NUMA nodes with equal shares of RAM as paths: files, or folders in which QEMU makes its
    /// own.
    Nodes(Vec<PathBuf>),
}

/// Describes a QEMU that is not started yet.
#[derive(Debug, Clone)]
pub struct QemuBuilder {
    name: String,
    folder: PathBuf,
    guest: GuestKind,
    options: GuestOptions,
    program: Option<Program>,
    workload: Option<WorkloadGuest>,
    memory_mib: u64,
    backend: Backend,
    accel: String,
    incoming: bool,
    paused: bool,
    extra: Vec<OsString>,
    variables: Vec<(OsString, OsString)>,
    prefix: Vec<OsString>,
}

impl QemuBuilder {
    pub(super) fn new(name: &str, folder: PathBuf) -> Self {
        Self {
            name: name.to_owned(),
            folder,
            guest: GuestKind::default(),
            options: GuestOptions::default(),
            program: None,
            workload: None,
            memory_mib: 256,
            backend: Backend::default(),
            accel: "tcg".into(),
            incoming: false,
            paused: false,
            extra: Vec::new(),
            variables: Vec::new(),
            prefix: Vec::new(),
        }
    }

    /// Which guest; the bare one by default.
    #[must_use]
    pub fn guest(mut self, kind: GuestKind) -> Self {
        self.guest = kind;
        self
    }

    /// What the guest does.
    #[must_use]
    pub fn options(mut self, options: GuestOptions) -> Self {
        self.options = options;
        self
    }

    /// Runs a program of this machine in the Linux guest, instead of filling RAM.
    #[must_use]
    pub fn program(mut self, program: Program) -> Self {
        self.guest = GuestKind::Linux;
        self.program = Some(program);
        self
    }

    /// Boots a system from the disk of the workloads, with as much RAM as the workload wants.
    #[must_use]
    pub fn workload(mut self, guest: WorkloadGuest) -> Self {
        self.guest = GuestKind::Linux;
        self.memory_mib = guest.workload.memory_mib();
        self.workload = Some(guest);
        self
    }

    /// RAM in MiB; 256 by default.
    #[must_use]
    pub fn memory_mib(mut self, mib: u64) -> Self {
        self.memory_mib = mib;
        self
    }

    /// What RAM is made of; a shared file by default.
    #[must_use]
    pub fn backend(mut self, backend: Backend) -> Self {
        self.backend = backend;
        self
    }

    /// The accelerator; `tcg` by default, which works everywhere.
    #[must_use]
    pub fn accel(mut self, accel: &str) -> Self {
        self.accel = accel.to_owned();
        self
    }

    /// Waits for a migration (`-incoming defer`).
    #[must_use]
    pub fn incoming(mut self) -> Self {
        self.incoming = true;
        self
    }

    /// Does not run before `cont` (`-S`), not even after a migration.
    #[must_use]
    pub fn paused(mut self) -> Self {
        self.paused = true;
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.extra.extend(
            arguments
                .into_iter()
                .map(|argument| argument.as_ref().to_owned()),
        );
        self
    }

    /// Sets a variable of QEMU's environment, `LD_PRELOAD` say.
    #[must_use]
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.variables
            .push((key.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Starts QEMU by another program that replaces itself by it: `ip netns exec NAME`.
    #[must_use]
    pub fn prefix<S: AsRef<OsStr>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.prefix = words
            .into_iter()
            .map(|word| word.as_ref().to_owned())
            .collect();
        self
    }

    /// Starts it. Returns at once; see [`QemuGuest::qmp`] and [`QemuGuest::wait_ready`].
    ///
    /// # Errors
    /// Without images or without QEMU. What QEMU itself dislikes shows when it is waited for.
    pub fn spawn(mut self) -> Result<QemuGuest, GuestError> {
        let path = |end: &str| self.folder.join(format!("{}.{end}", self.name));
        let (qmp, serial, output) = (path("qmp"), path("serial"), path("out"));
        for old in [&qmp, &serial] {
            // Of an earlier guest of that name; mostly there is none.
            let _ = fs::remove_file(old);
        }
        let ram = match &self.backend {
            Backend::Private | Backend::Nodes(_) => None,
            Backend::SharedFile(path) => Some(path.clone()),
            Backend::Shared => Some(own_ram_path(&self.name)),
        };
        let mut images = match self.workload {
            None => self.guest.images()?,
            Some(_) => workload::images()?,
        };
        if self.workload.is_some() {
            self.extra.extend(workload::disk_arguments()?);
        }
        if let Some(program) = &self.program {
            images.initrd = Some(program.initramfs(&path("cpio"))?);
        }
        let arguments = self.arguments(&images, &qmp, &serial, ram.as_deref());
        let file_error = |source| GuestError::File {
            path: output.clone(),
            source,
        };
        let mut open = fs::OpenOptions::new();
        open.write(true).create(true).truncate(true).mode(0o600);
        let out = open.open(&output).map_err(file_error)?;
        let errors = out.try_clone().map_err(file_error)?;
        let binary = qemu_binary();
        let mut words = self.prefix.iter().chain([&binary]);
        let mut command = Command::new(words.next().unwrap_or(&binary));
        command
            .args(words)
            .args(arguments)
            .envs(self.variables.clone());
        command.stdin(Stdio::null()).stdout(out).stderr(errors);
        let child = command.spawn().map_err(|source| GuestError::Spawn {
            binary: binary.to_string_lossy().into_owned(),
            source,
        })?;
        let owns_ram = self.backend == Backend::Shared;
        let serial = SerialLog::new(serial);
        Ok(QemuGuest {
            name: self.name,
            child,
            qmp,
            output,
            serial,
            ram,
            owns_ram,
        })
    }

    fn arguments(
        &self,
        images: &Images,
        qmp: &Path,
        serial: &Path,
        ram: Option<&Path>,
    ) -> Vec<OsString> {
        let mut machine = "q35".to_owned();
        let mut out: Vec<OsString> = Vec::new();
        let mut add = |words: &[&OsStr]| out.extend(words.iter().map(|&word| word.to_owned()));
        if let Some(ram) = ram {
            // The name that RAM has without a backend of its own: a guest saved from one kind goes on in
            // the other.
            let mut object = OsString::from(format!(
                "memory-backend-file,id=pc.ram,size={}M,share=on,mem-path=",
                self.memory_mib
            ));
            object.push(ram);
            add(&["-object".as_ref(), &object]);
            machine.push_str(",memory-backend=pc.ram");
        }
        if let Backend::Nodes(paths) = &self.backend {
            for words in self.nodes(paths) {
                add(&[&words[0], &words[1]]);
            }
        }
        let mut monitor = OsString::from("unix:");
        monitor.push(qmp);
        monitor.push(",server=on,wait=off");
        let mut port = OsString::from("file:");
        port.push(serial);
        let memory = self.memory_mib.to_string();
        add(&[
            "-accel".as_ref(),
            self.accel.as_ref(),
            "-cpu".as_ref(),
            "max".as_ref(),
        ]);
        add(&[
            "-M".as_ref(),
            machine.as_ref(),
            "-m".as_ref(),
            memory.as_ref(),
        ]);
        add(&["-nodefaults".as_ref(), "-display".as_ref(), "none".as_ref()]);
        add(&[
            "-no-reboot".as_ref(),
            "-serial".as_ref(),
            &port,
            "-qmp".as_ref(),
            &monitor,
        ]);
        add(&["-kernel".as_ref(), images.kernel.as_ref()]);
        if let Some(initrd) = &images.initrd {
            add(&["-initrd".as_ref(), initrd.as_ref()]);
        }
        add(&["-append".as_ref(), self.command_line().as_ref()]);
        if self.incoming {
            add(&["-incoming".as_ref(), "defer".as_ref()]);
        }
        if self.paused {
            add(&["-S".as_ref()]);
        }
        out.extend(self.extra.iter().cloned());
        out
    }

    /// A backend and a node for each path.
    fn nodes(&self, paths: &[PathBuf]) -> Vec<[OsString; 2]> {
        let share_mib = self.memory_mib / paths.len().max(1) as u64;
        let mut out = vec![];
        for (index, path) in paths.iter().enumerate() {
            let mut object = OsString::from(format!(
                "memory-backend-file,id=ram{index},size={share_mib}M,share=on,mem-path="
            ));
            object.push(path);
            let node = format!("node,nodeid={index},memdev=ram{index}");
            out.push(["-object".into(), object]);
            out.push(["-numa".into(), node.into()]);
        }
        out
    }

    fn command_line(&self) -> String {
        if let Some(program) = &self.program {
            return format!("console=ttyS0 quiet panic=-1 {}", program.command_line());
        }
        if let Some(guest) = self.workload {
            return format!("console=ttyS0 quiet panic=-1 {}", guest.command_line());
        }
        let GuestOptions {
            fill_mib,
            hot_mib,
            rate,
            verify_rate,
            kind,
        } = self.options;
        format!(
            "console=ttyS0 quiet panic=-1 dwcp.fill_mib={fill_mib} dwcp.hot_mib={hot_mib} \
             dwcp.rate={rate} dwcp.verify={verify_rate} dwcp.kind={}",
            kind.name()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_guests_of_one_name_do_not_share_their_ram() {
        assert_ne!(own_ram_path("a"), own_ram_path("a"));
    }
}
