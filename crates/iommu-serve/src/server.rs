//! Sockets and the threads that serve them.

use std::fs;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use iommu_devices::{ConfigError, Function, ResetKind};
use iommu_types::SourceId;
use thiserror::Error;
use vtd_model::UnitConfig;

use crate::link::{LinkError, Sender};
use crate::protocol::Refusal;
use crate::remapper::Remapper;
use crate::report::Report;
use crate::session::Session;
use crate::slot::{Role, Slot};
use crate::unit_function::UnitFunction;

/// How often in a row a socket may fail to take a client before it is given up.
const ACCEPT_FAILURES_MAX: u32 = 100;
/// How long it rests after such a failure.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What people are told of a panic; its own message is on standard error.
const MISTAKE: &str = "the function panicked, which is a mistake in it";

/// What people are told about connections.
pub trait Notices: Send + Sync {
    /// A client has connected to `slot`.
    fn connected(&self, slot: &str);
    /// The connection to `slot` is over; `why` is `None` if the client closed it.
    fn ended(&self, slot: &str, why: Option<&str>);
    /// A request on the connection to `slot` was refused.
    fn refused(&self, slot: &str, refusal: &Refusal);
    /// The client's firmware has placed the unit's registers at `base`. A DMAR table that names another address is of no use.
    fn placed(&self, base: u64) {
        let _ = base;
    }
}

/// Tells nobody.
impl Notices for () {
    fn connected(&self, _: &str) {}
    fn ended(&self, _: &str, _: Option<&str>) {}
    fn refused(&self, _: &str, _: &Refusal) {}
}

/// Why there is no server.
#[derive(Debug, Error)]
pub enum ServeError {
    /// A socket cannot be made.
    #[error("socket {path}: {why}", path = path.display())]
    Socket {
        /// Where it was to be.
        path: PathBuf,
        /// What the operating system says.
        why: io::Error,
    },
    /// Two functions in one place.
    #[error("{first} and {second} are both at {source_id}: give each function an address of its own")]
    SamePlace {
        /// The function that was there.
        first: String,
        /// The function that was added.
        second: String,
        /// Where.
        source_id: SourceId,
    },
    /// Two functions with one name.
    #[error("two functions are called {0}: their sockets would be the same")]
    SameName(String),
    /// The unit's function cannot be built.
    #[error(transparent)]
    Unit(#[from] ConfigError),
    /// A thread cannot be started.
    #[error("no thread for {0}: {1}")]
    Thread(String, io::Error),
}

/// A remapping unit and functions behind it, before they are served.
#[derive(Debug)]
pub struct Machine {
    remapper: Arc<Remapper>,
    slots: Vec<Arc<Slot>>,
}

impl Machine {
    /// A unit at `source`, with nothing behind it. What happens to it goes to `report`.
    ///
    /// # Errors
    /// [`ServeError::Unit`].
    pub fn new(config: UnitConfig, source: SourceId, report: Box<dyn Report>) -> Result<Self, ServeError> {
        let remapper = Arc::new(Remapper::new(config, report));
        let function = Box::new(UnitFunction::new(Arc::clone(&remapper))?);
        let slot = Slot::new("unit".to_owned(), source, Role::Unit, function);
        Ok(Self {
            remapper,
            slots: vec![Arc::new(slot)],
        })
    }

    /// Adds `function` behind the unit.
    ///
    /// # Errors
    /// [`ServeError::SamePlace`], [`ServeError::SameName`].
    pub fn with(self, name: &str, source: SourceId, function: Box<dyn Function>) -> Result<Self, ServeError> {
        self.add(name, source, Role::Behind, function)
    }

    /// Adds `function` beside the unit: its addresses are the client's. For comparison.
    ///
    /// # Errors
    /// As [`Self::with`].
    pub fn with_bypass(self, name: &str, source: SourceId, function: Box<dyn Function>) -> Result<Self, ServeError> {
        self.add(name, source, Role::Bypass, function)
    }

    fn add(
        mut self,
        name: &str,
        source: SourceId,
        role: Role,
        function: Box<dyn Function>,
    ) -> Result<Self, ServeError> {
        if self.slots.iter().any(|slot| slot.name() == name) {
            return Err(ServeError::SameName(name.to_owned()));
        }
        if let Some(other) = self.slots.iter().find(|slot| slot.source() == source) {
            return Err(ServeError::SamePlace {
                first: other.name().to_owned(),
                second: name.to_owned(),
                source_id: source,
            });
        }
        self.slots
            .push(Arc::new(Slot::new(name.to_owned(), source, role, function)));
        Ok(self)
    }

    /// The unit.
    pub const fn remapper(&self) -> &Arc<Remapper> {
        &self.remapper
    }

    /// The functions, the unit first.
    pub fn slots(&self) -> &[Arc<Slot>] {
        &self.slots
    }

    /// Where the unit's registers are, once the client's firmware has placed them: a host physical address.
    pub fn unit_base(&self) -> Option<u64> {
        let slot = self.slots.first()?;
        let range = slot.function().config().bar_range(0)?;
        Some(range.first().raw())
    }

    /// The requester IDs behind the unit.
    pub fn behind(&self) -> impl Iterator<Item = SourceId> {
        self.slots
            .iter()
            .filter(|slot| slot.role() == Role::Behind)
            .map(|slot| slot.source())
    }

    /// Makes a socket `NAME.sock` in `directory` for each function, and serves them from threads of their own.
    ///
    /// # Errors
    /// [`ServeError::Socket`], [`ServeError::Thread`]; what was begun is ended again.
    pub fn serve(self, directory: &Path, notices: Arc<dyn Notices>) -> Result<Server, ServeError> {
        let mut server = Server {
            machine: Arc::new(self),
            stopping: Arc::default(),
            doors: Vec::new(),
        };
        let slots = server.machine.slots.clone();
        for slot in slots {
            let path = directory.join(format!("{}.sock", slot.name()));
            // A socket that a server left behind stands in the way of a new one; anything else stays.
            if fs::symlink_metadata(&path).is_ok_and(|file| is_socket(&file)) && UnixStream::connect(&path).is_err() {
                let _ = fs::remove_file(&path);
            }
            let listener = UnixListener::bind(&path).map_err(|why| ServeError::Socket {
                path: path.clone(),
                why,
            })?;
            let connection = Arc::<Connection>::default();
            let door = DoorKeeper {
                slot: Arc::clone(&slot),
                remapper: Arc::clone(&server.machine.remapper),
                listener,
                stopping: Arc::clone(&server.stopping),
                connection: Arc::clone(&connection),
                notices: Arc::clone(&notices),
            };
            let thread = thread::Builder::new()
                .name(slot.name().to_owned())
                .spawn(move || door.run())
                .map_err(|why| ServeError::Thread(slot.name().to_owned(), why))?;
            server.doors.push(Door {
                path,
                name: slot.name().to_owned(),
                connection,
                thread: Some(thread),
            });
        }
        Ok(server)
    }
}

fn is_socket(file: &fs::Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt;
    file.file_type().is_socket()
}

/// The client of a door, for those who want to end its connection.
#[derive(Debug, Default)]
struct Connection {
    sender: Mutex<Option<Sender>>,
    /// This side ends it.
    ours: AtomicBool,
}

impl Connection {
    fn sender(&self) -> MutexGuard<'_, Option<Sender>> {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it; false if there is none.
    fn end(&self) -> bool {
        let sender = self.sender();
        let Some(sender) = sender.as_ref() else { return false };
        self.ours.store(true, Ordering::SeqCst);
        sender.close();
        true
    }
}

/// A socket and its thread.
#[derive(Debug)]
struct Door {
    path: PathBuf,
    name: String,
    connection: Arc<Connection>,
    thread: Option<JoinHandle<()>>,
}

/// A machine that is being served. Dropping it ends all connections and removes the sockets.
///
/// Threads sleep until a client says something: a server that nobody talks to does not wake up.
#[derive(Debug)]
pub struct Server {
    machine: Arc<Machine>,
    stopping: Arc<AtomicBool>,
    doors: Vec<Door>,
}

impl Server {
    /// What is served.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The sockets, in the order of the machine's functions.
    pub fn sockets(&self) -> impl Iterator<Item = &Path> {
        self.doors.iter().map(|door| door.path.as_path())
    }

    /// Ends the connection of the function called `name`, and of no other; its socket takes the next client. False if nobody
    /// is connected.
    pub fn hang_up(&self, name: &str) -> bool {
        self.doors
            .iter()
            .find(|door| door.name == name)
            .is_some_and(|door| door.connection.end())
    }

    /// Sleeps for ever, or until a socket can take no client any more.
    pub fn wait(mut self) {
        for door in &mut self.doors {
            if let Some(thread) = door.thread.take() {
                // A thread that panicked has ended as well.
                let _ = thread.join();
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        for door in &mut self.doors {
            door.connection.end();
            // Wakes the thread that waits for a client.
            if let Ok(knock) = UnixStream::connect(&door.path) {
                let _ = knock.shutdown(Shutdown::Both);
            }
            if let Some(thread) = door.thread.take() {
                let _ = thread.join();
            }
            let _ = fs::remove_file(&door.path);
        }
    }
}

/// Waits at one socket and serves one client after the other.
struct DoorKeeper {
    slot: Arc<Slot>,
    remapper: Arc<Remapper>,
    listener: UnixListener,
    stopping: Arc<AtomicBool>,
    connection: Arc<Connection>,
    notices: Arc<dyn Notices>,
}

impl DoorKeeper {
    fn run(self) {
        let mut failures = 0;
        while !self.stopping.load(Ordering::SeqCst) {
            match self.listener.accept() {
                Ok((socket, _)) if !self.stopping.load(Ordering::SeqCst) => {
                    failures = 0;
                    if !self.serve(socket) {
                        return;
                    }
                }
                Ok(_) => {}
                // A client that is gone again, or no descriptor left for it just now.
                Err(_) if failures < ACCEPT_FAILURES_MAX => {
                    failures += 1;
                    thread::sleep(ACCEPT_PAUSE);
                }
                Err(why) => {
                    self.notices.ended(self.slot.name(), Some(&why.to_string()));
                    return;
                }
            }
        }
    }

    /// Serves one client to its end. False if the function can serve no other.
    fn serve(&self, socket: UnixStream) -> bool {
        let name = self.slot.name();
        // What a panic leaves behind is reset below, or not used any more.
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| self.converse(socket)));
        *self.connection.sender() = None;
        let ours = self.connection.ours.swap(false, Ordering::SeqCst);
        match outcome {
            Ok(_) if ours => self.notices.ended(name, Some("this side ended it")),
            Ok(Ok(())) => self.notices.ended(name, None),
            Ok(Err(why)) => self.notices.ended(name, Some(&why.to_string())),
            Err(_) => {
                let usable = self.recover();
                let then = if usable {
                    "the next client is served"
                } else {
                    "it serves nobody any more"
                };
                self.notices.ended(name, Some(&format!("{MISTAKE}: {then}")));
                return usable;
            }
        }
        true
    }

    fn converse(&self, socket: UnixStream) -> Result<(), LinkError> {
        let mut session = Session::new(&self.slot, &self.remapper, socket)?;
        *self.connection.sender() = Some(session.sender());
        self.notices.connected(self.slot.name());
        session.serve(&*self.notices)
    }

    /// Makes the function usable after a panic, if it can be.
    ///
    /// A function is reset: its next client finds it as after power-on. The unit stays as it is, since without its tables it
    /// would let the others' addresses pass; its memory went with the connection, so what is not cached is blocked until a
    /// client resets it.
    fn recover(&self) -> bool {
        if self.slot.role() == Role::Unit {
            return true;
        }
        panic::catch_unwind(AssertUnwindSafe(|| {
            self.slot.function().reset(ResetKind::Conventional);
            self.remapper.forget_device(self.slot.source());
        }))
        .is_ok()
    }
}
