//! Writes the Rust code of the protocol files into a directory: `esker-proto-generate PROTO OUT`.

use std::path::PathBuf;

use prost::Message as _;

const FILES: &[&str] = &[
    "statehouse/v1/statehouse.proto",
    "esker/state/v1/state.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(proto), Some(out), None) = (arguments.next(), arguments.next(), arguments.next())
    else {
        return Err("usage: esker-proto-generate PROTO OUT".into());
    };
    std::fs::create_dir_all(&out)?;
    let descriptors = protox::compile(FILES, [&proto])?;
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .out_dir(&out)
        .codec_path("crate::codec::Codec")
        // Pieces of snapshots are passed on, not copied.
        .bytes(".esker.state.v1")
        .compile_fds(descriptors)?;
    Ok(())
}
