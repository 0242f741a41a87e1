//! Is a history of one key linearizable? The search of Wing and Gong with Lowe's memory of visited states: take any
//! operation that nothing else ended before it began, check its answer against the value so far, go on with the rest.

use std::collections::HashSet;

/// What was done to the key, and what came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Put(Vec<u8>),
    Append(Vec<u8>),
    Delete,
    Get(Option<Vec<u8>>),
}

/// One operation; times are any numbers that order events.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    pub(crate) begin: u64,
    /// `u64::MAX` if nobody knows: it may happen any time later.
    pub(crate) end: u64,
    pub(crate) action: Action,
    /// Whether it may also never happen.
    pub(crate) optional: bool,
    /// Operations with a place happened in the order of their places; for those that nobody heard of, whose orders
    /// would be too many to try.
    pub(crate) place: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Linearizable,
    Not,
    /// More states than the budget; no answer, which is a failure too.
    OverBudget,
}

/// How far a search is: what is done, and the value that it left.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    /// In the order of their begins, all before this one are done,
    frontier: usize,
    /// but for these: no more than there are clients.
    skipped: Vec<usize>,
    value: Value,
}

/// What the key holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Value {
    None,
    Some(Vec<u8>),
    /// Something that no get ever saw, not even as a beginning: which one makes no difference.
    Unseen,
}

impl State {
    /// Whether only operations are left that may also never happen.
    fn is_end(&self, operations: &[Operation]) -> bool {
        let rest = self.skipped.iter().copied().chain(self.frontier..operations.len());
        rest.into_iter().all(|i| operations[i].optional)
    }

    /// What may come next: whoever begins after another has ended cannot go before it.
    fn next(&self, operations: &[Operation], before: &[Option<usize>]) -> Vec<usize> {
        let mut next = self.skipped.clone();
        let mut first_end = next.iter().map(|&i| operations[i].end).min().unwrap_or(u64::MAX);
        for (i, operation) in operations.iter().enumerate().skip(self.frontier) {
            if operation.begin > first_end {
                break;
            }
            next.push(i);
            first_end = first_end.min(operation.end);
        }
        let is_done = |i: usize| i < self.frontier && !self.skipped.contains(&i);
        next.retain(|&i| operations[i].begin <= first_end && before[i].is_none_or(is_done));
        next
    }

    /// This state after one operation more, if its answer fits.
    fn after(&self, i: usize, operation: &Operation, gets: &[&[u8]]) -> Option<State> {
        let value = operation.action.after(&self.value, gets)?;
        let mut skipped = self.skipped.clone();
        skipped.retain(|&other| other != i);
        skipped.extend(self.frontier..i);
        Some(State { frontier: self.frontier.max(i + 1), skipped, value })
    }
}

/// Whether some order of `operations` explains all answers; looks at so many states for each operation at most.
pub(crate) fn check(operations: &[Operation], states_each: usize) -> Verdict {
    let mut operations = operations.to_vec();
    operations.sort_by_key(|operation| operation.begin);
    let budget = states_each * (operations.len() + 1);
    let mut seen = HashSet::new();
    let mut stack = vec![State { frontier: 0, skipped: Vec::new(), value: Value::None }];
    let (gets, before) = (gets(&operations), before(&operations));
    while let Some(state) = stack.pop() {
        let mut next = state.next(&operations, &before);
        if state.is_end(&operations) {
            return Verdict::Linearizable;
        }
        if seen.len() >= budget {
            return Verdict::OverBudget;
        }
        // The stack gives the last first: whoever ends first is the best guess.
        next.sort_by_key(|&i| std::cmp::Reverse(operations[i].end));
        let states = next.into_iter().filter_map(|i| state.after(i, &operations[i], &gets));
        for state in states {
            if seen.insert(state.clone()) {
                stack.push(state);
            }
        }
    }
    Verdict::Not
}

/// The operation that must be done before each one, by their places.
fn before(operations: &[Operation]) -> Vec<Option<usize>> {
    let mut placed: Vec<_> =
        (0..operations.len()).filter(|&i| operations[i].place.is_some()).collect();
    placed.sort_by_key(|&i| operations[i].place);
    let mut before = vec![None; operations.len()];
    for pair in placed.windows(2) {
        before[pair[1]] = Some(pair[0]);
    }
    before
}

/// All values that were seen, in order.
fn gets(operations: &[Operation]) -> Vec<&[u8]> {
    let mut gets: Vec<_> = operations
        .iter()
        .filter_map(|operation| match &operation.action {
            Action::Get(Some(value)) => Some(&value[..]),
            _ => None,
        })
        .collect();
    gets.sort_unstable();
    gets.dedup();
    gets
}

impl Action {
    /// The key's value after this; `None` if the answer cannot be.
    fn after(&self, before: &Value, gets: &[&[u8]]) -> Option<Value> {
        let value = match (self, before) {
            (Action::Put(value), _) => value.clone(),
            (Action::Append(_), Value::Unseen) => return Some(Value::Unseen),
            (Action::Append(value), Value::None) => value.clone(),
            (Action::Append(value), Value::Some(before)) => [&before[..], value].concat(),
            (Action::Delete, _) => return Some(Value::None),
            (Action::Get(None), Value::None) => return Some(Value::None),
            (Action::Get(Some(got)), Value::Some(before)) if got == before => {
                return Some(Value::Some(before.clone()));
            }
            (Action::Get(_), _) => return None,
        };
        let next = gets.partition_point(|get| *get < &value[..]);
        let is_seen = gets.get(next).is_some_and(|get| get.starts_with(&value));
        Some(if is_seen { Value::Some(value) } else { Value::Unseen })
    }

    /// The same, without any cleverness.
    fn plainly_after(&self, before: Option<&[u8]>) -> Option<Option<Vec<u8>>> {
        match self {
            Action::Put(value) => Some(Some(value.clone())),
            Action::Append(value) => Some(Some([before.unwrap_or_default(), value].concat())),
            Action::Delete => Some(None),
            Action::Get(value) => (value.as_deref() == before).then(|| before.map(<[u8]>::to_vec)),
        }
    }
}

/// Compares the search with trying every order, on small random histories of which about half are wrong.
pub(crate) fn self_test(histories: u64) -> Result<(), String> {
    let mut rng = crate::rng::Rng::new(4711);
    let (mut right, mut wrong) = (0, 0);
    for _ in 0..histories {
        let operations: Vec<_> = (0..rng.between(1, 5))
            .map(|i| {
                let begin = rng.below(12);
                let optional = rng.permille(200);
                let token = vec![b'a' + i as u8];
                let action = match rng.below(5) {
                    0 => Action::Put(token),
                    1 => Action::Append(token),
                    2 => Action::Delete,
                    _ if optional => Action::Delete,
                    _ => {
                        let values: [&[u8]; 5] = [b"", b"a", b"b", b"c", b"ab"];
                        let value = rng.pick(&values).to_vec();
                        Action::Get(Some(value).filter(|value| !value.is_empty()))
                    }
                };
                let end = if optional { u64::MAX } else { begin + 1 + rng.below(6) };
                Operation { begin, end, action, optional, place: None }
            })
            .collect();
        let expected = brute(&operations, &mut Vec::new(), None);
        let got = check(&operations, 1 << 12);
        let agrees = got == if expected { Verdict::Linearizable } else { Verdict::Not };
        if !agrees {
            return Err(format!(
                "the checker says {got:?}, every order says {expected}: {operations:#?}"
            ));
        }
        if expected { right += 1 } else { wrong += 1 }
    }
    if right == 0 || wrong == 0 {
        return Err(format!("the histories were all alike: {right} right, {wrong} wrong"));
    }
    Ok(())
}

/// Every order of every choice of optional operations.
fn brute(operations: &[Operation], order: &mut Vec<usize>, value: Option<&[u8]>) -> bool {
    let open: Vec<_> = (0..operations.len()).filter(|i| !order.contains(i)).collect();
    if open.iter().all(|&i| operations[i].optional) {
        return true;
    }
    open.iter().any(|&i| {
        let may_be_next = open.iter().all(|&j| operations[j].end >= operations[i].begin);
        let Some(next) = operations[i].action.plainly_after(value).filter(|_| may_be_next) else {
            return false;
        };
        order.push(i);
        let explains = brute(operations, order, next.as_deref());
        order.pop();
        explains
    })
}
