//! Kubernetes objects from files, folders and stdin: read, checked, defaulted.
//!
//! What the API server does before anybody sees an object, this does: it fills in defaults (E0.1 to E0.6) and refuses
//! what is invalid (E0.7). Beyond that it refuses what Weir would have to ignore: every field of the API is honoured, of no
//! concern to a dataplane, or refused by name (`fields.txt`). All faults of all files are reported together, and
//! nothing is loaded while there is one.

mod decode;
mod faults;
mod fields;
pub mod objects;
mod read;
mod selector;
mod snapshot;
pub(crate) mod syntax;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use flate2::read::MultiGzDecoder;
use weir_dataplane::yaml::{Fault, Node, Source, TEXT_LEN_MAX, Value};

pub(crate) use decode::protocol_name;
pub use decode::{Decoded, decode};
pub use faults::Faults;
pub use fields::table as field_table;
use objects::{Object, Snapshot};
pub(crate) use snapshot::fault;

/// Folders within folders, at most.
const FOLDER_DEPTH_MAX: usize = 32;
/// Threads that decode, at most.
const THREADS_MAX: usize = 8;
/// Items that a thread decodes in one go. Small enough that the threads stay near each other in the text.
const BLOCK: usize = 64;

/// Loads every object of `paths`: files, folders (all `.yaml`, `.yml` and `.json` below, also `.gz`), or `-` for stdin.
///
/// # Errors
/// Every fault of every file; unreadable files are faults too.
pub fn load(paths: &[PathBuf]) -> Result<Snapshot, Faults> {
    let mut loader = Loader::default();
    for path in paths {
        if path.as_os_str() == "-" {
            loader.read("-", &mut io::stdin().lock());
        } else if path.is_dir() {
            loader.folder(path, 0);
        } else {
            loader.file(path);
        }
    }
    loader.finish()
}

/// Loads the objects of one text; `file` is the name that messages carry.
///
/// # Errors
/// Every fault.
pub fn load_text(file: &str, text: &str) -> Result<Snapshot, Faults> {
    let mut loader = Loader::default();
    loader.read(file, &mut text.as_bytes());
    loader.finish()
}

/// Loads objects that are already trees, as in case files.
///
/// # Errors
/// Every fault.
pub fn load_nodes<'n>(source: &Source, nodes: impl IntoIterator<Item = &'n Node<'n>>) -> Result<Snapshot, Faults> {
    let mut loader = Loader::default();
    for node in nodes {
        loader.object(source, node, None);
    }
    loader.finish()
}

/// Collects objects and faults of all files.
#[derive(Default)]
struct Loader {
    snapshot: Snapshot,
    faults: Vec<Fault>,
    /// Index in the snapshot of what was loaded, by kind, namespace and name, to find what stands twice.
    seen: HashMap<(&'static str, String, String), usize>,
}

impl Loader {
    fn finish(mut self) -> Result<Snapshot, Faults> {
        if self.faults.is_empty() {
            self.snapshot.complete();
            self.faults = self.snapshot.check();
        }
        if !self.faults.is_empty() {
            return Err(Faults(self.faults));
        }
        self.snapshot.warnings.extend(self.snapshot.doubts());
        for (kind, count) in &self.snapshot.foreign {
            if kind.ends_with("NetworkPolicy") || kind == "v1 Endpoints" {
                let why = if kind == "v1 Endpoints" { "EndpointSlices are read instead" } else { "its rules are not enforced" };
                self.snapshot.warnings.push(format!("{count} objects of {kind} are left out: {why}"));
            }
        }
        Ok(self.snapshot)
    }

    fn fault(&mut self, file: &str, message: String) {
        self.faults.push(Fault { file: file.into(), line: 1, column: 1, object: String::new(), path: String::new(), message });
    }

    fn folder(&mut self, folder: &Path, depth: usize) {
        let name = folder.display().to_string();
        if depth > FOLDER_DEPTH_MAX {
            return self.fault(&name, format!("folders nest deeper than {FOLDER_DEPTH_MAX} levels"));
        }
        let entries = std::fs::read_dir(folder).and_then(|entries| entries.map(|e| e.map(|e| e.path())).collect::<io::Result<Vec<_>>>());
        let mut entries = match entries {
            Ok(entries) => entries,
            Err(error) => return self.fault(&name, format!("cannot be read: {error}")),
        };
        entries.sort();
        for path in entries {
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            if name.starts_with('.') {
                continue;
            }
            let plain = name.strip_suffix(".gz").unwrap_or(&name);
            if path.is_dir() {
                self.folder(&path, depth + 1);
            } else if [".yaml", ".yml", ".json"].iter().any(|end| plain.ends_with(end)) {
                self.file(&path);
            }
        }
    }

    fn file(&mut self, path: &Path) {
        let name = path.display().to_string();
        match std::fs::File::open(path) {
            Ok(mut file) => self.read(&name, &mut file),
            Err(error) => self.fault(&name, format!("cannot be read: {error}")),
        }
    }

    fn read(&mut self, name: &str, from: &mut dyn Read) {
        let gz = name.ends_with(".gz");
        let mut bytes = Vec::new();
        // One byte more than is allowed, so that too long a text is noticed however long it is.
        let limit = TEXT_LEN_MAX as u64 + 1;
        let read =
            if gz { MultiGzDecoder::new(from).take(limit).read_to_end(&mut bytes) } else { from.take(limit).read_to_end(&mut bytes) };
        if let Err(error) = read {
            return self.fault(name, format!("cannot be read: {error}"));
        }
        match Source::new(name, bytes) {
            Ok(source) => self.documents(&source),
            Err(fault) => self.faults.push(fault),
        }
    }

    fn documents(&mut self, source: &Source) {
        let first = self.faults.len();
        let (documents, mut faults) = source.documents();
        self.faults.append(&mut faults);
        for document in &documents {
            self.object(source, document, None);
        }
        self.faults[first..].sort();
        self.faults.dedup();
    }

    /// Takes one object, or the items of a list.
    fn object(&mut self, source: &Source, node: &Node<'_>, implied: Option<(&str, &str)>) {
        let text = |key| node.field(key).and_then(Node::str);
        let kind = text("kind").or(implied.map(|i| i.1)).unwrap_or_default();
        if let Some(inner) = kind.strip_suffix("List")
            && let Some(items) = node.field("items")
            && implied.is_none()
        {
            let version = text("apiVersion").unwrap_or_default();
            let implied = (!inner.is_empty()).then_some((version, inner));
            if !matches!(items.value, Value::List(_)) {
                self.faults.push(source.fault(items.at, "items", format!("must be a list, not {}", items.kind())));
            }
            for (item, decoded) in items.list().iter().zip(decode_all(source, items.list(), implied)) {
                match decoded {
                    // A list in a list is one list, as for kubectl.
                    Ok(Decoded::Foreign(_)) if item.field("items").is_some() => self.object(source, item, None),
                    decoded => self.item(decoded),
                }
            }
            return;
        }
        self.item(decode::decode_as(source, node, implied));
    }

    fn item(&mut self, decoded: Result<Decoded, Vec<Fault>>) {
        match decoded {
            Ok(Decoded::Object(object, warnings)) => {
                self.snapshot.warnings.extend(warnings);
                self.take(*object);
            }
            Ok(Decoded::Foreign(kind)) => *self.snapshot.foreign.entry(kind).or_default() += 1,
            Err(mut faults) => self.faults.append(&mut faults),
        }
    }

    /// Adds an object; one that stands twice is fine as long as it says the same.
    fn take(&mut self, object: Object) {
        let meta = object.meta();
        match self.seen.entry((object.kind(), meta.namespace.clone(), meta.name.clone())) {
            Entry::Vacant(place) => {
                place.insert(self.snapshot.push(object));
            }
            Entry::Occupied(before) => {
                if let Err(first) = self.snapshot.holds(&object, *before.get()) {
                    let message = format!("stands twice with different contents; first at {first}");
                    self.faults.push(fault(object.kind(), object.meta(), "", message));
                }
            }
        }
    }
}

/// Decodes items, in their order; many by several threads.
fn decode_all(source: &Source, items: &[Node<'_>], implied: Option<(&str, &str)>) -> Vec<Result<Decoded, Vec<Fault>>> {
    let decode = |item| decode::decode_as(source, item, implied);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX).min(items.len() / BLOCK);
    if threads < 2 {
        return items.iter().map(decode).collect();
    }
    let next = AtomicUsize::new(0);
    let work = || {
        let mut mine = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            match items.chunks(BLOCK).nth(number) {
                Some(block) => mine.push((number, block.iter().map(decode).collect::<Vec<_>>())),
                None => return mine,
            }
        }
    };
    let mut blocks = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut all = work();
        for other in others {
            all.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        all
    });
    blocks.sort_unstable_by_key(|(number, _)| *number);
    blocks.into_iter().flat_map(|(_, decoded)| decoded).collect()
}

#[cfg(test)]
mod tests;
