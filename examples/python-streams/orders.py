"""Appends orders to a stream, reads them back, and appends on a condition."""

import asyncio
import os
import sys

from s2_sdk import S2, AppendInput, Endpoints, ReadLimit, Record, SeqNum, SeqNumMismatchError


async def main(server: str) -> None:
    token = os.environ.get("S2_ACCESS_TOKEN", "none")
    async with S2(token, endpoints=Endpoints(account=server, basin=server)) as s2:
        # A second run changes nothing.
        await s2.ensure_basin("example-python")
        basin = s2.basin("example-python")
        await basin.ensure_stream("orders")
        stream = basin.stream("orders")

        # The answer comes after the records are synced to the disk.
        records = [Record(body=b"apple"), Record(body=b"pear", headers=[(b"colour", b"green")])]
        ack = await stream.append(AppendInput(records))
        end = ack.end.seq_num
        print("appended up to", end)

        batch = await stream.read(start=SeqNum(end - 2), limit=ReadLimit(count=2))
        for record in batch.records:
            print(record.seq_num, record.body.decode())

        # Another writer would have moved the tail: then nothing is appended.
        await stream.append(AppendInput([Record(body=b"plum")], match_seq_num=end))
        print("appended on the condition that the tail is", end)
        try:
            await stream.append(AppendInput([Record(body=b"fig")], match_seq_num=end))
        except SeqNumMismatchError as error:
            print("refused: the tail is", error.expected_seq_num)


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:7070"))
