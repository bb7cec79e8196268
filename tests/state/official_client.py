"""All twelve calls of the official client, against the server whose address is the argument."""

import re
import sys
import time

from statehouse import Statehouse
from statehouse._generated.statehouse.v1 import statehouse_pb2
from statehouse.exceptions import TransactionError


def refused(call, code):
    try:
        call()
    except TransactionError as error:
        assert f"StatusCode.{code}" in str(error), error
        return
    raise AssertionError(f"it was not refused with {code}")


client = Statehouse(url=sys.argv[1])

# Health, Version.
assert client.health() == "ok"
version, sha = client.version()
assert re.match(r"\d+\.\d+\.\d+", version), version
assert sha

# BeginTransaction, Write, Commit, GetState.
tx = client.begin_transaction()
assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", tx._txn_id)
tx.write(agent_id="agent", key="memory", value={"fact": "water is wet", "n": 1})
assert not client.get_state("agent", "memory").exists
first = tx.commit()
assert first == 1
state = client.get_state("agent", "memory")
assert state.exists and state.version == 1 and state.commit_ts == first
assert state.value == {"fact": "water is wet", "n": 1}, state.value

# Lists of objects come back as they went.
value = {"list": [{"a": [1, [2, {"b": None}]]}, [], {}], "big": 2**53, "half": 0.5, "yes": True, "none": None}
with client.begin_transaction() as tx:
    tx.write("agent", "nested", value)
request = statehouse_pb2.GetStateRequest(namespace="default", agent_id="agent", key="nested")
from google.protobuf import json_format

assert json_format.MessageToDict(client._stub.GetState(request).value) == value

# GetStateAtVersion, and what is not there.
with client.begin_transaction() as tx:
    tx.write("agent", "memory", {"n": 2})
assert client.get_state("agent", "memory").version == 2
assert client.get_state_at_version("agent", "memory", 1).value["n"] == 1
for missing in (
    client.get_state("agent", "never"),
    client.get_state_at_version("agent", "memory", 9),
    client.get_state_at_version("agent", "never", 1),
):
    assert not missing.exists and missing.version == 0 and missing.value is None, missing

# Delete; ListKeys and ScanPrefix leave it out, in order.
with client.begin_transaction() as tx:
    for key in ("b", "c", "a", "d"):
        tx.write("order", key, {"key": key})
    tx.delete("order", "d")
assert client.list_keys("order") == ["a", "b", "c"]
assert [entry.value["key"] for entry in client.scan_prefix("order", "")] == ["a", "b", "c"]
assert [entry.value["key"] for entry in client.scan_prefix("order", "b")] == ["b"]
assert not client.get_state("order", "d").exists
assert client.list_keys("nobody") == []

# Namespaces and agents that look alike when joined.
other = Statehouse(url=sys.argv[1], namespace="n:b")
with other.begin_transaction() as tx:
    tx.write("c", "k", {"whose": "n:b"})
with client.begin_transaction(namespace="n") as tx:
    tx.write("b:c", "k", {"whose": "n"})
assert other.get_state("c", "k").value == {"whose": "n:b"}
assert client.get_state("b:c", "k", namespace="n").value == {"whose": "n"}

# Abort: nothing is left, and a second time is no error.
tx = client.begin_transaction()
tx.write("agent", "aborted", {})
tx.abort()
assert not client.get_state("agent", "aborted").exists
client._abort(tx._txn_id)
client._abort("never")
try:
    with client.begin_transaction() as tx:
        tx.write("agent", "raised", {})
        raise KeyError("in the block")
except KeyError:
    pass
assert not client.get_state("agent", "raised").exists

# What is refused.
refused(lambda: client._commit("never"), "NOT_FOUND")
refused(lambda: client._commit(tx._txn_id), "NOT_FOUND")
short = client.begin_transaction(timeout_ms=30)
time.sleep(0.2)
refused(short.commit, "DEADLINE_EXCEEDED")
large = client.begin_transaction()
refused(lambda: large.write("agent", "large", {"x": "x" * 5_000_000}), "RESOURCE_EXHAUSTED")
large.abort()

# Replay: inclusive bounds, this agent alone, one version for each operation.
events = list(client.replay("agent"))
assert [[(op.key, op.version) for op in event.operations] for event in events] == [
    [("memory", 1)],
    [("nested", 1)],
    [("memory", 2)],
], events
middle = events[1].commit_ts
assert [event.commit_ts for event in client.replay("agent", start_ts=middle, end_ts=middle)] == [middle]
(event,) = client.replay("order")
assert [(op.key, op.value is None) for op in event.operations][-1] == ("d", True)
with client.begin_transaction() as tx:
    tx.write("twice", "x", {"n": 1})
    tx.write("twice", "x", {"n": 2})
(event,) = client.replay("twice")
assert [op.version for op in event.operations] == [1, 2]
assert list(client.replay("nobody")) == []

client.close()
print("all calls are as expected")
