//! `dwcp bench report`: records of the other benches as tables and plots, and two of them compared.

mod compare;
mod html;
mod plot;
mod record;

use std::fmt::Write;
use std::path::PathBuf;

use record::{Group, METRICS, Record};

use crate::context::Context;
use crate::failure::Failure;

const HELP: &str =
    "A record is what `dwcp bench … --json` prints. With two records every figure of \
the second is set against the first: the ratio of the medians, and the chance that a difference as \
large comes of shuffling the runs (exact permutation test). With less than four runs of each no \
difference can be told from chance.

Examples:
  dwcp bench report peers.json
  dwcp bench report wire.json --html wire.html
  dwcp bench report before.json after.json
  dwcp bench report before.json after.json --json";

/// `dwcp bench report`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// The record.
    #[arg(value_name = "RECORD")]
    record: PathBuf,
    /// A later record of the same bench, to be compared with it.
    #[arg(value_name = "LATER")]
    later: Option<PathBuf>,
    /// Also write one page with plots, which needs nothing else, to this file.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

pub(crate) fn run(args: &Args, context: &mut Context) -> Result<(), Failure> {
    let record = Record::read(&args.record)?;
    let later = args.later.as_deref().map(Record::read).transpose()?;
    if let Some(path) = &args.html {
        let page = html::page(&record, later.as_ref()).map_err(Failure::other)?;
        std::fs::write(path, page)
            .map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))?;
        eprintln!("wrote {}", path.display());
    }
    let Some(later) = later else {
        let groups = record.groups();
        return context.print(&groups, || markdown(&record, &groups));
    };
    let changes = compare::compare(&record, &later)?;
    context.print(&changes, || compare::markdown(&record, &later, &changes))
}

/// Medians, and from the least to the greatest where they differ.
fn markdown(record: &Record, groups: &[Group]) -> String {
    let metrics: Vec<_> = METRICS
        .iter()
        .filter(|metric| groups.iter().any(|group| group.has(metric.key)))
        .collect();
    let mut heads: Vec<_> = metrics.iter().map(|metric| metric.head).collect();
    let has_outcomes = groups.iter().any(|group| !group.outcomes.is_empty());
    if has_outcomes {
        heads.push("outcome");
    }
    let rules = "--:|".repeat(metrics.len()) + if has_outcomes { "---|" } else { "" };
    let mut out = format!("{}: {}\n", record.schema, record.machine_line());
    let mut case = "";
    for group in groups {
        if group.case != case {
            case = &group.case;
            let _ = writeln!(out, "\n{case}\n\n| system | runs | {} |", heads.join(" | "));
            let _ = writeln!(out, "|---|--:|{rules}");
        }
        let mut cells: Vec<_> = metrics.iter().map(|metric| group.cell(metric)).collect();
        if has_outcomes {
            cells.push(group.outcome().replace('|', "\\|"));
        }
        let _ = writeln!(
            out,
            "| {} | {} | {} |",
            group.system,
            group.runs,
            cells.join(" | ")
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{"schema":"dwcp.bench.wire/1","machine":{"cpu":"X","cores":2},"runs":[
        {"system":"a","case":"c","total_ms":1000.0,"cpu_s":0.5,"wire_bytes":1000000000},
        {"system":"a","case":"c","total_ms":3000.0,"cpu_s":0.5,"wire_bytes":1000000000},
        {"system":"a","case":"c","total_ms":2000.0,"cpu_s":0.5,"wire_bytes":1000000000},
        {"system":"b","case":"c","total_ms":500.0,"cpu_s":0.1,"wire_bytes":1000000000}]}"#;

    #[test]
    fn a_table_has_medians_and_spans() {
        let record = Record::parse("x.json", TEXT).unwrap();
        let text = markdown(&record, &record.groups());
        assert!(text.contains("| a | 3 | 2000 (1000-3000) |"), "{text}");
        assert!(text.contains("| b | 1 | 500 |"), "{text}");
    }

    /// A bench that says how its runs ended has a column for it; a run without figures has a row.
    #[test]
    fn outcomes_are_shown_where_there_are_any() {
        let text = r#"{"schema":"dwcp.bench.matrix/1","runs":[
            {"system":"text","case":"1GiB/veth","total_ms":10.0,"outcome":"completed, verified"},
            {"system":"zero","case":"1GiB/veth","outcome":"refused: no <room>"}]}"#;
        let record = Record::parse("x.json", text).unwrap();
        let text = markdown(&record, &record.groups());
        assert!(
            text.contains("| text | 1 | 10 | completed, verified |"),
            "{text}"
        );
        assert!(
            text.contains("| zero | 1 |  | refused: no <room> |"),
            "{text}"
        );
        let page = html::page(&record, None).unwrap();
        assert!(page.contains("<td>refused: no &lt;room&gt;"), "{page}");
        assert_eq!(page.matches("<svg").count(), 1);
    }

    #[test]
    fn what_is_no_record_is_refused_in_words() {
        for (text, says) in [
            ("{", "line 1"),
            ("{}", "schema"),
            (r#"{"schema":"dwcp.migration/1","runs":[]}"#, "dwcp.bench."),
            (r#"{"schema":"dwcp.bench.wire/1"}"#, "runs"),
            (r#"{"schema":"dwcp.bench.wire/1","runs":[]}"#, "no runs"),
        ] {
            let error = Record::parse("x.json", text).unwrap_err();
            let words = format!("{error:?}");
            assert!(words.contains(says), "{text}: {words}");
        }
    }

    #[test]
    fn a_page_needs_nothing_else() {
        let record = Record::parse("x.json", TEXT).unwrap();
        let page = html::page(&record, None).unwrap();
        assert!(page.contains("<svg") && page.contains("</html>"));
        assert!(!page.contains("src=") && !page.contains("href="), "{page}");
    }
}
