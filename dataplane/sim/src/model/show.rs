//! A state in a line, for the way to a broken invariant.

use std::fmt;

use dwcp_wire::Control;

use super::destination::DestinationProcess;
use super::source::SourceProcess;
use super::world::{ATTEMPT, World};
use crate::faults::Side;

impl fmt::Display for World {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (source, destination) = (&self.source, &self.destination);
        let here = match &source.process {
            SourceProcess::Moves(run) => format!("{:?}", run.machine.phase()),
            process => format!("{process:?}"),
        };
        let there = match &destination.process {
            DestinationProcess::Takes(run) => format!("{:?}", run.machine.phase()),
            process => format!("{process:?}"),
        };
        write!(
            to,
            "source {here}, guest {:?}, {}; destination {there}, guest {:?}, {}",
            source.vmm.vm,
            stage(source.journal.stage(ATTEMPT)),
            destination.vmm.vm,
            stage(destination.journal.stage(ATTEMPT)),
        )?;
        for (side, arrow) in [(Side::Destination, "->"), (Side::Source, "<-")] {
            let direction = self.wire.to(side);
            let names: Vec<_> = direction.messages().map(name).collect();
            if !names.is_empty() {
                write!(to, "; {arrow} {}", names.join(", "))?;
            }
            if !direction.is_open() {
                write!(to, "; {arrow} broken")?;
            }
        }
        if !self.questions.is_empty() {
            write!(to, "; owner: {:?}", self.questions)?;
        }
        Ok(())
    }
}

fn stage(stage: Option<crate::journal::Stage>) -> String {
    stage.map_or_else(
        || "no record".to_owned(),
        |stage| format!("journal {stage:?}"),
    )
}

/// Its name, without what it carries.
fn name(message: &Control) -> String {
    let text = format!("{message:?}");
    let end = text.find([' ', '(', '{']).unwrap_or(text.len());
    text[..end].to_owned()
}
