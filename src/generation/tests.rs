use super::*;

#[test]
fn the_first_two_that_lock_at_once_lock_the_same_file() {
    for _ in 0..20 {
        let directory = tempfile::tempdir().unwrap();
        let store = GenerationStore::new(directory.path());
        atomic_file::create_directory(&store.directory(), 0o700).unwrap();
        let inside = std::sync::atomic::AtomicUsize::new(0);
        let start = std::sync::Barrier::new(4);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    start.wait();
                    let _locked = store.lock(Duration::from_secs(10)).unwrap();
                    let others = inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    assert_eq!(others, 0);
                    thread::sleep(Duration::from_millis(1));
                    inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                });
            }
        });
    }
}

#[test]
fn what_cannot_be_read_now_is_not_taken_for_missing() {
    let directory = tempfile::tempdir().unwrap();
    let missing = repair::read_file(&directory.path().join("missing"));
    assert_eq!(missing.unwrap(), None);
    // an error of the kernel's that says nothing about what is there: ENAMETOOLONG
    let unreadable = repair::read_file(&directory.path().join("x".repeat(300)));
    assert!(matches!(unreadable, Err(GenerationError::Read { .. })));
}
