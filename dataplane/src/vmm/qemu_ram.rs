//! Finding the guest's RAM behind a QEMU: which backends, which file, mapped where.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use dwcp_qmp::{MemoryBackend, QmpClient};
use dwcp_wire::RamBlockInfo;
use serde_json::Value;

use super::VmmError;
use crate::ram::{RamBlock, RamLayout};

const HOW: &str = "start QEMU with -object memory-backend-file,id=ram0,size=SIZE,mem-path=FILE,\
                   share=on -machine memory-backend=ram0, or let `dwcp vm run-qemu` add it";

/// The backends of a QEMU whose RAM can be moved beside it, all of it.
pub(super) fn suitable_backends(qmp: &mut QmpClient) -> Result<Vec<MemoryBackend>, VmmError> {
    let backends = qmp.query_memdev()?;
    if backends.is_empty() {
        return Err(VmmError::unsuitable("guest RAM has no memory backend", HOW));
    }
    for backend in &backends {
        let id = &backend.id;
        match backend.qom_type.as_str() {
            "memory-backend-file" if backend.share => {}
            "memory-backend-file" => {
                return Err(VmmError::unsuitable(
                    format!("memory backend {id} has share=off: nobody else can see its RAM"),
                    format!("change share=off to share=on for -object memory-backend-file,id={id}"),
                ));
            }
            "memory-backend-memfd" => {
                return Err(VmmError::unsuitable(
                    format!(
                        "memory backend {id} is a memory-backend-memfd: x-ignore-shared does not \
                         skip it, and QEMU would stream its RAM"
                    ),
                    format!(
                        "replace it with memory-backend-file,id={id},mem-path=/dev/shm/NAME,\
                         share=on (libvirt: <source type='file'/> and <access mode='shared'/>)"
                    ),
                ));
            }
            other => {
                return Err(VmmError::unsuitable(
                    format!("guest RAM is in {other} {id}, which is not shared"),
                    HOW,
                ));
            }
        }
    }
    check_all_is_shared(qmp, &backends)?;
    Ok(backends)
}

/// RAM that lies in no backend would be QEMU's to send, during the pause.
fn check_all_is_shared(qmp: &mut QmpClient, backends: &[MemoryBackend]) -> Result<(), VmmError> {
    let summary = qmp.execute("query-memory-size-summary", Value::Null)?;
    let field = |name| summary.get(name).and_then(Value::as_u64).unwrap_or(0);
    let guest_bytes = field("base-memory") + field("plugged-memory");
    let shared_bytes: u64 = backends.iter().map(|backend| backend.size_bytes).sum();
    if shared_bytes < guest_bytes {
        return Err(VmmError::unsuitable(
            format!("of {guest_bytes} bytes of guest RAM only {shared_bytes} are shared"),
            HOW,
        ));
    }
    Ok(())
}

/// What the other node is told of them.
pub(super) fn infos(backends: &[MemoryBackend]) -> Vec<RamBlockInfo> {
    backends
        .iter()
        .map(|backend| RamBlockInfo {
            name: backend.id.clone(),
            bytes: backend.size_bytes,
        })
        .collect()
}

/// Maps all backends of the QEMU with process id `pid`.
pub(super) fn map(pid: i32, backends: &[MemoryBackend]) -> Result<RamLayout, VmmError> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))
        .map_err(|error| VmmError::system(format!("/proc/{pid}/maps"), error))?;
    let areas: Vec<Area> = maps.lines().filter_map(Area::parse).collect();
    let blocks = backends
        .iter()
        .map(|backend| map_backend(pid, backend, &areas));
    Ok(RamLayout::new(blocks.collect::<Result<_, _>>()?)?)
}

fn map_backend(pid: i32, backend: &MemoryBackend, areas: &[Area]) -> Result<RamBlock, VmmError> {
    let path = backend.mem_path.as_deref().unwrap_or_default();
    // QEMU's own view of a descriptor that it inherited.
    let path = path.replace("/proc/self/", &format!("/proc/{pid}/"));
    let named = File::options().read(true).write(true).open(&path).ok();
    let identity = named.as_ref().and_then(|file| file.metadata().ok());
    let area = areas
        .iter()
        .find(|area| {
            let same_file = identity
                .as_ref()
                .is_some_and(|meta| meta.ino() == area.inode);
            let same_path = area.path.trim_end_matches(" (deleted)") == path;
            // A folder (hugetlbfs): QEMU has made and unlinked a file of its own there.
            let in_folder = identity.as_ref().is_some_and(std::fs::Metadata::is_dir)
                && area.path.starts_with(&path);
            area.shared && area.offset == 0 && (same_file || same_path || in_folder)
        })
        .ok_or_else(|| {
            VmmError::Failed(format!(
                "QEMU {pid} has no shared mapping of {path} for {}",
                backend.id
            ))
        })?;
    let file = match named {
        Some(file)
            if identity
                .as_ref()
                .is_some_and(|meta| meta.ino() == area.inode) =>
        {
            file
        }
        _ => open_area(pid, area)?,
    };
    let file = OwnedFd::from(file);
    Ok(RamBlock::map(
        backend.id.clone(),
        file,
        backend.size_bytes,
        area.start,
    )?)
}

/// A mapped file that has no name any more.
fn open_area(pid: i32, area: &Area) -> Result<File, VmmError> {
    let link = format!("/proc/{pid}/map_files/{:x}-{:x}", area.start, area.end);
    File::options()
        .read(true)
        .write(true)
        .open(&link)
        .map_err(|error| VmmError::system(link, error))
}

/// One line of /proc/PID/maps, see proc_pid_maps(5).
#[derive(Debug, PartialEq, Eq)]
struct Area {
    start: u64,
    end: u64,
    shared: bool,
    offset: u64,
    inode: u64,
    path: String,
}

impl Area {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.splitn(6, ' ');
        let (start, end) = fields.next()?.split_once('-')?;
        let shared = fields.next()?.as_bytes().get(3) == Some(&b's');
        let offset = fields.next()?;
        let _device = fields.next()?;
        let inode = fields.next()?;
        Some(Self {
            start: u64::from_str_radix(start, 16).ok()?,
            end: u64::from_str_radix(end, 16).ok()?,
            shared,
            offset: u64::from_str_radix(offset, 16).ok()?,
            inode: inode.parse().ok()?,
            path: fields.next().unwrap_or("").trim_start().to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_maps_is_read_whole() {
        let line = "7f1ea0000000-7f1ee0000000 rw-s 00000000 00:19 5 \
                    /dev/shm/ram file (deleted)";
        let area = Area::parse(line).unwrap();
        assert_eq!((area.start, area.end), (0x7f1e_a000_0000, 0x7f1e_e000_0000));
        assert!(area.shared);
        assert_eq!((area.offset, area.inode), (0, 5));
        assert_eq!(area.path, "/dev/shm/ram file (deleted)");
    }

    #[test]
    fn an_anonymous_area_has_no_path() {
        let area = Area::parse("55d0c0000000-55d0c0021000 rw-p 00000000 00:00 0 ").unwrap();
        assert!(!area.shared && area.path.is_empty());
        assert_eq!(Area::parse("nonsense"), None);
    }
}
