//! The directory, the file in it, and what is refused.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use mqtt_sn_gateway::gateway::io::Forgotten;
use mqtt_sn_gateway::gateway::record::Record;
use mqtt_sn_gateway::store::{CloseError, Options, Store, StoreError, forget};
use redb::{Database, TableDefinition};
use tempfile::TempDir;

use crate::{by_key, id, message, topic, waiting, write};

#[tokio::test]
async fn what_is_durable_is_there_again() {
    let dir = TempDir::new().unwrap();
    let options = Options::new(dir.path().join("a/b"));
    let (store, rows) = Store::open(&options).unwrap();
    assert!(rows.is_empty());
    let rows = [message(1, 10), topic("n1", 1, "t"), waiting("n1", 1, 1)];
    write(&store, 1, rows.clone().map(Record::Insert).into()).await;
    drop(store);
    let (store, found) = Store::open(&options).unwrap();
    assert_eq!(found, rows);
    write(&store, 1, vec![Record::Delete(rows[1].key()), Record::Update(message(1, 20))]).await;
    store.close().await.unwrap();
    let (_store, found) = Store::open(&options).unwrap();
    assert_eq!(found, [message(1, 20), waiting("n1", 1, 1)]);
}

#[tokio::test]
async fn many_rows_come_in_the_order_of_their_keys_however_many_are_asked_for() {
    let dir = TempDir::new().unwrap();
    let options = Options::new(dir.path());
    let rows: Vec<_> = (0..10_000).map(|number| message(number, 10)).collect();
    let (store, _) = Store::open(&options).unwrap();
    write(&store, 1, rows.iter().rev().cloned().map(Record::Insert).collect()).await;
    store.close().await.unwrap();
    let (store, first) = Store::open_with(&options, |rows| rows.next()).unwrap();
    assert_eq!(first.as_ref(), rows.first());
    drop(store);
    let (store, found) = Store::open(&options).unwrap();
    assert!(found == rows, "{} rows", found.len());
    drop(store);
    // What is wrong at the end is found, whoever looks.
    let database = Database::open(dir.path().join("store.redb")).unwrap();
    let write = database.begin_write().unwrap();
    let table = TableDefinition::<&[u8], &[u8]>::new("rows");
    write.open_table(table).unwrap().insert(b"\x04".as_slice(), b"\x01half a row".as_slice()).unwrap();
    write.commit().unwrap();
    drop(database);
    assert!(matches!(Store::open_with(&options, |rows| rows.next()), Err(StoreError::Damaged { .. })));
    assert!(matches!(Store::open_with(&options, |rows| rows.count()), Err(StoreError::Damaged { .. })));
}

#[test]
fn nobody_else_may_look_into_it() {
    let dir = TempDir::new().unwrap();
    let place = dir.path().join("store");
    let options = Options::new(&place);
    drop(Store::open(&options).unwrap());
    assert_eq!(modes(&place), [0o700, 0o600, 0o600]);
    // Opened up by somebody, it is closed again.
    fs::set_permissions(&place, Permissions::from_mode(0o755)).unwrap();
    for file in ["store.redb", "store.lock"] {
        fs::set_permissions(place.join(file), Permissions::from_mode(0o644)).unwrap();
    }
    drop(Store::open(&options).unwrap());
    assert_eq!(modes(&place), [0o700, 0o600, 0o600]);
}

#[test]
fn a_directory_that_others_use_too_is_not_closed_to_them() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("of somebody else"), "").unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let refused = Store::open(&Options::new(dir.path())).unwrap_err();
    assert!(matches!(&refused, StoreError::Exposed { mode: 0o755, .. }), "{refused}");
    assert_eq!(fs::metadata(dir.path()).unwrap().permissions().mode() & 0o777, 0o755);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    // It is only not to be entered.
    fs::set_permissions(dir.path(), Permissions::from_mode(0o700)).unwrap();
    Store::open(&Options::new(dir.path())).unwrap();
}

#[test]
fn a_store_is_open_once() {
    let dir = TempDir::new().unwrap();
    let options = Options::new(dir.path());
    let first = Store::open(&options).unwrap();
    let refused = Store::open(&options).unwrap_err();
    let own = std::process::id();
    assert!(matches!(refused, StoreError::InUse { pid: Some(pid), .. } if pid == own), "{refused}");
    assert!(matches!(forget(dir.path(), &id("n1")), Err(StoreError::InUse { .. })));
    drop(first);
    Store::open(&options).unwrap();
}

#[test]
fn a_file_of_a_newer_version_is_refused_by_what_is_new() {
    let format = TableDefinition::<&str, u64>::new("meta");
    let kinds = TableDefinition::<u8, &str>::new("kinds");
    let rows = TableDefinition::<&[u8], &[u8]>::new("rows");
    let refused = refused_after(|database| {
        let write = database.begin_write().unwrap();
        write.open_table(format).unwrap().insert("format", 2).unwrap();
        write.commit().unwrap();
    });
    assert!(refused.starts_with("newer: it has format 2"), "{refused}");
    let refused = refused_after(|database| {
        let write = database.begin_write().unwrap();
        write.open_table(kinds).unwrap().insert(0x4A, "gadget").unwrap();
        let key: &[u8] = b"\x40n1\0\x4A";
        write.open_table(rows).unwrap().insert(key, sealed(key, &[1]).as_slice()).unwrap();
        write.commit().unwrap();
    });
    assert_eq!(refused, "newer: it has rows of the unknown kind \"gadget\"");
    let refused = refused_after(|database| {
        let write = database.begin_write().unwrap();
        let key: &[u8] = b"\x40n1\0\x42";
        write.open_table(rows).unwrap().insert(key, sealed(key, &[9, 1, 2]).as_slice()).unwrap();
        write.commit().unwrap();
    });
    assert_eq!(refused, "newer: a row of kind will is of the unknown version 9");
}

#[test]
fn a_file_that_is_none_of_ours_is_damaged_and_stays_as_it_is() {
    for content in [b"".as_slice(), b"hello", &[0; 100_000]] {
        let dir = TempDir::new().unwrap();
        let file = dir.path().join("store.redb");
        fs::write(&file, content).unwrap();
        let refused = Store::open(&Options::new(dir.path())).unwrap_err();
        assert!(matches!(&refused, StoreError::Damaged { .. }), "{refused}");
        let text = refused.to_string();
        assert!(text.contains("store.redb") && text.contains("move the file away"), "{text}");
        assert_eq!(fs::read(&file).unwrap(), content);
    }
    let refused = refused_after(|database| {
        let write = database.begin_write().unwrap();
        write.delete_table(TableDefinition::<&str, u64>::new("meta")).unwrap();
        write.commit().unwrap();
    });
    assert!(refused.starts_with("damaged: "), "{refused}");
    let refused = refused_after(|database| {
        let write = database.begin_write().unwrap();
        let rows = TableDefinition::<&[u8], &[u8]>::new("rows");
        write.open_table(rows).unwrap().insert(b"\x04".as_slice(), b"\x01half a row".as_slice()).unwrap();
        write.commit().unwrap();
    });
    assert_eq!(refused, "damaged: a row fails its checksum");
}

#[test]
fn what_a_cut_off_creation_left_is_no_store() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("store.redb.new"), "half of it").unwrap();
    let (_store, rows) = Store::open(&Options::new(dir.path())).unwrap();
    assert!(rows.is_empty());
    assert!(!dir.path().join("store.redb.new").exists());
}

#[tokio::test]
async fn a_store_that_somebody_deletes_is_put_back_at_the_end_without_another_change() {
    for whole in [false, true] {
        let dir = TempDir::new().unwrap();
        let options = Options::new(dir.path().join("store"));
        let (store, _) = Store::open(&options).unwrap();
        let rows = [message(1, 50_000), waiting("n1", 1, 1)];
        write(&store, 1, rows.clone().map(Record::Insert).into()).await;
        if whole {
            fs::remove_dir_all(&options.dir).unwrap();
        } else {
            fs::remove_file(options.dir.join("store.redb")).unwrap();
        }
        store.close().await.unwrap();
        assert_eq!(modes(&options.dir), [0o700, 0o600, 0o600]);
        assert!(!options.dir.join("store.redb.copy").exists());
        let (_store, found) = Store::open(&options).unwrap();
        assert_eq!(found, rows);
    }
}

#[tokio::test]
async fn another_file_in_its_place_is_left_alone_and_told_at_the_end() {
    let dir = TempDir::new().unwrap();
    let options = Options::new(dir.path());
    let (store, _) = Store::open(&options).unwrap();
    write(&store, 1, vec![Record::Insert(message(1, 5))]).await;
    let file = dir.path().join("store.redb");
    fs::remove_file(&file).unwrap();
    fs::write(&file, "of somebody else").unwrap();
    let why = "somebody has put another file in its place".to_owned();
    assert_eq!(store.close().await, Err(CloseError::Gone { why }));
    assert_eq!(fs::read(&file).unwrap(), b"of somebody else");
}

#[tokio::test]
async fn a_copy_that_was_not_put_back_yet_is_taken_if_it_is_whole_and_never_deleted() {
    let dir = TempDir::new().unwrap();
    let options = Options::new(dir.path());
    let (file, copy) = (dir.path().join("store.redb"), dir.path().join("store.redb.copy"));
    let (store, _) = Store::open(&options).unwrap();
    let rows = [message(1, 50_000), topic("n1", 1, "t")];
    write(&store, 1, rows.clone().map(Record::Insert).into()).await;
    // As a crash leaves it, closed by nobody.
    let octets = fs::read(&file).unwrap();
    drop(store);
    fs::remove_file(&file).unwrap();
    for end in [0, 1, 4096, octets.len() / 2, octets.len() - 4096] {
        fs::write(&copy, &octets[..end]).unwrap();
        let refusals = [Store::open(&options).map(drop), forget(dir.path(), &id("n1")).map(drop)];
        for refused in refusals.map(Result::unwrap_err) {
            assert!(
                matches!(&refused, StoreError::Damaged { path, .. } if *path == copy),
                "{end}: {refused}"
            );
        }
        // redb may have noted in the first page how long the file is.
        let left = fs::read(&copy).unwrap();
        assert_eq!((left.len(), left.get(4096..)), (end, octets[..end].get(4096..)));
        assert!(!file.exists());
    }
    fs::write(&copy, &octets).unwrap();
    let (store, found) = Store::open(&options).unwrap();
    assert_eq!(found, rows);
    assert!(!copy.exists());
    drop(store);
    // Beside a file it is older.
    fs::write(&copy, "half of it").unwrap();
    let (store, found) = Store::open(&options).unwrap();
    assert_eq!((found.as_slice(), copy.exists()), (rows.as_slice(), false));
    drop(store);
    fs::rename(&file, &copy).unwrap();
    assert_eq!(forget(dir.path(), &id("n1")).unwrap(), Forgotten { topics: 1, ..Forgotten::default() });
    let (_store, found) = Store::open(&options).unwrap();
    assert_eq!(found, rows[..1]);
}

#[tokio::test]
async fn a_client_is_forgotten_with_all_that_waits_for_it_alone() {
    let dir = TempDir::new().unwrap();
    let options = Options::new(dir.path());
    let nothing = Forgotten::default();
    assert_eq!(forget(&dir.path().join("nothing here"), &id("n1")).unwrap(), nothing);
    assert!(!dir.path().join("nothing here").exists());
    let stays = [message(1, 5), topic("n", 1, "t"), topic("n10", 1, "t"), waiting("n2", 1, 1)];
    let goes =
        [message(2, 5), topic("n1", 1, "t"), topic("n1", 2, "u"), waiting("n1", 1, 1), waiting("n1", 2, 2)];
    let (store, _) = Store::open(&options).unwrap();
    let all = stays.iter().chain(&goes).cloned().map(Record::Insert).collect();
    write(&store, 1, all).await;
    drop(store);
    assert_eq!(forget(dir.path(), &id("n1")).unwrap(), Forgotten { topics: 2, waiting: 2, ..nothing });
    assert_eq!(forget(dir.path(), &id("n1")).unwrap(), nothing);
    let (_store, rows) = Store::open(&options).unwrap();
    assert_eq!(by_key(rows), by_key(stays));
}

/// How a start is refused after somebody has worked on the file with a program that knows more.
fn refused_after(work: impl FnOnce(&Database)) -> String {
    let dir = TempDir::new().unwrap();
    let options = Options::new(dir.path());
    drop(Store::open(&options).unwrap());
    let database = Database::open(dir.path().join("store.redb")).unwrap();
    work(&database);
    drop(database);
    match Store::open(&options).unwrap_err() {
        StoreError::Newer { what, .. } => format!("newer: {what}"),
        StoreError::Damaged { what, .. } => format!("damaged: {what}"),
        other => panic!("{other}"),
    }
}

/// A value with the right checksum.
fn sealed(key: &[u8], body: &[u8]) -> Vec<u8> {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&(key.len() as u64).to_le_bytes());
    crc.update(key);
    crc.update(body);
    [body, &crc.finalize().to_le_bytes()].concat()
}

/// Of the directory, the file and the lock.
pub(crate) fn modes(dir: &Path) -> [u32; 3] {
    [dir.to_owned(), dir.join("store.redb"), dir.join("store.lock")]
        .map(|path| fs::metadata(path).unwrap().permissions().mode() & 0o7777)
}
