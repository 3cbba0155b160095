//! Frames on the node's own Unix sockets: `u32` little-endian length of what follows, one version
//! byte, a postcard body.

use serde::{Serialize, de::DeserializeOwned};

/// Version byte of every frame. A daemon refuses any other.
pub const API_VERSION: u8 = 1;

/// Largest frame body, version byte included. A thousand VMs fit.
pub const FRAME_BYTES_MAX: usize = 1 << 20;

/// Bytes of the length prefix.
pub const PREFIX_BYTES: usize = 4;

/// Why bytes are not a message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The length prefix announces more than is allowed, or nothing; nothing was allocated.
    #[error("frame of {announced} bytes, allowed are 2 to {FRAME_BYTES_MAX}")]
    Length {
        /// Announced length.
        announced: usize,
    },
    /// The other side speaks another version.
    #[error(
        "peer speaks version {found} of the local interface, this program speaks {API_VERSION}: install the same release of both daemons and tools"
    )]
    Version {
        /// Version byte found.
        found: u8,
    },
    /// Not a message.
    #[error("malformed message")]
    Malformed(#[from] postcard::Error),
    /// Bytes are left after the message.
    #[error("{0} bytes after the message")]
    Trailing(usize),
}

/// One frame, prefix included.
///
/// # Errors
/// [`CodecError::Length`] when the message is larger than a frame.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, CodecError> {
    let mut frame = vec![0; PREFIX_BYTES];
    frame.push(API_VERSION);
    let mut frame = postcard::to_extend(message, frame)?;
    let body_bytes = frame.len() - PREFIX_BYTES;
    check_length(body_bytes)?;
    let prefix = u32::try_from(body_bytes).unwrap_or(u32::MAX).to_le_bytes();
    frame[..PREFIX_BYTES].copy_from_slice(&prefix);
    Ok(frame)
}

/// The body length that a prefix announces, checked.
///
/// # Errors
/// [`CodecError::Length`] outside 2..=[`FRAME_BYTES_MAX`].
pub fn body_bytes(prefix: [u8; PREFIX_BYTES]) -> Result<usize, CodecError> {
    let announced = u32::from_le_bytes(prefix) as usize;
    check_length(announced)?;
    Ok(announced)
}

/// The message in a body (version byte and postcard).
///
/// # Errors
/// [`CodecError::Version`], [`CodecError::Malformed`], [`CodecError::Trailing`].
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, CodecError> {
    let (&version, body) = body
        .split_first()
        .ok_or(CodecError::Length { announced: 0 })?;
    if version != API_VERSION {
        return Err(CodecError::Version { found: version });
    }
    let (message, rest) = postcard::take_from_bytes(body)?;
    if rest.is_empty() {
        Ok(message)
    } else {
        Err(CodecError::Trailing(rest.len()))
    }
}

const fn check_length(announced: usize) -> Result<(), CodecError> {
    if announced < 2 || announced > FRAME_BYTES_MAX {
        return Err(CodecError::Length { announced });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::Request;

    #[test]
    fn a_frame_round_trips() {
        let request = Request::DetachVm {
            name: "web-1".into(),
        };
        let frame = encode(&request).unwrap();
        let length = body_bytes(frame[..4].try_into().unwrap()).unwrap();
        assert_eq!(length, frame.len() - 4);
        assert_eq!(decode::<Request>(&frame[4..]).unwrap(), request);
    }

    #[test]
    fn four_gib_announced_is_refused_before_allocation() {
        assert!(matches!(
            body_bytes([0xff; 4]),
            Err(CodecError::Length { .. })
        ));
        assert!(matches!(body_bytes([0; 4]), Err(CodecError::Length { .. })));
    }

    #[test]
    fn another_version_is_named() {
        let mut frame = encode(&Request::ListVms).unwrap();
        frame[4] = 9;
        let error = decode::<Request>(&frame[4..]).unwrap_err();
        assert!(matches!(error, CodecError::Version { found: 9 }));
    }

    #[test]
    fn trailing_bytes_are_refused() {
        let mut frame = encode(&Request::ListVms).unwrap();
        frame.push(0);
        assert!(matches!(
            decode::<Request>(&frame[4..]),
            Err(CodecError::Trailing(1))
        ));
    }
}
