//! The cgroup whose CPU time is limited: <https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu>,
//! <https://docs.kernel.org/scheduler/sched-bwc.html> for version 1.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::vmm::VmmError;

/// Short periods: a VMM that must answer while it is limited waits no longer than one.
const PERIOD_US: u64 = 20_000;

/// The kernel takes no smaller quota, and no longer period than a second.
const QUOTA_US_MIN: u64 = 1000;

/// Quota and period that give so many millionths of a core; the period is longer where the quota would be too
/// small.
const fn quota(micro_cores: u64) -> (u64, u64) {
    let quota_us = micro_cores * PERIOD_US / 1_000_000;
    if quota_us >= QUOTA_US_MIN {
        return (quota_us, PERIOD_US);
    }
    (QUOTA_US_MIN, QUOTA_US_MIN * 1_000_000 / micro_cores)
}

/// Where a VMM's CPU time is limited, and what was there before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Group {
    /// Version 1: a group of our own below that of the VMM, which is moved there.
    Own {
        /// The VMM's, to which it goes back.
        parent: PathBuf,
        /// Ours.
        child: PathBuf,
    },
    /// Version 2: the group in which the VMM is alone.
    Its {
        /// `cpu.max`.
        file: PathBuf,
        /// What it said.
        before: String,
    },
}

impl Group {
    /// The group of a process, by the tables of the kernel below `proc`.
    ///
    /// # Errors
    /// [`VmmError::Unsuitable`] when it cannot be limited alone.
    pub(super) fn of(pid: i32, proc: &Path) -> Result<Self, VmmError> {
        let groups = read(&proc.join(pid.to_string()).join("cgroup"))?;
        let mounts = read(&proc.join("self/mountinfo"))?;
        if let Some(root) = mount(&mounts, "cgroup", Some("cpu"))
            && let Some(path) = path_of(&groups, Some("cpu"))
        {
            same_for_all_threads(pid, proc, path)?;
            let name = format!("dwcp-throttle-{pid}");
            // One of ours, of which nobody knows any more, is not its own.
            let parent = root.join(path.strip_suffix(&name).unwrap_or(path));
            let child = parent.join(name);
            return Ok(Self::Own { parent, child });
        }
        let root = mount(&mounts, "cgroup2", None);
        let (Some(root), Some(path)) = (root, path_of(&groups, None)) else {
            return Err(VmmError::unsuitable("no cgroups are mounted here", MOUNT));
        };
        let group = root.join(its_domain(path));
        alone(pid, &group)?;
        let file = group.join("cpu.max");
        let before = read(&file)?.trim().to_owned();
        Ok(Self::Its { file, before })
    }

    /// Limits the group to so many millionths of a core, a thousand at least.
    pub(super) fn limit(&self, pid: i32, micro_cores: u64) -> Result<(), VmmError> {
        let (quota_us, period_us) = quota(micro_cores.max(1000));
        match self {
            Self::Own { child, .. } => {
                match fs::create_dir(child) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                        return Err(VmmError::system(child.display().to_string(), error));
                    }
                    _ => {}
                }
                // The quota in force must fit either period.
                write(&child.join("cpu.cfs_quota_us"), "-1")?;
                write(&child.join("cpu.cfs_period_us"), &period_us.to_string())?;
                write(&child.join("cpu.cfs_quota_us"), &quota_us.to_string())?;
                write(&child.join("cgroup.procs"), &pid.to_string())
            }
            Self::Its { file, .. } => write(file, &format!("{quota_us} {period_us}")),
        }
    }

    /// As it was before. A group that was the VMM's is another's when the VMM is gone.
    pub(super) fn lift(&self, is_its: bool) -> Result<(), VmmError> {
        match self {
            Self::Own { parent, child } => {
                let Ok(pids) = fs::read_to_string(child.join("cgroup.procs")) else {
                    return Ok(());
                };
                // It may have started others meanwhile.
                for pid in pids.lines() {
                    match fs::write(parent.join("cgroup.procs"), pid) {
                        Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                            return Err(VmmError::system(parent.display().to_string(), error));
                        }
                        _ => {}
                    }
                }
                fs::remove_dir(child)
                    .map_err(|error| VmmError::system(child.display().to_string(), error))
            }
            Self::Its { file, .. } if !is_its || !file.exists() => Ok(()),
            Self::Its { file, before } => write(file, before),
        }
    }
}

const MOUNT: &str = "mount cgroup v2 at /sys/fs/cgroup, as systemd does";

const SCOPE: &str =
    "run the VMM in a group of its own: systemd-run --scope qemu-system-…, as libvirt does";

fn read(path: &Path) -> Result<String, VmmError> {
    fs::read_to_string(path).map_err(|error| VmmError::system(path.display().to_string(), error))
}

fn write(path: &Path, text: &str) -> Result<(), VmmError> {
    fs::write(path, text).map_err(|error| VmmError::system(path.display().to_string(), error))
}

/// Where a hierarchy is mounted: proc_pid_mountinfo(5), the fields behind the dash are type, source and options.
fn mount(table: &str, kind: &str, controller: Option<&str>) -> Option<PathBuf> {
    table.lines().find_map(|line| {
        let (place, filesystem) = line.split_once(" - ")?;
        let mut fields = filesystem.split(' ');
        let is_it = fields.next()? == kind;
        let mut options = fields.nth(1)?.split(',');
        let has = controller.is_none_or(|name| options.any(|option| option == name));
        (is_it && has).then(|| place.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// A process's path in a hierarchy, without the slash before it: cgroups(7), `ID:CONTROLLERS:PATH`.
fn path_of<'a>(table: &'a str, controller: Option<&str>) -> Option<&'a str> {
    table.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let is_it = match controller {
            Some(name) => controllers.split(',').any(|one| one == name),
            None => controllers.is_empty(),
        };
        is_it.then(|| path.trim_start_matches('/'))
    })
}

/// libvirt puts threads of a VMM into groups below the one that is the VMM's.
fn its_domain(path: &str) -> &str {
    path.find("/libvirt/")
        .map_or(path, |at| &path[..at + "/libvirt".len()])
}

/// A VMM whose threads were put into several groups would come back into one.
fn same_for_all_threads(pid: i32, proc: &Path, path: &str) -> Result<(), VmmError> {
    let tasks = proc.join(pid.to_string()).join("task");
    let threads = fs::read_dir(&tasks)
        .map_err(|error| VmmError::system(tasks.display().to_string(), error))?;
    for thread in threads.flatten() {
        // One that has ended meanwhile is in none.
        let Ok(groups) = fs::read_to_string(thread.path().join("cgroup")) else {
            continue;
        };
        if path_of(&groups, Some("cpu")).is_some_and(|other| other != path) {
            let what = "the VMM's threads are in several cgroups of version 1";
            return Err(VmmError::unsuitable(what, SCOPE));
        }
    }
    Ok(())
}

fn alone(pid: i32, group: &Path) -> Result<(), VmmError> {
    let procs = read(&group.join("cgroup.procs"))?;
    let others = procs.lines().filter(|line| *line != pid.to_string());
    match others.count() {
        0 => Ok(()),
        others => Err(VmmError::unsuitable(
            format!(
                "the VMM shares its cgroup {} with {others} more",
                group.display()
            ),
            SCOPE,
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:5 - cgroup cgroup rw,cpu,cpuacct
33 31 0:30 / /sys/fs/cgroup/unified rw - cgroup2 none rw
";
    const GROUPS: &str =
        "4:memory:/a\n2:cpuset:/c\n1:cpu,cpuacct:/machine/vm\n0::/machine.slice/vm.scope\n";

    #[test]
    fn a_hierarchy_is_found_by_its_controller() {
        let cpu = mount(MOUNTS, "cgroup", Some("cpu"));
        assert_eq!(cpu, Some(PathBuf::from("/sys/fs/cgroup/cpu,cpuacct")));
        assert_eq!(mount(MOUNTS, "cgroup", Some("pids")), None);
        let unified = mount(MOUNTS, "cgroup2", None);
        assert_eq!(unified, Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(path_of(GROUPS, Some("cpu")), Some("machine/vm"));
        assert_eq!(path_of(GROUPS, None), Some("machine.slice/vm.scope"));
        assert_eq!(
            its_domain("machine.slice/m.scope/libvirt/emulator"),
            "machine.slice/m.scope/libvirt"
        );
    }

    /// A tree as version 2 shows it, of files that a test can read again.
    fn version_2(procs: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let (proc, group) = (
            folder.path().join("proc"),
            folder.path().join("cg/vm.scope"),
        );
        for made in [proc.join("self"), proc.join("77"), group.clone()] {
            fs::create_dir_all(made).unwrap();
        }
        let mounts = format!(
            "1 1 0:1 / {}/cg rw - cgroup2 none rw\n",
            folder.path().display()
        );
        fs::write(proc.join("self/mountinfo"), mounts).unwrap();
        fs::write(proc.join("77/cgroup"), "0::/vm.scope\n").unwrap();
        fs::write(group.join("cgroup.procs"), procs).unwrap();
        fs::write(group.join("cpu.max"), "max 100000\n").unwrap();
        (folder, proc)
    }

    #[test]
    fn version_2_is_limited_and_is_as_before() {
        let (folder, proc) = version_2("77\n");
        let file = folder.path().join("cg/vm.scope/cpu.max");
        let group = Group::of(77, &proc).unwrap();
        group.limit(77, 1_500_000).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "30000 20000");
        group.limit(77, 10_000).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "1000 100000");
        group.limit(77, 0).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "1000 1000000");
        // It is another VMM's now.
        group.lift(false).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "1000 1000000");
        group.lift(true).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "max 100000");
        fs::remove_file(&file).unwrap();
        group.lift(true).unwrap();
        assert!(!file.exists());
    }

    #[test]
    fn nobody_else_is_limited_along() {
        let (_folder, proc) = version_2("77\n78\n");
        let error = Group::of(77, &proc).unwrap_err();
        assert!(error.to_string().contains("with 1 more"), "{error}");
    }
}
