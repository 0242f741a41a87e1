//! The parts of the supervisor that need no processes; the whole is tested in `tests/`.

use super::*;
use crate::config::Config;

fn args(dir: &Path) -> ClusterArgs {
    // Ports above the usual range; nothing listens for long here.
    let probe = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let base_port = Some(probe.local_addr().unwrap().port().min(BASE_PORT_MAX) - 200);
    let (data, certs) = (dir.join("data"), dir.join("certs"));
    ClusterArgs { n: Some(2), data, certs, base_port, command: None }
}

#[test]
fn lines_are_shown_from_info_upwards() {
    let line = |level: &str| format!("2026-01-31T12:00:00.123Z {level} became leader term=2");
    let shown = |level| show::worth_showing(&line(level));
    assert_eq!(shown(" INFO").as_deref(), Some("became leader term=2"));
    assert_eq!(shown(" WARN").as_deref(), Some("warning: became leader term=2"));
    assert_eq!(shown("ERROR").as_deref(), Some("error: became leader term=2"));
    assert_eq!((shown("DEBUG"), shown("TRACE"), show::worth_showing("")), (None, None, None));
    let panic = "thread 'main' panicked";
    assert_eq!(show::worth_showing(panic).as_deref(), Some(panic));
}

#[test]
fn what_is_missing_is_made_and_what_is_there_stays() {
    let dir = tempfile::tempdir().unwrap();
    let args = args(dir.path());
    files::make_directory(&args.data).unwrap();
    let plan = files::prepare(&args).unwrap();
    assert_eq!(plan.nodes.len(), 2);
    let first = Config::load(&args.data.join("n1.toml"), |_| None, &[], None).unwrap().settings;
    assert_eq!((first.name.as_str(), first.members.len()), ("n1", 2));
    assert_eq!(first.peer_listen.port(), first.client_listen.port() + files::PEER_PORT_OFFSET);

    let read = |name: &str| std::fs::read(args.certs.join(name)).unwrap();
    let before = (read("ca.crt"), read("n1.key"), read("client.toml"));
    std::fs::remove_file(args.data.join("n1.toml")).unwrap();
    std::fs::remove_file(args.certs.join("n2.crt")).unwrap();
    std::fs::remove_file(args.certs.join("n2.key")).unwrap();
    files::prepare(&ClusterArgs { n: None, base_port: None, ..args.clone() }).unwrap();
    assert_eq!(before, (read("ca.crt"), read("n1.key"), read("client.toml")));
    assert!(args.certs.join("n2.crt").exists());
    let again = Config::load(&args.data.join("n1.toml"), |_| None, &[], None).unwrap().settings;
    assert_eq!(first, again);
}

#[test]
fn a_cluster_is_not_run_as_another_one() {
    let dir = tempfile::tempdir().unwrap();
    let args = args(dir.path());
    files::make_directory(&args.data).unwrap();
    files::prepare(&args).unwrap();
    let refusal = |args: ClusterArgs| files::prepare(&args).err().unwrap().to_string();
    let message = refusal(ClusterArgs { n: Some(3), ..args.clone() });
    assert!(message.contains("holds a cluster with -n 2, not -n 3"), "{message}");
    let message = refusal(ClusterArgs { base_port: Some(1), ..args.clone() });
    assert!(message.contains("not --base-port 1"), "{message}");
    std::fs::remove_dir_all(&args.certs).unwrap();
    assert!(refusal(args).contains("ca.crt is missing"));
}

#[test]
fn a_port_in_use_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let args = args(dir.path());
    files::make_directory(&args.data).unwrap();
    let port = args.base_port.unwrap() + 1;
    let _taken = std::net::UdpSocket::bind(("127.0.0.1", port)).unwrap();
    let message = files::prepare(&args).err().unwrap().to_string();
    assert_eq!(message, format!("port {port} is in use: give other ports with --base-port"));
}

#[test]
fn only_one_supervisor_has_a_directory() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let control = control::Control::open(dir.path()).unwrap();
    let socket = dir.path().join("cluster.sock");
    assert_eq!(socket.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let message = control::Control::open(dir.path()).err().unwrap().to_string();
    assert!(message.starts_with("a cluster is already running in "), "{message}");
    drop(control);
    assert!(!socket.exists());
    let error = control::ask(dir.path(), "kill", "n1").unwrap_err();
    assert!(matches!(error, Error::NotRunning { .. }) && error.exit_code() == 3);
    drop(std::os::unix::net::UnixListener::bind(&socket)); // what a killed supervisor leaves
    control::Control::open(dir.path()).unwrap();
    let long = dir.path().join("x".repeat(120));
    assert!(control::Control::open(&long).err().unwrap().to_string().contains("too many"));
}
