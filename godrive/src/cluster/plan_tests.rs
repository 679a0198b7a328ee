use super::*;

fn names(text: &str) -> BTreeSet<NodeName> {
    text.split_whitespace().map(|name| NodeName::parse(name).expect("a node's name")).collect()
}

fn existing(nodes: &str, running: &str) -> Existing {
    let cluster = Cluster {
        version: 1,
        cluster: "0".repeat(32),
        masters: vec!["127.0.0.1:7000".parse().unwrap()],
        replicas: 3,
        min_replicas: 2,
        chunk_bytes: 16 << 20,
    };
    Existing { cluster: Some(cluster), nodes: names(nodes), running: names(running), ..Existing::default() }
}

fn planned(existing: &Existing, wanted: Wanted) -> String {
    plan(existing, &wanted).unwrap_or_else(|error| panic!("{error}")).to_string()
}

fn refused(existing: &Existing, wanted: Wanted) -> String {
    plan(existing, &wanted).expect_err("must be refused").to_string()
}

#[test]
fn a_new_cluster() {
    let wanted = Wanted { mount: Some("/mnt/gd".into()), ..Wanted::default() };
    assert_eq!(
        planned(&Existing::default(), wanted),
        "create cluster: replicas 3, min_replicas 2, chunk_bytes 16777216\n\
         create master-1\ncreate slave-1\ncreate slave-2\ncreate slave-3\n\
         start master-1\nstart slave-1\nstart slave-2\nstart slave-3\nawait 3 slaves\n\
         create mount-1 at /mnt/gd\nstart mount-1\n"
    );
}

#[test]
fn defaults_follow_the_replicas() {
    let five = planned(&Existing::default(), Wanted { replicas: Some(5), ..Wanted::default() });
    assert!(five.starts_with("create cluster: replicas 5, min_replicas 4"), "{five}");
    assert!(five.contains("await 5 slaves"), "{five}");
    let two = planned(&Existing::default(), Wanted { replicas: Some(2), ..Wanted::default() });
    assert!(two.starts_with("create cluster: replicas 2, min_replicas 2"), "{two}");
    assert!(two.contains("await 3 slaves"), "{two}");
}

#[test]
fn again_starts_only_what_is_not_running() {
    let all = "master-1 slave-1 slave-2 slave-3";
    assert_eq!(planned(&existing(all, all), Wanted::default()), "await 3 slaves\n");
    assert_eq!(
        planned(
            &existing(all, "slave-1 slave-3"),
            Wanted { slaves: Some(3), replicas: Some(3), ..Wanted::default() }
        ),
        "start master-1\nstart slave-2\nawait 3 slaves\n"
    );
}

#[test]
fn more_slaves_are_added() {
    let all = "master-1 slave-1 slave-2 slave-4";
    assert_eq!(
        planned(&existing(all, all), Wanted { slaves: Some(5), ..Wanted::default() }),
        "create slave-3\ncreate slave-5\nstart slave-3\nstart slave-5\nawait 5 slaves\n"
    );
}

#[test]
fn mounts_come_back_and_a_known_path_is_not_mounted_twice() {
    let mut existing =
        existing("master-1 slave-1 slave-2 slave-3 mount-2", "master-1 slave-1 slave-2 slave-3");
    existing.mounts.insert(2, "/mnt/gd".into());
    let same = planned(&existing, Wanted { mount: Some("/mnt/gd".into()), ..Wanted::default() });
    assert_eq!(same, "await 3 slaves\nstart mount-2\n");
    let other = planned(&existing, Wanted { mount: Some("/mnt/other".into()), ..Wanted::default() });
    assert_eq!(other, "await 3 slaves\nstart mount-2\ncreate mount-1 at /mnt/other\nstart mount-1\n");
}

#[test]
fn an_interrupted_creation_is_completed() {
    assert_eq!(
        planned(&existing("slave-1", ""), Wanted::default()),
        "create master-1\ncreate slave-2\ncreate slave-3\n\
         start master-1\nstart slave-1\nstart slave-2\nstart slave-3\nawait 3 slaves\n"
    );
}

#[test]
fn too_few_slaves_are_refused_with_what_to_do() {
    let error = refused(&Existing::default(), Wanted { slaves: Some(1), ..Wanted::default() });
    assert!(error.contains("--slaves 2 or more") && error.contains("--replicas 1"), "{error}");
    let fewer = planned(&Existing::default(), Wanted { slaves: Some(2), ..Wanted::default() });
    assert!(fewer.starts_with("note: 2 slaves cannot hold 3 replicas"), "{fewer}");
}

#[test]
fn contradictions_are_refused() {
    let all = existing("master-1 slave-1 slave-2 slave-3", "");
    let error = refused(&all, Wanted { replicas: Some(2), ..Wanted::default() });
    assert!(error.contains("replicas 3, not 2"), "{error}");
    let error = refused(&all, Wanted { min_replicas: Some(1), ..Wanted::default() });
    assert!(error.contains("min-replicas 2, not 1"), "{error}");
    let error = refused(&all, Wanted { chunk_bytes: Some(1 << 20), ..Wanted::default() });
    assert!(error.contains("chunk-size 16777216, not 1048576"), "{error}");
    let error = refused(&all, Wanted { slaves: Some(2), ..Wanted::default() });
    assert!(error.contains("3 slaves here, not 2"), "{error}");
    let error = refused(&all, Wanted { masters: Some(3), ..Wanted::default() });
    assert!(error.contains("several masters are not there yet"), "{error}");
    let error = refused(&Existing { cluster: None, ..all }, Wanted::default());
    assert!(error.contains("no cluster.toml"), "{error}");
}

#[test]
fn impossible_parameters_are_refused() {
    let new = Existing::default();
    for (wanted, said) in [
        (Wanted { replicas: Some(0), ..Wanted::default() }, "--replicas 0"),
        (Wanted { replicas: Some(17), ..Wanted::default() }, "--replicas 17"),
        (Wanted { min_replicas: Some(0), ..Wanted::default() }, "--min-replicas 0"),
        (Wanted { min_replicas: Some(4), ..Wanted::default() }, "--min-replicas 4"),
        (Wanted { chunk_bytes: Some(3 << 20), ..Wanted::default() }, "--chunk-size 3145728"),
        (Wanted { chunk_bytes: Some(1 << 40), ..Wanted::default() }, "--chunk-size"),
        (Wanted { slaves: Some(1001), ..Wanted::default() }, "--slaves 1001"),
        (Wanted { slaves: Some(0), replicas: Some(1), ..Wanted::default() }, "--slaves 0"),
    ] {
        let error = refused(&new, wanted);
        assert!(error.contains(said), "{error}");
    }
}
