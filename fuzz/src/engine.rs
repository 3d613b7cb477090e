//! Runs a target: first on what is saved, then on mutations until the time is over.

use std::{
    cell::RefCell,
    collections::HashSet,
    fs::{self, File},
    os::unix::fs::FileExt,
    panic::{self, AssertUnwindSafe},
    path::PathBuf,
    sync::{
        Arc, Mutex, Once, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;

use crate::{
    Shape, Target, corpus,
    mutate::{Random, mutate},
};

/// An input that takes longer is a defect. Generous: machines of tests are busy.
const LONGEST: Duration = Duration::from_secs(20);
/// Most inputs, and bytes of them, that are kept for mutation: the memory of a run is bounded.
const MAX_KEPT: usize = 4096;
const MAX_KEPT_BYTES: usize = 16 << 20;
/// How long an input that fails is made smaller.
const SHRINK: Duration = Duration::from_secs(3);

/// How long, and with which numbers.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Time for mutations; saved inputs are all run in any case.
    pub time: Duration,
    /// Start of the random numbers.
    pub seed: u64,
}

/// What was run.
#[derive(Debug, Clone, Copy)]
pub struct Report {
    /// Saved and made inputs.
    pub saved: usize,
    /// All inputs, mutations included.
    pub executions: u64,
    /// Different shapes of answers.
    pub shapes: usize,
    /// Time for mutations.
    pub elapsed: Duration,
}

/// An input on which a property does not hold.
#[derive(Debug)]
pub struct Failure {
    /// The input, made smaller.
    pub input: Vec<u8>,
    /// What the target said.
    pub message: String,
}

/// Runs `target` on its corpus and on mutations.
///
/// # Errors
/// Text for a person: the input that fails, where it was saved, and how to run it again.
pub fn run(target: &Target, budget: Budget) -> anyhow::Result<Report> {
    let mut inputs = corpus::load(target)?;
    let named = inputs.len();
    inputs.extend((target.seeds)());
    let mut watch = Watch::start(target)?;
    if let Some(left) = watch.left_over() {
        println!(
            "{}: an earlier run ended in the middle of this input, which comes first now: {}",
            target.name,
            corpus::escape(&left)
        );
        inputs.push(left);
    }
    let mut report = Report { saved: inputs.len(), executions: 0, shapes: 0, elapsed: Duration::ZERO };
    let mut shapes: HashSet<Shape> = HashSet::new();
    for (at, input) in inputs.iter().enumerate() {
        report.executions += 1;
        match watch.execute(target, input) {
            Ok(shape) => {
                shapes.insert(shape);
            }
            Err(message) => {
                let place = if at < named { format!("saved input {}", at + 1) } else { "a made input".to_owned() };
                anyhow::bail!("{}: {place} fails: {message}\n{}", target.name, again(target, input));
            }
        }
    }
    let mut kept = inputs;
    let mut bytes: usize = kept.iter().map(Vec::len).sum();
    let mut random = Random::new(budget.seed);
    let start = Instant::now();
    while start.elapsed() < budget.time {
        let input = mutate(&mut random, &kept, target);
        report.executions += 1;
        match watch.execute(target, &input) {
            Ok(shape) => {
                if shapes.insert(shape) && kept.len() < MAX_KEPT && bytes + input.len() < MAX_KEPT_BYTES {
                    bytes += input.len();
                    kept.push(input);
                }
            }
            Err(message) => {
                let failure = shrink(&mut watch, target, Failure { input, message });
                let file = corpus::save(target, &failure.input)?;
                anyhow::bail!(
                    "{} fails with seed {}: {}\nsaved in {}\n{}",
                    target.name,
                    budget.seed,
                    failure.message,
                    file.display(),
                    again(target, &failure.input)
                );
            }
        }
    }
    report.elapsed = start.elapsed();
    report.shapes = shapes.len();
    watch.end();
    Ok(report)
}

/// Runs one input.
///
/// # Errors
/// What the target said.
pub fn run_one(target: &Target, input: &[u8]) -> anyhow::Result<()> {
    let mut watch = Watch::start(target)?;
    watch.execute(target, input).map_err(|message| anyhow::anyhow!("{}: {message}", target.name))?;
    watch.end();
    Ok(())
}

fn again(target: &Target, input: &[u8]) -> String {
    let escaped = corpus::escape(input);
    let shell = escaped.replace('\'', r"'\''");
    format!("input: {escaped}\nagain: cargo run -p weir-fuzz -- --target {} --input '{shell}'", target.name)
}

/// Takes pieces out while it fails at the same place.
fn shrink(watch: &mut Watch, target: &Target, mut failure: Failure) -> Failure {
    let place = |message: &str| message.split(": ").next().unwrap_or_default().to_owned();
    let (at_first, end) = (place(&failure.message), Instant::now() + SHRINK);
    let mut size = failure.input.len().div_ceil(2);
    while size > 0 && Instant::now() < end {
        let mut start = 0;
        let mut smaller = false;
        while start < failure.input.len() && Instant::now() < end {
            let mut input = failure.input.clone();
            input.drain(start..(start + size).min(input.len()));
            match watch.execute(target, &input) {
                Err(message) if place(&message) == at_first => {
                    failure = Failure { input, message };
                    smaller = true;
                }
                _ => start += size,
            }
        }
        if !smaller || size > 1 {
            size /= 2;
        }
    }
    failure
}

thread_local! {
    /// What the last panic of this thread said, while a target runs.
    static SAID: RefCell<Option<String>> = const { RefCell::new(None) };
    static RUNS: RefCell<bool> = const { RefCell::new(false) };
}

fn keep_panics_quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !RUNS.with(|runs| *runs.borrow()) {
                return before(info);
            }
            let place = info.location().map(|place| format!("{}:{}", place.file(), place.line())).unwrap_or_default();
            let payload = info.payload();
            let text = payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
            let text = text.unwrap_or("panicked").to_owned();
            SAID.with(|said| *said.borrow_mut() = Some(format!("{place}: {text}")));
        }));
    });
}

/// Says which input ran when one never ends, or ends the process.
struct Watch {
    file: File,
    path: PathBuf,
    left_over: Option<Vec<u8>>,
    input: Arc<Mutex<Vec<u8>>>,
    /// Milliseconds since the start at which the input began; 0 for none.
    began: Arc<AtomicU64>,
    start: Instant,
    ended: Arc<AtomicBool>,
}

impl Watch {
    fn start(target: &Target) -> anyhow::Result<Self> {
        keep_panics_quiet();
        let folder = std::env::temp_dir().join("weir-fuzz");
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let path = folder.join(format!("{}.running", target.name));
        let left_over = fs::read(&path).ok().and_then(|bytes| {
            let (length, rest) = bytes.split_first_chunk::<4>()?;
            rest.get(..usize::try_from(u32::from_le_bytes(*length)).ok()?).map(<[u8]>::to_vec)
        });
        let file = File::create(&path).with_context(|| path.display().to_string())?;
        let watch = Self {
            file,
            path,
            left_over,
            input: Arc::default(),
            began: Arc::default(),
            start: Instant::now(),
            ended: Arc::default(),
        };
        let (input, began, start, ended) = (watch.input.clone(), watch.began.clone(), watch.start, watch.ended.clone());
        let target = *target;
        thread::Builder::new().name("watch".into()).spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(200));
                let began = began.load(Ordering::Relaxed);
                if began > 0 && start.elapsed().saturating_sub(Duration::from_millis(began)) > LONGEST {
                    let input = input.lock().unwrap_or_else(PoisonError::into_inner);
                    let file = corpus::save(&target, &input).map(|file| file.display().to_string()).unwrap_or_default();
                    eprintln!(
                        "{} does not end within {LONGEST:?}; saved in {file}\n{}",
                        target.name,
                        again(&target, &input)
                    );
                    std::process::abort();
                }
            }
        })?;
        Ok(watch)
    }

    fn left_over(&mut self) -> Option<Vec<u8>> {
        self.left_over.take()
    }

    fn execute(&mut self, target: &Target, input: &[u8]) -> Result<Shape, String> {
        let mut note = u32::try_from(input.len()).unwrap_or_default().to_le_bytes().to_vec();
        note.extend_from_slice(input);
        let _ = self.file.write_all_at(&note, 0);
        *self.input.lock().unwrap_or_else(PoisonError::into_inner) = input.to_vec();
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.began.store(now.max(1), Ordering::Relaxed);
        RUNS.with(|runs| *runs.borrow_mut() = true);
        let result = panic::catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
        RUNS.with(|runs| *runs.borrow_mut() = false);
        self.began.store(0, Ordering::Relaxed);
        result.map_err(|_| SAID.with(|said| said.borrow_mut().take()).unwrap_or_else(|| "panicked".into()))
    }

    fn end(&self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // A property that does not hold is told; the note is for runs that tell nothing.
        self.end();
    }
}
