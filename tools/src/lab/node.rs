//! One node of the lab: two daemons over a state folder.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dwcp_api::node::{NodeStatus, Reply, Request};
use dwcp_api::{ApiError, ErrorCode, IoPath, KernelTlsChoice, TransferSettings};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::break_stream::break_stream;
use super::{Binaries, LabError, Usage, pki};
use crate::NodeClient;

/// A daemon that does not serve within this time has not started.
const START_TIME: Duration = Duration::from_secs(20);

/// The handover journal in a state folder.
const JOURNAL: &str = "handover.journal";

/// By how many seconds the wall clock of its daemons is ahead.
const CLOCK_FILE: &str = "clock-jump";

/// Which daemon of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plane {
    /// `dwcp-dataplane`.
    Data,
    /// `dwcp-controlplane`.
    Control,
}

/// Two daemons over a state folder. Dropping it kills both.
#[derive(Debug)]
pub struct LabNode {
    name: String,
    folder: PathBuf,
    binaries: Binaries,
    /// What its data plane grants to migrations that come in.
    incoming: Vec<String>,
    /// Network namespace of its daemons, if not ours.
    namespace: Option<String>,
    /// Fixed after the first start: a restarted data plane must be found again.
    listen: String,
    /// Where others find it.
    address: String,
    /// The wall clock of its daemons can be told to jump.
    clock_jumps: bool,
    data: Option<Child>,
    control: Option<Child>,
    client: NodeClient,
}

/// Where a node is.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Its network namespace, if not ours.
    pub namespace: Option<&'a str>,
    /// Its address there.
    pub address: &'a str,
    /// It can be reached by all other addresses there, too.
    pub everywhere: bool,
}

impl LabNode {
    /// Starts both daemons of a node and waits until they serve. `settings` are those of the migrations
    /// to come: the node is started with what it must grant them.
    ///
    /// # Errors
    /// [`LabError::Start`] with the end of the log.
    pub fn start(
        name: &str,
        folder: &Path,
        binaries: &Binaries,
        settings: &TransferSettings,
    ) -> Result<Self, LabError> {
        Self::start_within(name, folder, binaries, settings, None)
    }

    /// As [`Self::start`], in a network namespace and with an address there.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_within(
        name: &str,
        folder: &Path,
        binaries: &Binaries,
        settings: &TransferSettings,
        place: Option<Place<'_>>,
    ) -> Result<Self, LabError> {
        let host = place.map_or("127.0.0.1", |place| place.address);
        let mut incoming = vec![
            "--io".into(),
            io_name(settings.io).into(),
            "--busy-poll-us".into(),
            settings.busy_poll_us.to_string(),
        ];
        if pki::is_needed(settings) {
            let files = pki::issue(folder, name, host)?;
            let path = |path: PathBuf| path.to_string_lossy().into_owned();
            incoming.extend([
                "--tls-ca".into(),
                path(files.ca),
                "--tls-certificate".into(),
                path(files.certificate),
                "--tls-key".into(),
                path(files.key),
            ]);
            if settings.kernel_tls == KernelTlsChoice::Auto {
                incoming.extend(["--kernel-tls".into(), "auto".into()]);
            }
        }
        let folder = folder.join(name);
        std::fs::create_dir_all(&folder).map_err(LabError::system("node folder"))?;
        let client = NodeClient::new(&folder.join("node.sock"));
        let mut node = Self {
            name: name.to_owned(),
            folder,
            binaries: binaries.clone(),
            incoming,
            namespace: place.and_then(|place| place.namespace.map(str::to_owned)),
            listen: match place {
                Some(place) if place.everywhere => "0.0.0.0:0".into(),
                _ => format!("{host}:0"),
            },
            address: String::new(),
            clock_jumps: false,
            data: None,
            control: None,
            client,
        };
        node.spawn(Plane::Data)?;
        node.spawn(Plane::Control)?;
        let status = node.wait_for_planes()?;
        node.listen = status.dataplane.unwrap_or_default();
        node.address = match node.listen.rsplit_once(':') {
            Some((_, port)) => format!("{host}:{port}"),
            None => node.listen.clone(),
        };
        Ok(node)
    }

    /// Address of its data plane.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its state folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Starts a daemon that is not running.
    ///
    /// # Errors
    /// [`LabError::System`].
    pub fn spawn(&mut self, plane: Plane) -> Result<(), LabError> {
        let (program, log) = match plane {
            Plane::Data => (&self.binaries.dataplane, "dataplane.log"),
            Plane::Control => (&self.binaries.controlplane, "controlplane.log"),
        };
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.folder.join(log))
            .map_err(LabError::system("log"))?;
        let mut command = match &self.namespace {
            None => Command::new(program),
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace]).arg(program);
                command
            }
        };
        command
            .args(["--name", &self.name])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        if self.clock_jumps {
            command
                .env("LD_PRELOAD", &self.binaries.clock)
                .env("DWCP_CLOCK_JUMP", self.folder.join(CLOCK_FILE));
        }
        match plane {
            Plane::Data => command
                .arg("--state-folder")
                .arg(&self.folder)
                .args(["--listen", &self.listen])
                .args(&self.incoming),
            Plane::Control => command.arg("--state-folder").arg(&self.folder),
        };
        let child = command
            .spawn()
            .map_err(LabError::system(program.display().to_string()))?;
        *self.child(plane) = Some(child);
        Ok(())
    }

    /// Ends one of the data plane's data streams; says how many there were.
    ///
    /// # Errors
    /// When it does not run.
    pub fn break_stream(&self, choice: u64) -> std::io::Result<usize> {
        let data = self.data.as_ref().ok_or(std::io::ErrorKind::NotFound)?;
        break_stream(data.id(), choice)
    }

    /// Sends a signal to a daemon.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&mut self, plane: Plane, signal: Signal) -> std::io::Result<()> {
        let child = self.child(plane).as_ref();
        let child = child.ok_or(std::io::ErrorKind::NotFound)?;
        Ok(kill(Pid::from_raw(child.id() as i32), signal)?)
    }

    /// Process of its data plane.
    #[must_use]
    pub fn dataplane_pid(&self) -> Option<u32> {
        Some(self.data.as_ref()?.id())
    }

    /// Starts both daemons anew, with a wall clock that [`Self::jump_clock`] can change.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn let_clock_jump(&mut self) -> Result<(), LabError> {
        self.clock_jumps = true;
        self.kill(Plane::Control);
        self.kill(Plane::Data);
        self.revive()
    }

    /// Waits until a VM that its control plane knows is attached again.
    ///
    /// # Errors
    /// [`LabError::Timeout`].
    pub fn wait_attached(&mut self, vm: &str) -> Result<(), LabError> {
        let deadline = Instant::now() + START_TIME;
        loop {
            if let Reply::Vms(list) = self.ask(&Request::ListVms)? {
                let mut of_it = list.iter().filter(|known| known.name == vm);
                if of_it.any(|known| known.ram_bytes > 0) {
                    return Ok(());
                }
            }
            if Instant::now() > deadline {
                return Err(LabError::Timeout(format!("attaching VM {vm} again")));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// From now on the wall clock of its daemons is ahead by so many seconds.
    ///
    /// # Errors
    /// From the system.
    pub fn jump_clock(&self, seconds: i64) -> std::io::Result<()> {
        std::fs::write(self.folder.join(CLOCK_FILE), seconds.to_string())
    }

    /// Kills a daemon as `kill -9` does.
    pub fn kill(&mut self, plane: Plane) {
        if let Some(mut child) = self.child(plane).take() {
            // Both fail only when it has ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts whichever daemon has ended, as a service manager would.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn revive(&mut self) -> Result<(), LabError> {
        for plane in [Plane::Data, Plane::Control] {
            let alive = match self.child(plane) {
                Some(child) => matches!(child.try_wait(), Ok(None)),
                None => false,
            };
            if !alive {
                self.spawn(plane)?;
            }
        }
        self.wait_for_planes().map(drop)
    }

    /// Memory of the data plane's own, without guest RAM that it maps.
    #[must_use]
    pub fn dataplane_bytes(&self) -> u64 {
        Usage::of(self.data.as_ref()).bytes
    }

    /// What its data plane and its control plane hold.
    #[must_use]
    pub fn usage(&self) -> [Usage; 2] {
        [&self.data, &self.control].map(|child| Usage::of(child.as_ref()))
    }

    /// Bytes of its handover journal.
    #[must_use]
    pub fn journal_bytes(&self) -> u64 {
        let journal = std::fs::metadata(self.folder.join(JOURNAL));
        journal.map_or(0, |file| file.len())
    }

    /// CPU seconds that the data plane has used.
    #[must_use]
    pub fn dataplane_cpu_s(&self) -> f64 {
        self.data
            .as_ref()
            .map_or(0.0, |child| dwcp_testbed::peers::cpu_seconds(child.id()))
    }

    /// CPU seconds that the control plane has used.
    #[must_use]
    pub fn controlplane_cpu_s(&self) -> f64 {
        self.control
            .as_ref()
            .map_or(0.0, |child| dwcp_testbed::peers::cpu_seconds(child.id()))
    }

    /// Asks the node's control plane.
    ///
    /// # Errors
    /// [`LabError::Node`] with its refusal.
    pub fn ask(&mut self, request: &Request) -> Result<Reply, LabError> {
        self.client.ask(request).map_err(|error| LabError::Node {
            node: self.name.clone(),
            error,
        })
    }

    fn child(&mut self, plane: Plane) -> &mut Option<Child> {
        match plane {
            Plane::Data => &mut self.data,
            Plane::Control => &mut self.control,
        }
    }

    fn wait_for_planes(&mut self) -> Result<NodeStatus, LabError> {
        let deadline = Instant::now() + START_TIME;
        loop {
            match self.client.ask(&Request::Node) {
                Ok(Reply::Node(status)) if status.dataplane.is_some() => return Ok(status),
                Ok(_)
                | Err(ApiError {
                    code: ErrorCode::PlaneDown,
                    ..
                }) => {}
                Err(error) => {
                    return Err(LabError::Node {
                        node: self.name.clone(),
                        error,
                    });
                }
            }
            for plane in [Plane::Data, Plane::Control] {
                let ended = self
                    .child(plane)
                    .as_mut()
                    .and_then(|child| child.try_wait().ok()?);
                if let Some(status) = ended {
                    return Err(self.did_not_start(plane, &status.to_string()));
                }
            }
            if Instant::now() > deadline {
                return Err(self.did_not_start(Plane::Data, "no answer"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn did_not_start(&self, plane: Plane, status: &str) -> LabError {
        let log = match plane {
            Plane::Data => "dataplane.log",
            Plane::Control => "controlplane.log",
        };
        let text = std::fs::read_to_string(self.folder.join(log)).unwrap_or_default();
        let tail: Vec<_> = text.lines().rev().take(5).collect();
        let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
        LabError::Start {
            what: format!("{plane:?} plane of {}", self.name),
            detail: format!("{status}\n{tail}"),
        }
    }
}

impl Drop for LabNode {
    fn drop(&mut self) {
        self.kill(Plane::Control);
        self.kill(Plane::Data);
    }
}

const fn io_name(io: IoPath) -> &'static str {
    match io {
        IoPath::Auto => "auto",
        IoPath::Uring => "uring",
        IoPath::Poll => "poll",
    }
}
