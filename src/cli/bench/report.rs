//! What a run says: a few lines for people, one object for programs.

use clap::ValueEnum;
use serde_json::{Value as Json, json};

use super::cpu::{Machine, Usage};
use super::tally::Tally;
use super::{BenchArgs, Work};

/// Everything that was measured.
pub(super) struct Report<'a> {
    pub(super) args: &'a BenchArgs,
    pub(super) tally: &'a Tally,
    pub(super) seconds: f64,
    pub(super) usage: &'a Usage,
}

/// Shares of operations and their names.
const PERCENTILES: [(&str, f64); 5] =
    [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99.9", 99.9), ("max", 100.0)];

impl Report<'_> {
    /// For people.
    pub(super) fn text(&self) -> String {
        let mut lines = vec![self.title()];
        let operations = self.tally.operations();
        let errors: u64 = self.tally.errors().values().sum();
        lines.push(format!(
            "{:.0} operations a second ({operations} in {:.1} s, {errors} errors)",
            self.rate(),
            self.seconds
        ));
        let latencies = PERCENTILES
            .map(|(name, percent)| format!("{name} {:.3}", self.tally.percentile_ms(percent)));
        lines.push(format!(
            "latency in ms: mean {:.3}, {}",
            self.tally.mean_ms(),
            latencies.join(", ")
        ));
        lines.extend(self.cpu_text());
        for (error, count) in self.tally.errors() {
            lines.push(format!("{count} times: {error}"));
        }
        lines.join("\n")
    }

    fn title(&self) -> String {
        let args = self.args;
        let pace = match args.rate {
            Some(rate) => format!("{rate} a second"),
            None => "closed loop".to_owned(),
        };
        let rows = match args.work {
            Work::Scan => format!(", {} rows each", args.rows),
            Work::Put | Work::Get | Work::Mixed | Work::Append => String::new(),
        };
        format!(
            "{}: {} clients over {} connections, {pace}, {} keys of {} B, values of {} B{rows}",
            self.work(),
            args.clients,
            args.conns,
            args.keys,
            args.key_size,
            args.value_size
        )
    }

    fn cpu_text(&self) -> Option<String> {
        let mut parts = Vec::new();
        let cost = |used| self.per_operation(used).map(|us| format!("{us:.1}"));
        if let Some(us) = self.usage.client.and_then(cost) {
            parts.push(format!("this program {us}"));
        }
        for (name, used) in &self.usage.nodes {
            parts.extend(cost(*used).map(|us| format!("{name} {us}")));
        }
        if let Some(machine) = self.usage.machine {
            let [_, idle, steal] = shares(machine);
            let us = cost(machine.busy)?;
            parts.push(format!("whole machine {us} (idle {idle:.0} %, steal {steal:.0} %)"));
        }
        (!parts.is_empty()).then(|| format!("CPU in us per operation: {}", parts.join(", ")))
    }

    /// For programs.
    pub(super) fn json(&self) -> Json {
        let args = self.args;
        let latencies = PERCENTILES.map(|(name, percent)| {
            (name.to_owned(), Json::from(self.tally.percentile_ms(percent)))
        });
        let nodes = self.usage.nodes.iter();
        let nodes = nodes.map(|(name, us)| (name.clone(), Json::from(self.per_operation(*us))));
        let mut json = json!({
            "work": self.work(),
            "clients": args.clients,
            "conns": args.conns,
            "threads": args.threads,
            "keys": args.keys,
            "key_bytes": args.key_size,
            "value_bytes": args.value_size,
            "rate": args.rate,
            "seconds": self.seconds,
            "operations": self.tally.operations(),
            "operations_per_second": self.rate(),
            "errors": self.tally.errors(),
            "latency_ms": Json::Object(latencies.into_iter().collect()),
            "cpu_us_per_operation": {
                "client": self.usage.client.and_then(|us| self.per_operation(us)),
                "nodes": Json::Object(nodes.collect()),
                "machine": self.usage.machine.and_then(|m| self.per_operation(m.busy)),
            },
        });
        json["latency_ms"]["mean"] = self.tally.mean_ms().into();
        if let Some(machine) = self.usage.machine {
            let [busy, idle, steal] = shares(machine);
            json["machine_percent"] = json!({"busy": busy, "idle": idle, "steal": steal});
        }
        json
    }

    fn work(&self) -> String {
        let value = self.args.work.to_possible_value();
        value.map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    fn rate(&self) -> f64 {
        self.tally.operations() as f64 / self.seconds
    }

    fn per_operation(&self, used_us: u64) -> Option<f64> {
        let operations = self.tally.operations();
        (operations > 0).then(|| used_us as f64 / operations as f64)
    }
}

/// Busy, idle and stolen time in per cent.
fn shares(machine: Machine) -> [f64; 3] {
    let total = (machine.busy + machine.idle + machine.steal).max(1) as f64;
    [machine.busy, machine.idle, machine.steal].map(|part| part as f64 * 100.0 / total)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: BenchArgs,
    }

    fn texts(operations: u64) -> (String, Json) {
        let args = Line::parse_from(["bench", "put", "--clients", "2", "--conns", "1"]).args;
        let mut tally = Tally::default();
        (0..operations).for_each(|_| tally.success(Duration::from_millis(2)));
        tally.error("too busy");
        let machine = Machine { busy: 3_000, idle: 6_000, steal: 1_000 };
        let usage =
            Usage { client: Some(500), nodes: vec![("n1".into(), 1_000)], machine: Some(machine) };
        let report = Report { args: &args, tally: &tally, seconds: 2.0, usage: &usage };
        (report.text(), report.json())
    }

    #[test]
    fn cost_is_per_operation_and_errors_are_named() {
        let (text, json) = texts(100);
        assert!(text.starts_with("put: 2 clients over 1 connections, closed loop"), "{text}");
        assert!(text.contains("\n50 operations a second (100 in 2.0 s, 1 errors)\n"), "{text}");
        assert!(
            text.contains("this program 5.0, n1 10.0, whole machine 30.0 (idle 60 %, steal 10 %)"),
            "{text}"
        );
        assert!(text.ends_with("\n1 times: too busy"), "{text}");
        assert_eq!(json["operations_per_second"], 50.0);
        assert_eq!(json["cpu_us_per_operation"]["nodes"]["n1"], 10.0);
        assert_eq!(json["errors"]["too busy"], 1);
    }

    #[test]
    fn without_operations_there_is_no_cost() {
        let (text, json) = texts(0);
        assert!(text.contains("\n0 operations a second"), "{text}");
        assert!(!text.contains("NaN") && json["cpu_us_per_operation"]["client"].is_null());
    }
}
