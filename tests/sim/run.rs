//! Many seeds on some threads, one seed from its first event to its last check.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use crate::coverage::Coverage;
use crate::linear;
use crate::options::Options;
use crate::truth::Broken;
use crate::wan;
use crate::world::World;

pub(crate) struct Arguments {
    first: u64,
    seeds: u64,
    events: u64,
    threads: u64,
    /// Events a second and thread that must be reached.
    floor: u64,
    /// One seed, told in full.
    single: bool,
    /// Only what distance costs.
    wan: bool,
}

impl Arguments {
    pub(crate) fn parse(words: impl Iterator<Item = String>) -> Result<Arguments, String> {
        let mut arguments = Arguments {
            first: 1,
            seeds: SEEDS,
            events: 20_000,
            threads: 2,
            floor: 0,
            single: false,
            wan: false,
        };
        let mut words = words;
        while let Some(word) = words.next() {
            let mut number = || {
                let value = words.next().ok_or(format!("{word} needs a number"))?;
                value.parse::<u64>().map_err(|_| format!("{word} {value}: not a number"))
            };
            match word.as_str() {
                "--seeds" => arguments.seeds = number()?,
                "--events" => arguments.events = number()?,
                "--floor" => arguments.floor = number()?,
                "--first" => arguments.first = number()?,
                "--threads" | "--test-threads" => arguments.threads = number()?.max(1),
                "--seed" => {
                    arguments.first = number()?;
                    (arguments.seeds, arguments.single) = (1, true);
                }
                "--wan" => arguments.wan = true,
                // What `cargo test` passes on to every test.
                "--nocapture" | "--quiet" | "-q" | "--show-output" => {}
                other => return Err(format!("{other} is not known: see tests/sim/main.rs")),
            }
        }
        Ok(arguments)
    }
}

/// What one seed came to.
struct Outcome {
    trace: u64,
    events: u64,
    simulated_us: u64,
    coverage: Coverage,
}

pub(crate) fn all(arguments: &Arguments) -> ExitCode {
    if let Err(problem) = linear::self_test(20_000) {
        eprintln!("{problem}");
        return ExitCode::FAILURE;
    }
    if !arguments.single {
        match wan::check() {
            Ok(table) => println!("{table}"),
            Err(problem) => {
                eprintln!("{problem}");
                return ExitCode::FAILURE;
            }
        }
        if arguments.wan {
            return ExitCode::SUCCESS;
        }
    }
    let begin = Instant::now();
    let (next, failed) = (AtomicU64::new(0), AtomicBool::new(false));
    let totals = Mutex::new((Coverage::default(), 0_u64, 0_u64));
    std::thread::scope(|scope| {
        for _ in 0..arguments.threads.min(arguments.seeds) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= arguments.seeds || failed.load(Ordering::Relaxed) {
                        return;
                    }
                    let seed = arguments.first + number;
                    match run_checked(seed, arguments, number.is_multiple_of(50)) {
                        Ok(outcome) => {
                            let mut totals = totals.lock().unwrap();
                            totals.0.add(&outcome.coverage);
                            totals.1 += outcome.events;
                            totals.2 += outcome.simulated_us;
                        }
                        Err(broken) => {
                            failed.store(true, Ordering::Relaxed);
                            report(seed, arguments, &broken);
                        }
                    }
                }
            });
        }
    });
    if failed.into_inner() {
        return ExitCode::FAILURE;
    }
    let (coverage, events, simulated_us) = totals.into_inner().unwrap();
    let seconds = begin.elapsed().as_secs_f64();
    coverage.print();
    let speed = events as f64 / seconds / arguments.threads as f64;
    println!(
        "{} seeds, {events} events, {} simulated seconds in {seconds:.1} s: {speed:.0} events a second and thread",
        arguments.seeds,
        simulated_us / 1_000_000
    );
    if speed < arguments.floor as f64 {
        eprintln!("too slow: {} events a second and thread are asked for", arguments.floor);
        return ExitCode::FAILURE;
    }
    let missing = coverage.missing();
    if arguments.seeds >= SEEDS_FOR_COVERAGE && !missing.is_empty() {
        eprintln!("never reached: {}", missing.join(", "));
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn report(seed: u64, arguments: &Arguments, broken: &str) {
    eprintln!("seed {seed} is broken: {broken}");
    eprintln!("{:#?}", Options::draw(seed));
    let events = arguments.events;
    eprintln!("replay: cargo test --release --test sim -- --seed {seed} --events {events}");
}

/// Runs a seed, some of them twice: the trace must be the same.
fn run_checked(seed: u64, arguments: &Arguments, twice: bool) -> Result<Outcome, Broken> {
    let outcome = run_caught(seed, arguments)?;
    if twice && run_caught(seed, arguments)?.trace != outcome.trace {
        return Err("the same seed took another course".to_owned());
    }
    Ok(outcome)
}

fn run_caught(seed: u64, arguments: &Arguments) -> Result<Outcome, Broken> {
    let caught = catch_unwind(AssertUnwindSafe(|| run(seed, arguments)));
    caught.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("panic: {}", text.unwrap_or_default()))
    })
}

fn run(seed: u64, arguments: &Arguments) -> Result<Outcome, Broken> {
    let options = Options::draw(seed);
    if arguments.single {
        println!("{options:#?}");
        // What the nodes tell people; a second seed in this process would only say it again.
        let _ = tracing_subscriber::fmt().with_writer(std::io::stderr).without_time().try_init();
    }
    let mut world = World::new(options)?;
    while world.events < arguments.events {
        world.step()?;
    }
    world.calm_down()?;
    world.check_history()?;
    world.check_reopened()?;
    if arguments.single {
        println!("trace {:016x}, {} requests", world.trace, world.records.len());
    }
    Ok(Outcome {
        trace: world.trace,
        events: world.events,
        simulated_us: world.now,
        coverage: world.coverage,
    })
}

/// With fewer seeds something may not be reached by bad luck.
const SEEDS_FOR_COVERAGE: u64 = 2000;
/// Enough to notice what is broken outright; `.ci/run` asks for more.
const SEEDS: u64 = if cfg!(debug_assertions) { 40 } else { 300 };
