//! `quicraft shell`: the data commands, interactively.
//!
//! In: lines with the same grammar as the command line (quotes and escapes: `words`), from a terminal with
//! history and completion of commands, or from a pipe. Out: results on standard output, messages and the time
//! that each command took on standard error (times on a terminal only). One connection and one session serve
//! all lines. The exit code is 0, whatever the lines did, unless the cluster cannot be reached at the start;
//! from a pipe the first failure ends the shell with its code, as in a script.

use std::ffi::OsString;
use std::io::{self, BufRead, IsTerminal};
use std::path::PathBuf;
use std::time::Instant;

use clap::{CommandFactory, FromArgMatches, Parser};
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::Validator;
use rustyline::{Context, Editor, Helper};

use super::data::DataCommand;
use super::failure::Failure;
use super::output::{Format, Output};
use super::words;
use crate::client::Client;

/// One line of the shell.
#[derive(Debug, Parser)]
#[command(
    name = "",
    multicall = true,
    disable_help_flag = true,
    help_template = "{subcommands}\n\nValues: text, @FILE; quotes: 'as it is', \"with \\n \\xff\". COMMAND --help says more."
)]
struct Line {
    #[command(subcommand)]
    command: LineCommand,
}

#[derive(Debug, clap::Subcommand)]
enum LineCommand {
    #[command(flatten)]
    Data(DataCommand),
    /// Leave the shell (or Ctrl-D)
    #[command(alias = "quit")]
    Exit,
}

/// Runs lines until the end of input.
///
/// # Errors
/// [`Failure`] of the terminal, or of a line that came from a pipe.
pub(super) async fn run(client: &Client, format: Format) -> Result<(), Failure> {
    let output = Output::stdout(format);
    if io::stdin().is_terminal() {
        interactive(client, &output).await
    } else {
        piped(client, &output).await
    }
}

async fn piped(client: &Client, output: &Output) -> Result<(), Failure> {
    for line in io::stdin().lock().lines() {
        match parse(&line?)? {
            Some(LineCommand::Data(command)) => command.run(client, output, false).await?,
            Some(LineCommand::Exit) => break,
            None => {}
        }
    }
    Ok(())
}

async fn interactive(client: &Client, output: &Output) -> Result<(), Failure> {
    let mut editor: Editor<Commands, FileHistory> = Editor::new().map_err(terminal_failure)?;
    editor.set_helper(Some(Commands::new()));
    let history = history_path();
    if let Some(path) = &history {
        // The first time there is none.
        let _ = editor.load_history(path);
    }
    eprintln!("quicraft {}: help lists the commands, Ctrl-D leaves", env!("CARGO_PKG_VERSION"));
    loop {
        // The editor blocks its thread, and the connection must be kept alive meanwhile.
        let read = tokio::task::spawn_blocking(move || {
            let line = editor.readline("quicraft> ");
            (editor, line)
        });
        let line;
        (editor, line) = read.await.map_err(|error| Failure::Output(io::Error::other(error)))?;
        let line = match line {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(terminal_failure(error)),
        };
        // The error is a full disk: the line still runs.
        let _ = editor.add_history_entry(line.as_str());
        match parse(&line) {
            Ok(Some(LineCommand::Data(command))) => timed(command, client, output).await,
            Ok(Some(LineCommand::Exit)) => break,
            Ok(None) => {}
            Err(failure) => eprintln!("{failure}"),
        }
    }
    if let Some(path) = &history {
        let _ = editor.save_history(path);
    }
    Ok(())
}

async fn timed(command: DataCommand, client: &Client, output: &Output) {
    let begin = Instant::now();
    // Ctrl-C gives up the command, not the shell.
    let result = tokio::select! {
        result = command.run(client, output, false) => result,
        _ = tokio::signal::ctrl_c() => Err(Failure::usage("interrupted: a write may have happened")),
    };
    let took = begin.elapsed();
    match result {
        Ok(()) => eprintln!("({took:.1?})"),
        Err(failure) => eprintln!("{failure} ({took:.1?})"),
    }
}

/// The command of a line; `None` for nothing to do, help included, which is printed.
fn parse(line: &str) -> Result<Option<LineCommand>, Failure> {
    let words = words::split(line).map_err(|error| Failure::usage(error.to_string()))?;
    if words.is_empty() {
        return Ok(None);
    }
    match parse_words(words) {
        Ok(command) => Ok(Some(command)),
        Err(error) if !error.use_stderr() => {
            print!("{error}");
            Ok(None)
        }
        Err(error) => {
            let text = error.to_string();
            let text = text.trim_start_matches("error: ");
            Err(Failure::usage(text.lines().next().unwrap_or(text)))
        }
    }
}

fn parse_words(words: Vec<OsString>) -> Result<LineCommand, clap::Error> {
    let matches = Line::command().try_get_matches_from(words)?;
    Ok(Line::from_arg_matches(&matches)?.command)
}

/// `$XDG_STATE_HOME/quicraft/history` or `~/.local/state/…`; without a home there is no history.
fn history_path() -> Option<PathBuf> {
    let state = match std::env::var_os("XDG_STATE_HOME").filter(|dir| !dir.is_empty()) {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(std::env::var_os("HOME")?).join(".local/state"),
    };
    let dir = state.join("quicraft");
    std::fs::create_dir_all(&dir).ok()?;
    Some(dir.join("history"))
}

fn terminal_failure(error: ReadlineError) -> Failure {
    match error {
        ReadlineError::Io(error) => error.into(),
        other => Failure::Output(io::Error::other(other)),
    }
}

/// Completes the first word, and flags of the command that it names.
struct Commands {
    /// Each command with its flags.
    known: Vec<(String, Vec<String>)>,
}

impl Commands {
    fn new() -> Commands {
        let mut known: Vec<_> = Line::command()
            .get_subcommands()
            .map(|command| {
                let flags = command.get_arguments().filter_map(clap::Arg::get_long);
                (command.get_name().to_owned(), flags.map(|flag| format!("--{flag}")).collect())
            })
            .collect();
        known.push(("help".to_owned(), Vec::new()));
        Commands { known }
    }

    fn complete_line(&self, line: &str) -> (usize, Vec<String>) {
        let start = line.rfind(' ').map_or(0, |at| at + 1);
        let word = &line[start..];
        let choices: Vec<&String> = match line[..start].split_whitespace().next() {
            None => self.known.iter().map(|(name, _)| name).collect(),
            Some(command) => {
                let known = self.known.iter().find(|(name, _)| name == command);
                known.map(|(_, flags)| flags.iter().collect()).unwrap_or_default()
            }
        };
        let begun = |choice: &&&String| {
            choice.starts_with(word) && (!choice.starts_with('-') || !word.is_empty())
        };
        (start, choices.iter().filter(begun).map(|choice| format!("{choice} ")).collect())
    }
}

impl Helper for Commands {}
impl Highlighter for Commands {}
impl Validator for Commands {}

impl Hinter for Commands {
    type Hint = String;
}

impl Completer for Commands {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        at: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        Ok(self.complete_line(&line[..at]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_the_grammar_of_the_command_line() {
        let Ok(Some(LineCommand::Data(DataCommand::Put(put)))) = parse("put 'a key' -5") else {
            panic!("no put");
        };
        assert_eq!((put.key, put.value), ("a key".into(), "-5".into()));
        let scan = parse("scan --prefix g --limit 10").unwrap();
        assert!(matches!(scan, Some(LineCommand::Data(DataCommand::Scan(_)))));
        assert!(matches!(parse("quit").unwrap(), Some(LineCommand::Exit)));
        assert!(parse("   ").unwrap().is_none());
        let error = parse("pug a b").unwrap_err().to_string();
        assert!(error.contains("unrecognized subcommand 'pug'"), "{error}");
        assert_eq!(parse("put 'a").unwrap_err().to_string(), "a ' is not closed");
    }

    #[test]
    fn commands_and_their_flags_are_completed() {
        let commands = Commands::new();
        assert_eq!(commands.complete_line("s"), (0, vec!["scan ".into(), "status ".into()]));
        assert_eq!(commands.complete_line("scan --pre"), (5, vec!["--prefix ".into()]));
        assert_eq!(commands.complete_line("put k"), (4, vec![]));
    }
}
