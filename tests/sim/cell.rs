//! One node with its disk and its clock, running or not.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use quicraft::disk::{Disk, Fate, MemDisk};
use quicraft::node::{
    self, About, Book, CheckpointJob, Input, MembersVersion, Node, OpenOptions, Opening, Repair,
};
use quicraft::raft::{Config, Contact, DataId, Founding, NodeId};
use quicraft::store::{self, Image, Unread, snapshot};
use quicraft::wal::{self, Ordinal, Record, Writer};

use crate::coverage::Coverage;
use crate::options::{JOINERS_MAX, Options};
use crate::rng::Rng;
use crate::truth::Seen;

pub(crate) const CLUSTER: [u8; 16] = *b"simulated world.";
pub(crate) const STORE: store::Options = store::Options { arena_bytes: 32 << 20, hash_seed: 7 };

/// When the world begins, in milliseconds since 1970.
pub(crate) const START_MS: u64 = 1_700_000_000_000;

pub(crate) struct Cell {
    pub(crate) id: usize,
    pub(crate) disk: MemDisk,
    pub(crate) dir: PathBuf,
    /// Counts starts and ends: what was meant for an earlier life does not arrive.
    pub(crate) life: u64,
    pub(crate) running: Option<Running>,
    /// Its log is damaged, and it asks the others for what it lacks.
    pub(crate) repair: Option<Box<Repair>>,
    /// Its disk was damaged: it may have to stay away for good.
    pub(crate) is_damaged: bool,
    /// So was a snapshot, which nobody may have noticed yet.
    pub(crate) has_bad_snapshot: bool,
    /// Refused to start: damage.
    pub(crate) is_dead: bool,
    pub(crate) paused_until: u64,
    pub(crate) sync_us: u64,
    pub(crate) wall_ms: u64,
    /// The highest index that was ever durable here.
    pub(crate) durable: u64,
    /// How often its data directory was made anew, which no connection survives.
    pub(crate) directory: u64,
    /// Another data directory acts for it, or it was founded with others: it stops, until somebody lets a new member in.
    pub(crate) is_unseated: bool,
    /// It lost its data once.
    pub(crate) has_lost: bool,
    /// It was founded with another list than the others.
    pub(crate) is_odd: bool,
    /// That list.
    pub(crate) other_founding: Option<Founding>,
}

pub(crate) struct Running {
    pub(crate) node: Node,
    pub(crate) writer: Writer,
    pub(crate) input: Input,
    pub(crate) turn_is_due: bool,
    /// What the writer has, and what waits for it.
    pub(crate) writing: Vec<(Ordinal, Record)>,
    pub(crate) work: Vec<(Ordinal, Record)>,
    pub(crate) checkpoint: Option<CheckpointJob>,
    /// What the file of a checkpoint will hold.
    pub(crate) image: Option<Image>,
    /// Memory for the next image.
    pub(crate) spare: Option<Unread>,
    pub(crate) seen: Seen,
    /// What connections are judged by, and which members it was made of.
    pub(crate) book: Option<(MembersVersion, Book)>,
    /// Ticks since a leader was heard, or the others were asked for the members.
    pub(crate) lonely_ticks: u32,
}

impl Cell {
    pub(crate) fn new(id: usize, options: &Options) -> Cell {
        Cell {
            id,
            disk: MemDisk::new(),
            dir: PathBuf::from(format!("n{}", id + 1)),
            life: 0,
            running: None,
            repair: None,
            is_damaged: false,
            has_bad_snapshot: false,
            is_dead: false,
            paused_until: 0,
            sync_us: options.disk.sync_us,
            wall_ms: START_MS,
            durable: 0,
            directory: 1,
            is_unseated: false,
            has_lost: false,
            is_odd: false,
            other_founding: None,
        }
    }

    /// The number that its data directory gets when it is made.
    pub(crate) fn data(&self) -> DataId {
        DataId(self.directory * 1000 + self.id as u64 + 1)
    }

    /// Makes the data directory of a founder.
    pub(crate) fn init(&self, options: &Options) -> Result<(), String> {
        self.init_as(options, founding(options))
    }

    /// Makes it with this list of founders.
    pub(crate) fn init_as(&self, options: &Options, founding: Founding) -> Result<(), String> {
        node::init(&self.open_options(options), founding).map_err(|error| error.to_string())
    }

    /// Starts the node; false if it refuses because of damage, or for want of room for now.
    pub(crate) fn start(
        &mut self,
        options: &Options,
        coverage: &mut Coverage,
    ) -> Result<bool, String> {
        let opening = node::open(self.open_options(options));
        self.go_on(opening, coverage)
    }

    /// Goes on with what an opening came to.
    pub(crate) fn go_on(
        &mut self,
        opening: Result<Opening, node::Error>,
        coverage: &mut Coverage,
    ) -> Result<bool, String> {
        self.life += 1;
        let opened = match opening {
            Ok(Opening::Ready(opened)) => *opened,
            Ok(Opening::Repair(repair)) => {
                if !self.is_damaged {
                    return Err(format!("n{} repairs: {:?}", self.id + 1, repair.damages()));
                }
                coverage.count("repair: begun");
                self.repair = Some(repair);
                return Ok(true);
            }
            Err(node::Error::Log(wal::Error::NoSpace { .. })) => {
                coverage.count("recovery: no room");
                self.disk.kill();
                return Ok(false);
            }
            Err(
                node::Error::Log(wal::Error::Disk(_))
                | node::Error::Snapshot(store::Error::Disk(_)),
            ) => {
                coverage.count("recovery: the disk failed");
                self.disk.kill();
                return Ok(false);
            }
            Err(error) if self.is_damaged => {
                coverage.count("recovery: refused damage");
                self.is_dead = true;
                let _ = error;
                return Ok(false);
            }
            Err(error) => return Err(format!("n{} does not start: {error}", self.id + 1)),
        };
        let is_torn = opened.notes.iter().any(|note| !note.contains(".snap"));
        let is_older = opened.notes.iter().any(|note| note.contains(".snap"));
        coverage.count(match (is_torn, is_older) {
            (_, true) => "recovery: older snapshot taken",
            (true, _) => "recovery: torn end cut",
            (false, false) => "recovery: clean",
        });
        if opened.node.newest_snapshot().is_some() {
            coverage.count("recovery: snapshot and log");
        }
        self.durable = self.durable.max(opened.node.core().durable_index().0);
        self.running = Some(Running {
            node: opened.node,
            writer: opened.writer,
            input: Input::default(),
            turn_is_due: false,
            writing: Vec::new(),
            work: Vec::new(),
            checkpoint: None,
            image: None,
            spare: None,
            seen: Seen::default(),
            book: None,
            lonely_ticks: 0,
        });
        Ok(true)
    }

    /// The process ends; with `power` the disk forgets what was not synced, as chance will have it. A sector that is
    /// torn is damage: the log assumes that there are none, and refuses what it cannot explain.
    pub(crate) fn crash(
        &mut self,
        power: bool,
        may_tear: bool,
        rng: &mut Rng,
        coverage: &mut Coverage,
    ) {
        if self.repair.take().is_some() {
            self.life += 1;
            self.disk.kill();
            return;
        }
        let Some(mut running) = self.running.take() else { return };
        self.life += 1;
        if power && !running.writing.is_empty() && rng.coin() {
            coverage.count("crash: between two changes of the disk");
            self.disk.cut_power_after(rng.below(6));
            // Fails part of the way, or just not: nobody hears of it any more.
            let _ = running.writer.write_and_sync(std::mem::take(&mut running.writing));
        }
        drop(running);
        if !power {
            self.disk.kill();
            return;
        }
        let keep_names = rng.coin();
        if !keep_names {
            coverage.count("disk: name not synced was lost");
        }
        let survivors = *rng.pick(&[0, 300, 1000]);
        let tears = may_tear && rng.permille(300);
        let is_damaged = &mut self.is_damaged;
        self.disk.crash_with(keep_names, |_, _| {
            if rng.permille(survivors) {
                coverage.count("disk: sector kept");
                Fate::Kept
            } else if tears && rng.permille(300) {
                coverage.count("disk: sector torn");
                *is_damaged = true;
                Fate::Torn(rng.below(512) as usize)
            } else {
                coverage.count("disk: sector lost");
                Fate::Lost
            }
        });
    }

    pub(crate) fn snapshots(&self) -> snapshot::Dir {
        node::snapshots_dir(&self.any_disk(), &self.dir)
    }

    fn any_disk(&self) -> Arc<dyn Disk> {
        Arc::new(self.disk.clone())
    }

    pub(crate) fn open_options(&self, options: &Options) -> OpenOptions {
        let protocol = &options.protocol;
        let id = NodeId(self.id as u64 + 1);
        let salt_seed = options.seed ^ (self.life << 8) ^ self.id as u64;
        OpenOptions {
            dir: self.dir.clone(),
            disk: self.any_disk(),
            identity: wal::Identity { cluster: CLUSTER, node: id, data: self.data() },
            log: wal::Options {
                segment_bytes: options.disk.segment_bytes,
                io: options.disk.io,
                prepare_on_thread: false,
                salt_seed,
                entries_kept: 8,
            },
            store: STORE,
            raft: Config {
                id,
                data: DataId(0),
                election_ticks: protocol.election_ticks,
                heartbeat_ticks: protocol.heartbeat_ticks,
                seed: salt_seed,
                append_bytes_max: protocol.append_bytes_max,
                append_entries_max: protocol.append_entries_max,
                window_bytes_max: protocol.window_bytes_max,
                uncommitted_bytes_max: protocol.uncommitted_bytes_max,
                lease_ms: protocol.lease_ms,
            },
            about: About {
                name: format!("n{}", self.id + 1),
                cluster: "simulated".to_owned(),
                configured: configured(options),
                value_bytes_max: 1 << 20,
                store_bytes_max: 16 << 20,
                snapshot_log_bytes: protocol.snapshot_log_bytes,
                retention: node::Retention { revisions: 200, age_ms: 60_000 },
            },
            founders: founding(options).members,
            has_others: options.nodes > 1,
        }
    }
}

impl Cell {
    /// The process, if it is still the one that was meant.
    pub(crate) fn alive(&mut self, life: u64) -> Option<&mut Running> {
        let is_same = self.life == life;
        self.running.as_mut().filter(|_| is_same)
    }
}

/// What the cluster is founded with.
pub(crate) fn founding(options: &Options) -> Founding {
    Founding::of((1..=options.nodes as u64).map(|id| (NodeId(id), format!("n{id}"))))
}

/// What everybody's configuration says.
fn configured(options: &Options) -> BTreeMap<String, Contact> {
    let all = 1..=(options.nodes + JOINERS_MAX) as u64;
    let contact = |id: u64| {
        let (name, peer_address, client_address) =
            (format!("n{id}"), format!("n{id}:1"), format!("n{id}:2"));
        (name.clone(), Contact { name, peer_address, client_address })
    };
    all.map(contact).collect()
}
