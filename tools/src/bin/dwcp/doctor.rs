//! `dwcp doctor`: what this node has.

use dwcp_api::ErrorCode;
use dwcp_api::dataplane::{Finding, FindingLevel};
use dwcp_api::node::{Reply, Request};

use crate::context::Context;
use crate::failure::Failure;
use crate::show;

const HELP: &str = "Without a running node it looks at this machine by itself.

Examples:
  dwcp doctor
  dwcp doctor --json | jq '.[] | select(.level != \"good\")'";

/// `dwcp doctor`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args, context: &mut Context) -> Result<(), Failure> {
    let findings = match context.node.ask(&Request::Doctor) {
        Ok(Reply::Doctor(findings)) => findings,
        Ok(other) => return Err(Failure::unexpected(&other)),
        Err(error) if error.code == ErrorCode::PlaneDown => {
            let mut findings = vec![Finding {
                subject: "control plane".to_owned(),
                level: FindingLevel::Missing,
                found: error.message,
                advice: error.hint.unwrap_or_default(),
            }];
            findings.extend(dwcp_dataplane::doctor::findings());
            findings
        }
        Err(error) => return Err(error.into()),
    };
    context.print(&findings, || text(&findings))
}

fn text(findings: &[Finding]) -> String {
    let mut text = show::table(
        ["", "what", "found"],
        findings.iter().map(|finding| {
            let mark = match finding.level {
                FindingLevel::Good => "good",
                FindingLevel::Fallback => "fallback",
                FindingLevel::Missing => "missing",
            };
            [
                mark.to_owned(),
                finding.subject.clone(),
                finding.found.clone(),
            ]
        }),
    );
    let advice: Vec<_> = findings
        .iter()
        .filter(|finding| !finding.advice.is_empty())
        .collect();
    if !advice.is_empty() {
        text.push_str("\n\nTo mend:");
    }
    for finding in advice {
        text.push_str(&format!("\n  {}: {}", finding.subject, finding.advice));
    }
    text
}
