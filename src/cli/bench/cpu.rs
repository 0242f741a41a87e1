//! Who used the processors: this program, each node on this machine, the machine as a whole.
//!
//! In: the members' addresses. Out: CPU time between two samples. The machine's busy time also has what no
//! process is charged for (interrupts, the kernel's own threads), and the time that other guests of the host
//! took away (steal). Left out: other systems than Linux, nodes elsewhere; what cannot be known is absent,
//! never guessed.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::Path;

use crate::client::MemberInfo;

/// The processes to look at.
#[derive(Debug)]
pub(super) struct Processors {
    nodes: Vec<(String, u32)>,
}

/// CPU times so far, or between two samples; in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// Of this process.
    pub(super) client: Option<u64>,
    /// Of each node's process on this machine.
    pub(super) nodes: Vec<(String, u64)>,
    /// Of the machine.
    pub(super) machine: Option<Machine>,
}

/// What all processors of the machine did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Machine {
    /// They worked.
    pub(super) busy: u64,
    /// They had nothing to do, or waited for a disk.
    pub(super) idle: u64,
    /// The host gave them to others.
    pub(super) steal: u64,
}

impl Processors {
    /// The processes that hold the members' client ports, as far as they are on this machine.
    pub(super) fn find(members: &[MemberInfo]) -> Processors {
        let mut nodes = Vec::new();
        for member in members {
            let Ok(mut addresses) = member.client_address.to_socket_addrs() else { continue };
            let inodes = addresses.find(|address| address.ip().is_loopback()).map(sockets);
            if let Some(pid) = inodes.and_then(|inodes| holder(&inodes)) {
                nodes.push((member.name.clone(), pid));
            }
        }
        Processors { nodes }
    }

    /// CPU times since each process began.
    pub(super) fn sample(&self) -> Usage {
        let nodes = self.nodes.iter();
        let nodes = nodes.filter_map(|(name, pid)| {
            Some((name.clone(), process_us(&format!("/proc/{pid}/stat"))?))
        });
        Usage {
            client: process_us("/proc/self/stat"),
            nodes: nodes.collect(),
            machine: fs::read_to_string("/proc/stat").ok().and_then(|text| machine(&text)),
        }
    }
}

impl Usage {
    /// What was used since `before`.
    pub(super) fn since(&self, before: &Usage) -> Usage {
        let nodes = self.nodes.iter().filter_map(|(name, now)| {
            let (_, then) = before.nodes.iter().find(|(other, _)| other == name)?;
            Some((name.clone(), now.saturating_sub(*then)))
        });
        let machine = self.machine.zip(before.machine).map(|(now, then)| Machine {
            busy: now.busy.saturating_sub(then.busy),
            idle: now.idle.saturating_sub(then.idle),
            steal: now.steal.saturating_sub(then.steal),
        });
        Usage {
            client: self.client.zip(before.client).map(|(now, then)| now.saturating_sub(then)),
            nodes: nodes.collect(),
            machine,
        }
    }
}

/// The inodes of the UDP sockets on this port of any local address.
fn sockets(address: SocketAddr) -> BTreeSet<u64> {
    let file = match address.ip() {
        IpAddr::V4(_) => "/proc/net/udp",
        IpAddr::V6(_) => "/proc/net/udp6",
    };
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().filter_map(|line| socket(line, address.port())).collect()
}

/// The inode in a line of `/proc/net/udp`, if the line is about this local port.
fn socket(line: &str, port: u16) -> Option<u64> {
    let mut fields = line.split_whitespace();
    let (_, local) = fields.nth(1)?.rsplit_once(':')?;
    if u16::from_str_radix(local, 16) != Ok(port) {
        return None;
    }
    fields.nth(7)?.parse().ok()
}

/// The process that holds one of these sockets, if we may know.
fn holder(inodes: &BTreeSet<u64>) -> Option<u32> {
    let wanted: BTreeSet<_> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let pids = fs::read_dir("/proc").ok()?.flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.into_iter().find(|pid| {
        let files = fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd"));
        files.into_iter().flatten().flatten().any(|file| {
            fs::read_link(file.path())
                .is_ok_and(|target| target.to_str().is_some_and(|t| wanted.contains(t)))
        })
    })
}

/// User and system time of a process from its `stat` file.
fn process_us(path: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    // The name may hold anything, so fields are counted from its closing bracket.
    let mut fields = text.rsplit_once(") ")?.1.split_whitespace();
    let user: u64 = fields.nth(11)?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(ticks_us(user + system))
}

fn machine(stat: &str) -> Option<Machine> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Vec<u64> = line.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    let [user, nice, system, idle, iowait, irq, softirq, steal, ..] = fields[..] else {
        return None;
    };
    Some(Machine {
        busy: ticks_us(user + nice + system + irq + softirq),
        idle: ticks_us(idle + iowait),
        steal: ticks_us(steal),
    })
}

fn ticks_us(ticks: u64) -> u64 {
    ticks * 1_000_000 / rustix::param::clock_ticks_per_second().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_found_by_its_port() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let member = |address: String| MemberInfo {
            id: 1,
            name: "n1".into(),
            peer_address: address.clone(),
            client_address: address,
            kind: crate::client::MemberKind::Voter,
        };
        let here = Processors::find(&[member(socket.local_addr().unwrap().to_string())]);
        assert_eq!(here.nodes, [("n1".to_owned(), std::process::id())]);
        let elsewhere = Processors::find(&[member("192.0.2.1:7001".into()), member("no".into())]);
        assert!(elsewhere.nodes.is_empty());
    }

    #[test]
    fn busy_time_shows() {
        let processors = Processors { nodes: vec![("n1".into(), std::process::id())] };
        let before = processors.sample();
        let begun = std::time::Instant::now();
        let mut used = processors.sample().since(&before);
        while used.client < Some(50_000) && begun.elapsed().as_secs() < 20 {
            used = processors.sample().since(&before);
        }
        assert!(used.client >= Some(50_000) && used.machine.unwrap().busy > 0, "{used:?}");
        assert_eq!(used.nodes.len(), 1);
    }

    #[test]
    fn a_line_about_a_port_names_its_inode() {
        let line = "  123: 0100007F:1B59 00000000:0000 07 00000000:00000000 00:00000000 00000000     \
                    0        0 4711 2 0000000000000000 0";
        assert_eq!(socket(line, 7001), Some(4711));
        assert_eq!(socket(line, 7002), None);
        assert_eq!(socket("  sl  local_address rem_address", 7001), None);
    }
}
