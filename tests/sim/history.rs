//! What clients asked and were told, and whether one order of it all explains it.
//!
//! Two checks that do not trust each other. The first knows nothing of the cluster but which unknown writes happened:
//! each key's history must be linearizable. The second replays the committed log: every answer must be the model's
//! at a point that fits real time, scans at exactly the revision that they name.

use crate::linear::{self, Action, Operation, Verdict};
use crate::truth::{Broken, Model};

#[derive(Clone, Debug)]
pub(crate) enum What {
    Write { session: u64, seq: u64, key: Vec<u8>, action: Action },
    Get { key: Vec<u8> },
    Scan,
}

#[derive(Clone, Debug)]
pub(crate) enum Told {
    Revision(u64),
    Value(Option<Vec<u8>>),
    Rows { at: u64, rows: Vec<(Vec<u8>, Vec<u8>)> },
}

#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) begin: u64,
    /// When the answer came, and what it was.
    pub(crate) end: Option<(u64, Told)>,
    pub(crate) what: What,
}

/// States that one key's search may look at for each operation.
const BUDGET: usize = 5000;

/// Checks a whole history.
pub(crate) fn check(records: &[Record], keys: &[Vec<u8>], model: &Model) -> Result<(), Broken> {
    replay(records, model)?;
    for key in keys {
        let operations: Vec<_> =
            records.iter().filter_map(|record| operation(record, key, model)).collect();
        match linear::check(&operations, BUDGET) {
            Verdict::Linearizable => {}
            verdict => {
                let lines: Vec<_> = operations.iter().map(|one| format!("  {one:?}\n")).collect();
                let lines = lines.concat();
                return Err(format!("the history of key {key:?} is {verdict:?}:\n{lines}"));
            }
        }
    }
    Ok(())
}

/// A record as the search sees it; an unknown write that never happened is none.
fn operation(record: &Record, at: &[u8], model: &Model) -> Option<Operation> {
    match (&record.what, &record.end) {
        (What::Write { session, seq, key, action }, end) if key == at => {
            // It had happened when it was committed, whenever its client heard of it: the search is long without this.
            let committed = model.written(*session, *seq).map(|(_, moment)| moment);
            let end = match (end, committed) {
                (Some((end, _)), Some(committed)) => committed.min(*end),
                (Some((end, _)), None) => *end,
                (None, committed) => committed?,
            };
            let place = record.end.is_none().then(|| model.written(*session, *seq)).flatten();
            let place = place.map(|(revision, _)| revision);
            let action = action.clone();
            Some(Operation { begin: record.begin, end, action, optional: false, place })
        }
        (What::Get { key }, Some((end, Told::Value(value)))) if key == at => {
            let action = Action::Get(value.clone());
            Some(Operation { begin: record.begin, end: *end, action, optional: false, place: None })
        }
        _ => None,
    }
}

/// Every answer against the committed log.
fn replay(records: &[Record], model: &Model) -> Result<(), Broken> {
    let mut ended: Vec<(u64, u64)> = Vec::new();
    let mut order: Vec<_> = records.iter().collect();
    order.sort_by_key(|record| record.begin);
    for record in order {
        let Some((end, told)) = &record.end else { continue };
        // What had ended before this began is before it.
        let earliest = ended.iter().filter(|(end, _)| *end < record.begin).map(|(_, at)| *at).max();
        let earliest = earliest.unwrap_or(0);
        let wrong = |why: String| Err(format!("{why}; at least revision {earliest}: {record:?}"));
        let point = match (&record.what, told) {
            (What::Write { session, seq, .. }, Told::Revision(revision)) => {
                if model.written(*session, *seq).map(|(at, _)| at) != Some(*revision) {
                    return wrong("a write was confirmed that did not happen like this".into());
                }
                *revision
            }
            (What::Get { key }, Told::Value(value)) => {
                let candidates = [earliest].into_iter().chain(model.changes(key));
                let mut candidates = candidates.filter(|at| *at >= earliest);
                let fits = |at: &u64| model.value_at(key, *at) == value.as_deref();
                match candidates.find(fits) {
                    Some(point) => point,
                    None => return wrong("a get is explained by no revision".into()),
                }
            }
            (What::Scan, Told::Rows { at, rows }) => {
                if *rows != model.rows_at(*at) {
                    return wrong(format!("a scan is not the state at {at}"));
                }
                *at
            }
            _ => return wrong("an answer to another question".into()),
        };
        if point < earliest {
            return wrong(format!("it happened at {point}"));
        }
        ended.push((*end, point));
    }
    Ok(())
}
