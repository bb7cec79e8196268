use s2_sdk::S2;
use s2_sdk::types::{
    AppendInput, AppendRecord, AppendRecordBatch, CreateBasinInput, CreateStreamInput, ReadFrom,
    ReadInput, ReadLimits, ReadStart, ReadStop, S2Config, S2Endpoints,
};

type Anything = Box<dyn std::error::Error>;

/// Appends two records to a new stream, and returns what is read from it.
pub async fn orders(server: &str) -> Result<Vec<(u64, String)>, Anything> {
    // An access token; a server without a root token looks at none.
    let config = S2Config::new("none").with_endpoints(S2Endpoints::for_endpoint(server)?);
    let s2 = S2::new(config)?;
    s2.create_basin(CreateBasinInput::new("my-basin".parse()?))
        .await?;
    let basin = s2.basin("my-basin".parse()?);
    basin
        .create_stream(CreateStreamInput::new("orders".parse()?))
        .await?;
    let stream = basin.stream("orders".parse()?);

    // Answered once it is synced to the disk.
    let records = [AppendRecord::new("apple")?, AppendRecord::new("pear")?];
    let batch = AppendRecordBatch::try_from_iter(records)?;
    let ack = stream.append(AppendInput::new(batch)).await?;
    assert_eq!(ack.end.seq_num, 2);

    // Sequence numbers rise and may jump: the next read begins after the last record that was read.
    let input = ReadInput::new()
        .with_start(ReadStart::new().with_from(ReadFrom::SeqNum(0)))
        .with_stop(ReadStop::new().with_limits(ReadLimits::new().with_count(100)));
    let batch = stream.read(input).await?;
    let text = |body: &[u8]| String::from_utf8_lossy(body).into_owned();
    Ok(batch
        .records
        .iter()
        .map(|record| (record.seq_num, text(&record.body)))
        .collect())
}
