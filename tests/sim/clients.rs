//! Clients: each asks one thing at a time, of whichever node it takes for the leader, sends a write again under the same
//! number until it is answered, and gives up now and then.

use quicraft::node::RequestBody;
use quicraft::proto;
use quicraft::proto::client::{Consistency, Refusal, Reply};
use quicraft::proto::command::{Command, Op, Outcome, Principal, SessionId};

use crate::coverage::Coverage;
use crate::history::{Record, Told, What};
use crate::linear::Action;
use crate::rng::Rng;

pub(crate) struct Client {
    session: Option<u64>,
    next_seq: u64,
    /// What is asked now: its record, or none while a session is being opened.
    asking: Option<Asking>,
    /// Sendings of what is asked now; an answer to an older question is not for us.
    pub(crate) first_request: u64,
    pub(crate) target: usize,
    /// The faults are over, and it has asked once more.
    pub(crate) has_asked_last: bool,
}

struct Asking {
    record: Option<usize>,
    tries: u32,
}

/// What a client does next.
pub(crate) enum Next {
    /// Thinks about its next question.
    Rest,
    /// Sends the same again after a while.
    Again,
}

impl Client {
    pub(crate) fn new(target: usize) -> Client {
        Client {
            session: None,
            next_seq: 1,
            asking: None,
            first_request: 0,
            target,
            has_asked_last: false,
        }
    }

    /// Its session, and the number of its next write.
    pub(crate) fn session(&self) -> (Option<u64>, u64) {
        (self.session, self.next_seq)
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.asking.is_none()
    }

    /// Begins a question if none is open, and gives what to send.
    pub(crate) fn ask(
        &mut self,
        now: u64,
        number: usize,
        keys: &[Vec<u8>],
        records: &mut Vec<Record>,
        rng: &mut Rng,
    ) -> RequestBody {
        if self.asking.is_none() {
            let record = self.session.map(|session| {
                let what = self.choose(session, number, keys, rng);
                records.push(Record { begin: now, end: None, what });
                records.len() - 1
            });
            self.asking = Some(Asking { record, tries: 0 });
        }
        let asking = self.asking.as_mut().expect("it was just begun");
        asking.tries += 1;
        match asking.record.map(|record| &records[record].what) {
            None => encoded(number, &Command::OpenSession),
            Some(What::Get { key }) => {
                let key = key.clone().into();
                RequestBody::Get { key, consistency: Consistency::Linearizable, revision: None }
            }
            Some(What::Scan) => {
                RequestBody::Scan { consistency: Consistency::Linearizable, revision: None }
            }
            Some(What::Write { session, seq, key, action }) => {
                let op = match action {
                    Action::Put(value) => Op::Put { key, value },
                    Action::Append(value) => Op::Append { key, value },
                    Action::Delete | Action::Get(_) => Op::Delete { key },
                };
                let session = SessionId(*session);
                encoded(number, &Command::Write { session, seq: *seq, answered_below: *seq, op })
            }
        }
    }

    fn choose(&mut self, session: u64, number: usize, keys: &[Vec<u8>], rng: &mut Rng) -> What {
        let key = rng.pick(keys).clone();
        let kind = rng.below(10);
        match kind {
            0..=2 => return What::Get { key },
            3 => return What::Scan,
            _ => {}
        }
        let seq = self.next_seq;
        self.next_seq += 1;
        let token = format!("{}.{seq};", (b'a' + number as u8) as char).into_bytes();
        let action = match kind {
            4 | 5 => Action::Put(token),
            6 => Action::Delete,
            _ => Action::Append(token),
        };
        What::Write { session, seq, key, action }
    }

    /// Nothing came for a while: another node, or the end of patience.
    pub(crate) fn time_out(&mut self, nodes: usize, patient: bool, rng: &mut Rng) -> Next {
        self.target = rng.below(nodes as u64) as usize;
        let Some(asking) = &self.asking else { return Next::Rest };
        if !patient && asking.tries >= TRIES_MAX && rng.coin() {
            // The number is never used again: whether the write happens is for the others to find out.
            self.asking = None;
            return Next::Rest;
        }
        Next::Again
    }

    /// Takes in an answer.
    pub(crate) fn hear(
        &mut self,
        now: u64,
        reply: &Answer,
        records: &mut [Record],
        nodes: usize,
        rng: &mut Rng,
        coverage: &mut Coverage,
    ) -> Result<Next, String> {
        let Some(asking) = &self.asking else { return Ok(Next::Rest) };
        let told = match reply {
            Answer::Scan { at, rows } => {
                coverage.count("answer: scan");
                Told::Rows { at: *at, rows: rows.clone() }
            }
            Answer::Bytes(bytes) => {
                match proto::decode::<Reply<'_>>(bytes, "reply").map_err(|e| e.to_string())? {
                    Reply::Outcome(Outcome::SessionOpened(session)) => {
                        self.session = Some(session.0);
                        self.asking = None;
                        return Ok(Next::Rest);
                    }
                    Reply::Outcome(Outcome::Written { revision, .. }) => {
                        coverage.count("answer: done");
                        Told::Revision(revision)
                    }
                    Reply::Value { value, .. } => {
                        coverage.count("answer: value");
                        Told::Value(Some(value.to_vec()))
                    }
                    Reply::NotFound => Told::Value(None),
                    Reply::Refused(refusal) => return self.refused(&refusal, nodes, rng, coverage),
                    other => return Err(format!("a client was told {other:?}")),
                }
            }
        };
        if let Some(record) = asking.record {
            records[record].end = Some((now, told));
        }
        self.asking = None;
        Ok(Next::Rest)
    }

    fn refused(
        &mut self,
        refusal: &Refusal,
        nodes: usize,
        rng: &mut Rng,
        coverage: &mut Coverage,
    ) -> Result<Next, String> {
        self.target = rng.below(nodes as u64) as usize;
        match refusal {
            Refusal::NotLeader { leader } => {
                coverage.count("answer: not the leader");
                if let Some(leader) = leader {
                    self.target = *leader as usize - 1;
                }
            }
            Refusal::Busy { .. } => coverage.count("answer: busy"),
            Refusal::Unknown => coverage.count("answer: unknown outcome"),
            Refusal::NoSpace => coverage.count("answer: no space"),
            other => return Err(format!("a client was refused: {other:?}")),
        }
        Ok(Next::Again)
    }
}

/// An answer on its way.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// A reply as it goes over the wire.
    Bytes(Vec<u8>),
    Scan {
        at: u64,
        rows: Vec<(Vec<u8>, Vec<u8>)>,
    },
}

/// What a client of this number sends, each under a name of its own.
pub(crate) fn encoded(number: usize, command: &Command<'_>) -> RequestBody {
    let mut bytes = Vec::new();
    proto::encode(command, &mut bytes);
    RequestBody::Write { owner: Principal(number as u64 + 1), command: bytes.into() }
}

/// Sendings after which a client may give up.
const TRIES_MAX: u32 = 4;
