//! Named network namespaces, kept where `ip netns` keeps them: `/run/netns/NAME`, a bind mount of the namespace.
//!
//! A thread, not a process, is in a network namespace. [`Netns::run`] therefore works on a thread of its own that ends
//! with the closure; nothing else in the process notices.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::error::{Error, Result};

/// Where named namespaces live.
const NETNS_DIR: &str = "/run/netns";
/// The namespace of the calling thread.
const THREAD_NETNS: &str = "/proc/thread-self/ns/net";

/// An open network namespace. Holding it keeps the namespace alive; dropping it changes nothing else.
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: File,
}

impl Netns {
    /// Makes a namespace with nothing in it but a loopback interface that is down.
    ///
    /// # Errors
    /// [`Error::Refused`]; `EEXIST` if the name is taken ([`Error::is_exists`]).
    pub fn create(name: &str) -> Result<Self> {
        prepare_dir()?;
        let path = path_of(name);
        let action = || format!("create the network namespace {name}");
        File::create_new(&path).map_err(|e| Error::io(action(), e))?;
        let made = on_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            mount(Some(THREAD_NETNS), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        });
        if let Err(errno) = made {
            // The empty file must not pass for a namespace.
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "cannot remove the file of a namespace that was not made");
            }
            return Err(Error::errno(action(), errno));
        }
        Self::open(name)
    }

    /// Opens a namespace by name.
    ///
    /// # Errors
    /// [`Error::NoSuchNetns`]; [`Error::Refused`].
    pub fn open(name: &str) -> Result<Self> {
        match File::open(path_of(name)) {
            Ok(file) => Ok(Self { name: name.into(), file }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(Error::NoSuchNetns { name: name.into() }),
            Err(e) => Err(Error::io(format!("open the network namespace {name}"), e)),
        }
    }

    /// Opens the namespace of the calling thread; its name is empty.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn current() -> Result<Self> {
        let file = File::open(THREAD_NETNS).map_err(|e| Error::io("open the own network namespace", e))?;
        Ok(Self { name: String::new(), file })
    }

    /// Tells whether a namespace of that name exists.
    pub fn exists(name: &str) -> bool {
        path_of(name).exists()
    }

    /// The names of all namespaces that begin with `prefix`, sorted.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn list(prefix: &str) -> Result<Vec<String>> {
        let entries = match fs::read_dir(NETNS_DIR) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::io("list network namespaces", e)),
        };
        let mut names: Vec<String> =
            entries.flatten().filter_map(|e| e.file_name().into_string().ok()).filter(|n| n.starts_with(prefix)).collect();
        names.sort();
        Ok(names)
    }

    /// Removes the name. The namespace itself goes once the last process has left it. A name that is not there is fine.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn delete(name: &str) -> Result<()> {
        let path = path_of(name);
        let action = || format!("delete the network namespace {name}");
        match umount2(&path, MntFlags::MNT_DETACH) {
            // EINVAL: a file that no namespace is mounted on, left by a crash between the two steps of `create`.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(errno) => return Err(Error::errno(action(), errno)),
        }
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io(action(), e)),
            _ => Ok(()),
        }
    }

    /// The name under which it was opened; empty for [`Netns::current`].
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it, to hand a link over.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// The inode that tells namespaces apart, the same as that of `/proc/PID/ns/net` of processes in it.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn inode(&self) -> Result<u64> {
        Ok(self.file.metadata().map_err(|e| Error::io(format!("look at the network namespace {}", self.name), e))?.ino())
    }

    /// Runs `work` on a thread of its own inside the namespace and waits for it. Processes that it starts are inside too.
    ///
    /// # Errors
    /// [`Error::Refused`] if the namespace cannot be entered; then `work` has not run.
    ///
    /// # Panics
    /// If `work` does.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        on_a_thread(|| {
            self.enter()?;
            Ok(work())
        })
    }

    /// Moves the calling thread into the namespace for good: for programs about to `exec`.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn enter(&self) -> Result<()> {
        setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|e| Error::errno(format!("enter the network namespace {}", self.name), e))
    }
}

fn path_of(name: &str) -> PathBuf {
    Path::new(NETNS_DIR).join(name)
}

fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| match scope.spawn(work).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Makes `/run/netns` a shared mount point, as iproute2 does (`ip/ipnetns.c`, `netns_add`): namespaces made in one mount
/// namespace are then seen, and can be removed, in the others.
fn prepare_dir() -> Result<()> {
    let action = || format!("prepare {NETNS_DIR}");
    fs::create_dir_all(NETNS_DIR).map_err(|e| Error::io(action(), e))?;
    let share = || mount(None::<&str>, NETNS_DIR, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>);
    match share() {
        Ok(()) => Ok(()),
        // Not a mount point yet.
        Err(Errno::EINVAL) => mount(Some(NETNS_DIR), NETNS_DIR, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
            .and_then(|()| share())
            .map_err(|e| Error::errno(action(), e)),
        Err(errno) => Err(Error::errno(action(), errno)),
    }
}
