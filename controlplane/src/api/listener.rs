//! The listening socket: one owner, mode 0600, credentials checked.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::session;
use crate::node::Node;

/// Connections at once; more wait.
const SESSIONS_MAX: usize = 64;

/// Why the socket cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// Somebody answers there.
    #[error("{path}: socket is in use by another process; stop it or choose another --socket")]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("{path}: {source}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// The failure.
        source: std::io::Error,
    },
}

/// A bound socket; its path goes when this is dropped.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
}

impl Server {
    /// Binds `path`; a left-over socket that nobody serves is replaced. The socket appears there
    /// with its mode already set.
    ///
    /// # Errors
    /// [`ListenError::InUse`] when a process answers there.
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        let io = |source| ListenError::Io {
            path: path.to_owned(),
            source,
        };
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(ListenError::InUse {
                path: path.to_owned(),
            });
        }
        let new = path.with_extension(format!("{}.new", std::process::id()));
        let _ = std::fs::remove_file(&new);
        let listener = UnixListener::bind(&new).map_err(io)?;
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).map_err(io)?;
        std::fs::rename(&new, path).map_err(io)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
        })
    }

    /// Serves until the future is dropped; connections end with it.
    pub async fn serve(&self, node: Arc<Node>) {
        let places = Arc::new(Semaphore::new(SESSIONS_MAX));
        let mut sessions = JoinSet::new();
        loop {
            while sessions.try_join_next().is_some() {}
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    if let Err(why) = check_peer(&stream) {
                        tracing::warn!(why, "connection refused");
                        continue;
                    }
                    let node = Arc::clone(&node);
                    sessions.spawn(async move {
                        session::serve(stream, &node).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accept");
                    // Out of descriptors: another attempt at once would only fail again.
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Root and the daemon's own user may talk to it.
fn check_peer(stream: &UnixStream) -> Result<(), String> {
    let credentials = stream.peer_cred().map_err(|error| error.to_string())?;
    let own = nix::unistd::geteuid().as_raw();
    if credentials.uid() == 0 || credentials.uid() == own {
        return Ok(());
    }
    Err(format!("client has uid {}", credentials.uid()))
}
