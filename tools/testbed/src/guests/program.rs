//! A program of this machine, packed with the libraries that it needs to run in the Linux guest.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::images::{archive_of, linux_init, read};
use super::{GuestError, tail};

/// Makes the dynamic loader print what it would load, instead of running the program.
const TRACE_VARIABLE: &str = "LD_TRACE_LOADED_OBJECTS";

/// A program and its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    file: PathBuf,
    arguments: Vec<String>,
}

impl Program {
    /// Runs `file`. Arguments go by the kernel's command line: neither blanks nor commas in them.
    #[must_use]
    pub fn new<S: Into<String>>(
        file: impl Into<PathBuf>,
        arguments: impl IntoIterator<Item = S>,
    ) -> Self {
        Self {
            file: file.into(),
            arguments: arguments.into_iter().map(Into::into).collect(),
        }
    }

    /// Words for the guest's init.
    pub(super) fn command_line(&self) -> String {
        let arguments = self.arguments.join(",");
        format!("dwcp.run=/program dwcp.args={arguments}")
    }

    /// Writes the archive that holds it to `path`, and returns that.
    pub(super) fn initramfs(&self, path: &Path) -> Result<PathBuf, GuestError> {
        let mut cpio = archive_of(&linux_init()?)?;
        cpio.file("program", 0o755, &read(&self.file)?);
        let libraries = libraries(&self.file)?;
        let folders: BTreeSet<&Path> = libraries
            .iter()
            .flat_map(|library| library.ancestors().skip(1))
            .collect();
        // Shorter paths come first: a folder before what is in it.
        for folder in folders {
            let name = inside(folder);
            if !name.is_empty() {
                cpio.folder(&name, 0o755);
            }
        }
        for library in &libraries {
            cpio.file(&inside(library), 0o755, &read(library)?);
        }
        fs::write(path, cpio.finish()).map_err(|source| GuestError::File {
            path: path.into(),
            source,
        })?;
        Ok(path.into())
    }
}

/// A path of this machine as a name in the archive.
fn inside(path: &Path) -> String {
    let path = path.to_string_lossy();
    path.trim_start_matches('/').to_owned()
}

/// Every library that a program loads at its start, its loader among them.
fn libraries(program: &Path) -> Result<Vec<PathBuf>, GuestError> {
    let file_error = |source| GuestError::File {
        path: program.into(),
        source,
    };
    let mut command = Command::new(program);
    let output = command
        .env(TRACE_VARIABLE, "1")
        .output()
        .map_err(file_error)?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() || said.contains("not found") {
        let output = tail(&said, 2000);
        let what = "the list of a program's libraries";
        return Err(GuestError::Build { what, output });
    }
    Ok(paths_in(&said))
}

/// Lines are `name => /path (0x…)`, `/path (0x…)`, or `name (0x…)` for what is no file.
fn paths_in(said: &str) -> Vec<PathBuf> {
    said.lines()
        .filter_map(|line| {
            let line = line
                .rsplit_once("=> ")
                .map_or(line, |(_, path)| path)
                .trim();
            let (path, _) = line.rsplit_once(" (0x")?;
            path.starts_with('/').then(|| PathBuf::from(path))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loaders_list_is_read() {
        let said = "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let paths = [
            Path::new("/lib/x/libc.so.6"),
            Path::new("/lib64/ld-linux-x86-64.so.2"),
        ];
        assert_eq!(paths_in(said), paths);
        assert_eq!(paths_in("\tstatically linked\n"), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_program_is_packed_with_its_libraries() {
        let own = std::env::current_exe().unwrap();
        let libraries = libraries(&own).unwrap();
        assert!(
            libraries.iter().any(|path| path.ends_with("libc.so.6")),
            "{libraries:?}"
        );
    }
}
