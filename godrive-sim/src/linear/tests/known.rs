use super::history;
use crate::linear::log::{self, Contents, Log};
use crate::linear::names::{self, Listed, Names};
use crate::linear::register::{self, Register};
use crate::linear::{BUDGET, History, Model, Verdict, check, explain};

fn right<M: Model>(history: &History<M>) {
    assert_eq!(explain("it", history, BUDGET), None);
}

/// Wrong, and the report marks the answer that came at this moment.
fn wrong<M: Model>(history: &History<M>, moment: u64) {
    let report = explain("it", history, BUDGET).expect("it is not linearizable");
    let marked: Vec<_> = report.lines().filter(|line| line.trim_start().starts_with('>')).collect();
    assert_eq!(marked.len(), 1, "{report}");
    assert!(marked[0].split_whitespace().any(|word| word == moment.to_string()), "{moment}: {report}");
}

mod registers {
    use super::*;
    use register::{Answer, Call};

    fn write(client: u16, value: u64, begin: u64, end: u64) -> super::super::Row<Register> {
        (client, Call::Write(value), begin, Some((end, Answer::Written)))
    }

    fn lost(client: u16, value: u64, begin: u64) -> super::super::Row<Register> {
        (client, Call::Write(value), begin, None)
    }

    fn read(client: u16, value: u64, begin: u64, end: u64) -> super::super::Row<Register> {
        (client, Call::Read, begin, Some((end, Answer::Value(value))))
    }

    #[test]
    fn a_write_is_seen_once_it_has_returned() {
        right::<Register>(&history([read(1, 0, 1, 2), write(1, 5, 3, 4), read(2, 5, 5, 6)]));
        wrong::<Register>(&history([write(1, 5, 1, 2), read(2, 0, 3, 4)]), 4);
        wrong::<Register>(&history([write(1, 5, 1, 2), write(2, 6, 3, 4), read(3, 5, 5, 6)]), 6);
        wrong::<Register>(&history([write(1, 5, 1, 2), read(3, 7, 5, 6)]), 6);
    }

    #[test]
    fn a_write_under_way_may_be_seen_but_not_unseen() {
        right::<Register>(&history([write(1, 5, 1, 8), read(2, 0, 2, 3), read(2, 5, 4, 5)]));
        wrong::<Register>(&history([write(1, 5, 1, 8), read(2, 5, 2, 3), read(3, 0, 4, 5)]), 5);
    }

    #[test]
    fn two_writes_at_once_have_one_order_for_all() {
        let writes = [write(1, 5, 1, 4), write(2, 6, 2, 3)];
        right::<Register>(&history(writes.clone().into_iter().chain([read(1, 5, 5, 6), read(2, 5, 7, 8)])));
        right::<Register>(&history(writes.clone().into_iter().chain([read(1, 6, 5, 6), read(2, 6, 7, 8)])));
        wrong::<Register>(&history(writes.into_iter().chain([read(1, 5, 5, 6), read(2, 6, 7, 8)])), 8);
    }

    #[test]
    fn a_write_without_an_answer_may_come_late_or_never_but_once() {
        right::<Register>(&history([lost(1, 5, 1), read(2, 0, 2, 3)]));
        right::<Register>(&history([lost(1, 5, 1), write(2, 6, 2, 3), read(2, 6, 4, 5), read(2, 5, 6, 7)]));
        wrong::<Register>(
            &history([lost(1, 5, 1), read(2, 5, 2, 3), write(2, 6, 4, 5), read(2, 5, 6, 7)]),
            7,
        );
        wrong::<Register>(&history([read(2, 5, 2, 3), lost(1, 5, 4)]), 3);
    }

    #[test]
    fn the_report_shows_the_shortest_wrong_beginning() {
        let later =
            (10..400).flat_map(|n| [write(1, n, 10 * n, 10 * n + 1), read(2, n, 10 * n + 2, 10 * n + 3)]);
        let rows = [write(1, 5, 1, 2), read(2, 0, 3, 4)].into_iter().chain(later);
        let report = explain::<Register>("block 3", &history(rows), BUDGET).unwrap();
        assert!(report.starts_with("block 3: "), "{report}");
        assert_eq!(report.lines().count(), 4, "{report}");
    }

    #[test]
    fn what_cannot_be_decided_is_not_passed() {
        let lost = (1..12).map(|n| lost(1, n, n));
        let reads = (1..12).map(|n| read(2, if n == 11 { 1 } else { n }, 100 + 2 * n, 101 + 2 * n));
        let history = history::<Register>(lost.chain(reads));
        assert_eq!(check(&history, 20), Verdict::Undecided);
        assert!(explain("it", &history, 20).unwrap().contains("nothing is proven"));
        assert_eq!(check(&history, BUDGET), Verdict::Violated);
    }
}

mod directories {
    use super::*;
    use names::{Answer, Call};

    fn did(client: u16, call: Call, begin: u64, end: u64) -> super::super::Row<Names> {
        (client, call, begin, Some((end, Answer::Done)))
    }

    fn gave(client: u16, call: Call, answer: Answer, begin: u64, end: u64) -> super::super::Row<Names> {
        (client, call, begin, Some((end, answer)))
    }

    fn list(present: &[(usize, Listed)], begin: u64, end: u64) -> super::super::Row<Names> {
        let mut names = [Listed::Absent; names::NAMES];
        present.iter().for_each(|(name, listed)| names[*name] = *listed);
        gave(3, Call::List, Answer::Listing(names), begin, end)
    }

    #[test]
    fn only_one_creates_a_name() {
        let one = did(1, Call::Create(0, 7), 1, 4);
        right::<Names>(&history([one.clone(), gave(2, Call::Create(0, 8), Answer::Exists, 2, 3)]));
        wrong::<Names>(&history([one.clone(), did(2, Call::Create(0, 8), 2, 3)]), 4);
        wrong::<Names>(&history([one, gave(2, Call::Create(1, 8), Answer::Exists, 5, 6)]), 6);
    }

    #[test]
    fn nothing_rises_after_its_removal() {
        let made = [did(1, Call::Create(0, 7), 1, 2), did(2, Call::Remove(0), 3, 4)];
        right::<Names>(&history(made.clone().into_iter().chain([gave(
            1,
            Call::Look(0),
            Answer::Missing,
            5,
            6,
        )])));
        wrong::<Names>(
            &history(made.clone().into_iter().chain([gave(1, Call::Look(0), Answer::Found(7), 5, 6)])),
            6,
        );
        wrong::<Names>(&history(made.clone().into_iter().chain([did(1, Call::Remove(0), 5, 6)])), 6);
        wrong::<Names>(&history(made.into_iter().chain([list(&[(0, Listed::Present)], 5, 6)])), 6);
        // A removal without an answer may come behind a second creation, but not twice.
        let late = [
            did(1, Call::Create(0, 7), 1, 2),
            (2, Call::Remove(0), 3, None),
            gave(1, Call::Look(0), Answer::Found(7), 4, 5),
        ];
        right::<Names>(&history(late.clone().into_iter().chain([gave(
            1,
            Call::Look(0),
            Answer::Missing,
            6,
            7,
        )])));
        let again = [
            gave(1, Call::Look(0), Answer::Missing, 6, 7),
            did(1, Call::Create(0, 8), 8, 9),
            gave(1, Call::Look(0), Answer::Missing, 10, 11),
        ];
        wrong::<Names>(&history(late.into_iter().chain(again)), 11);
    }

    #[test]
    fn a_rename_is_never_seen_half() {
        let before = [did(1, Call::Create(0, 7), 1, 2), did(1, Call::Create(1, 8), 3, 4)];
        let renamed = before.iter().cloned().chain([did(2, Call::Rename(0, 1), 5, 20)]);
        let with = |rows: Vec<super::super::Row<Names>>| history::<Names>(renamed.clone().chain(rows));
        right(&with(vec![list(&[(0, Listed::Leads(7)), (1, Listed::Leads(8))], 6, 7)]));
        right(&with(vec![list(&[(1, Listed::Leads(7))], 6, 7)]));
        // In both places, in neither, and back again.
        wrong(&with(vec![list(&[(0, Listed::Leads(7)), (1, Listed::Leads(7))], 6, 7)]), 7);
        wrong(&with(vec![list(&[], 6, 7)]), 7);
        wrong(&with(vec![list(&[(1, Listed::Present)], 6, 7), list(&[(0, Listed::Present)], 8, 9)]), 9);
        wrong(
            &with(vec![
                gave(3, Call::Look(0), Answer::Missing, 6, 7),
                gave(3, Call::Look(1), Answer::Found(8), 8, 9),
            ]),
            9,
        );
    }

    #[test]
    fn a_rename_that_must_not_replace_gives_a_reason_that_holds() {
        let call = Call::RenameNoReplace(0, 1);
        let made = did(1, Call::Create(1, 8), 1, 2);
        right::<Names>(&history([made.clone(), gave(2, call.clone(), Answer::Exists, 3, 4)]));
        right::<Names>(&history([made.clone(), gave(2, call.clone(), Answer::Missing, 3, 4)]));
        wrong::<Names>(&history([made.clone(), did(2, call.clone(), 3, 4)]), 4);
        wrong::<Names>(&history([gave(2, call.clone(), Answer::Exists, 1, 2)]), 2);
        let both = [did(1, Call::Create(0, 7), 3, 4), gave(2, call, Answer::Missing, 5, 6)];
        wrong::<Names>(&history([made].into_iter().chain(both)), 6);
    }
}

mod logs {
    use super::*;
    use log::{Answer, Call};

    fn append(client: u16, record: u64, begin: u64, end: u64) -> super::super::Row<Log> {
        (client, Call::Append(record), begin, Some((end, Answer::Appended)))
    }

    fn read(client: u16, records: &[u64], begin: u64, end: u64) -> super::super::Row<Log> {
        let contents: Contents = records.iter().copied().collect();
        (client, Call::Read, begin, Some((end, Answer::Contents(contents))))
    }

    #[test]
    fn records_stay_in_their_order_and_come_once() {
        let appended = [append(1, 5, 1, 2), append(2, 6, 3, 4)];
        let with = |reads: Vec<super::super::Row<Log>>| history::<Log>(appended.iter().cloned().chain(reads));
        right(&with(vec![read(1, &[5, 6], 5, 6)]));
        right(&with(vec![read(1, &[5], 2, 5), read(1, &[5, 6], 6, 7)]));
        // One is lost, one came twice, the order is another, one was never written.
        wrong(&with(vec![read(1, &[6], 5, 6)]), 6);
        wrong(&with(vec![read(1, &[5, 6, 6], 5, 6)]), 6);
        wrong(&with(vec![read(1, &[6, 5], 5, 6)]), 6);
        wrong(&with(vec![read(1, &[5, 6, 7], 5, 6)]), 6);
    }

    #[test]
    fn appends_at_once_have_one_order_for_all() {
        let appended = [append(1, 5, 1, 4), append(2, 6, 2, 3)];
        let with = |reads: Vec<super::super::Row<Log>>| history::<Log>(appended.iter().cloned().chain(reads));
        right(&with(vec![read(1, &[6, 5], 5, 6), read(2, &[6, 5], 7, 8)]));
        wrong(&with(vec![read(1, &[6, 5], 5, 6), read(2, &[5, 6], 7, 8)]), 8);
    }

    #[test]
    fn an_append_without_an_answer_is_there_once_or_not_at_all() {
        let lost = [append(1, 5, 1, 2), (2, Call::Append(6), 3, None), append(1, 7, 4, 5)];
        let with = |reads: Vec<super::super::Row<Log>>| history::<Log>(lost.iter().cloned().chain(reads));
        right(&with(vec![read(1, &[5, 7], 6, 7), read(1, &[5, 7, 6], 8, 9)]));
        right(&with(vec![read(1, &[5, 6, 7], 6, 7)]));
        wrong(&with(vec![read(1, &[5, 6, 7, 6], 6, 7)]), 7);
        wrong(&with(vec![read(1, &[5, 6, 7], 6, 7), read(1, &[5, 7], 8, 9)]), 9);
    }
}
