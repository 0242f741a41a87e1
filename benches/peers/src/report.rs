//! Medians and ratios of all rounds, as a table, a CSV file and a plot.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::load::{Measured, Shape};
use crate::peer::Peer;

/// All runs.
#[derive(Default)]
pub struct Results {
    runs: BTreeMap<Shape, BTreeMap<Peer, Vec<Measured>>>,
}

impl Results {
    pub fn add(&mut self, shape: Shape, peer: Peer, measured: Measured) {
        self.runs.entry(shape).or_default().entry(peer).or_default().push(measured);
    }

    /// One line per shape and peer, with Quicraft's ratio to it.
    pub fn table(&self) -> String {
        let mut text = String::from(
            "| work | peer | operations/s | p50 ms | p99 ms | busy us/op | idle % | steal % | errors | \
             Quicraft is |\n|---|---|---|---|---|---|---|---|---|---|\n",
        );
        for (shape, peers) in &self.runs {
            let ours = peers.get(&Peer::Quicraft).map(|runs| median(runs));
            for (peer, runs) in peers {
                let m = median(runs);
                let ratio = match ours {
                    Some(ours) if *peer != Peer::Quicraft => format!(
                        "{:.1} times as fast, p99 {:.2} of it, busy {:.2} of it",
                        ours.operations_per_second / m.operations_per_second,
                        ours.p99_ms / m.p99_ms,
                        ours.busy_us / m.busy_us
                    ),
                    _ => String::new(),
                };
                let _ = writeln!(
                    text,
                    "| {} | {} | {:.0} | {:.3} | {:.3} | {:.1} | {:.0} | {:.0} | {} | {ratio} |",
                    shape_name(shape),
                    peer.name(),
                    m.operations_per_second,
                    m.p50_ms,
                    m.p99_ms,
                    m.busy_us,
                    m.idle_percent,
                    m.steal_percent,
                    m.errors
                );
            }
        }
        text
    }

    /// Every run.
    pub fn csv(&self) -> String {
        let mut text = String::from(
            "work,clients,connections,peer,round,operations_per_second,p50_ms,p99_ms,busy_us,\
             idle_percent,steal_percent,errors\n",
        );
        for (shape, peers) in &self.runs {
            for (peer, runs) in peers {
                for (round, m) in runs.iter().enumerate() {
                    let _ = writeln!(
                        text,
                        "{},{},{},{},{},{:.1},{:.3},{:.3},{:.2},{:.1},{:.1},{}",
                        shape.work.name(),
                        shape.clients,
                        shape.connections,
                        peer.name(),
                        round + 1,
                        m.operations_per_second,
                        m.p50_ms,
                        m.p99_ms,
                        m.busy_us,
                        m.idle_percent,
                        m.steal_percent,
                        m.errors
                    );
                }
            }
        }
        text
    }

    /// Bars of operations a second on a logarithmic scale, as SVG.
    pub fn plot(&self) -> String {
        let bars: usize = self.runs.values().map(|peers| peers.len() + 1).sum();
        let height = TOP + bars * BAR_HEIGHT;
        let mut text = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n<text x=\"10\" y=\"18\">Operations a second, \
             logarithmic; Quicraft with TLS, the others without</text>\n"
        );
        let mut y = TOP;
        for (shape, peers) in &self.runs {
            let _ = writeln!(text, "<text x=\"10\" y=\"{}\">{}</text>", y + 13, shape_name(shape));
            for (peer, runs) in peers {
                let rate = median(runs).operations_per_second;
                let width = (rate.max(1.0).log10() / SCALE_DECADES * BAR_WIDTH_MAX).max(1.0);
                let _ = writeln!(
                    text,
                    "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{width:.0}\" height=\"16\" fill=\"{}\"/>\
                     <text x=\"{:.0}\" y=\"{}\">{} {rate:.0}</text>",
                    color(*peer),
                    LEFT as f64 + width + 6.0,
                    y + 13,
                    peer.name()
                );
                y += BAR_HEIGHT;
            }
            y += BAR_HEIGHT;
        }
        text.push_str("</svg>\n");
        text
    }
}

fn shape_name(shape: &Shape) -> String {
    format!("{} {}/{}", shape.work.name(), shape.clients, shape.connections)
}

fn color(peer: Peer) -> &'static str {
    match peer {
        Peer::Quicraft => "#3a7",
        Peer::Etcd => "#58c",
        Peer::Redis => "#c55",
    }
}

/// The median of each figure by itself; all errors.
fn median(runs: &[Measured]) -> Measured {
    let of = |figure: fn(&Measured) -> f64| {
        let mut figures: Vec<f64> = runs.iter().map(figure).collect();
        figures.sort_by(f64::total_cmp);
        let middle = figures.len() / 2;
        match figures.len() {
            0 => f64::NAN,
            len if len % 2 == 1 => figures[middle],
            _ => (figures[middle - 1] + figures[middle]) / 2.0,
        }
    };
    Measured {
        operations_per_second: of(|m| m.operations_per_second),
        p50_ms: of(|m| m.p50_ms),
        p99_ms: of(|m| m.p99_ms),
        busy_us: of(|m| m.busy_us),
        idle_percent: of(|m| m.idle_percent),
        steal_percent: of(|m| m.steal_percent),
        errors: runs.iter().map(|m| m.errors).sum(),
    }
}

const WIDTH: usize = 760;
const TOP: usize = 30;
const LEFT: usize = 120;
const BAR_HEIGHT: usize = 20;
const BAR_WIDTH_MAX: f64 = 500.0;
/// The scale ends at a million.
const SCALE_DECADES: f64 = 6.0;
