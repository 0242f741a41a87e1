//! Images that the store goes on in before their files are written.

use std::sync::atomic::{AtomicBool, Ordering};

use super::history::{Model, compact, dir, meta, newest_file, rows};
use super::{Client, OPTIONS, Random};
use crate::proto::command::Op;
use crate::store::snapshot::{Dir, SnapshotMeta};
use crate::store::{Adoption, Compacted, Error, Image, Pace, Store};

/// A store of some megabytes, much of it dead, and two equal images of it; the file of one is in the directory.
fn begin(random: &mut Random) -> (Client, Model, Compacted, Image, Vec<u8>) {
    let (dir, mut client, mut model) = (dir(), Client::new(), Model::new());
    for number in (0..KEYS).chain(0..KEYS / 2) {
        let key = number.to_be_bytes().to_vec();
        let len = random.below(900);
        let value = random.bytes(len);
        client.put(&key, &value);
        model.insert(key, value);
    }
    disturb(&mut client, &mut model, random, 2000);
    let oldest = client.store.revision();
    disturb(&mut client, &mut model, random, 100);
    compact(&mut client.store, oldest);
    let meta = meta(client.store.revision());
    client.store.checkpoint().write(&dir, &meta, &Pace::default()).unwrap();
    let checkpoint = client.store.checkpoint();
    let (compacted, image) = checkpoint.compact(&meta, &Pace::default()).unwrap();
    (client, model, compacted, image, newest_file(&dir))
}

/// Overwrites, removes and adds keys all over the image.
fn disturb(client: &mut Client, model: &mut Model, random: &mut Random, count: usize) {
    for _ in 0..count {
        let mut key = random.below(KEYS).to_be_bytes().to_vec();
        match random.below(4) {
            0 => {
                client.write(Op::Delete { key: &key });
                model.remove(&key);
                continue;
            }
            1 => key.extend(random.bytes(2)),
            _ => {}
        }
        let value = random.bytes(20);
        client.put(&key, &value);
        model.insert(key, value);
    }
}

#[test]
fn a_file_holds_what_its_image_was_however_the_store_goes_on_in_it() {
    for seed in 1..=5 {
        let (mut random, dir) = (Random(seed), dir());
        let (mut client, mut model, compacted, image, expected) = begin(&mut random);
        let at_the_image = model.clone();
        assert!(matches!(client.store.adopt(compacted), Adoption::Adopted));
        disturb(&mut client, &mut model, &mut random, 3000);
        let mut blocks = 0;
        let mut meanwhile = || {
            disturb(&mut client, &mut model, &mut random, 1000);
            blocks += 1;
        };
        let info = image.write(&dir, &Pace::default(), &mut meanwhile).unwrap();
        assert!(blocks > 3, "{blocks} blocks");
        assert!(newest_file(&dir) == expected, "seed {seed}");
        let (loaded, _) = Store::load(&dir, &info.path, OPTIONS).unwrap();
        assert_eq!(rows(&loaded.reader(), loaded.revision()), at_the_image);
        assert_eq!(rows(&client.store.reader(), client.store.revision()), model);
        disturb(&mut client, &mut model, &mut random, 1000);
        assert_eq!(rows(&client.store.reader(), client.store.revision()), model);
    }
}

#[test]
fn a_file_is_written_while_another_thread_writes_to_the_store() {
    let (mut random, dir) = (Random(9), dir());
    let (mut client, mut model, compacted, image, expected) = begin(&mut random);
    assert!(matches!(client.store.adopt(compacted), Adoption::Adopted));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            image.write(&dir, &Pace::default(), &mut std::thread::yield_now).unwrap();
            done.store(true, Ordering::Relaxed);
        });
        while !done.load(Ordering::Relaxed) {
            disturb(&mut client, &mut model, &mut random, 10);
        }
    });
    assert!(newest_file(&dir) == expected);
    assert_eq!(rows(&client.store.reader(), client.store.revision()), model);
}

#[test]
fn a_file_that_cannot_be_written_leaves_the_store_in_its_image() {
    let mut random = Random(4);
    let (mut client, mut model, compacted, image, _) = begin(&mut random);
    assert!(matches!(client.store.adopt(compacted), Adoption::Adopted));
    let (dir, pace) = (dir(), Pace::default());
    let mut meanwhile = || {
        disturb(&mut client, &mut model, &mut random, 100);
        pace.cancel.store(true, Ordering::Relaxed);
    };
    let written = image.write(&dir, &pace, &mut meanwhile);
    assert!(matches!(written, Err(Error::Cancelled)));
    assert_eq!(dir.list().unwrap(), []);
    disturb(&mut client, &mut model, &mut random, 1000);
    assert_eq!(rows(&client.store.reader(), client.store.revision()), model);
    assert!(write_again(&mut client.store, &dir).is_ok());
}

fn write_again(store: &mut Store, dir: &Dir) -> Result<(), Error> {
    let meta: SnapshotMeta = meta(store.revision());
    store.checkpoint().write(dir, &meta, &Pace::default()).map(drop)
}

/// With their values some blocks.
const KEYS: u64 = 10_000;
