//! Finding the guest's RAM behind a QEMU: which backends, which file, mapped where.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use dwcp_journal::{GuestMemory, MemoryBlock};
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
    let areas = areas(pid)?;
    let mut used = vec![];
    let mut blocks = vec![];
    for backend in backends {
        blocks.push(map_backend(pid, backend, &areas, &mut used)?);
    }
    Ok(RamLayout::new(blocks)?)
}

/// Maps all blocks where they were before.
pub(super) fn map_at(memory: &GuestMemory) -> Result<RamLayout, VmmError> {
    let GuestMemory { pid, blocks, .. } = memory;
    let areas = areas(*pid)?;
    let map = |block: &MemoryBlock| {
        let area = areas.iter().find(|area| {
            area.start == block.address
                && area.shared
                && area.offset == 0
                && covered_bytes(area, &areas) >= block.bytes
        });
        let area = area.ok_or_else(|| {
            VmmError::Gone(format!(
                "QEMU {pid} has nothing at {:x} for {}",
                block.address, block.name
            ))
        })?;
        let file = open_area(*pid, area)?;
        Ok(RamBlock::map(
            block.name.clone(),
            OwnedFd::from(file),
            block.bytes,
            block.address,
        )?)
    };
    let blocks = blocks.iter().map(map).collect::<Result<_, VmmError>>()?;
    Ok(RamLayout::new(blocks)?)
}

fn areas(pid: i32) -> Result<Vec<Area>, VmmError> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))
        .map_err(|error| VmmError::system(format!("/proc/{pid}/maps"), error))?;
    Ok(maps.lines().filter_map(Area::parse).collect())
}

/// Maps one backend. `used` are the areas of the backends before it: no two share one.
fn map_backend(
    pid: i32,
    backend: &MemoryBackend,
    areas: &[Area],
    used: &mut Vec<u64>,
) -> Result<RamBlock, VmmError> {
    let path = backend.mem_path.as_deref().unwrap_or_default();
    // QEMU's own view of a descriptor that it inherited.
    let path = path.replace("/proc/self/", &format!("/proc/{pid}/"));
    let place = std::fs::metadata(&path).ok();
    let wanted = Wanted {
        id: &backend.id,
        path: &path,
        is_folder: place.as_ref().is_some_and(std::fs::Metadata::is_dir),
        file: place.as_ref().map(FileId::of),
        bytes: backend.size_bytes,
    };
    let area = find_area(&wanted, areas, used).ok_or_else(|| {
        VmmError::Failed(format!(
            "QEMU {pid} has no shared mapping of {path} for {}",
            backend.id
        ))
    })?;
    used.push(area.start);
    let named = File::options().read(true).write(true).open(&path).ok();
    let is_it = |file: &File| {
        let id = file.metadata().ok().map(|place| FileId::of(&place));
        id == Some(area.file)
    };
    let file = match named.filter(is_it) {
        Some(file) => file,
        None => open_area(pid, area)?,
    };
    Ok(RamBlock::map(
        backend.id.clone(),
        OwnedFd::from(file),
        backend.size_bytes,
        area.start,
    )?)
}

/// Which file, on all file systems: an inode number alone is one on each of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    fn of(place: &std::fs::Metadata) -> Self {
        Self {
            device: place.dev(),
            inode: place.ino(),
        }
    }
}

/// What is looked for among the areas of a QEMU.
#[derive(Clone, Copy, Debug)]
struct Wanted<'a> {
    id: &'a str,
    path: &'a str,
    is_folder: bool,
    file: Option<FileId>,
    bytes: u64,
}

/// The area of a backend: by its file; by its path, where the file system names another device than
/// the mapping does; in a folder, by the name that QEMU gives a file of its own there.
fn find_area<'a>(wanted: &Wanted<'_>, areas: &'a [Area], used: &[u64]) -> Option<&'a Area> {
    let fits = |area: &&Area| {
        area.shared
            && area.offset == 0
            && !used.contains(&area.start)
            && covered_bytes(area, areas) >= wanted.bytes
    };
    let mut fitting = areas.iter().filter(fits);
    if wanted.is_folder {
        return fitting.find(|area| area.is_backend_in(wanted.path, wanted.id));
    }
    let by_file = fitting.clone().find(|area| Some(area.file) == wanted.file);
    by_file.or_else(|| fitting.find(|area| area.path.trim_end_matches(DELETED) == wanted.path))
}

/// What the kernel adds to the path of a file that has no name any more.
const DELETED: &str = " (deleted)";

/// Bytes mapped in one piece from `first` on. The kernel lists a mapping in parts when their
/// attributes differ.
fn covered_bytes(first: &Area, areas: &[Area]) -> u64 {
    let mut end = first.end;
    while let Some(next) = areas.iter().find(|area| {
        area.start == end
            && area.shared
            && area.file == first.file
            && area.offset == end - first.start
    }) {
        end = next.end;
    }
    end - first.start
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
    file: FileId,
    path: String,
}

impl Area {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.splitn(6, ' ');
        let (start, end) = fields.next()?.split_once('-')?;
        let shared = fields.next()?.as_bytes().get(3) == Some(&b's');
        let offset = fields.next()?;
        let (major, minor) = fields.next()?.split_once(':')?;
        let inode = fields.next()?;
        let device = nix::sys::stat::makedev(
            u64::from_str_radix(major, 16).ok()?,
            u64::from_str_radix(minor, 16).ok()?,
        );
        Some(Self {
            start: u64::from_str_radix(start, 16).ok()?,
            end: u64::from_str_radix(end, 16).ok()?,
            shared,
            offset: u64::from_str_radix(offset, 16).ok()?,
            file: FileId {
                device,
                inode: inode.parse().ok()?,
            },
            path: fields.next().unwrap_or("").trim_start().to_owned(),
        })
    }
}

impl Area {
    /// Whether it is the file that QEMU makes in a folder for the backend `id`:
    /// `qemu_back_mem.NAME.XXXXXX`, the name being the id or its path among the objects.
    fn is_backend_in(&self, folder: &str, id: &str) -> bool {
        let path = self.path.trim_end_matches(DELETED);
        let name = path
            .strip_prefix(folder.trim_end_matches('/'))
            .and_then(|rest| rest.strip_prefix("/qemu_back_mem."))
            .and_then(|rest| rest.rsplit_once('.'))
            .map(|(name, _)| name);
        name.is_some_and(|name| name == id || name.strip_prefix("_objects_") == Some(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn areas(lines: &[&str]) -> Vec<Area> {
        lines
            .iter()
            .map(|line| Area::parse(line).unwrap())
            .collect()
    }

    fn wanted<'a>(id: &'a str, path: &'a str, minor: u64) -> Wanted<'a> {
        Wanted {
            id,
            path,
            is_folder: false,
            file: Some(FileId {
                device: nix::sys::stat::makedev(0, minor),
                inode: 2,
            }),
            bytes: MIB,
        }
    }

    #[test]
    fn files_of_one_inode_number_on_two_file_systems_are_two() {
        let areas = areas(&[
            "100000-200000 rw-s 00000000 00:31 2 /t1/ram",
            "300000-400000 rw-s 00000000 00:32 2 /t2/ram",
        ]);
        let start = |id, path, minor| {
            find_area(&wanted(id, path, minor), &areas, &[]).map(|area| area.start)
        };
        assert_eq!(start("ram0", "/t1/ram", 0x31), Some(0x10_0000));
        assert_eq!(start("ram1", "/t2/ram", 0x32), Some(0x30_0000));
        assert_eq!(start("ram2", "/t3/ram", 0x33), None);
    }

    #[test]
    fn no_two_backends_get_one_area() {
        let areas = areas(&["100000-200000 rw-s 00000000 00:31 2 /t1/ram"]);
        let wanted = wanted("ram0", "/t1/ram", 0x31);
        assert!(find_area(&wanted, &areas, &[]).is_some());
        assert!(find_area(&wanted, &areas, &[0x10_0000]).is_none());
    }

    #[test]
    fn an_area_that_is_too_short_is_not_it_unless_it_goes_on() {
        let short = "100000-180000 rw-s 00000000 00:31 2 /t1/ram";
        let rest = "180000-200000 rw-s 00080000 00:31 2 /t1/ram";
        let wanted = wanted("ram0", "/t1/ram", 0x31);
        assert!(find_area(&wanted, &areas(&[short]), &[]).is_none());
        assert!(find_area(&wanted, &areas(&[short, rest]), &[]).is_some());
    }

    #[test]
    fn in_a_folder_each_backend_finds_its_own_file() {
        let areas = areas(&[
            "100000-200000 rw-s 00000000 00:31 8 /m/qemu_back_mem.ram0.AbC123 (deleted)",
            "300000-400000 rw-s 00000000 00:31 9 /m/qemu_back_mem._objects_ram1.xYz (deleted)",
        ]);
        let start = |id| {
            let folder = Wanted {
                is_folder: true,
                ..wanted(id, "/m", 0x31)
            };
            find_area(&folder, &areas, &[]).map(|area| area.start)
        };
        assert_eq!(start("ram0"), Some(0x10_0000));
        assert_eq!(start("ram1"), Some(0x30_0000));
        assert_eq!(start("ram"), None);
    }

    #[test]
    fn a_line_of_maps_is_read_whole() {
        let line = "7f1ea0000000-7f1ee0000000 rw-s 00000000 00:19 5 \
                    /dev/shm/ram file (deleted)";
        let area = Area::parse(line).unwrap();
        assert_eq!((area.start, area.end), (0x7f1e_a000_0000, 0x7f1e_e000_0000));
        assert!(area.shared);
        assert_eq!((area.offset, area.file.inode), (0, 5));
        assert_eq!(area.file.device, nix::sys::stat::makedev(0, 0x19));
        assert_eq!(area.path, "/dev/shm/ram file (deleted)");
    }

    #[test]
    fn an_anonymous_area_has_no_path() {
        let area = Area::parse("55d0c0000000-55d0c0021000 rw-p 00000000 00:00 0 ").unwrap();
        assert!(!area.shared && area.path.is_empty());
        assert_eq!(Area::parse("nonsense"), None);
    }
}
