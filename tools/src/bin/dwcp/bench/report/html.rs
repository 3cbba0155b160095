//! One page with tables and plots; nothing is fetched.

use std::fmt::Write;

use super::plot;
use super::record::{METRICS, Record};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;\
padding:0 1em;color:#222}table{border-collapse:collapse;margin:1em 0}td,th{padding:.2em .8em;\
border-bottom:1px solid #ddd;text-align:right}td:first-child,th:first-child{text-align:left}\
svg{max-width:100%;height:auto}p.machine{color:#666}";

/// The page of a record, or of two.
pub(super) fn page(record: &Record, later: Option<&Record>) -> Result<String, plot::PlotError> {
    let mut out = String::from("<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">");
    let _ = write!(
        out,
        "<title>{0}</title><style>{STYLE}</style><h1>{0}</h1>",
        escape(&record.schema)
    );
    for record in std::iter::once(record).chain(later) {
        let _ = write!(
            out,
            "<h2>{}</h2><p class=\"machine\">{}</p>",
            escape(&record.name),
            escape(&record.machine_line())
        );
        tables(&mut out, record);
        plots(&mut out, record)?;
    }
    out.push_str("</html>\n");
    Ok(out)
}

fn cases(record: &Record) -> Vec<String> {
    let mut cases: Vec<_> = record
        .groups()
        .into_iter()
        .map(|group| group.case)
        .collect();
    cases.dedup();
    cases
}

fn tables(out: &mut String, record: &Record) {
    let groups = record.groups();
    for case in cases(record) {
        let _ = write!(
            out,
            "<h3>{}</h3><table><tr><th>system<th>runs",
            escape(&case)
        );
        let of_case: Vec<_> = groups.iter().filter(|group| group.case == case).collect();
        let metrics: Vec<_> = METRICS
            .iter()
            .filter(|metric| of_case.iter().any(|group| group.has(metric.key)))
            .collect();
        for metric in &metrics {
            let _ = write!(out, "<th>{}", metric.head);
        }
        let has_outcomes = of_case.iter().any(|group| !group.outcomes.is_empty());
        if has_outcomes {
            out.push_str("<th>outcome");
        }
        for group in of_case {
            let _ = write!(out, "<tr><td>{}<td>{}", escape(&group.system), group.runs);
            for metric in &metrics {
                let _ = write!(out, "<td>{}", group.cell(metric));
            }
            if has_outcomes {
                let _ = write!(out, "<td>{}", escape(&group.outcome()));
            }
        }
        out.push_str("</table>");
    }
}

fn plots(out: &mut String, record: &Record) -> Result<(), plot::PlotError> {
    let groups = record.groups();
    for case in cases(record) {
        let of_case = || groups.iter().filter(|group| group.case == case);
        for metric in &METRICS {
            if of_case().any(|group| group.has(metric.key)) {
                let shown: Vec<_> = of_case()
                    .filter(|group| !group.of(metric.key).is_empty())
                    .collect();
                out.push_str(&plot::runs(metric, &shown)?);
            }
        }
    }
    Ok(())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
