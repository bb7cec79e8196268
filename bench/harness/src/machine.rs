//! The machine that the measurements ran on, according to `/proc`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;

/// Longest wait for a quiet moment of the machine.
const QUIET_TIMEOUT: Duration = Duration::from_secs(60);

/// Fraction of the machine in use that counts as quiet.
const QUIET: f64 = 0.15;

/// Time over which the use of the machine is observed.
const LOOK: Duration = Duration::from_secs(2);

/// A machine, described for the head of the report.
#[derive(Debug)]
pub struct Machine {
    /// Model name of the first processor.
    pub cpu: String,
    /// Processors that this program may use.
    pub cores: usize,
    /// Physical memory in GiB.
    pub memory_gib: f64,
    /// Kernel release.
    pub kernel: String,
    /// File system under the scratch directory.
    pub file_system: String,
    /// Whether freed memory is returned to the host of a virtual machine.
    pub returns_memory: bool,
}

impl Machine {
    /// Describes this machine; `scratch` is where the measured servers write.
    ///
    /// # Errors
    ///
    /// If `/proc` cannot be read.
    pub fn describe(scratch: &Path) -> anyhow::Result<Self> {
        let cpu = first_value(&read("/proc/cpuinfo")?, "model name").unwrap_or("unknown".into());
        let memory = first_value(&read("/proc/meminfo")?, "MemTotal").unwrap_or_default();
        Ok(Self {
            cpu,
            cores: std::thread::available_parallelism()?.get(),
            memory_gib: kibibytes(&memory) as f64 / f64::from(1 << 20),
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            file_system: file_system(scratch)?,
            returns_memory: returns_memory(),
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, {} cores, {:.0} GiB memory, Linux {}, {}",
            self.cpu, self.cores, self.memory_gib, self.kernel, self.file_system
        )?;
        match self.returns_memory {
            true => write!(
                f,
                "; a virtual machine that returns freed memory to its host, so the first use of each page afterwards \
                 takes up to ten times as long as a copy, which is most of what writing a large file costs"
            ),
            false => Ok(()),
        }
    }
}

/// Whether the kernel returns freed pages to the host of a virtual machine ("free page reporting"). It does not if the
/// least size that it reports, as a power of two of pages, is larger than any block of free pages: 2^10.
fn returns_memory() -> bool {
    const LARGEST: u32 = 10;
    let order = read("/sys/module/page_reporting/parameters/page_reporting_order");
    order.is_ok_and(|order| order.trim().parse::<u32>().is_ok_and(|it| it <= LARGEST))
}

/// Waits, with a time limit, until other programs use little of the machine. Returns the fraction that is in
/// use then.
///
/// # Errors
///
/// If `/proc/stat` cannot be read.
pub async fn quiet() -> anyhow::Result<f64> {
    let deadline = Instant::now() + QUIET_TIMEOUT;
    loop {
        let before = machine_ticks()?;
        tokio::time::sleep(LOOK).await;
        let used = used_since(before)?;
        if used <= QUIET || Instant::now() > deadline {
            return Ok(used);
        }
    }
}

/// The fraction of the machine that all programs together use now.
///
/// # Errors
///
/// If `/proc/stat` cannot be read.
pub fn used_now() -> anyhow::Result<f64> {
    let before = machine_ticks()?;
    std::thread::sleep(LOOK);
    used_since(before)
}

fn used_since(before: (u64, u64)) -> anyhow::Result<f64> {
    let now = machine_ticks()?;
    let all = (now.1 - before.1).max(1);
    Ok((now.0 - before.0) as f64 / all as f64)
}

/// Empties the page cache of the operating system. Returns whether this was permitted, which needs root.
pub fn drop_caches() -> bool {
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}

/// Resident memory of process `pid` now and at its highest so far, in bytes.
///
/// # Errors
///
/// If there is no such process.
pub fn resident_bytes(pid: u32) -> anyhow::Result<(u64, u64)> {
    let status = read(&format!("/proc/{pid}/status"))?;
    let field = |name| first_value(&status, name).map(|value| kibibytes(&value) * 1024);
    let now = field("VmRSS").context("VmRSS is missing; the process may have ended")?;
    let highest = field("VmHWM").unwrap_or(now);
    Ok((now, highest))
}

/// Processor time that process `pid` has used so far, in clock ticks (100 a second on Linux).
///
/// # Errors
///
/// If there is no such process.
pub fn cpu_ticks(pid: u32) -> anyhow::Result<u64> {
    let stat = read(&format!("/proc/{pid}/stat"))?;
    // The second field is the program's name in parentheses and may contain anything; the third
    // begins after the last parenthesis. utime and stime are fields 14 and 15, counted from 1.
    let (_, rest) = stat.rsplit_once(')').context("unexpected /proc/PID/stat")?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let ticks = |field: usize| -> anyhow::Result<u64> {
        let text = fields.get(field - 3).context("unexpected /proc/PID/stat")?;
        Ok(text.parse()?)
    };
    Ok(ticks(14)? + ticks(15)?)
}

/// Processor time of the whole machine so far, in clock ticks: busy and in all.
///
/// # Errors
///
/// If `/proc/stat` cannot be read.
pub fn machine_ticks() -> anyhow::Result<(u64, u64)> {
    let stat = read("/proc/stat")?;
    let line = stat.lines().next().context("unexpected /proc/stat")?;
    // cpu user nice system idle iowait irq softirq steal; what follows is counted in user already.
    let fields = line.split_ascii_whitespace().skip(1).take(8);
    let ticks: Vec<u64> = fields.map(str::parse).collect::<Result<_, _>>()?;
    let all: u64 = ticks.iter().sum();
    let idle: u64 = ticks.iter().skip(3).take(2).sum();
    Ok((all - idle, all))
}

/// Type of the file system that holds `path`, for instance `ext4`.
///
/// # Errors
///
/// If `path` does not exist, or the table of mounts cannot be read.
pub fn file_system(path: &Path) -> anyhow::Result<String> {
    let path = path.canonicalize()?;
    let mounts = read("/proc/self/mounts")?;
    Ok(file_system_in(&mounts, &path).unwrap_or("unknown".into()))
}

/// The type of the last mount among those with the longest mount point above `path`.
fn file_system_in(mounts: &str, path: &Path) -> Option<String> {
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace().skip(1);
            // The kernel writes a blank in a mount point as \040.
            let point = PathBuf::from(fields.next()?.replace("\\040", " "));
            let kind = fields.next()?;
            path.starts_with(&point)
                .then(|| (point.components().count(), kind))
        })
        .max_by_key(|(depth, _)| *depth)
        .map(|(_, kind)| kind.to_owned())
}

fn read(path: &str) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))
}

fn first_value(text: &str, key: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim().to_owned())
    })
}

/// Parses `"123 kB"`.
fn kibibytes(text: &str) -> u64 {
    text.split_ascii_whitespace()
        .next()
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_system_is_that_of_the_deepest_mount() {
        let mounts = "rootfs / rootfs rw 0 0\n\
                      /dev/vda / ext4 rw 0 0\n\
                      tmpfs /dev/shm tmpfs rw 0 0\n\
                      /dev/vdb /srv/my\\040disk xfs rw 0 0\n";
        let kind = |path: &str| file_system_in(mounts, Path::new(path));
        assert_eq!(kind("/home/a").as_deref(), Some("ext4"));
        assert_eq!(kind("/dev/shm/a").as_deref(), Some("tmpfs"));
        assert_eq!(kind("/srv/my disk/a").as_deref(), Some("xfs"));
    }

    #[test]
    fn this_process_has_resident_memory_and_processor_time() {
        let (now, highest) = resident_bytes(std::process::id()).expect("this process lives");
        assert!(now > 0 && highest >= now);
        cpu_ticks(std::process::id()).expect("this process lives");
    }

    #[test]
    fn the_machine_was_busy_for_a_part_of_its_time() {
        let (busy, all) = machine_ticks().expect("there is a /proc/stat");
        assert!(busy > 0 && busy < all, "{busy} of {all}");
    }
}
