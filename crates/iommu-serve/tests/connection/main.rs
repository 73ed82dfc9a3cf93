//! A server and clients of it over real sockets.

#![expect(clippy::unwrap_used, reason = "a test reports by panicking, its helpers too")]

mod client;
mod hostile;
mod traces;
mod unit;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use iommu_devices::{Ats, DmaEngine, DmaEngineOptions, Function};
use iommu_serve::protocol::Refusal;
use iommu_serve::{BrokenRule, Machine, Notices, Report, Server};
use vtd_model::{Fault, UnitConfig, UnitConfigBuilder};

/// What a server said.
#[derive(Debug, Default)]
pub(crate) struct Said {
    pub(crate) faults: Mutex<Vec<String>>,
    pub(crate) broken: Mutex<Vec<BrokenRule>>,
    pub(crate) refusals: Mutex<Vec<String>>,
    pub(crate) ended: Mutex<Vec<Option<String>>>,
    pub(crate) placed: Mutex<Vec<u64>>,
}

struct Ear(Arc<Said>);

impl Report for Ear {
    fn broken(&mut self, rule: &BrokenRule) {
        self.0.broken.lock().unwrap().push(rule.clone());
    }
    fn fault(&mut self, fault: &Fault) {
        self.0.faults.lock().unwrap().push(fault.to_string());
    }
}

impl Notices for Said {
    fn connected(&self, _: &str) {}
    fn ended(&self, _: &str, why: Option<&str>) {
        self.ended.lock().unwrap().push(why.map(str::to_owned));
    }
    fn refused(&self, _: &str, refusal: &Refusal) {
        self.refusals.lock().unwrap().push(refusal.to_string());
    }
    fn placed(&self, base: u64) {
        self.placed.lock().unwrap().push(base);
    }
}

fn engine() -> Box<dyn Function> {
    let options = DmaEngineOptions::default();
    let ats = Ats {
        queue_depth: 32,
        page_aligned: true,
    };
    Box::new(DmaEngine::new(DmaEngine::describe(options).ats(ats).build().unwrap(), options).unwrap())
}

/// A served unit with a DMA engine behind it and one beside it, in a directory of its own.
#[derive(Debug)]
pub(crate) struct Rig {
    server: Option<Server>,
    directory: PathBuf,
    pub(crate) said: Arc<Said>,
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self::with(UnitConfig::builder())
    }

    pub(crate) fn with(config: UnitConfigBuilder) -> Self {
        Self::beside(config, engine())
    }

    /// With `function` beside the unit.
    pub(crate) fn beside(config: UnitConfigBuilder, function: Box<dyn Function>) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let directory = std::env::temp_dir().join(format!(
            "iommu-serve-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        ));
        std::fs::create_dir_all(&directory).unwrap();
        let config = config
            .interrupt_remapping(false)
            .extended_interrupts(false)
            .build()
            .unwrap();
        let said = Arc::new(Said::default());
        let server = Machine::new(config, "00:06.0".parse().unwrap(), Box::new(Ear(Arc::clone(&said))))
            .unwrap()
            .with("engine", "00:07.0".parse().unwrap(), engine())
            .unwrap()
            .with_bypass("beside", "00:08.0".parse().unwrap(), function)
            .unwrap()
            .serve(&directory, Arc::clone(&said) as Arc<_>)
            .unwrap();
        Self {
            server: Some(server),
            directory,
            said,
        }
    }

    pub(crate) fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }

    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.sock"))
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        drop(self.server.take());
        // Empty: the server removed its sockets.
        std::fs::remove_dir(&self.directory).unwrap();
    }
}
