//! Disks that are full or cannot be written, in a mount namespace of their own.

use std::fs;
use std::process::Command;

use mqtt_sn_gateway::gateway::record::{Lsn, Outcome, Record};
use mqtt_sn_gateway::store::{Options, Store, StoreError};
use tempfile::TempDir;

use crate::apart::apart;
use crate::{by_key, message};

#[tokio::test]
async fn what_a_full_disk_does_not_take_is_written_when_there_is_room() {
    if !apart("disk::what_a_full_disk_does_not_take_is_written_when_there_is_room") {
        return;
    }
    let dir = TempDir::new().unwrap();
    mount(&["-t", "tmpfs", "-o", "size=2m", "none", dir.path().to_str().unwrap()]);
    let filler = dir.path().join("filler");
    fs::write(&filler, vec![1; 1 << 20]).unwrap();
    let options = Options::new(dir.path().join("store"));
    let (store, _) = Store::open(&options).unwrap();
    let mut rows = Vec::new();
    // More than fits, and no more than is bounded.
    let unavailable = loop {
        assert!(rows.len() < 100);
        rows.push(message(rows.len() as u64 + 1, 60_000));
        let lsn = Lsn(rows.len() as u64);
        store.submit(lsn, vec![Record::Insert(rows[rows.len() - 1].clone())]);
        let report = store.stored().await;
        if report != (lsn, Outcome::Durable) {
            break report;
        }
    };
    assert_eq!(unavailable, (Lsn(rows.len() as u64), Outcome::Unavailable));
    assert!(store.counters().unavailable);
    fs::remove_file(filler).unwrap();
    assert_eq!(store.stored().await, (Lsn(rows.len() as u64), Outcome::Durable));
    assert!(!store.counters().unavailable);
    drop(store);
    let (_store, found) = Store::open(&options).unwrap();
    assert_eq!(by_key(found), by_key(rows));
}

#[test]
fn a_store_is_not_made_on_a_full_disk_and_is_when_there_is_room() {
    if !apart("disk::a_store_is_not_made_on_a_full_disk_and_is_when_there_is_room") {
        return;
    }
    let dir = TempDir::new().unwrap();
    mount(&["-t", "tmpfs", "-o", "size=64k", "none", dir.path().to_str().unwrap()]);
    let filler = dir.path().join("filler");
    fs::write(&filler, vec![1; 52 << 10]).unwrap();
    let options = Options::new(dir.path().join("store"));
    let refused = Store::open(&options).unwrap_err();
    assert!(matches!(&refused, StoreError::Io { what: "create", .. }), "{refused:?}");
    assert!(!dir.path().join("store/store.redb").exists());
    mount(&["-o", "remount,size=4m", dir.path().to_str().unwrap()]);
    Store::open(&options).unwrap();
}

#[test]
fn a_disk_that_cannot_be_written_is_said_to_be_so() {
    if !apart("disk::a_disk_that_cannot_be_written_is_said_to_be_so") {
        return;
    }
    let dir = TempDir::new().unwrap();
    let path = dir.path().to_str().unwrap();
    mount(&["-t", "tmpfs", "none", path]);
    let options = Options::new(dir.path().join("store"));
    drop(Store::open(&options).unwrap());
    mount(&["-o", "remount,ro", path]);
    let refused = Store::open(&options).unwrap_err();
    let text = refused.to_string();
    let StoreError::Io { source, .. } = refused else { panic!("{text}") };
    assert_eq!(source.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{text}");
    let elsewhere = Store::open(&Options::new(dir.path().join("elsewhere"))).unwrap_err();
    assert!(matches!(elsewhere, StoreError::Io { what: "create the directory", .. }), "{elsewhere}");
}

fn mount(arguments: &[&str]) {
    assert!(Command::new("mount").args(arguments).status().unwrap().success());
}
