//! A figure of all runs of one case: a dot per run, a bar at the median, a row per system.

use plotters::prelude::*;

use super::super::stat::median;
use super::record::{Group, Metric};

/// The drawing failed, which only a value that is no number can do.
#[derive(Debug, thiserror::Error)]
#[error("cannot draw {metric}: {detail}")]
pub(super) struct PlotError {
    metric: &'static str,
    detail: String,
}

const WIDTH: u32 = 720;
const ROW_HEIGHT: u32 = 34;

/// The plot as SVG.
pub(super) fn runs(metric: &Metric, groups: &[&Group]) -> Result<String, PlotError> {
    let mut svg = String::new();
    draw(metric, groups, &mut svg).map_err(|error| PlotError {
        metric: metric.key,
        detail: error.to_string(),
    })?;
    Ok(svg)
}

fn draw(
    metric: &Metric,
    groups: &[&Group],
    svg: &mut String,
) -> Result<(), Box<dyn std::error::Error>> {
    let height = 70 + ROW_HEIGHT * groups.len() as u32;
    let root = SVGBackend::with_string(svg, (WIDTH, height)).into_drawing_area();
    let shown = |group: &Group| -> Vec<f64> {
        let values = group.of(metric.key);
        values.iter().map(|value| value / metric.per).collect()
    };
    let most = groups
        .iter()
        .flat_map(|group| shown(group))
        .fold(0.0, f64::max);
    let rows = groups.len();
    let mut chart = ChartBuilder::on(&root)
        .caption(metric.head, ("sans-serif", 16))
        .margin(8)
        .x_label_area_size(28)
        .y_label_area_size(170)
        .build_cartesian_2d(0.0..most.max(1e-9) * 1.05, 0.0..rows as f64)?;
    let name = |at: &f64| {
        let row = rows.saturating_sub(1).saturating_sub(at.floor() as usize);
        let is_middle = (at.fract() - 0.5).abs() < 0.01;
        groups
            .get(row)
            .filter(|_| is_middle)
            .map_or_else(String::new, |group| group.system.clone())
    };
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(2 * rows + 1)
        .y_label_formatter(&name)
        .draw()?;
    for (index, group) in groups.iter().enumerate() {
        let middle = (rows - 1 - index) as f64 + 0.5;
        let values = shown(group);
        let bar = [
            (0.0, middle - 0.3),
            (median(values.iter().copied()), middle + 0.3),
        ];
        chart.draw_series([Rectangle::new(bar, BLUE.mix(0.25).filled())])?;
        let dots = values
            .iter()
            .map(|value| Circle::new((*value, middle), 3, BLACK.mix(0.7).filled()));
        chart.draw_series(dots)?;
    }
    root.present()?;
    drop(chart);
    Ok(())
}
