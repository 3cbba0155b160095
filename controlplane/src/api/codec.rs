//! Frames of [`dwcp_api::codec`] over asynchronous sockets.

use dwcp_api::codec::{FRAME_BYTES_MAX, PREFIX_BYTES};
use tokio_util::codec::LengthDelimitedCodec;

/// Splits a byte stream into frame bodies; a length above the limit ends the connection before
/// anything is allocated for it.
pub(crate) fn frames() -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder()
        .little_endian()
        .length_field_length(PREFIX_BYTES)
        .max_frame_length(FRAME_BYTES_MAX)
        .new_codec()
}

#[cfg(test)]
mod tests {
    use dwcp_api::codec;
    use dwcp_api::node::Request;
    use tokio_util::bytes::BytesMut;
    use tokio_util::codec::Decoder;

    use super::*;

    #[test]
    fn both_codecs_agree() {
        let request = Request::Status {
            which: Some("web".into()),
        };
        let frame = codec::encode(&request).unwrap();
        let mut bytes = BytesMut::new();
        let mut frames = frames();
        for (at, byte) in frame.iter().enumerate() {
            assert!(frames.decode(&mut bytes).unwrap().is_none(), "byte {at}");
            bytes.extend_from_slice(&[*byte]);
        }
        let body = frames.decode(&mut bytes).unwrap().unwrap();
        assert_eq!(codec::decode::<Request>(&body).unwrap(), request);
        assert!(frames.decode(&mut BytesMut::from(&[0xff; 4][..])).is_err());
    }
}
