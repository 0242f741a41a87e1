//! One node process: started, followed, ended.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::thread;

use super::Error;
use super::files::Planned;
use super::supervisor::Event;

/// A longer line is shown in pieces.
const LINE_BYTES_MAX: u64 = 64 << 10;
/// At a start, a log longer than this becomes `NAME.log.1`, and the one before goes.
const LOG_BYTES_MAX: u64 = 64 << 20;

/// A node process. Its standard input is held open; the node stops when it closes.
pub(super) struct Process {
    child: Child,
}

/// Where a node's things are.
pub(super) struct Places<'a> {
    pub(super) data: &'a Path,
    pub(super) certs: &'a Path,
}

impl Process {
    /// Starts `node`, as a new member in its own place if it `rejoins`. Its lines and its end come as events that carry `place` and `run`.
    pub(super) fn start(
        node: &Planned,
        places: &Places<'_>,
        (tag, rejoins): ((usize, u64), bool),
        events: SyncSender<Event>,
    ) -> Result<Self, Error> {
        let log = open_log(&places.data.join(format!("{}.log", node.name)))?;
        let program =
            std::env::current_exe().map_err(Error::io("find", Path::new("this program")))?;
        let mut command = Command::new(&program);
        // A variable that is meant for one node must not reach all of them.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("QUICRAFT_") {
                command.env_remove(name);
            }
        }
        command.arg("node").arg("--stop-on-stdin-eof").arg("--config").arg(&node.config);
        // Paths in the configuration are relative to where the cluster was made; these hold here.
        command.arg("--data").arg(places.data.join(&node.name));
        command.arg("--certs").arg(places.certs);
        command.args(rejoins.then_some("--rejoin"));
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        // A group of its own: Ctrl-C reaches the supervisor alone, which stops the nodes in order.
        command.process_group(0);
        let mut child = command.spawn().map_err(Error::io("start", &program))?;
        if let Some(stderr) = child.stderr.take() {
            thread::spawn(move || follow(stderr, log, tag, &events));
        }
        Ok(Self { child })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to stop gracefully. The process is not reaped yet, so the id is still its own.
    pub(super) fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }

    /// Ends it with signal 9 and says how it ended.
    pub(super) fn kill(mut self) -> String {
        let _ = self.child.kill();
        self.end()
    }

    /// Waits for its end, which must be near, and says how it ended.
    pub(super) fn end(mut self) -> String {
        match self.child.wait() {
            Ok(status) => show_status(status),
            Err(error) => format!("its end is not known: {error}"),
        }
    }
}

fn show_status(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// Copies all lines to the log and offers each to the supervisor; what it is too busy for stands in the log only, so
/// that a stopped terminal never stops a node.
fn follow(stderr: ChildStderr, mut log: File, tag: (usize, u64), events: &SyncSender<Event>) {
    let (place, run) = tag;
    let mut reader = BufReader::new(stderr);
    let (mut last, mut missed) = (String::new(), 0_u64);
    loop {
        let mut line = Vec::new();
        match reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line) {
            Ok(1..) => {}
            Ok(0) | Err(_) => break,
        }
        let _ = log.write_all(&line);
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        if text.is_empty() {
            continue;
        }
        last.clone_from(&text);
        match events.try_send(Event::Line { place, run, text, missed }) {
            Ok(()) => missed = 0,
            Err(TrySendError::Full(_)) => missed += 1,
            Err(TrySendError::Disconnected(_)) => {}
        }
    }
    let _ = events.send(Event::Ended { place, run, last });
}

fn open_log(path: &Path) -> Result<File, Error> {
    if fs::metadata(path).is_ok_and(|metadata| metadata.len() > LOG_BYTES_MAX) {
        let mut old = PathBuf::from(path).into_os_string();
        old.push(".1");
        fs::rename(path, old).map_err(Error::io("rename", path))?;
    }
    OpenOptions::new().create(true).append(true).open(path).map_err(Error::io("open", path))
}
