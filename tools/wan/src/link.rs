//! Links of this machine: up, down, what there is. A link is two namespaces, an emulator process and a
//! folder (`/run/dwcp-wan/NAME`: `pid`, `link.json`, `control`, `log`). All three have the link's name,
//! so whatever is left of it after a crash can be found and taken down. A link beside another one is a
//! second way between the same two namespaces, and goes with them.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::ops::Deref;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::control::{self, Request, Status};
use crate::namespace::{self, ip};
use crate::needs;
use crate::params::LinkParams;
use crate::process::Process;
use crate::traffic;

/// Where the folders of links are.
pub const FOLDER: &str = "/run/dwcp-wan";
const PREFIX: &str = "dwcp-wan-";
/// Links between the same two namespaces.
const BESIDE_MAX: u8 = 8;
/// The kernel's own queue before the emulator reads: bursts of a fast sender wait here, uncounted.
const DEVICE_QUEUE_FRAMES: &str = "10000";
/// A started emulator answers within this time, even on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(10);
const NAME_BYTES_MAX: usize = 32;

/// Why there is no link, or no end of it.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The machine lacks something.
    #[error("a link needs {}", .0.join("; and "))]
    Needs(Vec<String>),
    /// One of that name is there.
    #[error("a link `{0}` is there already: `dwcp-wan down {0}` takes it down")]
    Exists(LinkName),
    /// There are as many links between its namespaces as there may be.
    #[error("beside link `{0}` there are {max} already", max = BESIDE_MAX - 1)]
    Full(LinkName),
    /// It has no namespaces of its own.
    #[error("link `{0}` is itself beside another one: name that one")]
    Beside(LinkName),
    /// None of that name is there.
    #[error("there is no link `{0}`: `dwcp-wan show` lists those there are")]
    NotFound(LinkName),
    /// Links are for root alone.
    #[error("{}: {error}: links are for root alone; run it as root (sudo)", path.display())]
    Denied {
        /// What cannot be looked at.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Its emulator has ended.
    #[error("the emulator of link `{name}` does not answer ({error}): `dwcp-wan down {name}`")]
    Ended {
        /// The link.
        name: LinkName,
        /// What was tried.
        error: io::Error,
    },
    /// The emulator refused.
    #[error("{0}")]
    Refused(String),
    /// The system refused.
    #[error("{what}: {error}")]
    System {
        /// What was tried.
        what: String,
        /// Why it failed.
        error: io::Error,
    },
}

/// Names what was tried.
fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> LinkError {
    let what = what.into();
    move |error| LinkError::System { what, error }
}

/// What it means that the folder of a link cannot be looked at.
fn unseen(name: &LinkName, path: PathBuf, error: io::Error) -> LinkError {
    match error.kind() {
        io::ErrorKind::NotFound => LinkError::NotFound(name.clone()),
        io::ErrorKind::PermissionDenied => LinkError::Denied { path, error },
        _ => failed(path.display().to_string())(error),
    }
}

/// Whether this user may look at links; without that each would look like one that is not whole.
///
/// # Errors
/// [`LinkError::Denied`].
pub fn check_rights() -> Result<(), LinkError> {
    match fs::read_dir(FOLDER) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(LinkError::Denied {
            path: FOLDER.into(),
            error,
        }),
        // Where the folder is not there, no link is.
        _ => Ok(()),
    }
}

/// A link's name: part of names of namespaces and of a folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LinkName(String);

impl FromStr for LinkName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_fit = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let is_sound = (1..=NAME_BYTES_MAX).contains(&text.len())
            && text.chars().all(is_fit)
            && !text.starts_with('-');
        if is_sound {
            return Ok(Self(text.to_owned()));
        }
        Err(format!(
            "`{text}` is no name of a link: 1 to {NAME_BYTES_MAX} of a-z, 0-9 and -, as in `wan` or `lab-2`"
        ))
    }
}

impl std::fmt::Display for LinkName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl LinkName {
    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        Path::new(FOLDER).join(&self.0)
    }

    /// Its namespaces.
    #[must_use]
    pub fn namespaces(&self) -> [String; 2] {
        ["a", "b"].map(|side| format!("{PREFIX}{self}-{side}"))
    }
}

/// A link that is up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Its name.
    pub name: LinkName,
    /// Its namespaces, A and B.
    pub namespaces: [String; 2],
    /// The device in each.
    #[serde(default = "first_device")]
    pub device: String,
    /// An address in each.
    pub addresses: [String; 2],
    /// Largest IP packet, in bytes.
    pub mtu: u32,
    /// The emulator's process.
    pub pid: u32,
}

fn first_device() -> String {
    device(0)
}

/// Of the link so many between its namespaces.
fn device(number: u8) -> String {
    format!("wan{number}")
}

/// The namespaces are its own, so every link may use the same.
fn addresses(number: u8) -> [String; 2] {
    [1, 2].map(|side| format!("10.213.{}.{side}", 8 + number))
}

impl Link {
    /// One that is yet to be made, in namespaces of its own, or in those of another one.
    fn planned(name: &LinkName, beside: Option<&LinkName>, mtu: u32) -> Result<Self, LinkError> {
        let number = match beside {
            None => 0,
            Some(other) => free_number(other)?,
        };
        Ok(Self {
            name: name.clone(),
            namespaces: beside.unwrap_or(name).namespaces(),
            device: device(number),
            addresses: addresses(number),
            mtu,
            pid: 0,
        })
    }

    fn has_own_namespaces(&self) -> bool {
        self.namespaces == self.name.namespaces()
    }
}

/// The first number that no link between the namespaces of `name` has.
fn free_number(name: &LinkName) -> Result<u8, LinkError> {
    if !find(name)?.has_own_namespaces() {
        return Err(LinkError::Beside(name.clone()));
    }
    let taken: Vec<_> = beside(name).map(|link| link.device).collect();
    let is_free = |number: &u8| !taken.contains(&device(*number));
    let free = (1..BESIDE_MAX).find(is_free);
    free.ok_or_else(|| LinkError::Full(name.clone()))
}

/// The links in the namespaces of another one.
fn beside(name: &LinkName) -> impl Iterator<Item = Link> {
    let namespaces = name.namespaces();
    let links = list().into_iter().filter_map(|other| find(&other).ok());
    links.filter(move |link| link.namespaces == namespaces && !link.has_own_namespaces())
}

/// A link that goes when this is dropped.
#[derive(Debug)]
pub struct TemporaryLink(Link);

impl From<Link> for TemporaryLink {
    fn from(link: Link) -> Self {
        Self(link)
    }
}

impl Deref for TemporaryLink {
    type Target = Link;

    fn deref(&self) -> &Link {
        &self.0
    }
}

impl Drop for TemporaryLink {
    fn drop(&mut self) {
        if let Err(error) = down(&self.0.name) {
            eprintln!("link {}: {error}", self.0.name);
        }
    }
}

/// Sets a link up, maybe `beside` another one, and returns when packets pass. `program` is `dwcp-wan`,
/// which becomes the emulator.
///
/// # Errors
/// What is missing, or what failed; nothing is left then.
pub fn up(
    name: &LinkName,
    beside: Option<&LinkName>,
    params: &LinkParams,
    mtu: u32,
    program: &Path,
) -> Result<Link, LinkError> {
    let missing = needs::missing();
    if !missing.is_empty() {
        return Err(LinkError::Needs(missing));
    }
    // Namespaces alone, too: they are not ours to take over.
    if list().contains(name) {
        return Err(LinkError::Exists(name.clone()));
    }
    let link = Link::planned(name, beside, mtu)?;
    let folder = name.folder();
    let mut builder = DirBuilder::new();
    let made = builder.mode(0o700).recursive(true).create(FOLDER);
    made.map_err(failed(FOLDER))?;
    match DirBuilder::new().mode(0o700).create(&folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(LinkError::Exists(name.clone()));
        }
        made => made.map_err(failed(folder.display().to_string()))?,
    }
    let made = make(link, params, program);
    if made.is_err() {
        // The first error is the one to tell.
        let _ = down(name);
    }
    made
}

fn make(mut link: Link, params: &LinkParams, program: &Path) -> Result<Link, LinkError> {
    if link.has_own_namespaces() {
        for namespace in &link.namespaces {
            namespace::add(namespace).map_err(failed("a network namespace"))?;
        }
    }
    // Beside which link it is must be known whatever happens from here on.
    write(&link)?;
    let child = spawn(&link, program).map_err(failed(program.display().to_string()))?;
    link.pid = child.id();
    wait_for_emulator(&link, child)?;
    for side in 0..2 {
        configure(&link, side).map_err(failed("a network device"))?;
    }
    // Packets pass untouched until the start: neither loss nor delay can hide that they do.
    traffic::probe(&link, START_LIMIT).map_err(failed("no packet passes"))?;
    ask(&link.name, &Request::Start(params.clone()))?;
    write(&link)?;
    Ok(link)
}

fn write(link: &Link) -> Result<(), LinkError> {
    let text = serde_json::to_string(link).map_err(io::Error::other);
    let written = text.and_then(|text| fs::write(link.name.folder().join("link.json"), text));
    written.map_err(failed("link.json"))
}

fn spawn(link: &Link, program: &Path) -> io::Result<Child> {
    let log = File::create(link.name.folder().join("log"))?;
    let [a, b] = &link.namespaces;
    Command::new(program)
        .args(["emulate", &link.name.0, a, b, &link.device])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
}

fn wait_for_emulator(link: &Link, mut child: Child) -> Result<(), LinkError> {
    let folder = link.name.folder();
    let deadline = Instant::now() + START_LIMIT;
    loop {
        let error = match control::ask(&folder, &Request::Show) {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        let ended = child.try_wait().map_err(failed("the emulator"))?;
        if ended.is_some() || Instant::now() > deadline {
            let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
            let error = match log.trim() {
                "" => error,
                log => io::Error::other(log.to_owned()),
            };
            return Err(failed("the emulator does not start")(error));
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn configure(link: &Link, side: usize) -> io::Result<()> {
    let namespace = &link.namespaces[side];
    let (own, peer) = (&link.addresses[side], &link.addresses[1 - side]);
    let mtu = link.mtu.to_string();
    let device = ["-n", namespace, "link", "set", &link.device];
    ip(&[
        &device[..],
        &["mtu", &mtu, "txqueuelen", DEVICE_QUEUE_FRAMES, "up"],
    ]
    .concat())?;
    let address = ["-n", namespace, "addr", "add", own, "peer", peer];
    ip(&[&address[..], &["dev", &link.device]].concat())
}

/// What `up` would do, step by step.
///
/// # Errors
/// There is no link that it could be beside.
pub fn plan(
    name: &LinkName,
    beside: Option<&LinkName>,
    params: &LinkParams,
    mtu: u32,
) -> Result<Vec<String>, LinkError> {
    let link = Link::planned(name, beside, mtu)?;
    let ([a, b], device) = (&link.namespaces, &link.device);
    let mut steps = vec![format!("make the folder {}", name.folder().display())];
    if link.has_own_namespaces() {
        for namespace in [a, b] {
            steps.push(format!("ip netns add {namespace}"));
            steps.push(format!("ip -n {namespace} link set lo up"));
        }
    }
    steps.push(format!(
        "start the emulator; a TUN device {device} in {a} and in {b}"
    ));
    for (namespace, own, peer) in [(a, 0, 1), (b, 1, 0)] {
        let (own, peer) = (&link.addresses[own], &link.addresses[peer]);
        steps.push(format!("ip -n {namespace} link set {device} mtu {mtu} up"));
        steps.push(format!(
            "ip -n {namespace} addr add {own} peer {peer} dev {device}"
        ));
    }
    for (way, params) in ["a to b", "b to a"].iter().zip(&params.ways) {
        steps.push(format!("{way}: {}", params.in_words()));
    }
    Ok(steps)
}

/// Takes down whatever there is of a link, also of one whose emulator was killed, and what is beside
/// it. Gives whether there was anything.
///
/// # Errors
/// What the system refused.
pub fn down(name: &LinkName) -> Result<bool, LinkError> {
    check_rights()?;
    let mut beside_it = Ok(());
    for other in beside(name) {
        // What is left of it does not keep the rest up; the first error is the one to tell.
        let ended = down(&other.name).map(drop);
        beside_it = beside_it.and(ended);
    }
    let folder = name.folder();
    if let Some(process) = Process::read(&folder) {
        process.end().map_err(failed("the emulator"))?;
    }
    let mut was_there = folder.exists();
    for namespace in name.namespaces() {
        was_there |= namespace::remove(&namespace).map_err(failed("a network namespace"))?;
    }
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed(folder.display().to_string())(error))
        }
        _ => beside_it.map(|()| was_there),
    }
}

/// Every link of which there is anything.
#[must_use]
pub fn list() -> Vec<LinkName> {
    let folders = fs::read_dir(FOLDER).into_iter().flatten().flatten();
    let folders = folders.filter_map(|entry| entry.file_name().into_string().ok());
    let namespaces = namespace::names().into_iter().filter_map(|name| {
        let name = name.strip_prefix(PREFIX)?;
        let name = name
            .strip_suffix("-a")
            .or_else(|| name.strip_suffix("-b"))?;
        Some(name.to_owned())
    });
    let names = folders.chain(namespaces);
    let mut names: Vec<LinkName> = names.filter_map(|name| name.parse().ok()).collect();
    names.sort();
    names.dedup();
    names
}

/// A link that was set up.
///
/// # Errors
/// There is none, or only what is left of one, or this user may not look at it.
pub fn find(name: &LinkName) -> Result<Link, LinkError> {
    let path = name.folder().join("link.json");
    let text = fs::read_to_string(&path).map_err(|error| unseen(name, path.clone(), error))?;
    let link = serde_json::from_str(&text).map_err(io::Error::other);
    link.map_err(failed(path.display().to_string()))
}

/// Asks the emulator of a link.
///
/// # Errors
/// There is none, it has ended, or it refused.
pub fn ask(name: &LinkName, request: &Request) -> Result<Status, LinkError> {
    let folder = name.folder();
    if let Err(error) = folder.metadata() {
        return Err(unseen(name, folder, error));
    }
    control::ask(&folder, request).map_err(|error| match error.kind() {
        // What an emulator says has no kind of the system's.
        io::ErrorKind::Other => LinkError::Refused(error.to_string()),
        io::ErrorKind::PermissionDenied => LinkError::Denied {
            path: folder.clone(),
            error,
        },
        _ => {
            let name = name.clone();
            LinkError::Ended { name, error }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_fit_for_folders_and_namespaces() {
        let name: LinkName = "lab-2".parse().unwrap();
        assert_eq!(name.namespaces(), ["dwcp-wan-lab-2-a", "dwcp-wan-lab-2-b"]);
        assert_eq!(name.folder(), Path::new("/run/dwcp-wan/lab-2"));
        for bad in ["", "..", "a/b", "Wan", "-x", "a b", &"x".repeat(33)] {
            let error = bad.parse::<LinkName>().unwrap_err();
            assert!(error.contains("lab-2"), "{error}");
        }
    }
}
