//! Every rule of the configuration, by the message that a human gets.

use std::collections::BTreeMap;

use super::*;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(Path::new("node.toml"), text).map_err(|error| error.to_string())
}

/// The message for a text that must be refused.
fn refusal(text: &str) -> String {
    let message = parse(text).unwrap_err();
    assert_eq!(message.lines().count(), 1, "not one line: {message}");
    message
}

fn member(id: u64, name: &str, peer: &str, client: &str) -> String {
    format!("[[members]]\nid = {id}\nname = {name:?}\npeer = {peer:?}\nclient = {client:?}\n")
}

#[test]
fn the_sample_equals_the_defaults() {
    let sample = include_str!("../../node.toml");
    assert_eq!(parse(sample).unwrap(), Config::default());
    for key in key_names() {
        let set = sample.lines().any(|line| line.starts_with(&format!("{key} = ")));
        assert!(set, "the sample does not show {key}");
    }
}

#[test]
fn an_empty_file_gives_the_defaults() {
    assert_eq!(parse("").unwrap(), Config::default());
}

#[test]
fn durations_and_sizes_are_read_as_humans_write_them() {
    let text = "heartbeat = \"20ms\"\nelection_timeout = \"1s\"\nvalue_max = 4_096\nsegment = \"128 KiB\"\n\
                snapshot_after = \"1MiB\"\nstore_max = \"2GiB\"\nlog_io = \"map\"\nlease_reads = true\nlog_level = \"debug\"";
    let config = parse(text).unwrap();
    let s = &config.settings;
    assert_eq!((s.heartbeat.as_millis(), s.election_timeout.as_millis()), (20, 1000));
    assert_eq!((s.value_bytes_max, s.segment_bytes), (4096, 128 << 10));
    assert_eq!((s.snapshot_log_bytes, s.store_bytes_max), (1 << 20, 2 << 30));
    assert_eq!((s.log_io, config.log_level), (LogIo::Map, LevelFilter::DEBUG));
    assert!(s.lease_reads);
}

#[test]
fn sizes_are_shown_so_that_they_read_back() {
    for bytes in [0, 1, 1023, 1024, 1536, 64 << 20, 3 << 30, 1 << 40, u64::MAX] {
        assert_eq!(parse_size(&show_size(bytes)), Some(bytes));
    }
    for text in ["", "MiB", "-1", "1.5MiB", "1mb", "99999999999999999999", "99999999TiB"] {
        assert_eq!(parse_size(text), None, "{text:?}");
    }
}

#[test]
fn an_unknown_key_names_line_and_what_is_allowed() {
    let message = refusal("name = \"n1\"\n\nheartbeet = \"1s\"\n");
    assert!(message.starts_with("node.toml:3: unknown key `heartbeet`; allowed are name, data"));
    let message = refusal("[heartbeat]\nx = 1\n");
    assert!(message.contains("heartbeat is a table here"), "{message}");
    let text = member(1, "n1", "a:1", "a:2") + "port = 1\n";
    let message = refusal(&text);
    assert_eq!(
        message,
        "node.toml:6: unknown key `members.port`; allowed are id, name, peer, client"
    );
}

#[test]
fn a_bad_value_names_line_key_and_what_is_allowed() {
    for (key, value) in [
        ("name", "\"\""),
        ("name", "\"a b\""),
        ("data", "\"\""),
        ("peer_listen", "\"localhost\""),
        ("client_listen", "\"127.0.0.1:0\""),
        ("client_listen", "\"127.0.0.1:70000\""),
        ("heartbeat", "50"),
        ("election_timeout", "\"soon\""),
        ("value_max", "\"4 apples\""),
        ("segment", "-1"),
        ("log_io", "\"mmap\""),
        ("lease_reads", "\"perhaps\""),
        ("log_level", "\"loud\""),
    ] {
        let message = refusal(&format!("# first\n{key} = {value}\n"));
        let start = format!("node.toml:2: {key} = ");
        assert!(message.starts_with(&start) && message.contains("; give "), "{message}");
    }
}

#[test]
fn garbage_is_refused_with_its_line() {
    for text in ["= = =", "name = ", "name = \"n1", "\u{0}\u{1}", "members = 3", "members = [3]"] {
        assert!(refusal(text).starts_with("node.toml:1: "), "{}", refusal(text));
    }
    assert!(refusal("name = \"n1\"\nname = \"n2\"").starts_with("node.toml:2: duplicate key"));
}

#[test]
fn a_member_must_be_whole() {
    let message = refusal("[[members]]\nid = 1\nname = \"n1\"\npeer = \"a:1\"\n");
    assert!(message.starts_with("node.toml:1: `members.client` is missing; give "), "{message}");
    for (id, name, peer) in [(0, "n1", "a:1"), (1, "-", "a:1"), (1, "n1", "a"), (1, "n1", "a:0")] {
        let message = refusal(&member(id, name, peer, "a:2"));
        assert!(message.contains(": members.") && message.contains("; give "), "{message}");
    }
}

#[test]
fn members_are_unique_and_include_this_node() {
    let one = member(1, "n1", "a:1", "a:2");
    for (other, what) in [
        (member(1, "n2", "b:1", "b:2"), "id 1"),
        (member(2, "n1", "b:1", "b:2"), "name n1"),
        (member(2, "n2", "a:1", "b:2"), "address a:1"),
        (member(2, "n2", "b:1", "a:1"), "address a:1"),
        (member(2, "n2", "b:1", "b:1"), "address b:1"),
    ] {
        let message = refusal(&format!("{one}{other}"));
        assert!(message.starts_with(&format!("node.toml:6: {what} stands twice")), "{message}");
    }
    let message = refusal(&format!("name = \"n9\"\n{one}"));
    assert_eq!(message, "node.toml:1: name \"n9\" is not in [[members]]; they are n1");
}

#[test]
fn numbers_keep_their_bounds() {
    for (text, part) in [
        ("heartbeat = \"0s\"", "heartbeat is 0s; at least 1ms"),
        ("heartbeat = \"200ms\"", "at least 5 times the heartbeat: 1s"),
        ("election_timeout = \"100ms\"", "at least 5 times the heartbeat: 250ms"),
        ("election_timeout = \"1h\"", "at most 1m"),
        ("value_max = \"65MiB\"", "allowed is 1 to 64MiB"),
        ("value_max = 0", "value_max is 0; allowed is 1"),
        ("segment = \"63KiB\"", "allowed is 64KiB to 1GiB"),
        ("store_max = \"33GiB\"", "allowed is 1MiB to 32GiB"),
        ("peer_listen = \"127.0.0.1:7001\"", "they must differ"),
    ] {
        let message = refusal(text);
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn unwise_sizes_of_cluster_are_warned_of() {
    let of = |n: u64| {
        let members =
            (1..=n).map(|i| member(i, &format!("n{i}"), &format!("p{i}:1"), &format!("c{i}:1")));
        parse(&members.collect::<String>()).unwrap().warnings.len()
    };
    assert_eq!((of(1), of(2), of(3), of(7), of(8)), (0, 1, 0, 0, 1));
}

#[test]
fn flags_override_variables_override_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.toml");
    std::fs::write(&path, "heartbeat = \"10ms\"\nsegment = \"1MiB\"\nvalue_max = 7\n").unwrap();
    let variables: BTreeMap<_, _> =
        [("QUICRAFT_HEARTBEAT", "20ms"), ("QUICRAFT_SEGMENT", "2MiB")].into();
    let variable = |name: &str| variables.get(name).map(|value| (*value).to_owned());
    let flags = [("heartbeat", "30ms".to_owned())];
    let s = Config::load(&path, variable, &flags, None).unwrap().settings;
    assert_eq!((s.heartbeat.as_millis(), s.segment_bytes, s.value_bytes_max), (30, 2 << 20, 7));

    let bad = |name: &str| (name == "QUICRAFT_LOG_IO").then(|| "x".to_owned());
    let message = Config::load(&path, bad, &[], None).unwrap_err().to_string();
    assert!(message.starts_with("variable QUICRAFT_LOG_IO: log_io = \"x\""), "{message}");
    let flags = [("client_listen", "x".to_owned())];
    let message = Config::load(&path, |_| None, &flags, None).unwrap_err().to_string();
    assert!(message.starts_with("flag --client-listen: client_listen = \"x\""), "{message}");
}

#[test]
fn a_member_list_may_come_from_a_conf_file() {
    let dir = tempfile::tempdir().unwrap();
    let (path, conf) = (dir.path().join("node.toml"), dir.path().join("test.conf"));
    std::fs::write(&path, "").unwrap();
    std::fs::write(
        &conf,
        "# two\nnode0ip=127.0.0.1\nnode0port=29016\n\nnode1ip=10.0.0.2 # b\nnode1port=29017",
    )
    .unwrap();
    let load =
        || Config::load(&path, |_| None, &[], Some(&conf)).map_err(|error| error.to_string());
    let members = load().unwrap().settings.members;
    assert_eq!((members[0].id, members[1].name.as_str()), (1, "n2"));
    assert_eq!(members[0].client_address, "127.0.0.1:29016");
    assert_eq!(members[1].peer_address, "10.0.0.2:29117");
    for text in [
        "",
        "x",
        "node0ip=a",
        "node0port=1",
        "nodeip=a",
        "node0ip=a\nnode0port=x",
        "node0ip=a\nnode0port=0",
        "node0ip=a\nnode0ip=b",
        "node0ip=\nnode0port=1",
    ] {
        std::fs::write(&conf, text).unwrap();
        assert!(load().unwrap_err().contains("test.conf:"), "{text:?}");
    }
}
