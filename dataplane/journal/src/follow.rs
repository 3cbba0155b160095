//! The journal as another process sees it grow.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::journal::{check_first_line, corrupt, io};
use crate::line::{self, FIRST_LINE};
use crate::{FILE_NAME, JournalError, Record, State};

/// A reader that keeps what it has read: what is new is read, and not all of it again.
#[derive(Debug)]
pub struct Follower {
    path: PathBuf,
    at: Option<At>,
    state: Arc<State>,
    records: usize,
}

/// How far it has read.
#[derive(Debug)]
struct At {
    /// Of the file: a journal that was compacted is another one.
    inode: u64,
    /// Where the last record begins.
    offset: u64,
    last: Record,
}

impl Follower {
    /// A reader of the journal of a state folder. It has read nothing yet.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self {
            path: dir.join(FILE_NAME),
            at: None,
            state: Arc::default(),
            records: 0,
        }
    }

    /// What the journal says now, and of how many records. An absent one is empty.
    ///
    /// # Errors
    /// As [`crate::Journal::read`].
    pub fn state(&mut self) -> Result<(Arc<State>, usize), JournalError> {
        match self.read() {
            Err(JournalError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                self.forget();
            }
            read => read?,
        }
        Ok((Arc::clone(&self.state), self.records))
    }

    fn forget(&mut self) {
        (self.at, self.state, self.records) = (None, Arc::default(), 0);
    }

    fn read(&mut self) -> Result<(), JournalError> {
        let mut file = File::open(&self.path).map_err(io(&self.path, "open"))?;
        let inode = file.metadata().map_err(io(&self.path, "look"))?.ino();
        if let Some(at) = self.at.take_if(|at| at.inode == inode)
            && self.read_on(&mut file, at)?
        {
            return Ok(());
        }
        self.read_all(&mut file, inode)
    }

    /// Reads from the last record on. `false` when that is not where it was: a write that failed was cut off.
    fn read_on(&mut self, file: &mut File, at: At) -> Result<bool, JournalError> {
        let bytes = read_from(file, at.offset).map_err(io(&self.path, "read"))?;
        let Ok((records, _)) = line::decode(&bytes, at.offset) else {
            return Ok(false);
        };
        match records.split_first() {
            Some((first, new)) if *first == at.last => {
                let offset = at.offset + line::last_at(&bytes);
                self.take(new, At { offset, ..at });
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn read_all(&mut self, file: &mut File, inode: u64) -> Result<(), JournalError> {
        let bytes = read_from(file, 0).map_err(io(&self.path, "read"))?;
        let body = check_first_line(&self.path, &bytes)?;
        let base = FIRST_LINE.len() as u64;
        let (records, _) = line::decode(body, base).map_err(corrupt(&self.path))?;
        self.forget();
        if let Some(last) = records.last().cloned() {
            let offset = base + line::last_at(body);
            self.take(
                &records,
                At {
                    inode,
                    offset,
                    last,
                },
            );
        }
        Ok(())
    }

    fn take(&mut self, new: &[Record], at: At) {
        if let Some(last) = new.last() {
            let state = Arc::make_mut(&mut self.state);
            new.iter().for_each(|record| state.apply(record));
            self.records += new.len();
            self.at = Some(At {
                last: last.clone(),
                ..at
            });
        } else {
            self.at = Some(at);
        }
    }
}

fn read_from(file: &mut File, offset: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(offset))?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}
