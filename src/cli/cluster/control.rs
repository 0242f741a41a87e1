//! `quicraft cluster kill|start`: a word to the running supervisor, over a socket beside its data.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use super::Event;

/// What is asked of the supervisor.
pub(super) struct Order {
    pub(super) verb: String,
    pub(super) node: String,
}

/// Removes the socket when the supervisor ends.
pub(super) struct Control(PathBuf);

impl Drop for Control {
    fn drop(&mut self) {
        // What stays is replaced at the next start.
        let _ = std::fs::remove_file(&self.0);
    }
}

fn path(data: &Path) -> PathBuf {
    data.join("cluster.sock")
}

/// Listens for orders, if no other supervisor does.
pub(super) fn listen(data: &Path, sender: Sender<Event>) -> Result<Control, String> {
    let path = path(data);
    if UnixStream::connect(&path).is_ok() {
        return Err(format!("a cluster is running on {} already", data.display()));
    }
    // Left behind by one that was killed, if it is there at all.
    let _ = std::fs::remove_file(&path);
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let listener = UnixListener::bind(&path).map_err(failed)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    let thread = std::thread::Builder::new().name("control".to_owned());
    let body = move || {
        for stream in listener.incoming().flatten() {
            if serve(stream, &sender).is_none() {
                return;
            }
        }
    };
    thread.spawn(body).map_err(failed)?;
    Ok(Control(path))
}

/// One order; `None` once the supervisor has ended.
fn serve(stream: UnixStream, sender: &Sender<Event>) -> Option<()> {
    // One that says nothing must not keep the others waiting.
    let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
    let mut line = String::new();
    if BufReader::new(&stream).read_line(&mut line).is_err() {
        return Some(());
    }
    if let Some((verb, node)) = line.trim().split_once(' ') {
        let order = Order { verb: verb.to_owned(), node: node.to_owned() };
        let (answer, answers) = channel();
        sender.send(Event::Control(order, answer)).ok()?;
        let text = answers.recv().ok()?;
        // Who asked may be gone.
        let _ = writeln!(&stream, "{text}");
    }
    Some(())
}

/// Asks the running supervisor for something.
pub(super) fn ask(data: &Path, verb: &str, node: &str) -> Result<(), String> {
    let path = path(data);
    let stream = UnixStream::connect(&path)
        .map_err(|_| format!("no cluster is running on {}", data.display()))?;
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    writeln!(&stream, "{verb} {node}").map_err(failed)?;
    let mut answer = String::new();
    BufReader::new(&stream).read_line(&mut answer).map_err(failed)?;
    match answer.trim().strip_prefix("ok ") {
        Some(done) => {
            println!("{done}");
            Ok(())
        }
        None => Err(answer.trim().to_owned()),
    }
}
