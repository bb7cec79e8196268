// Appends orders to a stream, reads them back, and appends on a condition. The argument is the server.
import { AppendInput, AppendRecord, S2, SeqNumMismatchError } from "@s2-dev/streamstore";

const server = process.argv[2] ?? "http://127.0.0.1:7070";
const s2 = new S2({
  accessToken: process.env.S2_ACCESS_TOKEN ?? "none",
  endpoints: { account: server, basin: server },
});

// A second run changes nothing.
await s2.basins.ensure({ basin: "example-typescript" });
const basin = s2.basin("example-typescript");
await basin.streams.ensure({ stream: "orders" });
const stream = basin.stream("orders");

const record = (body = "") => AppendRecord.string({ body });

// The answer comes after the records are synced to the disk.
const ack = await stream.append(AppendInput.create([record("apple"), record("pear")]));
const end = ack.end.seqNum;
console.log("appended up to", end);

const start = { from: { seqNum: end - 2 } };
const batch = await stream.read({ start, stop: { limits: { count: 2 } } });
for (const read of batch.records) console.log(read.seqNum, read.body);

// Another writer would have moved the tail: then nothing is appended.
await stream.append(AppendInput.create([record("plum")], { matchSeqNum: end }));
console.log("appended on the condition that the tail is", end);
try {
  await stream.append(AppendInput.create([record("fig")], { matchSeqNum: end }));
} catch (error) {
  if (!(error instanceof SeqNumMismatchError)) throw error;
  console.log("refused: the tail is", error.expectedSeqNum);
}
await stream.close();
