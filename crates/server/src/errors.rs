//! `docs/reference/errors.md`: every stable code, when it is used, and what to do. A test keeps it
//! current.

use std::fmt::Write as _;

use crate::{admin, api, config, state};

/// Codes that the command line adds of its own.
const COMMAND_CODES: &[(&str, &str, &str)] = &[
    (
        "usage",
        "The arguments are wrong: an unknown option or command, a missing argument, or an invalid value.",
        "Correct the arguments; `--help` lists those that the command takes.",
    ),
    (
        "file_exists",
        "The file that was to be written is there already, and is not empty; or others have made or filled it meanwhile, and what was written is beside it, in `FILE.new`.",
        "Name another, or replace it with `--force`; look at both.",
    ),
    (
        "input",
        "A line of the input is no record: it cannot be read, is longer than a record may be, or, with `--format json`, is no record as JSON. What came before it is appended.",
        "Correct the line that the message names, and append from there on.",
    ),
    (
        "server",
        "The server answers with an error that this version does not know.",
        "The message is the server's. Use the version of the server, or a newer one.",
    ),
    (
        "demo",
        "Something that the demo shows did not hold, or a part of it could not be run.",
        "Look around in the directory that it names, and report it.",
    ),
    (
        "cluster_try",
        "A cluster that was started to try it did not form, or did not stop.",
        "The message says why; the directory that it names has the logs.",
    ),
    (
        "replicas_not_equal",
        "`esker cluster check` has found replicas that differ, or could not compare them.",
        "The result names the partitions and the nodes. A replica that differs from the majority is stopped: replace its node.",
    ),
    (
        "removal_incomplete",
        "The time of `esker cluster remove` has ended, and partitions still count on the node, or it is not known whether they do. The removal is recorded, or may be.",
        "Keep the node running, and do what the message says of each partition. The same command waits again.",
    ),
    (
        "drain_incomplete",
        "The time of `esker cluster drain` has ended, and the node still leads a partition, or has a vote that another node is to take.",
        "Do what the message says of each partition. The same command waits again; `esker cluster activate` lets the node stay.",
    ),
    (
        "listen",
        "The address cannot be listened on: another program uses the port, or it is not this machine's.",
        "Stop that program, or choose another address with `--listen`.",
    ),
    (
        "traces",
        "Traces cannot be sent as `[traces]` says: `header` is no header, or there can be no client for the collector.",
        "Correct `traces.header`, as `name: value`, or leave `traces.endpoint` unset.",
    ),
    (
        "tls_files",
        "A file of TLS cannot be used: it cannot be read, holds something else, or key and certificate do not fit each other.",
        "Correct the file that the message names.",
    ),
    (
        "cluster_files",
        "The file of the cluster's secret, a certificate, a key or an authority that `cluster` names cannot be read, or cannot be used.",
        "The message names the file, and what is wrong with it.",
    ),
    (
        "root_token",
        "The file that `root-token-file` names is missing, can be read or written by other users, has no token of at least 32 visible ASCII characters, or cannot be read.",
        "Do what the message says; `--create-root-token` creates a file that is not there.",
    ),
    (
        "unreachable",
        "No server answers at the address.",
        "Start one with `esker server`, or name another with `--server`.",
    ),
    (
        "tls",
        "The server's certificate is not accepted, or what answers does not speak TLS, or the server demands a client certificate that it accepts. Nothing was sent.",
        "Name the authority of its certificate with `--ca-file`, and the server by a name that the certificate has; your certificate with `--client-cert`, and its key with `--client-key`.",
    ),
    (
        "certificates",
        "The file of `--ca-file`, `--client-cert` or `--client-key` cannot be read, or does not hold what it is to hold; or the system has no certificates.",
        "The message names the file; certificates and keys are in PEM form.",
    ),
    (
        "token",
        "The file or variable of the access token cannot be read, is empty, or holds no token.",
        "The message names it: one line with the token, readable by its owner alone.",
    ),
    (
        "encryption_key",
        "The file or variable of the encryption key cannot be read, is empty, or holds no key.",
        "The message names it: 32 bytes in base64, as `openssl rand -base64 32` makes them.",
    ),
    (
        "import_incomplete",
        "`esker import` could not copy all streams, or they differ; what it printed names each.",
        "Do what the message of each stream says, and run it again.",
    ),
    (
        "import_conflict",
        "The stream is not a copy of the source's: it has other records, or another client appends to it.",
        "Delete the copy, and run the import again; no client may write to it until then.",
    ),
    (
        "import_differs",
        "A record of the copy is not that of the source, or the copy ends elsewhere. The message has the position.",
        "Delete the copy, and run the import again.",
    ),
    (
        "import_front",
        "The stream was trimmed in the source, and more positions before its first record are to be filled than `--max-front` allows.",
        "Raise `--max-front`: ten million take a minute or so.",
    ),
    (
        "import_gap",
        "The source's sequence numbers have a gap, or it was trimmed while it was copied.",
        "Run it again. A gap that stays cannot be copied with positions kept.",
    ),
    (
        "not_a_server",
        "Something answers at the address, but it is not an S2 server.",
        "Correct the address.",
    ),
    (
        "seq_num_mismatch",
        "A conditional append: the next sequence number is another, which the message names.",
        "Read what came in between, and decide again.",
    ),
    (
        "fencing_token_mismatch",
        "Another fencing token is in force, which the message names.",
        "Another writer has taken over the stream; stop writing to it.",
    ),
    (
        "beyond_tail",
        "A read or trim begins beyond the stream's tail.",
        "`esker stream check-tail` shows where the stream ends.",
    ),
    (
        "client",
        "The client library refused the request before it was sent, or lost the connection.",
        "The message says why.",
    ),
    (
        "not_esker",
        "What answers at the address is a server, but not an Esker, or one that is too old: it has no admin API.",
        "Correct the address.",
    ),
    (
        "unhealthy",
        "`esker status` found a problem that needs action; what it printed says which.",
        "Do what is printed beside the problem.",
    ),
    (
        "interrupted",
        "The command was interrupted.",
        "Run it again; the message says what was done before.",
    ),
];

/// Codes of `esker state`, beside those of the command line and of the state service.
const STATE_CODES: &[(&str, &str, &str)] = &[
    (
        "key_not_found",
        "The key does not exist, or did not then, or not in that version.",
        "`esker state keys AGENT` shows those that do; `esker state history AGENT KEY` its versions.",
    ),
    (
        "state_differs",
        "A snapshot and the commits after it do not give the live state.",
        "Export the live state, and keep the snapshot; what was printed says how they differ.",
    ),
];

/// Codes of `esker snapshot`.
const SNAPSHOT_CODES: &[(&str, &str, &str)] = &[
    (
        "repository",
        "A repository was not named where the command needs one, or a server where it needs a repository, or what was named is no URL of one.",
        "Name a server with `--server` (`ESKER_SERVER`) or a repository with `--repository` (`ESKER_REPOSITORY`).",
    ),
    (
        "credentials",
        "Keys or settings of S3 do not fit together: half a pair, or a profile that is missing, or that first has to obtain its keys (SSO, an assumed role).",
        "The message names the option, variable or file.",
    ),
    (
        "partition",
        "The repository holds several partitions.",
        "Name one with `--partition`.",
    ),
    (
        "no_repository",
        "There is no snapshot there, and never was.",
        "Correct the URL or the partition, or make the first with `esker snapshot put`.",
    ),
    (
        "root_missing",
        "The root `latest.json` is missing beside snapshots: it was removed.",
        "Bring it back from a version or a backup of the bucket. Nothing is written or deleted until then.",
    ),
    (
        "no_snapshot",
        "No kept snapshot has this id, name or LSN.",
        "`esker snapshot list` shows those that are kept.",
    ),
    (
        "damaged",
        "Objects are missing, or are not what was written; the message or the report names each.",
        "`esker snapshot verify --data` says which snapshots it hurts, and with `--repair` repairs what it can. Without that, nothing was changed.",
    ),
    (
        "newer_format",
        "Objects of the repository have a format that this release does not know, because a newer one has written them. They are no damage, and are neither used, repaired nor deleted.",
        "Use that release, or a newer one; a restore can name another snapshot.",
    ),
    (
        "unusable",
        "No snapshot could be restored; the message says why, for each that was tried.",
        "Bring the damaged objects back from versions or a backup of the bucket.",
    ),
    (
        "not_ours",
        "Restate, or another program that counts no generations, wrote this repository, or another partition at its destination: it is read only.",
        "Write to another prefix.",
    ),
    (
        "repository_missing",
        "The destination's `cluster.json` is missing, or another one than before: a disk is not mounted, or a bucket was emptied.",
        "Bring it back. If it was removed on purpose, stop the server, delete `destination.json` in its data directory, and start it again.",
    ),
    (
        "other_writer",
        "Another node, or another copy of this one's data directory, puts the snapshots of the partition.",
        "Stop the one that is not wanted, or give it a destination of its own.",
    ),
    (
        "other_cluster",
        "The repository belongs to another cluster.",
        "Use a prefix for each cluster; or, if it is this one's, correct `--cluster-name`.",
    ),
    (
        "other_lineage",
        "The snapshot is of another history than the repository's.",
        "Name its history with `--lineage`, or use another prefix.",
    ),
    (
        "superseded",
        "The snapshot is older than the oldest retained one.",
        "Nothing: a newer one is there.",
    ),
    (
        "denied",
        "The store or the file system refuses; the message says where the keys came from.",
        "Correct the keys or the permissions.",
    ),
    (
        "store",
        "The store does not answer, or fails again and again.",
        "Look whether it is reachable, and what it logs.",
    ),
    (
        "lying_store",
        "The store does not keep what conditional puts promise. Nothing was written.",
        "Use another store, or a newer version of it.",
    ),
    (
        "no_space",
        "There is not enough space on the disk; a restore says how much is needed.",
        "Free some space, and run it again: a restore is resumed.",
    ),
    (
        "root_moved",
        "The repository changed after the plan of a prune was made. Nothing was deleted.",
        "Make a new plan.",
    ),
    (
        "plan",
        "The file is no plan of a prune.",
        "Make one with `esker snapshot prune --dry-run --plan-out FILE`.",
    ),
    (
        "needs_yes",
        "A prune would release snapshots, and there is no terminal for the question.",
        "Add `--yes`.",
    ),
    (
        "declined",
        "The question whether to continue was not answered with yes.",
        "Nothing was deleted.",
    ),
    (
        "fenced",
        "Others removed this upload's intent as expired, again and again.",
        "Look at the clocks, and try again.",
    ),
    (
        "contended",
        "Others changed the repository's root each time.",
        "Try again.",
    ),
    (
        "snapshot",
        "Something else about a repository failed; the message says what.",
        "The message says why. Nothing that is kept was changed.",
    ),
];

/// Codes of `esker follow`, beside those of the command line and of stores.
const FOLLOW_CODES: &[(&str, &str, &str)] = &[
    (
        "fold",
        "Nothing says what the state is.",
        "Say `--by /POINTER`, `--count-by /POINTER` or `--merge`; `--inspect` needs none.",
    ),
    (
        "snapshot_place",
        "An option concerns snapshots, and no place for them is given, or not the kind of place that the option is for; or `external:` is not followed by the URL of a place.",
        "Add `--snapshot in-stream` or `--snapshot external:URL`.",
    ),
    (
        "history_gone",
        "What was before the stream's head is gone, and no snapshot covers it; the message says which were tried, and why each is of no use. Or numbers jump behind the newest snapshot, and it is no longer known whether records are missing there.",
        "Name the place of its snapshots with `--snapshot`; `--inspect` lists those that there are.",
    ),
    (
        "snapshot_unusable",
        "The newest snapshot is of another fold, a newer version, or another stream of the same name, or goes beyond the stream's tail.",
        "The message says which. Follow with the fold or the version that took it, or use a place for each stream and fold; `--pass-over` uses an older one.",
    ),
    (
        "other_fold",
        "The stream has a snapshot of another fold, which one of this fold in the stream would trim away.",
        "Follow with that fold, or keep the snapshots of one of the two beside the stream (`--snapshot external:URL`).",
    ),
    (
        "identity_unknown",
        "The server does not let this client list streams, see the stream's configuration, or ask for its position. Without that, it is unknown whether the snapshots belong to this stream.",
        "Allow it, or choose so with `--trust-name`: a stream that was deleted and created again is then taken for the same.",
    ),
    (
        "record_malformed",
        "The fold cannot read a record; the message names it.",
        "If such records do not matter, skip them with `--skip-malformed`.",
    ),
    (
        "fold_failed",
        "The fold failed at a record; the message names it.",
        "The message says why.",
    ),
    (
        "snapshot_failed",
        "A snapshot was due and could not be taken; the state was printed.",
        "The message says why. Run it again: the next one is due at once.",
    ),
    (
        "store_unreachable",
        "The place of the snapshots does not answer, or refuses.",
        "Look whether it is reachable, and at the keys that the message names.",
    ),
    (
        "refused",
        "The server refuses what following needs, and retries do not help.",
        "The message says what. Look at the permissions of the token, and whether the stream is there.",
    ),
];

/// What to do about an error of this code, if it is one of the documented codes.
pub fn what_to_do(code: &str) -> Option<&'static str> {
    let of_the_api = api::CODES.iter().find_map(|(known, _, what)| {
        let known: &'static str = (*known).into();
        (known == code).then_some(*what)
    });
    let admin = admin::CODES
        .iter()
        .map(|(known, _, _, what)| (*known, *what));
    let state = state::CODES
        .iter()
        .map(|(known, _, _, what)| (*known, *what));
    let configuration = config::CODES.iter();
    let configuration =
        configuration.map(|(known, _)| (*known, "Correct the configuration as the message says."));
    let tables = [
        COMMAND_CODES,
        STATE_CODES,
        SNAPSHOT_CODES,
        FOLLOW_CODES,
        esker_node::START_CODES,
    ];
    let tables = tables.into_iter().flatten();
    let mut others = tables
        .map(|(known, _, what)| (*known, *what))
        .chain(admin)
        .chain(state)
        .chain(configuration);
    of_the_api.or_else(|| Some(others.find(|(known, _)| *known == code)?.1))
}

/// `docs/reference/errors.md`.
pub fn markdown() -> String {
    let mut out = String::from(
        "# Errors\n\n\
         Every error has a stable code. The command line prints `error [code]: what happened, to \
         what, and what to do` and exits with 0 (done), 1 (found something wrong), 2 (usage) or \
         3 (could not reach). With `--json` the same is on standard output, as `{\"error\": \
         {\"code\": …, \"message\": …, \"what_to_do\": …}}`: in the one document that a command \
         prints, beside what it found all the same, or in the last line of a command that prints a \
         document a line. The API answers `{\"code\": …, \"message\": …}`.\n\n\
         This page is made from the code; a test keeps it current.\n\n\
         ## The API\n\n\
         Two answers have no code, as the S2 API defines them: **412** with \
         `{\"seq_num_mismatch\": n}` or `{\"fencing_token_mismatch\": \"…\"}`, the value that is \
         in force; and **416** with `{\"tail\": {…}}` for a read that begins where nothing is \
         written yet. Both are answered only once the state that they report is durable.\n\n\
         *No side effects* means that the request did nothing and never will; clients repeat such \
         requests by themselves.\n\n\
         | code | status | when | what to do | no side effects |\n|---|---|---|---|---|\n",
    );
    for (code, when, what) in api::CODES {
        let name: &'static str = (*code).into();
        let _ = writeln!(
            out,
            "| `{name}` | {} | {when} | {what} | {} |",
            code.status().as_u16(),
            if code.has_no_side_effects() {
                "yes"
            } else {
                "no"
            }
        );
    }
    out.push_str(
        "\n## The admin API\n\n\
         Below `/esker/v1`: the same form, and these codes.\n\n\
         | code | status | when | what to do |\n|---|---|---|---|\n",
    );
    for (code, status, when, what) in admin::CODES {
        let _ = writeln!(out, "| `{code}` | {status} | {when} | {what} |");
    }
    out.push_str(
        "\n`bad_path`, `bad_header`, `bad_query`, `bad_json`, `basin_not_found`, \
         `basin_deletion_pending`, `stream_not_found`, `invalid`, `server_draining`, `storage` and \
         `other` mean what they mean above, and these what they mean [below](#snapshots):\n\n\
         | code | status |\n|---|---|\n",
    );
    for (code, status) in admin::error::REPOSITORY_CODES {
        let _ = writeln!(out, "| `{code}` | {status} |");
    }
    out.push_str(
        "\nProblems in a status have codes as well:\n\n\
         | code | what is wrong | `esker status` exits with |\n|---|---|---|\n",
    );
    for (code, advice, what) in admin::PROBLEMS {
        let exit = if *advice { "0: it is advice" } else { "1" };
        let _ = writeln!(out, "| `{code}` | {what} | {exit} |");
    }
    out.push_str(
        "\n## The state service\n\n\
         Over gRPC. The code is the reason of a `google.rpc.ErrorInfo` (domain `esker.state.v1`) among \
         the details of the status, and in the metadata `esker-code`. Only `other` and a lost \
         connection leave open whether a commit happened.\n\n\
         | code | status | when | what to do |\n|---|---|---|---|\n",
    );
    for (code, status, when, what) in state::CODES {
        let _ = writeln!(out, "| `{code}` | `{status}` | {when} | {what} |");
    }
    out.push_str("\nThese mean what they mean above:\n\n| code | status |\n|---|---|\n");
    for (code, status) in state::status::SHARED_CODES {
        let _ = writeln!(out, "| `{code}` | `{status}` |");
    }
    out.push_str("\n## Starting a server\n\n| code | when | what to do |\n|---|---|---|\n");
    for (code, when, what) in esker_node::START_CODES {
        let _ = writeln!(out, "| `{code}` | {when} | {what} |");
    }
    out.push_str("\n## Configuration\n\n| code | when |\n|---|---|\n");
    for (code, when) in config::CODES {
        let _ = writeln!(out, "| `{code}` | {when} |");
    }
    out.push_str("\n## The command line\n\n| code | when | what to do |\n|---|---|---|\n");
    for (code, when, what) in COMMAND_CODES {
        let _ = writeln!(out, "| `{code}` | {when} | {what} |");
    }
    out.push_str("\n## State\n\n| code | when | what to do |\n|---|---|---|\n");
    for (code, when, what) in STATE_CODES {
        let _ = writeln!(out, "| `{code}` | {when} | {what} |");
    }
    out.push_str("\n## Snapshots\n\n| code | when | what to do |\n|---|---|---|\n");
    for (code, when, what) in SNAPSHOT_CODES {
        let _ = writeln!(out, "| `{code}` | {when} | {what} |");
    }
    out.push_str("\n## Following\n\n| code | when | what to do |\n|---|---|---|\n");
    for (code, when, what) in FOLLOW_CODES {
        let _ = writeln!(out, "| `{code}` | {when} | {what} |");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_docs_are_current() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../docs/reference/errors.md"
        );
        let wanted = markdown();
        if std::env::var_os("ESKER_BLESS").is_some() {
            std::fs::write(path, &wanted).unwrap();
        }
        let found = std::fs::read_to_string(path).unwrap_or_default();
        assert_eq!(
            found, wanted,
            "docs/reference/errors.md is not what the code says; run this test with ESKER_BLESS=1"
        );
    }

    #[test]
    fn a_code_is_listed_once() {
        let mut codes: Vec<&str> = api::CODES
            .iter()
            .map(|(code, _, _)| (*code).into())
            .collect();
        codes.extend(esker_node::START_CODES.iter().map(|(code, _, _)| *code));
        codes.extend(config::CODES.iter().map(|(code, _)| *code));
        codes.extend(admin::CODES.iter().map(|(code, ..)| *code));
        codes.extend(state::CODES.iter().map(|(code, ..)| *code));
        codes.extend(COMMAND_CODES.iter().map(|(code, _, _)| *code));
        codes.extend(STATE_CODES.iter().map(|(code, _, _)| *code));
        codes.extend(FOLLOW_CODES.iter().map(|(code, _, _)| *code));
        let count = codes.len();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), count, "{codes:?}");
    }
}
