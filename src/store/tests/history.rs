//! Older revisions: what can be read, what is left behind, and the swap to the compacted image.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::{Client, OPTIONS, Random, apply};
use crate::disk::MemDisk;
use crate::proto::command::{Command, Op, Outcome};
use crate::raft::{Index, Term};
use crate::store::snapshot::{Dir, SnapshotMeta};
use crate::store::{Adoption, CatchUp, Compacted, Options, Pace, Range, Reader, Store, Unread};

pub(super) type Model = BTreeMap<Vec<u8>, Vec<u8>>;

pub(super) fn dir() -> Dir {
    let dir = Dir::new(Arc::new(MemDisk::new()), "/snapshots".into());
    dir.create().unwrap();
    dir
}

pub(super) fn meta(index: Index) -> SnapshotMeta {
    SnapshotMeta { cluster: [7; 16], index, term: Term(1), membership: Vec::new() }
}

fn image_of(checkpoint: super::super::Checkpoint, dir: &Dir) -> Compacted {
    let meta = meta(checkpoint.revision());
    checkpoint.write(dir, &meta, &Pace::default()).unwrap().1
}

pub(super) fn compact(store: &mut Store, below: Index) {
    let command = Command::Compact { below: below.0 };
    assert_eq!(apply(store, &command), Outcome::Done);
}

pub(super) fn rows(reader: &Reader, at: Index) -> Model {
    reader.scan(Range::ALL, at).map(|row| (row.key.to_vec(), row.value.to_vec())).collect()
}

/// The bytes of the newest snapshot.
pub(super) fn newest_file(dir: &Dir) -> Vec<u8> {
    let file = dir.disk.open(&dir.list().unwrap()[0].1).unwrap();
    let mut bytes = vec![0; file.bytes().unwrap() as usize];
    file.read_at(0, &mut bytes).unwrap();
    bytes
}

fn behind(adoption: Adoption) -> CatchUp {
    match adoption {
        Adoption::Behind(catch_up) => *catch_up,
        Adoption::Adopted | Adoption::Declined => panic!("the image lacks much"),
    }
}

/// Writes at random, and keeps what each revision looked like.
fn work(
    client: &mut Client,
    model: &mut Model,
    random: &mut Random,
    count: usize,
) -> Vec<(Index, Model)> {
    let mut history = Vec::new();
    for _ in 0..count {
        let key = vec![b'k', random.below(60) as u8];
        let len = random.below(300);
        let value = random.bytes(len);
        if random.below(4) == 0 {
            client.write(Op::Delete { key: &key });
            model.remove(&key);
        } else {
            client.put(&key, &value);
            model.insert(key, value);
        }
        history.push((client.store.revision(), model.clone()));
    }
    history
}

#[test]
fn every_revision_from_the_oldest_on_outlives_swaps_and_restarts() {
    let (dir, mut client, mut random) = (dir(), Client::new(), Random(3));
    let mut model = Model::new();
    let (mut history, mut adopted) = (Vec::new(), 0);
    for round in 0..8 {
        history.extend(work(&mut client, &mut model, &mut random, 700));
        let oldest = history[history.len() - 300].0;
        compact(&mut client.store, oldest);
        let checkpoint = client.store.checkpoint();
        let held = client.store.reader();
        let count = if round % 2 == 0 { 200 } else { 3000 };
        let later = work(&mut client, &mut model, &mut random, count);
        let image = image_of(checkpoint, &dir);
        let adoption = match client.store.adopt(image) {
            Adoption::Behind(catch_up) => {
                assert!(round % 2 == 1, "few changes are copied at once");
                history.extend(work(&mut client, &mut model, &mut random, 5));
                client.store.adopt(catch_up.run())
            }
            adoption => adoption,
        };
        adopted += usize::from(matches!(adoption, Adoption::Adopted));
        history.extend(later);
        history.sort_by_key(|(at, _)| *at);
        history.retain(|(at, _)| *at >= oldest);
        let reader = client.store.reader();
        assert_eq!((reader.oldest(), client.store.oldest()), (oldest, oldest));
        let (loaded, _) = Store::load(&dir, &dir.list().unwrap()[0].1, OPTIONS).unwrap();
        assert_eq!(loaded.oldest(), oldest);
        for (at, model) in &history {
            assert_eq!(rows(&reader, *at), *model, "at {at}");
            if *at <= loaded.revision() {
                assert_eq!(rows(&loaded.reader(), *at), *model, "loaded, at {at}");
            }
        }
        assert_eq!(rows(&held, held.latest()), rows(&reader, held.latest()));
    }
    assert!(adopted >= 6, "{adopted} swaps");
}

#[test]
fn an_image_that_lags_catches_up_beside_the_writer() {
    let (dir, mut client, mut random) = (dir(), Client::new(), Random(5));
    let mut model = Model::new();
    work(&mut client, &mut model, &mut random, 5000);
    let now = client.store.revision();
    compact(&mut client.store, now);
    let image = image_of(client.store.checkpoint(), &dir);
    // Not from this checkpoint on: changes of before it are in the image.
    let Adoption::Adopted = client.store.adopt(image) else { panic!("there is nothing to add") };
    work(&mut client, &mut model, &mut random, 5000);
    let now = client.store.revision();
    compact(&mut client.store, now);
    let checkpoint = client.store.checkpoint();
    work(&mut client, &mut model, &mut random, 5000);
    let image = image_of(checkpoint, &dir);
    let catch_up = behind(client.store.adopt(image));
    work(&mut client, &mut model, &mut random, 4000);
    let again = behind(client.store.adopt(catch_up.run()));
    work(&mut client, &mut model, &mut random, 100);
    assert!(matches!(client.store.adopt(again.run()), Adoption::Adopted));
    assert_eq!(rows(&client.store.reader(), client.store.revision()), model);
}

#[test]
fn an_image_catches_up_with_a_writer_that_never_rests() {
    let (dir, mut client, mut random) = (dir(), Client::new(), Random(8));
    let mut model = Model::new();
    work(&mut client, &mut model, &mut random, 10_000);
    let now = client.store.revision();
    compact(&mut client.store, now);
    let mut image = image_of(client.store.checkpoint(), &dir);
    let mut rounds = 0;
    loop {
        work(&mut client, &mut model, &mut random, 5000);
        match client.store.adopt(image) {
            Adoption::Behind(catch_up) => image = catch_up.run(),
            Adoption::Adopted => break,
            Adoption::Declined => panic!("it gave up after {rounds} rounds"),
        }
        rounds += 1;
    }
    assert_eq!(rounds, 3, "what is copied at once doubles with each round");
    assert_eq!(rows(&client.store.reader(), client.store.revision()), model);
}

#[test]
fn an_image_of_another_arena_and_one_that_saves_nothing_are_declined() {
    let (dir, mut client, mut random) = (dir(), Client::new(), Random(6));
    let mut model = Model::new();
    client.put(b"key", b"value");
    let image = image_of(client.store.checkpoint(), &dir);
    assert!(matches!(client.store.adopt(image), Adoption::Declined));
    work(&mut client, &mut model, &mut random, 2000);
    let now = client.store.revision();
    compact(&mut client.store, now);
    let image = image_of(client.store.checkpoint(), &dir);
    let (loaded, _) = Store::load(&dir, &dir.list().unwrap()[0].1, OPTIONS).unwrap();
    client.store.replace(loaded);
    let before = client.store.bytes();
    assert!(matches!(client.store.adopt(image), Adoption::Declined));
    assert_eq!(client.store.bytes(), before);
}

#[test]
fn an_image_of_an_earlier_checkpoint_is_declined() {
    let (dir, mut client, mut random) = (dir(), Client::new(), Random(7));
    let mut model = Model::new();
    work(&mut client, &mut model, &mut random, 3000);
    let now = client.store.revision();
    compact(&mut client.store, now);
    let earlier = client.store.checkpoint();
    work(&mut client, &mut model, &mut random, 100);
    let later = client.store.checkpoint();
    work(&mut client, &mut model, &mut random, 100);
    // What was written between the two is written down for neither.
    let earlier = image_of(earlier, &dir);
    assert!(matches!(client.store.adopt(earlier), Adoption::Declined));
    let later = image_of(later, &dir);
    assert!(matches!(client.store.adopt(later), Adoption::Adopted));
    assert_eq!(rows(&client.store.reader(), client.store.revision()), model);
}

#[test]
fn an_arena_is_given_back_when_its_last_reader_is_gone() {
    let (dir, mut client, mut random) = (dir(), Client::new(), Random(8));
    let mut model = Model::new();
    work(&mut client, &mut model, &mut random, 3000);
    let now = client.store.revision();
    compact(&mut client.store, now);
    let reader = client.store.reader();
    let image = image_of(client.store.checkpoint(), &dir);
    assert!(matches!(client.store.adopt(image), Adoption::Adopted));
    assert_eq!(client.store.take_unread().len(), 0);
    assert_eq!(rows(&reader, reader.latest()), model);
    drop(reader);
    assert_eq!(client.store.take_unread().len(), 1);
    assert_eq!(client.store.take_unread().len(), 0);
}

#[test]
fn an_image_in_the_memory_of_an_older_arena_is_the_same_to_the_byte() {
    let (fresh, recycled) = (dir(), dir());
    let (mut client, mut random) = (Client::new(), Random(9));
    let (mut model, mut spare) = (Model::new(), None::<(Unread, *const u8)>);
    for round in 0..6_u64 {
        let history = work(&mut client, &mut model, &mut random, 1500);
        compact(&mut client.store, history[1000].0);
        image_of(client.store.checkpoint(), &fresh);
        let mut checkpoint = client.store.checkpoint();
        let mut expected = None;
        if let Some((mut memory, place)) = spare.take() {
            memory.shrink([u64::MAX, 0, 10_001][round as usize % 3]);
            checkpoint.reuse(memory);
            expected = Some(place);
        }
        let image = image_of(checkpoint, &recycled);
        assert!(newest_file(&fresh) == newest_file(&recycled), "round {round}");
        let place = client.store.tree.image().as_ptr();
        assert!(matches!(client.store.adopt(image), Adoption::Adopted));
        let memory = client.store.take_unread().pop().unwrap();
        spare = Some((memory, place));
        let place = client.store.tree.image().as_ptr();
        assert!(expected.is_none_or(|expected| expected == place), "round {round}");
        // In memory that others left behind the store goes on as in any.
        for (at, model) in &history[1000..] {
            assert_eq!(rows(&client.store.reader(), *at), *model, "round {round}, at {at}");
        }
    }
}

#[test]
fn overwriting_few_keys_for_ever_keeps_memory_bounded() {
    let options = Options { arena_bytes: 48 << 20, hash_seed: 1 };
    let mut client = Client { store: Store::new(options).unwrap(), ..Client::new() };
    client.session = super::open(&mut client.store);
    let dir = dir();
    for count in 0..1_000_000_u32 {
        client.put(&(count % 1000).to_be_bytes(), &[count as u8; 64]);
        if client.store.bytes() > 16 << 20 {
            let keep = Index(client.store.revision().0 - 10_000);
            compact(&mut client.store, keep);
            let image = image_of(client.store.checkpoint(), &dir);
            assert!(matches!(client.store.adopt(image), Adoption::Adopted));
            dir.retain(1).unwrap();
            assert!(client.store.bytes() < 2 << 20, "{} bytes", client.store.bytes());
        }
    }
    assert_eq!(client.store.keys(), 1000);
}

#[test]
fn a_key_with_a_million_versions_is_read_at_each_of_them_in_few_steps() {
    let options = Options { arena_bytes: 256 << 20, hash_seed: 1 };
    let mut client = Client { store: Store::new(options).unwrap(), ..Client::new() };
    client.session = super::open(&mut client.store);
    client.put(b"a", b"first");
    let first = client.store.revision().0;
    for count in 0..1_000_000_u32 {
        client.put(b"hot", &count.to_le_bytes());
    }
    client.put(b"z", b"last");
    let reader = client.store.reader();
    // A walk through half a million versions for each of these would take minutes.
    for count in (0..1_000_000_u32).step_by(37) {
        let at = Index(first + 1 + u64::from(count));
        assert_eq!(reader.get(b"hot", at).unwrap().value, count.to_le_bytes());
    }
    assert_eq!(reader.get(b"hot", Index(first)), None);
    for count in (0..1_000_000_u64).step_by(97) {
        let rows = reader.scan(Range::ALL, Index(first + 1 + count)).count();
        assert_eq!(rows, 2);
    }
    assert_eq!(reader.scan(Range::ALL, reader.latest()).count(), 3);
}

#[test]
fn clocks_tell_which_revision_was_the_newest() {
    let mut client = Client::new();
    for second in 1..=10 {
        let command = Command::Clock { now_ms: second * 1000 };
        apply(&mut client.store, &command);
        client.put(b"k", b"v");
    }
    let at_five = client.store.revision_at(5999);
    assert_eq!(at_five, client.store.revision_at(5000));
    let dir = dir();
    image_of(client.store.checkpoint(), &dir);
    let (loaded, _) = Store::load(&dir, Path::new(&dir.list().unwrap()[0].1), OPTIONS).unwrap();
    assert_eq!(loaded.revision_at(5000), at_five);
}
