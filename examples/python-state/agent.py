"""A small agent that remembers, with the official Python client of Statehouse.

    esker server &
    pip install statehouse
    python agent.py localhost:7070

It writes a plan and what it learns, each step in one transaction, then looks back: what it knows, how that
came about, and everything that happened, in order.
"""

import sys

from statehouse import Statehouse

AGENT = "researcher"


def main(address: str) -> None:
    client = Statehouse(url=address)

    # One transaction: the plan and the first memory are there at once, or neither is.
    with client.begin_transaction() as tx:
        tx.write(AGENT, "plan", {"steps": ["read", "compare", "answer"], "at": "read"})
        tx.write(AGENT, "memory", {"facts": 0})

    for number, (step, fact) in enumerate(
        [("compare", "water boils at 100 °C at sea level"), ("answer", "on a mountain it boils earlier")], 1
    ):
        with client.begin_transaction() as tx:
            tx.write(AGENT, f"fact/{number}", {"text": fact})
            tx.write(AGENT, "memory", {"facts": number})
            tx.write(AGENT, "plan", {"steps": ["read", "compare", "answer"], "at": step})

    # A transaction that fails leaves nothing.
    try:
        with client.begin_transaction() as tx:
            tx.write(AGENT, "fact/3", {"text": "the moon is made of cheese"})
            raise ValueError("not plausible")
    except ValueError as error:
        print(f"dropped a thought: {error}")

    with client.begin_transaction() as tx:
        tx.delete(AGENT, "plan")

    print("\nwhat it knows:")
    for key in client.list_keys(AGENT):
        state = client.get_state(AGENT, key)
        print(f"  {key:8} version {state.version}  {state.value}")

    print("\nhow its memory grew:")
    newest = client.get_state(AGENT, "memory").version
    for version in range(1, newest + 1):
        state = client.get_state_at_version(AGENT, "memory", version)
        print(f"  version {version}  commit {state.commit_ts}  {state.value}")

    print("\nwhat happened:")
    for event in client.replay(AGENT):
        done = ", ".join(
            f"{op.key} {'deleted' if op.value is None else 'written'}" for op in event.operations
        )
        print(f"  commit {event.commit_ts}  {done}")

    client.close()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "localhost:7070")
