//! The file: opened by one writer, read by anybody.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::fcntl::{Flock, FlockArg};

use crate::line::{self, Damage, FIRST_LINE, TornTail};
use crate::{JournalError, Record, RecordKind, State, compact};

/// Name of the journal in the state folder.
pub const FILE_NAME: &str = "handover.journal";

/// Name of the writer's lock file. A file of its own, because compaction replaces the journal.
pub const LOCK_NAME: &str = "handover.lock";

/// A journal larger than this is compacted when it is opened, and when a migration begins, while it is twice what
/// the last time left.
pub const COMPACT_ABOVE_BYTES: u64 = 1 << 19;

/// What a journal holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Records, oldest first.
    pub records: Vec<Record>,
    /// A write that a crash cut short (or that is under way); it was never acknowledged.
    pub torn: Option<TornTail>,
}

impl Contents {
    /// The records folded.
    #[must_use]
    pub fn state(&self) -> State {
        State::from_records(&self.records)
    }
}

/// The writer's end. Shared between threads by reference; appends are one after the other.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    inner: Mutex<Inner>,
    torn: Option<TornTail>,
    _lock: Flock<File>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    good_bytes: u64,
    next_sequence: u64,
    /// Shared with those who have asked: it is copied when it changes while somebody looks.
    state: Arc<State>,
    compact_above_bytes: u64,
    /// It is compacted when it is larger than this.
    compact_at_bytes: u64,
    poisoned: bool,
}

impl Journal {
    /// Opens the journal of a state folder for writing; makes folder and file when missing, cuts
    /// off a torn tail, compacts a file above [`COMPACT_ABOVE_BYTES`].
    ///
    /// # Errors
    /// [`JournalError::InUse`] while another process writes it, [`JournalError::Corrupt`] when a
    /// record was damaged after it was written.
    pub fn open(dir: &Path) -> Result<Self, JournalError> {
        Self::open_with_limit(dir, COMPACT_ABOVE_BYTES)
    }

    /// [`Self::open`] with another compaction limit.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with_limit(dir: &Path, compact_above_bytes: u64) -> Result<Self, JournalError> {
        std::fs::create_dir_all(dir).map_err(io(dir, "make folder"))?;
        let lock = lock(dir)?;
        let path = dir.join(FILE_NAME);
        if !path.try_exists().map_err(io(&path, "look"))? {
            replace(dir, &[])?;
        }
        let (contents, mut bytes) = read_file(&path)?;
        if bytes > compact_above_bytes {
            let kept = compact::compact(&contents.records);
            if kept.len() < contents.records.len() {
                bytes = replace(dir, &kept)?;
            }
        }
        let good_bytes = match contents.torn {
            Some(torn) => bytes.min(torn.offset),
            None => bytes,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(io(&path, "open"))?;
        let mut inner = Inner {
            file,
            good_bytes,
            next_sequence: contents.records.last().map_or(1, |last| last.sequence + 1),
            state: Arc::new(contents.state()),
            compact_above_bytes,
            compact_at_bytes: compact_above_bytes.max(good_bytes * 2),
            poisoned: false,
        };
        inner.cut_back().map_err(io(&path, "cut off a torn tail"))?;
        Ok(Self {
            path,
            inner: Mutex::new(inner),
            torn: contents.torn,
            _lock: lock,
        })
    }

    /// Reads the journal of a state folder; an absent one is empty. Needs no lock: a record that is
    /// being written shows as a torn tail.
    ///
    /// # Errors
    /// [`JournalError::Corrupt`] names the offset of a damaged record.
    pub fn read(dir: &Path) -> Result<Contents, JournalError> {
        let path = dir.join(FILE_NAME);
        match read_file(&path) {
            Ok((contents, _)) => Ok(contents),
            Err(JournalError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                Ok(Contents::default())
            }
            Err(error) => Err(error),
        }
    }

    /// Writes a record; it is on disk when this returns its sequence number.
    ///
    /// # Errors
    /// [`JournalError::Forbidden`] when it would break an order or a promise (see
    /// [`State::check`]). After any error with [`JournalError::is_not_written`] no later read shows
    /// the record, in whole or in part.
    pub fn append(&self, record: &Record) -> Result<u64, JournalError> {
        let mut inner = self.lock_inner();
        if inner.poisoned {
            return Err(self.poisoned());
        }
        let sequence = inner.next_sequence;
        if record.sequence != 0 && record.sequence != sequence {
            return Err(JournalError::Sequence {
                found: record.sequence,
                expected: sequence,
            });
        }
        let record = Record {
            sequence,
            ..record.clone()
        };
        inner.state.check(&record)?;
        let line = line::encode(&record)?;
        if let Err(source) = inner.write(&line) {
            if inner.cut_back().is_err() {
                inner.poisoned = true;
                return Err(self.poisoned());
            }
            return Err(io(&self.path, "append")(source));
        }
        inner.good_bytes += line.len() as u64;
        inner.next_sequence += 1;
        Arc::make_mut(&mut inner.state).apply(&record);
        // Where the guest of this migration runs on. Others that write wait for it: some milliseconds for a MiB.
        let begins = matches!(record.kind, RecordKind::Begin { .. });
        if begins && inner.good_bytes > inner.compact_at_bytes {
            inner.compact(&self.path);
        }
        Ok(sequence)
    }

    /// What the journal says now.
    #[must_use]
    pub fn state(&self) -> Arc<State> {
        Arc::clone(&self.lock_inner().state)
    }

    /// The torn tail that was cut off at opening, for the log.
    #[must_use]
    pub const fn torn_at_open(&self) -> Option<TornTail> {
        self.torn
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn poisoned(&self) -> JournalError {
        JournalError::Poisoned {
            path: self.path.clone(),
        }
    }

    /// A panic while the lock was held leaves `good_bytes` at the last acknowledged record, which
    /// is where the next append writes: the state is sound.
    fn lock_inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Puts a shorter journal in the place of this one. One that cannot be written leaves it as it is.
    fn compact(&mut self, path: &Path) {
        let dir = path.parent().unwrap_or_else(|| Path::new("."));
        let shorter = read_file(path).and_then(|(contents, _)| {
            let kept = compact::compact(&contents.records);
            Ok((replace(dir, &kept)?, State::from_records(&kept)))
        });
        let Ok((bytes, state)) = shorter else {
            // Perhaps it was renamed, and what followed failed: the file in hand need not be the journal.
            self.poisoned = !self.is_the_file_at(path);
            self.compact_at_bytes = self.good_bytes.saturating_mul(2);
            return;
        };
        match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => {
                (self.file, self.good_bytes, self.state) = (file, bytes, Arc::new(state));
                self.compact_at_bytes = self.compact_above_bytes.max(bytes * 2);
            }
            Err(_) => self.poisoned = true,
        }
    }

    fn is_the_file_at(&self, path: &Path) -> bool {
        let inode = |metadata: std::io::Result<std::fs::Metadata>| {
            metadata.map(|metadata| (metadata.dev(), metadata.ino()))
        };
        match (inode(self.file.metadata()), inode(std::fs::metadata(path))) {
            (Ok(ours), Ok(there)) => ours == there,
            _ => false,
        }
    }

    fn write(&mut self, line: &[u8]) -> std::io::Result<()> {
        self.file.seek(SeekFrom::Start(self.good_bytes))?;
        self.file.write_all(line)?;
        self.file.sync_data()
    }

    /// Makes the file end with the last acknowledged record.
    fn cut_back(&mut self) -> std::io::Result<()> {
        if self.file.metadata()?.len() != self.good_bytes {
            self.file.set_len(self.good_bytes)?;
            self.file.sync_all()?;
        }
        Ok(())
    }
}

pub(crate) fn io<'a>(
    path: &'a Path,
    doing: &'static str,
) -> impl Fn(std::io::Error) -> JournalError + use<'a> {
    move |source| JournalError::Io {
        path: path.to_owned(),
        doing,
        source,
    }
}

fn lock(dir: &Path) -> Result<Flock<File>, JournalError> {
    let path = dir.join(LOCK_NAME);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(io(&path, "open"))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => JournalError::InUse { path },
        other => io(&path, "lock")(other.into()),
    })
}

/// Contents and size of the file.
fn read_file(path: &Path) -> Result<(Contents, u64), JournalError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|mut file| file.read_to_end(&mut bytes))
        .map_err(io(path, "read"))?;
    let body = check_first_line(path, &bytes)?;
    let (records, torn) = line::decode(body, FIRST_LINE.len() as u64).map_err(corrupt(path))?;
    Ok((Contents { records, torn }, bytes.len() as u64))
}

/// What follows the line that says of which version it is.
pub(crate) fn check_first_line<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a [u8], JournalError> {
    bytes.strip_prefix(FIRST_LINE).ok_or_else(|| {
        let end = bytes.len().min(FIRST_LINE.len());
        JournalError::Version {
            path: path.to_owned(),
            found: String::from_utf8_lossy(&bytes[..end]).into_owned(),
        }
    })
}

pub(crate) fn corrupt(path: &Path) -> impl Fn(Damage) -> JournalError + use<> {
    let path = path.to_owned();
    move |damage| JournalError::Corrupt {
        path: path.clone(),
        line: damage.line,
        offset: damage.offset,
        why: damage.why,
    }
}

/// Puts a file with these records in the journal's place, whole or not at all. Returns its size.
fn replace(dir: &Path, records: &[Record]) -> Result<u64, JournalError> {
    let mut bytes = FIRST_LINE.to_vec();
    for record in records {
        bytes.extend_from_slice(&line::encode(record)?);
    }
    let path = dir.join(FILE_NAME);
    let new = dir.join(format!("{FILE_NAME}.new"));
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&new)
        .map_err(io(&new, "make"))?;
    file.write_all(&bytes)
        .and_then(|()| file.sync_all())
        .map_err(io(&new, "write"))?;
    std::fs::rename(&new, &path).map_err(io(&path, "rename"))?;
    File::open(dir)
        .and_then(|folder| folder.sync_all())
        .map_err(io(dir, "sync folder"))?;
    Ok(bytes.len() as u64)
}
