//! `quicraft bench`: how fast is this cluster, and what does an operation cost?
//!
//! In: a workload (what, how many clients over how many connections, which keys). Out: operations a second,
//! latency percentiles, CPU time per operation of this program, of nodes on this machine and of the machine
//! as a whole. Always: a rate is measured against the plan, not against the replies (no coordinated
//! omission: an operation that had to wait for its turn has waited); warm-up is not counted; errors are
//! counted and named. Left out: starting the cluster, comparing with others (`benches/`).
//!
//! **Map:** `keys` (which key and which value) < `load` (the clients) < `tally` (what they saw); `cpu` (who
//! used the processors); `report` (text and JSON).

mod cpu;
mod keys;
mod load;
mod report;
mod tally;

use std::io::IsTerminal;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::runtime::Runtime;

use self::cpu::Processors;
use self::keys::{Keys, Pick};
use self::load::{Plan, Share};
use self::report::Report;
use self::tally::Tally;
use super::failure::Failure;
use super::flags::ClientFlags;
use super::output::Output;
use crate::client::Client;

/// What the clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Work {
    /// Set keys to new values
    Put,
    /// Read keys, linearizably
    Get,
    /// Read runs of keys, linearizably
    Scan,
    /// Some of both: see --read-ratio
    Mixed,
    /// Add to the ends of values, which grow
    Append,
}

/// How keys are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Distribution {
    /// All alike
    Uniform,
    /// A few very often (YCSB's zipfian, 0.99)
    Zipf,
}

/// A workload.
#[derive(Clone, Debug, Args)]
pub(super) struct BenchArgs {
    /// What to do
    #[arg(value_enum)]
    pub(super) work: Work,
    /// Clients, each with one operation under way
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(super) clients: u32,
    /// Connections that they share
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(super) conns: u32,
    /// Threads of this program that drive them
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(super) threads: u32,
    /// Keys, all under "bench/"
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) keys: u64,
    /// Bytes of a key
    #[arg(long, value_name = "BYTES", default_value_t = 16)]
    pub(super) key_size: usize,
    /// Bytes of a value
    #[arg(long, value_name = "BYTES", default_value_t = 256)]
    pub(super) value_size: usize,
    /// Rows of a scan
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(super) rows: u64,
    /// Share of reads in mixed work, from 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.5)]
    pub(super) read_ratio: f64,
    /// How keys are chosen
    #[arg(long, value_enum, default_value_t = Distribution::Uniform)]
    pub(super) distribution: Distribution,
    /// How long to measure
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = humantime::parse_duration)]
    pub(super) duration: Duration,
    /// How long to run before
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = humantime::parse_duration)]
    pub(super) warmup: Duration,
    /// Operations a second to offer, whatever the replies do; without, each client goes on at its reply
    #[arg(long, value_name = "N")]
    pub(super) rate: Option<f64>,
    /// Do not write the keys first
    #[arg(long)]
    pub(super) no_load: bool,
}

impl BenchArgs {
    fn check(&self) -> Result<(), Failure> {
        if !(0.0..=1.0).contains(&self.read_ratio) {
            return Err(Failure::usage("--read-ratio must be from 0 to 1"));
        }
        if self.rate.is_some_and(|rate| !(rate.is_finite() && rate > 0.0)) {
            return Err(Failure::usage("--rate must be above 0"));
        }
        if self.conns > self.clients {
            return Err(Failure::usage("--conns must not be above --clients"));
        }
        if self.threads > self.conns {
            return Err(Failure::usage("--threads must not be above --conns"));
        }
        if self.duration.is_zero() || self.rows == 0 {
            return Err(Failure::usage("--duration and --rows must be above 0"));
        }
        Ok(())
    }

    fn plan(&self, start: Instant) -> Result<Plan, Failure> {
        let keys = Keys::new(self.keys, self.key_size).map_err(Failure::Usage)?;
        let pick = match self.distribution {
            Distribution::Uniform => Pick::uniform(self.keys),
            Distribution::Zipf => Pick::zipf(self.keys),
        };
        let measured_from = start + self.warmup;
        Ok(Plan {
            work: self.work,
            keys,
            pick,
            value_bytes: self.value_size,
            rows: self.rows,
            read_ratio: self.read_ratio,
            clients: self.clients,
            rate: self.rate,
            start,
            measured_from,
            end: measured_from + self.duration,
        })
    }
}

/// Runs the workload and writes what came of it.
///
/// # Errors
/// [`Failure`] if the arguments make no sense, no connection comes about, or the keys cannot be written.
pub(super) fn run(args: &BenchArgs, flags: &ClientFlags) -> Result<(), Failure> {
    args.check()?;
    let plan = args.plan(Instant::now())?;
    let mut crews = connect(args, flags)?;
    if !args.no_load {
        let bar = progress(args.keys, "writing keys", "{msg} {bar:30} {pos}/{len}");
        let (runtime, clients) = &mut crews[0];
        let loaded = runtime.block_on(load::fill(&clients[0], &plan, &bar));
        bar.finish_and_clear();
        loaded?;
    }
    let processors = Processors::find(&crews[0].1[0].members());
    // Connecting and loading took time: the plan begins now.
    let plan = Arc::new(args.plan(Instant::now() + START_DELAY)?);
    let mut first = 0;
    let crews: Vec<_> = crews
        .into_iter()
        .map(|(runtime, connections)| {
            let clients = share(args.clients, args.threads, first);
            let share = Share { connections, first, step: args.threads, clients };
            first += 1;
            let plan = Arc::clone(&plan);
            thread::spawn(move || runtime.block_on(load::run(share, plan)))
        })
        .collect();
    let usage = watch(&plan, &processors);
    let mut tally = Tally::default();
    for crew in crews {
        tally.add(&crew.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
    }
    let report =
        Report { args, tally: &tally, seconds: args.duration.as_secs_f64(), usage: &usage };
    Output::stdout(flags.output).line(|| report.text(), || report.json())?;
    Ok(())
}

/// How many of `all` numbers leave the rest `rest` when divided by `parts`.
fn share(all: u32, parts: u32, rest: u32) -> u32 {
    (all + parts - 1 - rest) / parts
}

/// A runtime for each thread, and its connections. Connections that are shared by all clients would meet in
/// one task; each is a client of its own, as another process would be.
fn connect(args: &BenchArgs, flags: &ClientFlags) -> Result<Vec<(Runtime, Vec<Client>)>, Failure> {
    let options = flags.options()?;
    (0..args.threads)
        .map(|thread| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let clients = runtime.block_on(async {
                let mut clients = Vec::new();
                for _ in 0..share(args.conns, args.threads, thread) {
                    clients.push(Client::connect(options.clone()).await?);
                }
                Ok::<_, Failure>(clients)
            })?;
            Ok((runtime, clients))
        })
        .collect()
}

/// Follows the run on this thread: who used the processors while it was measured.
fn watch(plan: &Plan, processors: &Processors) -> cpu::Usage {
    let total = plan.end.duration_since(plan.start).as_millis() as u64;
    let bar = progress(total, "measuring", "{msg} {bar:30} {eta} left");
    sleep_until(plan.measured_from, plan, &bar);
    let before = processors.sample();
    sleep_until(plan.end, plan, &bar);
    let usage = processors.sample().since(&before);
    bar.finish_and_clear();
    usage
}

fn sleep_until(until: Instant, plan: &Plan, bar: &ProgressBar) {
    loop {
        let now = Instant::now();
        let left = until.saturating_duration_since(now);
        if left.is_zero() {
            return;
        }
        bar.set_position(now.saturating_duration_since(plan.start).as_millis() as u64);
        thread::sleep(left.min(BAR_EVERY));
    }
}

/// A bar on standard error if a person looks at it.
fn progress(length: u64, message: &'static str, template: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style =
        ProgressStyle::with_template(template).expect("the templates of this file are sound");
    ProgressBar::new(length).with_style(style).with_message(message)
}

/// Threads need a moment to be there.
const START_DELAY: Duration = Duration::from_millis(20);
const BAR_EVERY: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::share;

    #[test]
    fn shares_add_up_and_differ_by_one_at_most() {
        for (all, parts) in [(1, 1), (7, 3), (8, 3), (9, 3), (256, 16)] {
            let shares: Vec<_> = (0..parts).map(|rest| share(all, parts, rest)).collect();
            assert_eq!(shares.iter().sum::<u32>(), all);
            assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1);
        }
    }
}
