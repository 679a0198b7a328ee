use super::super::placement::RoundRobin;
use super::*;
use godrive_proto::time::Instant;
use std::fmt::Write;

const LIMITS: Limits = Limits {
    replicas: 3,
    min_replicas: 2,
    copies: 3,
    copies_per_node: 2,
    rebalances: 1,
    leaves: 2,
    deletions: 2,
};

fn number(word: &str) -> u64 {
    word.trim_start_matches(char::is_alphabetic).parse().unwrap()
}

fn node(word: &str) -> NodeId {
    NodeId(number(word).into())
}

fn disk(node: NodeId) -> DiskId {
    DiskId(node.0 * 10)
}

/// Lines, of nodes with one disk of 100 bytes each and chunks of 10:
/// `disk 4 [free80] [full] [rack1]`; `chunk 7 a1 s2 d3 x4 [left5] [busy]` with members that are alive, suspect, dead,
/// alive and drained, or awaited (`w`); `settled 7 a1 a2 a3 [open]`; `copying 1 2`; `spent 4`; `unneeded 5 7 e3`. Disks come first.
fn planned(text: &str) -> String {
    let mut view = View::default();
    let mut racks: BTreeMap<NodeId, String> = BTreeMap::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[0] {
            "chunk" => view.chunks.push(chunk(&words, &racks)),
            "settled" => view.settled.push(chunk(&words, &racks)),
            "disk" => {
                let free = words.iter().find(|word| word.starts_with("free")).map_or(25, |word| number(word));
                let rack = words.iter().find(|word| word.starts_with("rack")).map(|word| (*word).to_owned());
                let domain = rack.unwrap_or_default();
                racks.insert(node(words[1]), domain.clone());
                view.candidates.push(Candidate {
                    node: node(words[1]),
                    disk: disk(node(words[1])),
                    domain,
                    total_bytes: 100,
                    free_bytes: if words.contains(&"full") { 5 } else { free },
                });
            }
            // Another disk of the node.
            "second" => view.candidates.push(Candidate {
                node: node(words[1]),
                disk: DiskId(disk(node(words[1])).0 + 1),
                domain: String::new(),
                total_bytes: 100,
                free_bytes: 25,
            }),
            "copying" => {
                for word in &words[1..] {
                    *view.copying.entry(node(word)).or_default() += 1;
                }
                view.copies += 1;
            }
            "spent" => drop(view.budgets.insert(node(words[1]), 0)),
            "unneeded" => view.unneeded.push(Unneeded {
                node: node(words[1]),
                chunk: ChunkId(number(words[2])),
                epoch: Epoch(number(words[3])),
            }),
            other => panic!("{other}"),
        }
    }
    view.levels = Balance::new(10).levels(Instant(0), &view.candidates);
    let (steps, stuck) = plan(&view, &LIMITS, &mut RoundRobin::default());
    let mut out = String::new();
    for step in steps {
        match step {
            Step::Join { chunk, source, target, reason, .. } => {
                let word = match reason {
                    Reason::Endangered => "save",
                    Reason::Missing => "join",
                    Reason::Drain => "drain",
                    Reason::Rebalance { .. } => "rebalance",
                };
                write!(out, "{word} {chunk}: {} -> {}", source.0, target.node.0).unwrap();
                if let Reason::Rebalance { from } = reason {
                    write!(out, " for {}", from.0 / 10).unwrap();
                }
                writeln!(out).unwrap();
            }
            Step::Leave { chunk, node } => writeln!(out, "leave {chunk}: {}", node.0).unwrap(),
            Step::Delete { node, chunks } => {
                let list: Vec<_> = chunks.iter().map(|(chunk, epoch)| format!("{chunk}@{epoch}")).collect();
                writeln!(out, "delete on {}: {}", node.0, list.join(" ")).unwrap();
            }
        }
    }
    for chunk in stuck {
        writeln!(out, "stuck {chunk}").unwrap();
    }
    out
}

fn chunk(words: &[&str], racks: &BTreeMap<NodeId, String>) -> ChunkView {
    let members = words[2..].iter().filter_map(|word| {
        let (health, draining) = match word.as_bytes()[0] {
            b'a' => (Health::Alive, false),
            b's' => (Health::Suspect, false),
            b'd' => (Health::Dead, false),
            b'x' => (Health::Alive, true),
            b'w' => (Health::Awaited, false),
            _ => return None,
        };
        let node = node(word);
        let domain = racks.get(&node).cloned().unwrap_or_default();
        Some(MemberView { node, disk: disk(node), domain, health, draining })
    });
    let left = words[2..].iter().filter(|word| word.starts_with("left"));
    ChunkView {
        chunk: ChunkId(number(words[1])),
        bytes: 10,
        used_bytes: 10,
        members: members.collect(),
        leftovers: left.map(|word| (node(word), disk(node(word)))).collect(),
        busy: words.contains(&"busy"),
        open: words.contains(&"open"),
    }
}

#[track_caller]
fn check(view: &str, expected: &str) {
    let expected: String =
        expected.lines().map(str::trim).filter(|l| !l.is_empty()).flat_map(|l| [l, "\n"]).collect();
    assert_eq!(planned(view), expected);
}

#[test]
fn the_most_endangered_first_and_deletions_last() {
    check(
        "disk 1
         disk 2
         disk 4
         disk 5
         chunk 1 a1 a2 d3
         chunk 2 a1 d2 d3
         chunk 3 a1 a2 a4
         unneeded 2 9 e4
         unneeded 2 8 e4
         unneeded 2 7 e4",
        "save 2: 1 -> 2
         join 1: 1 -> 4
         delete on 2: 9@4 8@4",
    );
}

#[test]
fn a_restarting_node_has_grace_unless_the_chunk_is_at_risk() {
    check(
        "disk 4
         chunk 1 a1 a2 s3
         chunk 2 a1 s2 s3",
        "save 2: 1 -> 4",
    );
}

/// They have not registered since the master began; what missed replicas before misses them still.
#[test]
fn awaited_nodes_are_no_failures() {
    check(
        "disk 1
         disk 4
         disk 5
         chunk 1 a1 w2 w3
         chunk 2 a1 a2 w3
         chunk 3 a4 w2
         chunk 4 a4
         chunk 5 w1 w2 w3
         chunk 6 a1 d2 w3",
        "save 4: 4 -> 1
         join 3: 4 -> 5
         join 6: 1 -> 5",
    );
    // Once they would be back, if they were.
    check("disk 4\n chunk 1 a1 d2 d3", "save 1: 1 -> 4");
    // Nor does anything leave or move on their word.
    check("disk 1\n disk 2\n disk 3\n disk 4\n chunk 1 a1 a2 a3 w4\n chunk 2 a1 a2 x3 w4", "");
}

#[test]
fn limits_hold_per_node_and_in_all() {
    check(
        "disk 3
         disk 4
         chunk 1 a1 a2 d9
         chunk 2 a1 a2 d9
         chunk 3 a1 a2 d9
         chunk 4 a1 a2 d9",
        "join 1: 1 -> 3
         join 2: 2 -> 4
         join 3: 1 -> 3",
    );
    check(
        "disk 3
         disk 4
         chunk 1 a1 a2 d9
         copying 1 3
         copying 1 3",
        "join 1: 2 -> 4",
    );
    check("disk 3\n chunk 1 a1 a2 d9\n copying 5 6\n copying 5 6\n copying 7 8", "");
}

#[test]
fn leftovers_are_preferred_and_space_is_counted() {
    check(
        "disk 4
         disk 5 full
         chunk 1 a1 a2 left5",
        "join 1: 1 -> 5",
    );
}

/// Chunks without a place must not keep those behind them from being looked at.
#[test]
fn chunks_without_a_place_are_named() {
    check("disk 4 full\n chunk 1 a1 a2\n chunk 2 a1 a2 x3", "stuck 1\n stuck 2");
    check("disk 4\n chunk 1 a1 a2\n copying 4 5\n copying 4 6", "");
}

#[test]
fn a_full_cluster_can_reclaim() {
    check(
        "disk 1 full
         disk 2 full
         disk 3 full
         chunk 1 a1 a2 d9
         chunk 2 a1 a2 x3
         copying 1 2
         copying 1 2
         copying 5 6
         unneeded 1 9 e4
         unneeded 3 9 e4",
        "delete on 1: 9@4
         delete on 3: 9@4",
    );
}

#[test]
fn a_node_that_lost_its_replica_may_get_it_again() {
    check("disk 3\n chunk 1 a1 a2 d3", "join 1: 1 -> 3");
    check("disk 3\n chunk 1 a1 a2 s3", "");
}

#[test]
fn busy_chunks_and_chunks_without_a_source_wait() {
    check("disk 4\n chunk 1 a1 a2 d3 busy\n chunk 2 d1 d2 d3\n chunk 3 s1 s2 s3\n chunk 4 a1 a2 x3 busy", "");
}

#[test]
fn a_budget_holds_for_all_but_endangered_chunks() {
    check(
        "disk 4
         disk 5
         chunk 1 a1 s2 s3
         chunk 2 a1 a2 d3
         chunk 3 a2 a6 x3
         spent 1
         spent 4",
        "save 1: 1 -> 4
         join 2: 2 -> 5
         drain 3: 6 -> 5",
    );
    check("disk 4\n chunk 1 a1 a2 d3\n spent 4", "");
    check("disk 4\n chunk 1 a1 a2 d3\n spent 1\n spent 2", "");
}

#[test]
fn a_drained_member_leaves_when_another_one_has_joined() {
    let disks = "disk 1\n disk 2\n disk 3\n disk 4\n";
    check(&format!("{disks} chunk 1 a1 a2 x9"), "drain 1: 1 -> 3");
    check(&format!("{disks} chunk 1 a1 a2 x9 a3"), "leave 1: 9");
    check(&format!("{disks} chunk 1 a1 a2 a3 left9"), "");
    // Two of three: one after the other.
    check(&format!("{disks} chunk 1 a1 x8 x9"), "drain 1: 1 -> 2");
    check(&format!("{disks} chunk 1 a1 x8 x9 a2"), "leave 1: 8");
    check(&format!("{disks} chunk 1 a1 x9 a2"), "drain 1: 1 -> 3");
}

/// The chunk has no more members then, so none leaves.
#[test]
fn what_is_on_one_drained_disk_may_go_to_another_one_of_its_node() {
    check("disk 1\n disk 2\n second 9\n chunk 1 a1 a2 x9", "drain 1: 1 -> 9");
    check("disk 1\n disk 2\n disk 3\n second 9\n chunk 1 a1 a2 x9", "drain 1: 1 -> 3");
    check("disk 1\n disk 2\n second 8\n chunk 1 a1 a2 x9", "drain 1: 1 -> 8");
    check("disk 9 full\n second 9\n chunk 1 x9 a1 a2", "drain 1: 1 -> 9");
    // A chunk that misses a replica gains none by it.
    check("second 9\n chunk 1 a1 x9", "stuck 1");
}

#[test]
fn a_drain_waits_for_a_member_that_may_be_restarting() {
    check("disk 4\n chunk 1 a1 s2 x3", "");
    check("disk 4\n disk 5\n chunk 1 a1 a2 s4 x3", "");
    check("disk 4\n disk 5\n chunk 1 a1 a2 a4 x3", "leave 1: 3");
    check("disk 4\n disk 5\n chunk 1 a1 a2 d4 x3", "leave 1: 4");
}

#[test]
fn repair_goes_before_drain_and_drain_before_balance() {
    check(
        "disk 1 free10
         disk 4 free90
         chunk 1 a1 a2 x3
         chunk 2 a1 a2 a3 a4
         chunk 3 a1 a2 d3
         chunk 4 a1 d2 d3
         settled 5 a1 a2 a3",
        "save 4: 1 -> 4
         join 3: 2 -> 4
         leave 2: 2",
    );
}

#[test]
fn a_member_too_many_leaves() {
    // The fullest disk.
    check("disk 1\n disk 2 free10\n disk 3 free80\n disk 4\n chunk 1 a1 a2 a3 a4", "leave 1: 2");
    // Who lost its replica, before anybody else.
    check("disk 1\n disk 2 free10\n disk 3\n chunk 1 a1 a2 a3 d4", "leave 1: 4");
    // Who shares a rack, though others are fuller.
    check(
        "disk 1 rack1\n disk 2 rack1 free30\n disk 3 rack2 free10\n disk 4 rack3\n chunk 1 a1 a2 a3 a4",
        "leave 1: 1",
    );
    // One that may be restarting counts for nothing and loses nothing.
    check("disk 1\n disk 2\n disk 3\n chunk 1 a1 a2 a3 s4", "");
    // Some at a time.
    let chunks: String = (1..9).map(|n| format!("chunk {n} a1 a2 a3 a4\n")).collect();
    check(&format!("disk 1\n disk 2\n disk 3\n disk 4\n {chunks}"), "leave 1: 1\n leave 2: 1");
}

#[test]
fn full_disks_give_to_empty_ones() {
    let disks = "disk 1 free20\n disk 2 free50\n disk 3 free50\n disk 4 free80\n";
    check(&format!("{disks} settled 1 a1 a2 a3\n settled 2 a2 a3 a4"), "rebalance 1: 1 -> 4 for 1");
    // The widest difference first, so many at a time.
    check(&format!("{disks} settled 1 a2 a3 a5\n settled 2 a1 a2 a3"), "rebalance 2: 1 -> 4 for 1");
    check(&format!("{disks} settled 1 a1 a2 a3 open\n settled 2 a1 a2 x3\n settled 3 a1 a2 s3"), "");
    check(&format!("{disks} settled 1 a1 a2 a3\n copying 5 6"), "");
    check(&format!("{disks} settled 1 a1 a2 a3\n spent 4"), "");
    // What the join makes too many is what should go.
    check(&format!("{disks} chunk 1 a1 a2 a3 a4"), "leave 1: 1");
}

#[test]
fn balance_keeps_to_the_rules_of_placement() {
    // The emptiest disk has a replica already.
    check(
        "disk 1 free20\n disk 2 free50\n disk 3 free20\n disk 4 free80\n settled 1 a1 a3 a4",
        "rebalance 1: 1 -> 2 for 1",
    );
    // The emptiest disk is in a rack that has one.
    let racks = "disk 1 rack1 free20\n disk 2 rack2 free60\n disk 3 rack3 free60\n disk 4 rack2 free90\n";
    check(&format!("{racks} settled 1 a1 a2 a3"), "rebalance 1: 1 -> 4 for 2");
    // Too little to gain: the target would be the fuller one.
    check("disk 1 free40\n disk 4 free55\n settled 1 a1 a2 a3", "");
    check("disk 1 free40\n disk 4 free50\n settled 1 a1 a2 a3", "");
}

fn disks(free: [u64; 2]) -> Vec<Candidate> {
    let disk = |(at, free_bytes): (u128, u64)| Candidate {
        node: NodeId(at),
        disk: disk(NodeId(at)),
        domain: String::new(),
        total_bytes: 1000,
        free_bytes,
    };
    [(1, free[0]), (2, free[1])].map(disk).to_vec()
}

fn s(seconds: u64) -> Instant {
    Instant(seconds * 1_000_000_000)
}

#[test]
fn balancing_goes_on_to_half_the_threshold_and_not_further() {
    let mut balance = Balance::new(10);
    let mut even = |free| balance.levels(s(0), &disks(free)).is_even();
    assert!(even([400, 500]), "within the threshold");
    assert!(!even([400, 501]));
    assert!(!even([440, 500]), "it goes on");
    assert!(even([450, 500]), "until half of it");
    assert!(even([400, 500]), "and does not begin again");
    assert!(!even([300, 500]));
    assert!(Balance::new(0).levels(s(0), &disks([0, 1000])).is_even(), "turned off");
}

#[test]
fn what_was_moved_away_counts_at_once_and_nothing_comes_back() {
    let mut balance = Balance::new(10);
    let chunk = chunk(&["chunk", "1", "a2", "a8", "a9"], &BTreeMap::new());
    assert!(!balance.levels(s(0), &disks([400, 520])).is_even());
    // The slave has not given it back yet.
    balance.moved(s(0), disk(NodeId(1)), 80);
    assert!(balance.levels(s(1), &disks([400, 520])).is_even());
    // It has, and is credited all the same: it takes nothing that would have to go again.
    balance.moved(s(1), disk(NodeId(1)), 400);
    let levels = balance.levels(s(2), &disks([480, 440]));
    assert_eq!(levels.narrowing(&chunk, &LIMITS), None);
    assert!(balance.levels(s(60), &disks([480, 440])).is_even());
}
