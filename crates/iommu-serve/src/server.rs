//! Sockets and the threads that serve them.

use std::fs;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use iommu_devices::{ConfigError, Function};
use iommu_types::SourceId;
use thiserror::Error;
use vtd_model::UnitConfig;

use crate::link::Sender;
use crate::protocol::Refusal;
use crate::remapper::Remapper;
use crate::report::Report;
use crate::session::Session;
use crate::slot::{Role, Slot};
use crate::unit_function::UnitFunction;

/// What people are told about connections.
pub trait Notices: Send + Sync {
    /// A client has connected to `slot`.
    fn connected(&self, slot: &str);
    /// The connection to `slot` is over; `why` is `None` if the client closed it.
    fn ended(&self, slot: &str, why: Option<&str>);
    /// A request on the connection to `slot` was refused.
    fn refused(&self, slot: &str, refusal: &Refusal);
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
            let connection = Arc::default();
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

type Connection = Arc<Mutex<Option<Sender>>>;

/// A socket and its thread.
#[derive(Debug)]
struct Door {
    path: PathBuf,
    connection: Connection,
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

    /// Sleeps for ever, or until a thread dies.
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
            if let Some(sender) = door.connection.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
                sender.close();
            }
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
    connection: Connection,
    notices: Arc<dyn Notices>,
}

impl DoorKeeper {
    fn run(self) {
        while !self.stopping.load(Ordering::SeqCst) {
            match self.listener.accept() {
                Ok((socket, _)) if !self.stopping.load(Ordering::SeqCst) => self.serve(socket),
                Ok(_) => {}
                Err(why) => {
                    self.notices.ended(self.slot.name(), Some(&why.to_string()));
                    return;
                }
            }
        }
    }

    fn serve(&self, socket: UnixStream) {
        let name = self.slot.name();
        let mut session = match Session::new(&self.slot, &self.remapper, socket) {
            Ok(session) => session,
            Err(why) => return self.notices.ended(name, Some(&why.to_string())),
        };
        self.remember(Some(session.sender()));
        self.notices.connected(name);
        let outcome = session.serve(&*self.notices);
        self.remember(None);
        drop(session);
        match outcome {
            Ok(()) => self.notices.ended(name, None),
            Err(why) => self.notices.ended(name, Some(&why.to_string())),
        }
    }

    fn remember(&self, sender: Option<Sender>) {
        *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = sender;
    }
}
