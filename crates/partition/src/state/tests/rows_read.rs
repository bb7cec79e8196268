//! How many rows the state store reads for one key, one page or one agent, whatever the store has beside it.

use super::*;

/// Commits: enough that a search that were not one would show.
const COMMITS: u64 = 20_000;

/// Rows that a binary search among so many takes, with the key itself and where the store stands.
fn search(of: u64) -> u64 {
    u64::from(of.ilog2()) + 1 + 4
}

#[test]
fn a_key_as_of_a_commit_takes_a_search_among_its_versions() {
    let mut partition = Fixture::new();
    let hot = key("hot");
    for number in 0..COMMITS {
        partition.commit(vec![write(&hot, &number.to_string())]);
    }
    let reader = partition.state_reader();
    for at in [1, 2, COMMITS / 3, COMMITS / 2, COMMITS - 1, COMMITS] {
        let read = reader.view(|view| Ok((view.get(&hot, At::Commit(at))?, view.rows_read())));
        let (found, rows) = read.unwrap();
        assert_eq!(found.unwrap().version, at);
        assert!(rows <= search(COMMITS), "{rows} rows for commit {at}");
        // By its number it is one row.
        let read = reader.view(|view| Ok((view.get(&hot, At::Version(at))?, view.rows_read())));
        let (found, rows) = read.unwrap();
        assert_eq!(found.unwrap().version, at);
        assert!(rows <= 4, "{rows} rows for version {at}");
    }
}

#[test]
fn a_page_of_agents_reads_one_key_of_each_and_a_page_of_keys_no_other_agents() {
    let mut partition = Fixture::new();
    let of = |agent: &str, number: u64| StateKey::new("default", agent, format!("key-{number:05}"));
    for agent in ["one", "three", "two"] {
        for number in 0..10 {
            let keys = number * 300..(number + 1) * 300;
            let operations = keys.map(|number| write(&of(agent, number), "1"));
            partition.commit(operations.collect());
        }
    }
    let reader = partition.state_reader();
    let agents = reader.view(|view| {
        let mut found = Vec::new();
        view.agents(None, &mut |_, agent| {
            found.push(agent);
            false
        })?;
        Ok((found, view.rows_read()))
    });
    let (found, rows) = agents.unwrap();
    assert_eq!(found, ["one", "three", "two"]);
    assert!(rows <= 3 + 3, "{rows} rows");
    const PAGE: usize = 50;
    let page = reader.view(|view| {
        let mut found = Vec::new();
        view.scan(
            "default",
            "three",
            "key-",
            None,
            At::Latest,
            &mut |key, entry| {
                assert!(entry.is_some());
                found.push(key);
                found.len() == PAGE
            },
        )?;
        Ok((found.len(), view.rows_read()))
    });
    let (found, rows) = page.unwrap();
    assert_eq!(found, PAGE);
    assert!(rows <= PAGE as u64 + 3, "{rows} rows");
}
