//! Follows the paths of migrations, and has the data plane change with their modes.

use std::time::{Duration, Instant};

use dwcp_api::dataplane::{Reply, Request};
use dwcp_api::{ErrorCode, MigrationId, PathMode, Tune};

use super::{Detector, Finding, Mode};
use crate::dataplane::Client;
use crate::profile;

/// Between two looks: as often as the data plane looks at its sockets.
const INTERVAL: Duration = Duration::from_millis(200);

/// A data plane that did not answer so often in a row is gone.
const AWAY_MAX: u32 = 300;

/// Looks at the path of a migration until it has ended, or nobody knows it any more. `mode` is what it began
/// as.
pub async fn follow(client: Client, id: MigrationId, mode: Mode) {
    let began = Instant::now();
    let (mut detector, mut away) = (Detector::new(mode), 0);
    loop {
        tokio::time::sleep(INTERVAL).await;
        let status = match client.call(Request::Status { id }).await {
            Ok(Reply::Migration(status)) => status,
            // A data plane that is busy, or comes back: another one does not know the migration.
            Err(error) if error.code == ErrorCode::PlaneDown && away < AWAY_MAX => {
                away += 1;
                continue;
            }
            _ => return,
        };
        away = 0;
        if status.report.is_some() {
            return;
        }
        let Some(path) = status.path else { continue };
        let Some(finding) = detector.observe(began.elapsed(), &path) else {
            continue;
        };
        tracing::info!(%id, mode = %finding.mode, why = finding.why, "the path's mode changes");
        let tune = Tune::PathMode(change(finding));
        if let Err(error) = client.call(Request::TuneMigration { id, tune }).await {
            tracing::info!(%id, %error, "the mode is not changed");
        }
    }
}

/// What a mode's own profile has the streams use.
fn change(finding: Finding) -> PathMode {
    let settings = profile::load(finding.mode.name()).ok();
    PathMode {
        mode: finding.mode.name().to_owned(),
        why: finding.why,
        congestion_control: settings.and_then(|settings| settings.congestion_control),
    }
}
