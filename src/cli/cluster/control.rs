//! The socket in the data directory, through which a second terminal reaches the supervisor.
//!
//! One line goes in, `kill n2` or `start n2`; one comes back, `ok …` or `no …`. Mode 0600: the directory's owner only.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use rustix::fs::Mode;

use super::Error;
use super::supervisor::Event;

/// A socket's path with its closing zero has 108 bytes on Linux, 104 elsewhere.
const PATH_BYTES_MAX: usize = 103;
const REQUEST_BYTES_MAX: u64 = 256;
/// Who connects and says nothing is let go after this.
const REQUEST_PATIENCE: Duration = Duration::from_secs(2);
const REPLY_PATIENCE: Duration = Duration::from_secs(20);

/// The supervisor's end. The socket's file goes with it.
pub(super) struct Control {
    listener: UnixListener,
    path: PathBuf,
}

impl Control {
    /// Takes the socket in `data`; one that a dead supervisor left is replaced.
    pub(super) fn open(data: &Path) -> Result<Self, Error> {
        let path = socket_path(data)?;
        match UnixStream::connect(&path) {
            Ok(_) => return Err(Error::Running { data: data.to_owned() }),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                fs::remove_file(&path).map_err(Error::io("remove", &path))?;
            }
            Err(error) => return Err(Error::io("open", &path)(error)),
        }
        let before = rustix::process::umask(Mode::XUSR | Mode::RWXG | Mode::RWXO);
        let bound = UnixListener::bind(&path);
        rustix::process::umask(before);
        Ok(Self { listener: bound.map_err(Error::io("open", &path))?, path })
    }

    /// Turns requests into events, on a thread of its own that ends with the process.
    pub(super) fn serve(&self, events: SyncSender<Event>) -> Result<(), Error> {
        let listener = self.listener.try_clone().map_err(Error::io("open", &self.path))?;
        thread::spawn(move || {
            for stream in listener.incoming() {
                match stream {
                    Ok(stream) => drop(answer(stream, &events)),
                    Err(_) => thread::sleep(Duration::from_millis(100)), // no descriptor left
                }
            }
        });
        Ok(())
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn answer(mut stream: UnixStream, events: &SyncSender<Event>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(REQUEST_PATIENCE))?;
    stream.set_write_timeout(Some(REQUEST_PATIENCE))?;
    let mut line = String::new();
    BufReader::new((&stream).take(REQUEST_BYTES_MAX)).read_line(&mut line)?;
    let Some((verb, node)) = line.trim_end().split_once(' ') else {
        return Ok(()); // another supervisor that looks whether this one lives
    };
    let (reply, replied) = sync_channel(1);
    let ask = Event::Ask { verb: verb.to_owned(), node: node.to_owned(), reply };
    if events.send(ask).is_err() {
        return writeln!(stream, "no the cluster is stopping");
    }
    match replied.recv_timeout(REPLY_PATIENCE) {
        Ok(Ok(text)) => writeln!(stream, "ok {text}"),
        Ok(Err(text)) => writeln!(stream, "no {text}"),
        Err(_) => writeln!(stream, "no the cluster is stopping"),
    }
}

/// Sends one request to the supervisor in `data`, and prints its answer.
pub(super) fn ask(data: &Path, verb: &str, node: &str) -> Result<(), Error> {
    let path = socket_path(data)?;
    let io = Error::io("use", &path);
    let mut stream = UnixStream::connect(&path).map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
            Error::NotRunning { data: data.to_owned() }
        }
        _ => io(error),
    })?;
    stream.set_read_timeout(Some(REPLY_PATIENCE + REQUEST_PATIENCE)).map_err(&io)?;
    writeln!(stream, "{verb} {node}").map_err(&io)?;
    let mut reply = String::new();
    BufReader::new(stream).read_line(&mut reply).map_err(&io)?;
    match reply.trim_end().split_once(' ') {
        Some(("ok", text)) => {
            println!("{text}");
            Ok(())
        }
        Some((_, text)) => Err(Error::Refused(text.to_owned())),
        None => Err(Error::Refused("the supervisor gave no answer".to_owned())),
    }
}

fn socket_path(data: &Path) -> Result<PathBuf, Error> {
    let path = data.join("cluster.sock");
    if path.as_os_str().len() > PATH_BYTES_MAX {
        return Err(Error::SocketPath { path, max: PATH_BYTES_MAX });
    }
    Ok(path)
}
