//! One connection of the command line: requests answered in order.

use dwcp_api::codec;
use dwcp_api::node::{Reply, Request};
use dwcp_api::{ApiError, ErrorCode, Tune};
use futures_util::StreamExt;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio_util::codec::FramedRead;

use super::frames;
use crate::node::Node;

/// Serves until the client closes or sends something that is no request.
pub(super) async fn serve(stream: UnixStream, node: &Node) {
    let (reader, mut writer) = stream.into_split();
    let mut requests = FramedRead::new(reader, frames());
    while let Some(frame) = requests.next().await {
        let request = match frame {
            Ok(body) => codec::decode::<Request>(&body).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let (reply, go_on) = match request {
            Ok(request) => (answer(request, node).await, true),
            Err(why) => (
                Reply::Error(ApiError::new(ErrorCode::BadRequest, why)),
                false,
            ),
        };
        let sent = match encode(&reply) {
            Ok(frame) => writer.write_all(&frame).await.is_ok(),
            Err(error) => {
                tracing::error!(%error, "reply cannot be encoded");
                false
            }
        };
        if !sent || !go_on {
            return;
        }
    }
}

/// A reply that does not fit a frame becomes an error that does.
fn encode(reply: &Reply) -> Result<Vec<u8>, codec::CodecError> {
    codec::encode(reply).or_else(|error| {
        let refusal = ApiError::new(ErrorCode::System, format!("answer too large: {error}"));
        codec::encode(&Reply::Error(refusal))
    })
}

async fn answer(request: Request, node: &Node) -> Reply {
    match try_answer(request, node).await {
        Ok(reply) => reply,
        Err(error) => {
            tracing::info!(%error, "request refused");
            Reply::Error(error)
        }
    }
}

async fn try_answer(request: Request, node: &Node) -> Result<Reply, ApiError> {
    Ok(match request {
        Request::Node => Reply::Node(node.status()),
        Request::AttachVm { name, attachment } => {
            Reply::Vm(node.vms().attach(name, attachment).await?)
        }
        Request::DetachVm { name, attached_as } => {
            node.vms().detach(name, attached_as).await?;
            Reply::Done
        }
        Request::ListVms => Reply::Vms(node.vms().list().await?),
        Request::Migrate {
            vm,
            to,
            settings,
            dry_run,
        } => {
            let peers = node.peers();
            let started = node.migrations().start(vm, &to, &peers, settings, dry_run);
            Reply::Started { id: started.await? }
        }
        Request::Cancel { which } => {
            node.migrations().cancel(&which).await?;
            Reply::Done
        }
        Request::Tune {
            which,
            bandwidth_limit_mbit,
            post_copy,
        } => {
            let limit = bandwidth_limit_mbit.map(Tune::BandwidthLimitMbit);
            let tunes = limit.into_iter().chain(post_copy.then_some(Tune::PostCopy));
            for tune in tunes {
                node.migrations().tune(&which, tune).await?;
            }
            Reply::Done
        }
        Request::Probe { to } => {
            let peers = node.peers();
            let (sample, finding) = node.migrations().probe(&to, &peers).await?;
            Reply::Path {
                sample,
                mode: finding.mode.name().to_owned(),
                why: finding.why,
            }
        }
        Request::Status { which } => {
            Reply::Migrations(node.migrations().status(which.as_deref()).await?)
        }
        Request::Store(request) => Reply::Store(node.ask_store(request).await?),
        Request::Doctor => Reply::Doctor(node.doctor().await?),
        Request::Recover(request) => Reply::Recovery(node.recover(request).await?),
        Request::Ownership => Reply::Ownership(node.ledger().ownership().await?),
        _ => {
            let message = "this release does not know the request";
            return Err(ApiError::new(ErrorCode::BadRequest, message));
        }
    })
}
