//! Which basins and streams there are, and their creation in the target.

use futures::{StreamExt as _, TryStreamExt as _};
use s2_sdk::error::ErrorCode;
use s2_sdk::types::{BasinName, CreateBasinInput, ListAllBasinsInput, ListAllStreamsInput};
use serde_json::json;

use super::{Import, Mode};
use crate::failure::Failure;
use crate::output::print;
use crate::stream_cmd::target::StreamTarget;
use crate::term::{plain, records};

/// The basin of the state store of an Esker: its server alone writes it.
const RESERVED_BASIN: &str = "esker-state";

/// What became of the streams.
#[derive(Default)]
struct Totals {
    streams: u64,
    /// Records that were copied or compared.
    records: u64,
    failed: u64,
}

impl Import {
    /// Copies or compares the basins; all, if none is named.
    ///
    /// # Errors
    ///
    /// The first failure of a server. A stream that cannot be copied does not keep the others from it; the
    /// failure at the end has their number.
    pub async fn run(&self, named: &[BasinName]) -> Result<(), Failure> {
        let basins = match named.is_empty() {
            true => self.basins().await?,
            false => named.to_vec(),
        };
        let mut totals = Totals::default();
        for basin in &basins {
            if &**basin == RESERVED_BASIN {
                remark!(
                    "{RESERVED_BASIN} is left out: `esker state export` and `esker state import` copy a state \
                     store."
                );
                continue;
            }
            if self.mode == Mode::Copy {
                self.ensure_basin(basin).await?;
            }
            self.basin(basin, &mut totals).await?;
        }
        let Totals {
            streams,
            records: count,
            failed,
        } = totals;
        if failed > 0 {
            return Err(Failure::wrong(
                "import_incomplete",
                format!(
                    "{failed} of {streams} streams are not as in the source; the lines above name each"
                ),
            ));
        }
        if !self.json {
            let what = match self.mode {
                Mode::Copy => "copied",
                Mode::DryRun => "to copy",
                Mode::Verify => "compared",
            };
            remark!("{streams} streams, {} {what}.", records(count));
        }
        Ok(())
    }

    async fn basins(&self) -> Result<Vec<BasinName>, Failure> {
        let all = self
            .source
            .account()
            .list_all_basins(ListAllBasinsInput::new());
        let names = all.map_ok(|basin| basin.name).try_collect().await;
        names.map_err(|e| self.source.asked().request(&e))
    }

    /// Creates the basin with the settings of the source. One that exists keeps its settings.
    async fn ensure_basin(&self, basin: &BasinName) -> Result<(), Failure> {
        let asked = self.source.asked_basin(basin);
        let config = self.source.account().get_basin_config(basin.clone()).await;
        let config = config.map_err(|e| asked.request(&e))?;
        let input = CreateBasinInput::new(basin.clone()).with_config(config.clone());
        match self.target.account().create_basin(input).await {
            Ok(_) => return Ok(()),
            Err(error) => {
                let code = error.server_error().and_then(|error| error.known_code());
                if code != Some(ErrorCode::ResourceAlreadyExists) {
                    return Err(self.target.asked_basin(basin).request(&error));
                }
            }
        }
        let existing = self.target.account().get_basin_config(basin.clone()).await;
        let existing = existing.map_err(|e| self.target.asked_basin(basin).request(&e))?;
        if existing.stream_cipher != config.stream_cipher
            || existing.create_stream_on_append != config.create_stream_on_append
            || existing.create_stream_on_read != config.create_stream_on_read
        {
            say!("warning: basin {basin} is there already with other settings, which it keeps");
        }
        Ok(())
    }

    /// Copies or compares the streams of a basin. Streams that are being deleted are left out.
    async fn basin(&self, basin: &BasinName, totals: &mut Totals) -> Result<(), Failure> {
        let source = self.source.basin(basin);
        let mut streams = source.list_all_streams(ListAllStreamsInput::new()).boxed();
        while let Some(stream) = streams.next().await {
            let stream = stream.map_err(|e| self.source.asked_basin(basin).request(&e))?;
            let is_encrypted = stream.cipher.is_some();
            let target = StreamTarget {
                basin: basin.clone(),
                stream: stream.name,
            };
            totals.streams += 1;
            match self.stream(&target, is_encrypted).await {
                Ok(done) => {
                    totals.records += match self.mode {
                        Mode::Verify => done.compared,
                        Mode::Copy | Mode::DryRun => done.copied,
                    };
                    self.report(&target, &done)?;
                }
                // Other streams may be well.
                Err(failure) if failure.code.starts_with("import_") => {
                    totals.failed += 1;
                    self.report_failure(&target, &failure)?;
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(())
    }

    fn report(&self, target: &StreamTarget, done: &super::stream::Done) -> Result<(), Failure> {
        let name = plain(&target.to_string());
        if self.json {
            return print(json!({
                "stream": target.to_string(),
                "head": done.head,
                "tail": done.tail,
                "copied": done.copied,
                "compared": done.compared,
            }));
        }
        match self.mode {
            Mode::DryRun => print(format_args!("{name}: {} to copy", records(done.copied))),
            Mode::Verify => print(format_args!("{name}: {} are equal", records(done.compared))),
            Mode::Copy => print(format_args!(
                "{name}: {} copied, {} compared and equal",
                records(done.copied),
                records(done.compared)
            )),
        }
    }

    fn report_failure(&self, target: &StreamTarget, failure: &Failure) -> Result<(), Failure> {
        let name = target.to_string();
        match self.json {
            true => print(json!({
                "stream": name,
                "error": { "code": failure.code, "message": failure.message },
            })),
            false => print(format_args!(
                "{}: [{}] {}",
                plain(&name),
                failure.code,
                plain(&failure.text())
            )),
        }
    }
}
