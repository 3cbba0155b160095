//! Bytes to lines, with a limit on the length and a deadline on the wait.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// How much is asked of the kernel at a time, in bytes.
const READ_BYTES: usize = 16 << 10;

/// Shortest socket timeout that the kernel does not take for "forever".
const WAIT_MIN: Duration = Duration::from_millis(1);

/// What one attempt to get a line gave.
#[derive(Debug)]
pub(crate) enum LineRead {
    /// One line without its end mark.
    Line(Vec<u8>),
    /// The deadline passed first; what was read of the line is kept for the next call.
    Late,
    /// The peer closed; an unfinished last line is worth nothing in QMP.
    End,
    /// The line has more bytes than the limit allows.
    TooLong,
}

/// Cuts the bytes of a socket into lines of at most `limit` bytes.
#[derive(Debug)]
pub(crate) struct LineReader {
    stream: UnixStream,
    buffer: Vec<u8>,
    /// Bytes of `buffer` already known to hold no end mark: each byte is looked at once.
    scanned: usize,
    limit: usize,
}

impl LineReader {
    pub(crate) fn new(stream: UnixStream, limit: usize) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
            scanned: 0,
            limit,
        }
    }

    pub(crate) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Returns the next line, waiting for it until `deadline` at most.
    pub(crate) fn next_line(&mut self, deadline: Instant) -> io::Result<LineRead> {
        loop {
            if let Some(line) = self.take_line() {
                return Ok(LineRead::Line(line));
            }
            if self.buffer.len() > self.limit {
                return Ok(LineRead::TooLong);
            }
            let now = Instant::now();
            if now >= deadline {
                return Ok(LineRead::Late);
            }
            self.stream
                .set_read_timeout(Some((deadline - now).max(WAIT_MIN)))?;
            let filled = self.buffer.len();
            self.buffer.resize(filled + READ_BYTES, 0);
            let read = (&self.stream).read(&mut self.buffer[filled..]);
            self.buffer
                .truncate(filled + read.as_ref().copied().unwrap_or(0));
            match read {
                Ok(0) => return Ok(LineRead::End),
                Ok(_) => {}
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock
                    | io::ErrorKind::TimedOut
                    | io::ErrorKind::Interrupted => {}
                    io::ErrorKind::ConnectionReset => return Ok(LineRead::End),
                    _ => return Err(error),
                },
            }
        }
    }

    fn take_line(&mut self) -> Option<Vec<u8>> {
        let end = self.buffer[self.scanned..]
            .iter()
            .position(|&byte| byte == b'\n');
        let Some(end) = end.map(|offset| self.scanned + offset) else {
            self.scanned = self.buffer.len();
            return None;
        };
        let rest = self.buffer.split_off(end + 1);
        let mut line = std::mem::replace(&mut self.buffer, rest);
        self.scanned = 0;
        line.pop();
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(50)
    }

    #[test]
    fn lines_survive_any_cut() {
        let (mut near, far) = UnixStream::pair().expect("pair");
        let mut reader = LineReader::new(far, 64);
        near.write_all(b"one\r\ntw").expect("write");
        assert!(matches!(reader.next_line(soon()), Ok(LineRead::Line(l)) if l == b"one"));
        assert!(matches!(reader.next_line(soon()), Ok(LineRead::Late)));
        near.write_all(b"o\n\nthree").expect("write");
        assert!(matches!(reader.next_line(soon()), Ok(LineRead::Line(l)) if l == b"two"));
        assert!(matches!(reader.next_line(soon()), Ok(LineRead::Line(l)) if l.is_empty()));
        drop(near);
        assert!(matches!(reader.next_line(soon()), Ok(LineRead::End)));
    }

    #[test]
    fn a_line_without_end_is_refused_at_the_limit() {
        let (mut near, far) = UnixStream::pair().expect("pair");
        let mut reader = LineReader::new(far, 64);
        near.write_all(&[b'x'; 65]).expect("write");
        assert!(matches!(reader.next_line(soon()), Ok(LineRead::TooLong)));
    }
}
