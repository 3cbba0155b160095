//! A stream's keys in the form in which the kernel takes them.

use std::io;
use std::mem::size_of;
use std::net::TcpStream;
use std::os::fd::AsRawFd;

use libc::{
    TLS_1_3_VERSION, TLS_CIPHER_AES_GCM_128, TLS_CIPHER_AES_GCM_256, TLS_CIPHER_CHACHA20_POLY1305,
    tls_crypto_info, tls12_crypto_info_aes_gcm_128, tls12_crypto_info_aes_gcm_256,
    tls12_crypto_info_chacha20_poly1305,
};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{TcpTlsRx, TcpTlsTx, TcpUlp, TlsCryptoInfo};
use rustls::{CipherSuite, ConnectionTrafficSecrets, ExtractedSecrets};
use zeroize::Zeroize;

/// The ciphers of TLS 1.3 that kernels have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cipher {
    /// AES-128-GCM.
    Aes128,
    /// AES-256-GCM.
    Aes256,
    /// ChaCha20-Poly1305.
    ChaCha20,
}

impl Cipher {
    pub(super) const ALL: [Self; 3] = [Self::Aes128, Self::Aes256, Self::ChaCha20];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aes128 => "AES-128-GCM",
            Self::Aes256 => "AES-256-GCM",
            Self::ChaCha20 => "ChaCha20-Poly1305",
        }
    }

    pub(in crate::tls) const fn of_suite(suite: CipherSuite) -> Option<Self> {
        match suite {
            CipherSuite::TLS13_AES_128_GCM_SHA256 => Some(Self::Aes128),
            CipherSuite::TLS13_AES_256_GCM_SHA384 => Some(Self::Aes256),
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => Some(Self::ChaCha20),
            _ => None,
        }
    }

    const fn info(self) -> tls_crypto_info {
        let cipher_type = match self {
            Self::Aes128 => TLS_CIPHER_AES_GCM_128,
            Self::Aes256 => TLS_CIPHER_AES_GCM_256,
            Self::ChaCha20 => TLS_CIPHER_CHACHA20_POLY1305,
        };
        tls_crypto_info {
            version: TLS_1_3_VERSION,
            cipher_type,
        }
    }

    /// A key of nothing, to ask whether the kernel takes its kind.
    pub(super) fn blank(self) -> TlsCryptoInfo {
        let info = self.info();
        match self {
            Self::Aes128 => TlsCryptoInfo::Aes128Gcm(tls12_crypto_info_aes_gcm_128 {
                info,
                iv: Default::default(),
                key: Default::default(),
                salt: Default::default(),
                rec_seq: Default::default(),
            }),
            Self::Aes256 => TlsCryptoInfo::Aes256Gcm(tls12_crypto_info_aes_gcm_256 {
                info,
                iv: Default::default(),
                key: Default::default(),
                salt: Default::default(),
                rec_seq: Default::default(),
            }),
            Self::ChaCha20 => {
                TlsCryptoInfo::Chacha20Poly1305(tls12_crypto_info_chacha20_poly1305 {
                    info,
                    iv: Default::default(),
                    key: Default::default(),
                    salt: Default::default(),
                    rec_seq: Default::default(),
                })
            }
        }
    }

    /// Bytes of what the kernel takes, and tells, of such a key.
    const fn info_bytes(self) -> usize {
        match self {
            Self::Aes128 => size_of::<tls12_crypto_info_aes_gcm_128>(),
            Self::Aes256 => size_of::<tls12_crypto_info_aes_gcm_256>(),
            Self::ChaCha20 => size_of::<tls12_crypto_info_chacha20_poly1305>(),
        }
    }
}

/// The keys of one direction. The kernel wants the twelve bytes of an AES-GCM nonce in two pieces; which of
/// them a record changes is the same as in TLS itself.
fn info((sequence, secrets): &(u64, ConnectionTrafficSecrets)) -> io::Result<TlsCryptoInfo> {
    const SALT_BYTES: usize = 4;
    let sequence = sequence.to_be_bytes();
    let (cipher, key, nonce) = match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (Cipher::Aes128, key, iv),
        ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (Cipher::Aes256, key, iv),
        ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (Cipher::ChaCha20, key, iv),
        _ => return Err(io::ErrorKind::Unsupported.into()),
    };
    let (key, nonce) = (key.as_ref(), nonce.as_ref());
    let mut info = cipher.blank();
    match &mut info {
        TlsCryptoInfo::Aes128Gcm(info) => {
            info.key.copy_from_slice(key);
            info.salt.copy_from_slice(&nonce[..SALT_BYTES]);
            info.iv.copy_from_slice(&nonce[SALT_BYTES..]);
            info.rec_seq = sequence;
        }
        TlsCryptoInfo::Aes256Gcm(info) => {
            info.key.copy_from_slice(key);
            info.salt.copy_from_slice(&nonce[..SALT_BYTES]);
            info.iv.copy_from_slice(&nonce[SALT_BYTES..]);
            info.rec_seq = sequence;
        }
        TlsCryptoInfo::Chacha20Poly1305(info) => {
            info.key.copy_from_slice(key);
            info.iv.copy_from_slice(nonce);
            info.rec_seq = sequence;
        }
    }
    Ok(info)
}

/// Makes a socket one that may be given keys. Until then it is what it was.
pub(super) fn prepare(socket: &TcpStream) -> io::Result<()> {
    Ok(setsockopt(socket, TcpUlp::default(), b"tls")?)
}

/// Gives the keys of both directions to the kernel.
pub(super) fn give(socket: &TcpStream, secrets: &ExtractedSecrets) -> io::Result<()> {
    let mut keys = [info(&secrets.rx)?, info(&secrets.tx)?];
    let given = setsockopt(socket, TcpTlsRx, &keys[0])
        .and_then(|()| setsockopt(socket, TcpTlsTx, &keys[1]));
    keys.iter_mut().for_each(wipe);
    Ok(given?)
}

/// The kernel has a copy; this one is not to stay in memory.
fn wipe(info: &mut TlsCryptoInfo) {
    match info {
        TlsCryptoInfo::Aes128Gcm(info) => info.key.zeroize(),
        TlsCryptoInfo::Aes256Gcm(info) => info.key.zeroize(),
        TlsCryptoInfo::Chacha20Poly1305(info) => info.key.zeroize(),
    }
}

/// How many records the kernel has sealed with a socket's key, counted from the first that TLS itself did. The key
/// comes along, and is wiped.
pub(super) fn sealed_records(socket: &TcpStream, cipher: Cipher) -> io::Result<u64> {
    const MOST: usize = size_of::<tls12_crypto_info_aes_gcm_256>();
    const { assert!(Cipher::Aes128.info_bytes() <= MOST && Cipher::ChaCha20.info_bytes() <= MOST) }
    let mut info = [0_u8; MOST];
    let mut bytes = cipher.info_bytes() as libc::socklen_t;
    // SAFETY: the kernel writes `bytes` bytes at most to `info`, which is no shorter for any cipher, as is
    // asserted above, and the length that it wrote to `bytes`. Both are ours for the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_TLS,
            libc::TLS_TX,
            info.as_mut_ptr().cast(),
            &raw mut bytes,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // The last field of each kind of key.
    let sequence = info[..cipher.info_bytes()].last_chunk().copied();
    info.zeroize();
    Ok(u64::from_be_bytes(sequence.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read back is the last field: there is no padding behind it.
    #[test]
    fn the_sequence_ends_each_kind_of_key() {
        let ends = [
            std::mem::offset_of!(tls12_crypto_info_aes_gcm_128, rec_seq),
            std::mem::offset_of!(tls12_crypto_info_aes_gcm_256, rec_seq),
            std::mem::offset_of!(tls12_crypto_info_chacha20_poly1305, rec_seq),
        ];
        for (cipher, start) in Cipher::ALL.into_iter().zip(ends) {
            assert_eq!(cipher.info_bytes(), start + size_of::<u64>(), "{cipher:?}");
        }
    }
}
